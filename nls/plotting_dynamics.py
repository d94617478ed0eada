"""Figures over epochs: what was measured after each of them, every seed faint and their mean bold."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from nls import _checks

_MARKS = 9  # markers on a line, so that lines can be told apart without their colours


def plot_epochs(
    ax: Axes,
    table: pd.DataFrame,
    value: str,
    *,
    color: str,
    style: str = "-",
    marker: str = "",
    label: str = "",
    seeds: bool = True,
) -> Axes:
    """Draw a value over epochs, a faint line for each seed and a bold one for their mean.

    The mean ends where the first seed does, as a mean over those that are left would flatter; a cross marks the last
    epoch of each run that ends before the others.

    Args:
        ax: Where to draw.
        table: One row for each seed and epoch, as of :func:`nls.studies.load_curves`; what was not measured, or after
            a divergence, is not a number.
        value: The column to draw.
        color: Of all lines.
        style: Of the mean.
        marker: On the mean, at a few epochs.
        label: Of the mean, for a legend.
        seeds: Whether to draw the seeds too.

    Returns:
        ``ax``.

    Raises:
        ValueError: If a column is missing, or a seed has an epoch twice.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> table = pd.DataFrame({"seed": [0, 0, 1, 1], "epoch": [1, 2, 1, 2], "accuracy": [0.5, 0.7, 0.6, 0.9]})
        >>> ax = plot_epochs(plt.figure().gca(), table, "accuracy", color="black")
        >>> ax.lines[-1].get_ydata().round(2).tolist()
        [0.55, 0.8]
    """
    missing = {"seed", "epoch", value} - set(table.columns)
    if missing:
        raise ValueError(f"table must have the columns seed, epoch and {value}, got none called {', '.join(missing)}")
    if table.duplicated(["seed", "epoch"]).any():
        raise ValueError("table must have one row for each seed and epoch, got several; filter it by the other factors")
    runs = table.pivot(index="epoch", columns="seed", values=value)
    longest = max(run.last_valid_index() or 0 for _, run in runs.items())
    for _, run in runs.items():
        end = run.last_valid_index()
        if seeds:
            ax.plot(runs.index, run, color=color, lw=0.8, alpha=0.35)
        if end is not None and end < longest:
            ax.plot(end, run[end], "X", color=color, ms=7, mec="white", mew=0.8, zorder=5)
    mean = runs.mean(axis=1, skipna=False).dropna()
    every = max(1, len(mean) // _MARKS)
    ax.plot(mean.index, mean, color=color, ls=style, marker=marker, markevery=every, ms=5, label=label, zorder=3)
    return ax


def mark_epochs(ax: Axes, texts: Mapping[float, str], *, height: float = 0.98) -> Axes:
    """Draw a dotted vertical line for each epoch at which something changed, and say what.

    Args:
        ax: Where to draw; the limits of its y axis should be set.
        texts: Epoch to what happened there.
        height: Where the texts end, as a share of the axis, in [0, 1].

    Returns:
        ``ax``.

    Raises:
        TypeError: If ``height`` is not a number.
        ValueError: If it is out of range.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> [text.get_text() for text in mark_epochs(plt.figure().gca(), {13.3: "step / 10"}).texts]
        ['step / 10']
    """
    height = _checks.number(height, "height", low=0.0, high=1.0)
    for epoch, text in texts.items():
        ax.axvline(epoch, color="#8a8a8a", lw=0.9, ls=":", zorder=0)
        place = {"xy": (epoch, height), "xycoords": ax.get_xaxis_transform()}
        ax.annotate(
            text, **place, xytext=(3, 0), textcoords="offset points", va="top", rotation=90, color="#555555", size=8.5
        )
    return ax
