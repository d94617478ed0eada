"""Figures of the image studies: effects by rate on an axis of step sizes, and effects of methods side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from nls import _checks
from nls.plotting import REGIME_COLORS, format_rate
from nls.stats import Interval


def rate_position(smooth_rate: float) -> float:
    r"""Return :math:`-\log(1 - r)`, the place of a rate on an axis that rises with r and has 0 at cross entropy.

    Equal distances are equal ratios of 1 - r, the factor of the label in the loss.

    Args:
        smooth_rate: r, below 1.

    Returns:
        The place.

    Raises:
        TypeError: If the rate is not a number.
        ValueError: If it is 1 or more.

    Examples:
        >>> rate_position(0.0), round(rate_position(-1.0), 3)
        (-0.0, -0.693)
    """
    return -math.log(1 - _checks.number(smooth_rate, "smooth_rate", high=1.0, open_high=True))


def log_rate_axis(ax: Axes, rates: Sequence[float], *, label: str = "smooth rate r") -> Axes:
    """Make x an axis of rates on the scale of 1 - r, with the positive side shaded and a line at cross entropy.

    Args:
        ax: Where to draw.
        rates: The rates to name.
        label: The axis label.

    Returns:
        ``ax``.

    Raises:
        ValueError: If a rate is 1 or more.
    """
    places = {rate: rate_position(rate) for rate in sorted(rates)}
    low, high = min(places.values()) - 0.15, max(places.values()) + 0.15
    ax.set_xticks(list(places.values()), [format_rate(rate) for rate in places], rotation=60)
    ax.set(xlim=(low, high), xlabel=label)
    if high > 0:
        ax.axvspan(0, high, color=REGIME_COLORS["LS"], alpha=0.07, lw=0, zorder=0)
    ax.axvline(0, color=REGIME_COLORS["CE"], lw=0.8, ls=":", zorder=1)
    ax.axhline(0, color=REGIME_COLORS["CE"], lw=0.8, zorder=1)
    return ax


def plot_effects_by_rate(
    ax: Axes,
    effects: Mapping[float, Interval],
    *,
    color: str | tuple,
    style: str = "-",
    marker: str = "o",
    label: str = "",
    shift: float = 0.0,
    dim: bool = False,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw a paired effect at each rate with its interval, on the axis of :func:`log_rate_axis`.

    A mean from a single run is hollow and has no interval.

    Args:
        ax: Where to draw.
        effects: Rate to interval; an effect of zero at r = 0 is added, as effects are differences from it.
        color: Of line, markers and intervals.
        style: Of the line.
        marker: Of the means.
        label: For a legend.
        shift: Moves markers sideways, so that intervals of several lines stay apart.
        dim: Whether to draw hollow markers, for a second line of one colour.
        limits: The frame's lower and upper end; the line runs out of it, and a mean outside has no interval drawn.

    Returns:
        ``ax``.

    Raises:
        ValueError: If a rate is 1 or more.
    """
    points = {0.0: Interval(0.0, 0.0, 0.0, 2)} | dict(effects)
    places = {rate: rate_position(rate) + (shift if rate else 0.0) for rate in sorted(points)}
    ax.plot(
        list(places.values()), [points[rate].mean for rate in places], color=color, ls=style, lw=1.5, label=label,
        marker=marker, ms=4.5, mfc="white" if dim else color,
    )  # fmt: skip
    if limits is not None:
        ax.set_ylim(*limits)
        places = {rate: place for rate, place in places.items() if limits[0] <= points[rate].mean <= limits[1]}
    for rate, place in places.items():
        if points[rate].n == 1:
            ax.plot(place, points[rate].mean, marker, color=color, mfc="white", ms=5, zorder=4)
        else:
            ax.plot([place] * 2, [points[rate].low, points[rate].high], color=color, lw=1.3, alpha=0.7)
    return ax


def plot_curves_from_start(
    ax: Axes, curves: Mapping[str, np.ndarray], start: int, styles: Mapping[str, Mapping[str, object]]
) -> Axes:
    """Draw mean curves over epochs that share their first part: grey up to there, one line for each method from there.

    Args:
        ax: Where to draw.
        curves: Name of a method to its values [epochs], all of one length and equal up to ``start``.
        start: Number of shared epochs, at least 1.
        styles: Name to options of :meth:`matplotlib.axes.Axes.plot`.

    Returns:
        ``ax``.

    Raises:
        ValueError: If a curve is not longer than ``start``, or the shared parts differ.
    """
    start = _checks.integer(start, "start", low=1)
    shared = None
    for name, values in curves.items():
        values = np.asarray(values, dtype=float)
        if len(values) <= start:
            raise ValueError(f"curves must be longer than the {start} shared epochs, got {len(values)} for {name!r}")
        if shared is not None and not np.allclose(values[:start], shared):
            raise ValueError(f"curves must be equal in the {start} shared epochs, {name!r} differs")
        shared = values[:start]
        ax.plot(range(start, len(values) + 1), values[start - 1 :], label=name, **styles[name])
    ax.plot(range(1, start + 1), shared, color="#8a8a8a", lw=2.4, zorder=2)
    ax.axvline(start, color="#8a8a8a", lw=0.9, ls=":", zorder=0)
    ax.set_xlabel("epoch")
    return ax
