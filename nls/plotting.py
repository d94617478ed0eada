"""The theme and the figures: arrays and tables in, Axes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from nls.stats import Interval, mean_interval

REGIME_COLORS = {"LS": "#b3560c", "CE": "#333333", "NLS": "#0b6fa4"}
"""Colours of a positive rate, of plain cross entropy and of a negative rate, distinct in hue and in lightness."""

REGIME_MARKERS = {"LS": "s", "CE": "o", "NLS": "^"}


def set_theme() -> None:
    """Set the book's look: white ground, so that a figure reads the same on a light and on a dark page.

    Examples:
        >>> set_theme()
        >>> mpl.rcParams["axes.spines.top"]
        False
    """
    sns.set_theme(
        style="ticks",
        font="DejaVu Sans",
        rc={
            "figure.dpi": 130,
            "savefig.dpi": 130,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "lines.markersize": 4.5,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "grid.color": "#e6e6e6",
            "svg.hashsalt": "nls",
        },
    )


def regime(smooth_rate: float) -> str:
    """Return ``"LS"``, ``"CE"`` or ``"NLS"`` for a positive, zero or negative rate.

    Examples:
        >>> regime(0.2), regime(0.0), regime(-4.0)
        ('LS', 'CE', 'NLS')
    """
    return "LS" if smooth_rate > 0 else "NLS" if smooth_rate < 0 else "CE"


def noise_colors(noise_rates: Sequence[float]) -> dict[float, tuple]:
    """Return one colour for each noise rate, darker as the noise grows.

    Examples:
        >>> sorted(noise_colors([0.0, 0.4]))
        [0.0, 0.4]
    """
    shades = sns.color_palette("flare", len(noise_rates))
    return dict(zip(sorted(noise_rates), shades, strict=True))


def format_rate(rate: float) -> str:
    """Return a rate as an axis label: no trailing zeros, a real minus sign.

    Examples:
        >>> format_rate(0.4), format_rate(0.0), format_rate(-8.0) == chr(0x2212) + "8"
        ('0.4', '0', True)
    """
    return f"{rate:g}".replace("-", "\N{MINUS SIGN}")


def rate_axis(ax: Axes, rates: Sequence[float], *, label: str = "smooth rate r") -> dict[float, int]:
    """Make x an ordinal axis of rates, rising to the right, with the positive side shaded.

    Args:
        ax: Where to draw.
        rates: The rates of the grid, in any order.
        label: The axis label.

    Returns:
        The position of each rate.
    """
    places = {rate: i for i, rate in enumerate(sorted(rates))}
    ax.set_xticks(list(places.values()), [format_rate(rate) for rate in places], rotation=60)
    ax.set_xlim(-0.5, len(places) - 0.5)
    first_positive = min((place for rate, place in places.items() if rate > 0), default=len(places))
    ax.axvspan(first_positive - 0.5, len(places) - 0.5, color=REGIME_COLORS["LS"], alpha=0.07, lw=0, zorder=0)
    if 0.0 in places:
        ax.axvline(places[0.0], color=REGIME_COLORS["CE"], lw=0.8, ls=":", zorder=1)
    ax.set_xlabel(label)
    return places


def plot_by_rate(ax: Axes, table: pd.DataFrame, value: str, *, test_ratio: float = 0.0, star: bool = True) -> Axes:
    """Draw the mean of ``value`` against the rate, one line for each noise rate, with 95 % intervals over seeds.

    Args:
        ax: Where to draw.
        table: Rows of one data set from :func:`nls.run_grid`.
        value: The column to draw, such as ``"accuracy_last"``.
        test_ratio: See :func:`nls.stats.mean_interval`.
        star: Whether to mark the best mean of each line.

    Returns:
        ``ax``.
    """
    places = rate_axis(ax, table["smooth_rate"].unique())
    colors = noise_colors(table["noise_rate"].unique())
    for noise, rows in table.groupby("noise_rate"):
        groups = rows.dropna(subset=[value]).groupby("smooth_rate")[value]
        curve = {rate: mean_interval(values, test_ratio=test_ratio) for rate, values in groups}
        x, mean = [places[rate] for rate in curve], np.array([i.mean for i in curve.values()])
        ax.plot(x, mean, color=colors[noise], marker="o", ms=3.2, label=f"{noise:g}")
        ax.fill_between(
            x, [i.low for i in curve.values()], [i.high for i in curve.values()], color=colors[noise], alpha=0.18, lw=0
        )
        if star:
            best = int(mean.argmax())
            ax.plot(x[best], mean[best], "*", color=colors[noise], ms=12, mec="white", mew=0.8, zorder=4)
    return ax


def plot_intervals(ax: Axes, effects: Mapping[str, Interval], colors: Sequence[str] | None = None) -> Axes:
    """Draw one interval a line, top to bottom, with a line at zero; a single run is grey and hollow.

    Args:
        ax: Where to draw.
        effects: Label to interval.
        colors: One colour for each; grey by default.

    Returns:
        ``ax``.
    """
    colors = colors or ["#333333"] * len(effects)
    for i, (effect, color) in enumerate(zip(effects.values(), colors, strict=True)):
        if effect.n == 1:
            ax.plot(effect.mean, i, "o", color="#999999", mfc="white")
            continue
        ax.plot([effect.low, effect.high], [i, i], color=color, lw=2.2, solid_capstyle="round")
        clear = effect.above_zero or effect.below_zero
        ax.plot(effect.mean, i, "o", color=color, mfc=color if clear else "white", ms=6)
    ax.axvline(0, color="#333333", lw=0.9)
    ax.set_yticks(range(len(effects)), list(effects))
    ax.set_ylim(len(effects) - 0.5, -0.5)
    ax.grid(axis="x")
    ax.grid(axis="y", visible=False)
    return ax


def plot_states(ax: Axes, table: pd.DataFrame) -> Axes:
    """Draw how much of a grid is trained: a square for each rate and noise rate, with "trained / all" written on it.

    A complete square is filled, a part-trained one pale, one without any result white with a dashed edge; a cross says
    that a run of it diverged.

    Args:
        ax: Where to draw.
        table: Rows of :meth:`nls.records.RecordStore.table`, with ``smooth_rate``, ``noise_rate`` and ``state``.

    Returns:
        ``ax``.
    """
    places = rate_axis(ax, table["smooth_rate"].unique())
    noise_rates = sorted(table["noise_rate"].unique())
    for (rate, noise), states in table.groupby(["smooth_rate", "noise_rate"])["state"]:
        done, count = int((states != "missing").sum()), len(states)
        x, y = places[rate], noise_rates.index(noise)
        face = "#1d6996" if done == count else "#bcd7e5" if done else "white"
        edge = {"ls": "--", "ec": "#8a8a8a"} if not done else {"ec": "white"}
        ax.add_patch(mpl.patches.Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fc=face, lw=1.0, **edge))
        cross = " \N{MULTIPLICATION SIGN}" if (states == "diverged").any() else ""
        color = "white" if done == count else "#222222"
        ax.text(x, y, f"{done}/{count}{cross}", ha="center", va="center", size=8, color=color)
    ax.set(xlim=(-0.6, len(places) - 0.4), ylim=(-0.6, len(noise_rates) - 0.4), ylabel="noise rate")
    ax.set_yticks(range(len(noise_rates)), [format_rate(noise) for noise in noise_rates])
    ax.grid(visible=False)
    return ax


def plot_heat(
    ax: Axes,
    frame: pd.DataFrame,
    *,
    fmt: str = ".3f",
    best: bool = True,
    cmap: str = "crest",
    vmin: float | None = None,
    vmax: float | None = None,
) -> Axes:
    """Draw a table of rates by noise as numbers on colours, the best of each column in a box.

    Args:
        ax: Where to draw.
        frame: Index of smooth rates, columns of noise rates; drawn with the largest rate on top.
        fmt: Format of the numbers.
        best: Whether to box the largest value of each column.
        cmap: Name of a seaborn palette.
        vmin: Value of the first colour.
        vmax: Value of the last colour.

    Returns:
        ``ax``.
    """
    frame = frame.sort_index(ascending=False)
    sns.heatmap(
        frame,
        ax=ax,
        annot=True,
        fmt=fmt,
        cmap=sns.color_palette(cmap, as_cmap=True),
        cbar=False,
        annot_kws={"size": 8},
        vmin=vmin,
        vmax=vmax,
        linewidths=0.5,
        linecolor="white",
    )
    ax.set_yticklabels([format_rate(rate) for rate in frame.index], rotation=0)
    ax.set(xlabel="noise rate", ylabel="smooth rate r")
    ax.grid(visible=False)
    if best:
        for column, name in enumerate(frame.columns):
            row = int(frame[name].to_numpy().argmax())
            ax.add_patch(
                mpl.patches.Rectangle((column + 0.03, row + 0.04), 0.94, 0.92, fill=False, lw=2.2, ec="#ffb347")
            )
    return ax


def plot_best_rates(
    ax: Axes, rates: Sequence[float], best: Mapping[float, tuple[float, list[float]]], theory: Mapping[float, float]
) -> Axes:
    """Draw the best rate for each noise rate, the rates tied with it, and the theory's rate as a dashed line.

    Args:
        ax: Where to draw.
        rates: The rates of the grid.
        best: Noise rate to what :func:`nls.stats.tied_levels` returns.
        theory: Noise rate to rate; placed between the ordinal positions of its neighbours.

    Returns:
        ``ax``.
    """
    places = {rate: i for i, rate in enumerate(sorted(rates))}
    for noise, (rate, tied) in best.items():
        ax.plot([noise] * 2, [places[min(tied)], places[max(tied)]], color="#8a8a8a", lw=6, alpha=0.35)
        ax.plot(noise, places[rate], REGIME_MARKERS[regime(rate)], color=REGIME_COLORS[regime(rate)], ms=7, zorder=3)
    line = np.interp(list(theory.values()), list(places), list(places.values()))
    ax.plot(list(theory), line, color="#333333", ls="--", lw=1.4, zorder=2)
    ax.axhspan(places[0.0] + 0.5, len(places) - 0.5, color=REGIME_COLORS["LS"], alpha=0.07, lw=0)
    ax.set_yticks(list(places.values()), [format_rate(rate) for rate in places])
    ax.set(xlabel="noise rate", ylim=(-0.5, len(places) - 0.5))
    return ax


def plot_rules(
    ax: Axes, table: pd.DataFrame, rates: Sequence[float], rules: Mapping[str, str], *, test_ratio: float = 0.0
) -> Axes:
    """Draw test accuracy under each rule for picking the epoch, one line for each rate, with 95 % intervals.

    Args:
        ax: Where to draw.
        table: Rows of one data set and one noise rate from :func:`nls.run_grid`.
        rates: The rates to draw.
        rules: Rule to its label, in the order of the axis.
        test_ratio: See :func:`nls.mean_interval`.

    Returns:
        ``ax``.
    """
    for i, rate in enumerate(rates):
        rows = table[table["smooth_rate"] == rate]
        points = [mean_interval(rows[f"accuracy_{rule}"].dropna(), test_ratio=test_ratio) for rule in rules]
        reach = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
        style = {"color": REGIME_COLORS[regime(rate)], "marker": "sovD^"[i % 5], "ls": ["-", "--", "-.", ":"][i % 4]}
        x = np.arange(len(rules)) + 0.05 * (i - (len(rates) - 1) / 2)
        ax.errorbar(x, [p.mean for p in points], reach, label=f"r = {format_rate(rate)}", **style)
    ax.set_xticks(range(len(rules)), list(rules.values()))
    ax.set_ylabel("test accuracy")
    return ax


def plot_critical_difference(
    ax: Axes, ranks: Mapping[float, float], groups: Sequence[Sequence[float]], *, difference: float | None = None
) -> Axes:
    """Draw the mean rank of each rate on a line, and a bar for each group of rates that a test cannot tell apart.

    Args:
        ax: Where to draw; about a third of an inch in height for each pair of rates, and an inch more.
        ranks: Mean rank by smooth rate, as :func:`nls.ranks.mean_ranks` returns it; 1 is best and drawn on the left.
        groups: The groups, such as those of :func:`nls.ranks.tied_groups`.
        difference: Length of the critical difference, drawn as a bar of its own.

    Returns:
        ``ax``.
    """
    places = dict(sorted(dict(ranks).items(), key=lambda item: item[1]))
    count, top = len(places), 0.9 + 0.45 * len(groups)
    half = (count + 1) // 2
    for i, (rate, rank) in enumerate(places.items()):
        left, color = i < half, REGIME_COLORS[regime(rate)]
        depth, end = top + (i if left else count - 1 - i), 0.8 if left else count + 0.2
        ax.plot([rank, rank, end], [0, depth, depth], color=color, lw=1.1)
        ax.plot(rank, 0, REGIME_MARKERS[regime(rate)], color=color, ms=7, clip_on=False, zorder=4)
        label = f"r = {format_rate(rate)}  ({rank:.2f})"
        side = "right" if left else "left"
        ax.text(end + (-0.1 if left else 0.1), depth, label, ha=side, va="center", color=color, size=10)
    for i, group in enumerate(groups):
        ends = [places[rate] for rate in group]
        ax.plot([min(ends) - 0.06, max(ends) + 0.06], [0.55 + 0.45 * i] * 2, color="#222222", lw=4.5)
    bottom = top + half - 0.4
    if difference is not None:
        middle, bottom = (count + 1) / 2, bottom + 0.9
        ax.plot([middle - difference / 2, middle + difference / 2], [bottom - 0.5] * 2, "|-", color="#777777", ms=9)
        ax.text(middle, bottom - 0.75, f"critical difference {difference:.2f}", ha="center", color="#555555", size=9.5)
    ax.set(xlim=(-1.4, count + 2.4), ylim=(bottom, 0), yticks=[])
    ax.set_xticks(range(1, count + 1))
    ax.xaxis.tick_top()
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.spines["top"].set_visible(True)
    ax.spines["top"].set_bounds(1, count)
    ax.grid(visible=False)
    return ax


def glue(name: str, value: object) -> None:
    """Store a value under a name, for the prose to show it: ``{glue:text}`name:.2f```.

    Does what MyST-NB's function of this name does, without needing MyST-NB.

    Args:
        name: Unique in the book; by convention ``chapter:name``.
        value: A number or a text.
    """
    from IPython.display import display

    value = float(value) if isinstance(value, (np.floating, float)) else value
    prefix = "application/papermill.record/"
    display(
        {prefix + "text/plain": repr(value)}, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": prefix}}
    )
