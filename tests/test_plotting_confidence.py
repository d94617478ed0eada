import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from nls import plotting
from nls.calibration import reliability_curve
from nls.confidence import risk_coverage
from nls.plotting_confidence import plot_reliability, plot_risk_coverage


@pytest.fixture
def ax():
    plotting.set_theme()
    fig, ax = plt.subplots()
    yield ax
    fig.canvas.draw()
    plt.close(fig)


@pytest.fixture
def curve():
    """Twelve predictions at 0.62, half of them right, four right ones at 0.95 and one at 0.55."""
    top = torch.tensor([0.62] * 12 + [0.95] * 4 + [0.55])
    return reliability_curve(torch.stack([top, 1 - top], 1), torch.tensor([0, 1] * 6 + [0] * 5), num_bins=10)


def test_reliability_has_a_marker_for_each_full_bin_and_a_bar_for_every_bin(ax, curve):
    assert plot_reliability(ax, curve, color="#112233", least=4, label="some") is ax
    line = ax.containers[1].lines[0]
    assert line.get_xdata() == pytest.approx([0.62, 0.95], abs=1e-6)
    assert line.get_ydata() == pytest.approx([0.5, 1.0])
    ends = ax.containers[1].lines[2][0].get_segments()
    assert [float(end) for segment in ends for end in segment[:, 1]] == pytest.approx(
        [float(v) for pair in zip(curve.low[[6, 9]], curve.high[[6, 9]], strict=True) for v in pair]
    )
    bars = {round(bar.get_x(), 1): bar.get_height() for bar in ax.patches if bar.get_height()}
    assert bars == {0.5: pytest.approx(0.16 / 12), 0.6: pytest.approx(0.16), 0.9: pytest.approx(0.16 / 3)}
    assert ax.get_legend_handles_labels()[1] == ["some"]


def test_reliability_refuses_a_curve_without_a_full_bin(ax, curve):
    with pytest.raises(ValueError, match="a bin with 13 predictions or more, got 12 at most"):
        plot_reliability(ax, curve, color="#112233", least=13)
    with pytest.raises(ValueError, match="least must be at least 1, got 0"):
        plot_reliability(ax, curve, color="#112233", least=0)


def test_risk_is_the_mean_of_the_runs_on_a_common_axis(ax):
    runs = [
        risk_coverage(torch.tensor([0.9, 0.8]), torch.tensor([True, False])),
        risk_coverage(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([False, True, True, True])),
    ]
    assert plot_risk_coverage(ax, runs, color="#112233", label="two runs") is ax
    shares, risk = ax.lines[0].get_data()
    assert len(shares) == 100
    at = dict(zip(np.round(shares, 2).tolist(), risk, strict=True))
    assert at[0.25] == pytest.approx((0 + 1) / 2)
    assert at[0.5] == pytest.approx((0 + 1 / 2) / 2)
    assert at[1.0] == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_risk_needs_a_run(ax):
    with pytest.raises(ValueError, match="at least one curve, got none"):
        plot_risk_coverage(ax, [], color="#112233")
