import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nls import plotting
from nls.stats import Interval


@pytest.fixture
def ax():
    plotting.set_theme()
    fig, ax = plt.subplots()
    yield ax
    fig.canvas.draw()
    plt.close(fig)


TABLE = pd.DataFrame(
    [
        {"noise_rate": e, "smooth_rate": r, "seed": s, "accuracy_last": 0.9 - e * (r + 2) / 10 + 0.01 * s}
        for e in (0.0, 0.4)
        for r in (-1.0, 0.0, 0.4)
        for s in range(3)
    ]
).assign(accuracy_clean_test=lambda t: t["accuracy_last"] + 0.05)


def test_rates_rise_to_the_right_whatever_their_order(ax):
    places = plotting.rate_axis(ax, [0.4, -8.0, 0.0])
    assert places == {-8.0: 0, 0.0: 1, 0.4: 2}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["\N{MINUS SIGN}8", "0", "0.4"]


def test_lines_show_the_means_and_stars_the_best(ax):
    plotting.plot_by_rate(ax, TABLE, "accuracy_last")
    lines = {line.get_label(): line for line in ax.get_lines() if line.get_label() in ("0", "0.4")}
    assert lines["0.4"].get_ydata() == pytest.approx([0.87, 0.83, 0.814])
    stars = [line for line in ax.get_lines() if line.get_marker() == "*"]
    assert [float(star.get_xdata()[0]) for star in stars] == [0.0, 0.0]
    assert len(ax.collections) == 2  # a band for each line


def test_an_interval_that_excludes_zero_is_filled_and_a_single_run_is_grey(ax):
    effects = {
        "clear": Interval(0.2, 0.1, 0.3, 5),
        "unclear": Interval(0.1, -0.1, 0.3, 5),
        "single": Interval(0.1, np.nan, np.nan, 1),
    }
    plotting.plot_intervals(ax, effects, ["#112233"] * 3)
    dots = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() for dot in dots] == ["#112233", "white", "white"]
    assert dots[2].get_color() == "#999999"
    assert [label.get_text() for label in ax.get_yticklabels()] == list(effects)
    assert ax.yaxis_inverted()


def test_a_heat_map_boxes_the_best_of_each_column_with_the_largest_rate_on_top(ax):
    frame = TABLE.pivot_table(index="smooth_rate", columns="noise_rate", values="accuracy_last")
    frame.loc[0.4, 0.0] = 1.0
    plotting.plot_heat(ax, frame)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.4", "0", "\N{MINUS SIGN}1"]
    assert [int(box.get_y()) for box in ax.patches] == [0, 2]


def test_best_rates_carry_the_marker_of_their_regime(ax):
    best = {0.0: (0.4, [0.0, 0.4]), 0.4: (-1.0, [-1.0])}
    plotting.plot_best_rates(ax, [-1.0, 0.0, 0.4], best, {0.0: 0.0, 0.4: -0.5})
    markers = [line.get_marker() for line in ax.get_lines() if line.get_marker() not in ("None", "")]
    assert markers == ["s", "^"]
    theory = next(line for line in ax.get_lines() if line.get_linestyle() == "--")
    assert theory.get_ydata() == pytest.approx([1.0, 0.5])


def test_rules_are_drawn_in_their_order(ax):
    plotting.plot_rules(
        ax, TABLE[TABLE["noise_rate"] == 0.4], [0.0], {"last": "last epoch", "clean_test": "clean test"}
    )
    assert [label.get_text() for label in ax.get_xticklabels()] == ["last epoch", "clean test"]
    assert ax.get_lines()[0].get_ydata() == pytest.approx([0.83, 0.88])


def test_glue_stores_plain_numbers(capsys, monkeypatch):
    import IPython.display

    seen = {}
    monkeypatch.setattr(
        IPython.display, "display", lambda data, raw, metadata: seen.update(data=data, meta=metadata["scrapbook"])
    )
    plotting.glue("name", np.float64(0.5))
    assert seen["data"] == {"application/papermill.record/text/plain": "0.5"}
    assert seen["meta"]["name"] == "name"


def test_states_say_how_much_is_trained(ax):
    states = ["done", "done", "missing", "diverged", "missing", "missing"]
    table = pd.DataFrame({"smooth_rate": [0.0, 0.0, -1.0, -1.0, 0.4, 0.4], "noise_rate": 0.2, "state": states})
    plotting.plot_states(ax, table)
    assert {text.get_text() for text in ax.texts} == {"2/2", "1/2 \N{MULTIPLICATION SIGN}", "0/2"}
    assert len({patch.get_facecolor() for patch in ax.patches if patch.get_width() == 0.92}) == 3


def test_a_critical_difference_is_drawn_to_scale(ax):
    ranks = {0.4: 2.8, -8.0: 1.2, 0.0: 2.0}
    plotting.plot_critical_difference(ax, ranks, [[-8.0, 0.0], [0.0, 0.4]], difference=0.9)
    assert [text.get_text() for text in ax.texts] == [
        "r = \N{MINUS SIGN}8  (1.20)", "r = 0  (2.00)", "r = 0.4  (2.80)", "critical difference 0.90"
    ]  # fmt: skip
    assert [text.get_ha() for text in ax.texts[:3]] == ["right", "right", "left"]
    dots = {line.get_marker(): float(line.get_xdata()[0]) for line in ax.get_lines() if line.get_marker() in "so^"}
    assert dots == {"^": 1.2, "o": 2.0, "s": 2.8}
    bars = [line.get_xdata() for line in ax.get_lines() if line.get_linewidth() == 4.5]
    assert [[round(float(x), 2) for x in bar] for bar in bars] == [[1.14, 2.06], [1.94, 2.86]]
    (scale,) = (line for line in ax.get_lines() if line.get_marker() == "|")
    assert np.ptp(scale.get_xdata()) == pytest.approx(0.9)
    depths = [text.get_position()[1] for text in ax.texts[:3]]
    assert len({*depths[:2]}) == 2
    assert max(bar.get_ydata()[0] for bar in ax.get_lines() if bar.get_linewidth() == 4.5) < min(depths)


def test_without_a_critical_difference_there_is_no_scale(ax):
    plotting.plot_critical_difference(ax, {0.0: 1.0, -1.0: 2.0}, [])
    assert not [line for line in ax.get_lines() if line.get_marker() == "|"]
    assert len(ax.texts) == 2
