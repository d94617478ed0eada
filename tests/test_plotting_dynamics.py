import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nls import plotting
from nls.plotting_dynamics import mark_epochs, plot_epochs

TABLE = pd.DataFrame(
    {"seed": [0] * 4 + [1] * 4, "epoch": [1, 2, 3, 4] * 2, "value": [0.0, 1, 2, 3, 2, 3, np.nan, np.nan]}
)


@pytest.fixture
def ax():
    plotting.set_theme()
    fig, ax = plt.subplots()
    yield ax
    fig.canvas.draw()
    plt.close(fig)


def test_the_mean_ends_with_the_first_seed_and_a_cross_says_where(ax):
    assert plot_epochs(ax, TABLE, "value", color="#112233", style="--", marker="s", label="both") is ax
    first, second, cross, mean = ax.lines
    assert first.get_ydata().tolist() == [0, 1, 2, 3]
    np.testing.assert_equal(second.get_ydata(), [2, 3, np.nan, np.nan])
    assert (cross.get_xdata()[0], cross.get_ydata()[0], cross.get_marker()) == (2, 3, "X")
    assert mean.get_xydata().tolist() == [[1, 1], [2, 2]]
    assert (mean.get_linestyle(), mean.get_marker(), mean.get_label()) == ("--", "s", "both")
    assert mean.get_linewidth() > 2 * first.get_linewidth()
    assert {line.get_color() for line in ax.lines} == {"#112233"}


def test_epochs_are_put_in_order_and_seeds_can_be_left_out(ax):
    plot_epochs(ax, TABLE[TABLE["seed"] == 0].iloc[::-1], "value", color="black", seeds=False)
    assert len(ax.lines) == 1
    assert ax.lines[0].get_xydata().tolist() == [[1, 0], [2, 1], [3, 2], [4, 3]]


def test_a_seed_without_any_value_leaves_no_mean_and_no_cross(ax):
    plot_epochs(ax, TABLE.assign(value=TABLE["value"].where(TABLE["seed"] == 0)), "value", color="black")
    assert [len(line.get_xdata()) for line in ax.lines] == [4, 4, 0]


def test_tables_that_do_not_fit_are_refused(ax):
    with pytest.raises(ValueError, match="columns seed, epoch and nll, got none called nll"):
        plot_epochs(ax, TABLE, "nll", color="black")
    with pytest.raises(ValueError, match="one row for each seed and epoch, got several"):
        plot_epochs(ax, pd.concat([TABLE, TABLE]), "value", color="black")
    assert not ax.lines


def test_changes_are_marked_at_their_epochs(ax):
    ax.set(xlim=(0, 10), ylim=(-5, 5))
    assert mark_epochs(ax, {2.5: "step / 10", 7: "LS"}, height=0.5) is ax
    assert [line.get_xdata()[0] for line in ax.lines] == [2.5, 7]
    assert [text.get_text() for text in ax.texts] == ["step / 10", "LS"]
    assert [text.xy for text in ax.texts] == [(2.5, 0.5), (7, 0.5)]
    assert ax.get_xlim() == (0, 10)
    with pytest.raises(ValueError, match="height must be"):
        mark_epochs(ax, {1: "late"}, height=1.5)
