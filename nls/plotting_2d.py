"""Figures of what a model says over a plane: its confidence as a ground, its decision boundary as a line."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.patheffects
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet

from nls import _checks

# From white to a dark grey-blue: the ground stays lighter than a line where the model is unsure, as at a boundary.
_GROUND = mpl.colors.LinearSegmentedColormap.from_list("nls_confidence", ["#ffffff", "#d3dfe7", "#9fb6c5", "#6f8da0"])
_NUM_STEPS = 8


def plane_points(reach: float, count: int = 121) -> tuple[np.ndarray, torch.Tensor]:
    """Return the points of a square grid around the origin.

    Args:
        reach: Half the side of the square, above 0.
        count: Points on a side, at least 2.

    Returns:
        The coordinates [count] of both axes, and the points [count * count, 2], float32; the first coordinate changes
        slowest.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.

    Examples:
        >>> axis, points = plane_points(1.0, 2)
        >>> axis.tolist(), points.tolist()
        ([-1.0, 1.0], [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    """
    reach = _checks.number(reach, "reach", low=1e-12)
    axis = torch.linspace(-reach, reach, _checks.integer(count, "count", low=2))
    return axis.numpy(), torch.cartesian_prod(axis, axis)


def plot_boundary(
    ax: Axes,
    axis: np.ndarray,
    probabilities: torch.Tensor,
    *,
    color: str = "#333333",
    style: str = "-",
    width: float = 2.2,
    halo: bool = True,
) -> Axes:
    r"""Draw where the likeliest class changes: where :math:`p_k = \max_{j \ne k} p_j` for some k.

    Args:
        ax: Where to draw.
        axis: Coordinates [m] of both axes, from :func:`plane_points`.
        probabilities: What the model says at the points of the plane [m * m, K].
        color: Of the line.
        style: Of the line.
        width: Of the line.
        halo: Whether the line has a white edge, to stand out from a dark ground.

    Returns:
        ``ax``.

    Raises:
        TypeError: If ``probabilities`` is not a floating-point tensor.
        ValueError: If it does not have shape [m * m, K].
    """
    grid = _on_plane(axis, probabilities)
    order = np.argsort(-grid, -1)[..., :2]
    for k in range(grid.shape[-1] - 1):
        # Each border once, from its class of the smaller index, or the dashes of two lines would fill each other.
        lead = grid[..., k] - np.delete(grid, k, -1).max(-1)
        lead = np.ma.masked_where(order.min(-1) != k, lead)
        if lead.count() and lead.min() < 0 < lead.max():
            lines = ax.contour(axis, axis, lead.T, [0.0], colors=[color], linewidths=width, linestyles=style)
            if halo:
                lines.set_path_effects([mpl.patheffects.withStroke(linewidth=width + 1.8, foreground="white")])
    return ax


def plot_confidence(ax: Axes, axis: np.ndarray, probabilities: torch.Tensor, *, color: str) -> QuadContourSet:
    """Draw the largest probability as a ground, white where all classes are equal and dark at 1, and the boundary.

    Args:
        ax: Where to draw.
        axis: Coordinates [m] of both axes, from :func:`plane_points`.
        probabilities: What the model says at the points of the plane [m * m, K].
        color: Of the boundary.

    Returns:
        The ground, for a colour bar.

    Raises:
        TypeError: If ``probabilities`` is not a floating-point tensor.
        ValueError: If it does not have shape [m * m, K].
    """
    grid = _on_plane(axis, probabilities)
    levels = np.linspace(1 / grid.shape[-1], 1, _NUM_STEPS + 1)
    ground = ax.contourf(axis, axis, grid.max(-1).clip(levels[0], 1).T, levels, cmap=_GROUND)
    plot_boundary(ax, axis, probabilities, color=color)
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    return ground


def _on_plane(axis: np.ndarray, probabilities: torch.Tensor) -> np.ndarray:
    """Return probabilities [m, m, K] by first and second coordinate."""
    m = len(axis)
    if _checks.floating(probabilities, "probabilities").ndim != 2 or len(probabilities) != m * m:
        got = _checks.describe(probabilities)
        raise ValueError(f"probabilities must have shape [{m * m}, K] for an axis of {m} coordinates, got {got}")
    return probabilities.detach().double().cpu().numpy().reshape(m, m, -1)
