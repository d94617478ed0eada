"""Figures of confidence: is it as high as it should be, and does it put the right predictions first?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes

from nls import _checks
from nls.calibration import ReliabilityCurve
from nls.confidence import RiskCoverage

_BARS = 0.16
_NUM_STEPS = 100


def plot_reliability(
    ax: Axes, curve: ReliabilityCurve, *, color: str, marker: str = "o", label: str | None = None, least: int = 10
) -> Axes:
    """Draw accuracy against confidence with intervals, the diagonal, and bars of how many predictions a bin holds.

    Above the diagonal a model is under-confident, below it over-confident. The tallest bar ends at 0.16.

    Args:
        ax: Where to draw.
        curve: What :func:`nls.calibration.reliability_curve` returns.
        color: Of markers and bars.
        marker: Of the bins.
        label: For a legend.
        least: Bins with fewer predictions have a bar, and no marker.

    Returns:
        ``ax``.

    Raises:
        TypeError: If ``least`` is not an integer.
        ValueError: If ``least`` is below 1, or no bin holds that many predictions.
    """
    kept = curve.count >= _checks.integer(least, "least", low=1)
    if not kept.any():
        raise ValueError(
            f"curve must have a bin with {least} predictions or more, got {int(curve.count.max())} at most"
        )
    place, height = (values[kept].numpy() for values in (curve.confidence, curve.accuracy))
    # A bin in which all or none are right ends at its interval, up to rounding.
    reach = [np.maximum(side[kept].numpy(), 0) for side in (curve.accuracy - curve.low, curve.high - curve.accuracy)]
    edges = np.arange(len(curve.count) + 1) / len(curve.count)
    bars = _BARS * curve.count.numpy() / int(curve.count.max())
    ax.bar(edges[:-1], bars, np.diff(edges), align="edge", color=color, alpha=0.25, lw=0, zorder=0)
    ax.plot([0, 1], [0, 1], color="#999999", lw=1, zorder=1)
    ax.errorbar(place, height, reach, color=color, marker=marker, ms=5.5, lw=1.4, capsize=2.5, label=label, zorder=3)
    ax.set(xlim=(0, 1), ylim=(0, 1.03))
    return ax


def plot_risk_coverage(
    ax: Axes, curves: Sequence[RiskCoverage], *, color: str, style: str = "-", label: str | None = None
) -> Axes:
    """Draw the mean error among the surest predictions against the share that is kept, over several runs.

    Args:
        ax: Where to draw.
        curves: One for each run, from :func:`nls.confidence.risk_coverage`; they may have different lengths.
        color: Of the line.
        style: Of the line.
        label: For a legend.

    Returns:
        ``ax``.

    Raises:
        ValueError: If there are no curves.
    """
    if not curves:
        raise ValueError("curves must hold at least one curve, got none")
    shares = torch.arange(1, _NUM_STEPS + 1, dtype=torch.float64) / _NUM_STEPS
    means = [np.mean([1 - curve.accuracy_at(float(share)) for curve in curves]) for share in shares]
    ax.plot(shares.numpy(), means, style, color=color, label=label)
    ax.set(xlim=(0, 1))
    return ax
