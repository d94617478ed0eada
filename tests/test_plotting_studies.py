import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from nls import plotting
from nls.plotting_studies import log_rate_axis, plot_curves_from_start, plot_effects_by_rate, rate_position
from nls.stats import Interval


@pytest.fixture
def ax():
    plotting.set_theme()
    fig, ax = plt.subplots()
    yield ax
    fig.canvas.draw()
    plt.close(fig)


EFFECTS = {
    0.4: Interval(-1.0, -2.0, 0.0, 3), -0.8: Interval(1.0, 0.5, 1.5, 3),
    -2.0: Interval(0.3, math.nan, math.nan, 1), -6.0: Interval(-30.0, -40.0, -20.0, 3),
}  # fmt: skip


def test_places_are_ratios_of_the_factor_of_the_label():
    assert rate_position(0.0) == 0
    assert rate_position(0.5) == pytest.approx(math.log(2))
    assert rate_position(-3.0) - rate_position(-1.0) == pytest.approx(rate_position(-1.0))
    with pytest.raises(ValueError, match="smooth_rate must be"):
        rate_position(1.0)
    with pytest.raises(TypeError, match="smooth_rate must be"):
        rate_position("0.4")


def test_the_axis_names_each_rate_at_its_place_and_shades_the_positive_side(ax):
    assert log_rate_axis(ax, [0.4, -2.0, 0.0], label="r") is ax
    assert ax.get_xticks().tolist() == pytest.approx([-math.log(3), 0.0, -math.log(0.6)])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["\N{MINUS SIGN}2", "0", "0.4"]
    assert ax.get_xlabel() == "r"
    (patch,) = ax.patches
    assert patch.get_x() == 0
    assert ax.get_xlim()[0] < -math.log(3)


def test_effects_are_drawn_at_their_rates_with_zero_at_cross_entropy(ax):
    assert plot_effects_by_rate(ax, EFFECTS, color="#112233", label="a line") is ax
    line, *rest = ax.lines
    assert line.get_xdata() == pytest.approx([rate_position(rate) for rate in (-6.0, -2.0, -0.8, 0.0, 0.4)])
    assert list(line.get_ydata()) == [-30.0, 0.3, 1.0, 0.0, -1.0]
    assert line.get_label() == "a line"
    bars = [part for part in rest if len(part.get_xdata()) == 2]
    assert [list(bar.get_ydata()) for bar in bars] == [[-40.0, -20.0], [0.5, 1.5], [0.0, 0.0], [-2.0, 0.0]]
    (single,) = [part for part in rest if len(part.get_xdata()) == 1]  # a single run is hollow
    assert single.get_markerfacecolor() == "white"
    assert all(to_hex(part.get_color()) == "#112233" for part in ax.lines)


def test_a_mean_outside_of_the_frame_has_no_interval(ax):
    plot_effects_by_rate(ax, EFFECTS, color="#112233", limits=(-5, 2), dim=True)
    assert ax.get_ylim() == (-5, 2)
    line, *rest = ax.lines
    assert -30.0 in line.get_ydata()
    assert line.get_markerfacecolor() == "white"
    assert all(min(part.get_ydata()) >= -5 for part in rest)


def test_lines_can_be_moved_apart_but_meet_at_zero(ax):
    plot_effects_by_rate(ax, {0.4: EFFECTS[0.4]}, color="#112233", shift=0.1)
    assert ax.lines[0].get_xdata() == pytest.approx([0.0, rate_position(0.4) + 0.1])


STYLES = {"one": {"color": "#112233"}, "two": {"color": "#445566"}}


def test_curves_share_their_start(ax):
    curves = {"one": np.array([0.1, 0.5, 0.7]), "two": np.array([0.1, 0.5, 0.3])}
    assert plot_curves_from_start(ax, curves, 2, STYLES) is ax
    one, two, shared, _ = ax.lines
    assert list(one.get_xdata()) == list(two.get_xdata()) == [2, 3]
    assert list(one.get_ydata()) == [0.5, 0.7]
    assert list(shared.get_xdata()) == [1, 2]
    assert list(shared.get_ydata()) == [0.1, 0.5]
    assert ax.get_legend_handles_labels()[1] == ["one", "two"]


def test_curves_that_do_not_share_it_are_refused(ax):
    with pytest.raises(ValueError, match="curves must be equal in the 2 shared epochs, 'two' differs"):
        plot_curves_from_start(ax, {"one": [0.1, 0.5, 0.7], "two": [0.1, 0.4, 0.3]}, 2, STYLES)
    with pytest.raises(ValueError, match="curves must be longer than the 3 shared epochs, got 3 for 'one'"):
        plot_curves_from_start(ax, {"one": [0.1, 0.5, 0.7]}, 3, STYLES)
    with pytest.raises(ValueError, match="start must be"):
        plot_curves_from_start(ax, {"one": [0.1, 0.5, 0.7]}, 0, STYLES)
