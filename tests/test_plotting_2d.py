import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from nls import plotting
from nls.plotting_2d import plane_points, plot_boundary, plot_confidence


@pytest.fixture
def ax():
    plotting.set_theme()
    fig, ax = plt.subplots()
    yield ax
    fig.canvas.draw()
    plt.close(fig)


def slope(points, level=0.3):
    """Two classes that change along the first coordinate, at ``level``."""
    logit = 4 * (points[:, 0] - level)
    return torch.stack([-logit, logit], 1).softmax(1)


def wedges(points):
    """Three classes, each likeliest in a third of the plane."""
    angles = torch.tensor([90.0, 210.0, 330.0]).deg2rad()
    return (5 * points @ torch.stack([angles.cos(), angles.sin()])).softmax(1)


def drawn(ax):
    """Vertices of all lines and areas of contours."""
    return [path.vertices for part in ax.collections for path in part.get_paths() if len(path.vertices)]


def test_points_of_the_plane_change_in_the_second_coordinate_first():
    axis, points = plane_points(2.0, 5)
    assert axis.tolist() == [-2, -1, 0, 1, 2]
    assert points.shape == (25, 2)
    assert points[7].tolist() == [-1.0, 0.0]
    with pytest.raises(ValueError, match="reach must be"):
        plane_points(0.0)
    with pytest.raises(ValueError, match="count must be"):
        plane_points(1.0, 1)


def test_the_boundary_lies_where_the_classes_are_equal_and_the_first_coordinate_is_horizontal(ax):
    axis, points = plane_points(1.0, 41)
    assert plot_boundary(ax, axis, slope(points), color="#112233") is ax
    (line,) = drawn(ax)
    np.testing.assert_allclose(line[:, 0], 0.3, atol=1e-6)
    assert line[:, 1].min() == -1
    assert line[:, 1].max() == 1
    assert plt.matplotlib.colors.to_hex(ax.collections[0].get_edgecolor()[0]) == "#112233"


def test_three_classes_meet_in_the_middle(ax):
    axis, points = plane_points(1.0, 61)
    plot_boundary(ax, axis, wedges(points), halo=False)
    vertices = np.concatenate(drawn(ax))
    # The borders leave the middle at -90, 30 and 150 degrees.
    angle = np.degrees(np.arctan2(vertices[:, 1], vertices[:, 0]))[np.hypot(*vertices.T) > 0.3]
    off = np.abs((angle[:, None] - [-90, 30, 150] + 180) % 360 - 180).min(1)
    assert off.max() < 4
    assert np.hypot(*vertices.T).min() < 0.1
    # Each border is drawn once, with about one vertex a cell side: dashes of two lines would fill each other's gaps.
    assert 70 < len(vertices) < 150


def test_a_model_of_one_class_has_no_boundary(ax):
    axis, points = plane_points(1.0, 11)
    plot_boundary(ax, axis, slope(points, level=5.0))
    assert not ax.collections


def test_the_ground_is_the_largest_probability(ax):
    axis, points = plane_points(1.0, 41)
    ground = plot_confidence(ax, axis, wedges(points), color="black")
    assert ground.levels[0] == pytest.approx(1 / 3)
    assert ground.levels[-1] == 1
    assert ground.zmin == pytest.approx(1 / 3, abs=1e-6)
    assert ground.zmax == pytest.approx(float(wedges(points).max()), rel=1e-6)
    light, dark = (sum(ground.cmap(value)[:3]) for value in (0.0, 1.0))
    assert light == pytest.approx(3)
    assert dark < 2
    assert ax.get_aspect() == 1


def test_the_ground_lies_as_the_boundary_does(ax):
    axis, points = plane_points(1.0, 41)
    ground = plot_confidence(ax, axis, slope(points), color="black")
    unsure = ground.get_paths()[0].vertices
    assert np.abs(unsure[:, 0] - 0.3).max() < 0.1
    assert unsure[:, 1].min() == -1


def test_a_certain_model_is_drawn_without_holes(ax):
    axis, points = plane_points(1.0, 11)
    ground = plot_confidence(ax, axis, (1e4 * slope(points)).softmax(1), color="black")
    assert ground.zmax == 1


@pytest.mark.parametrize(
    ("probabilities", "error", "message"),
    [
        (torch.full((9, 2), 0.5), ValueError, r"probabilities must have shape \[16, K\] for an axis of 4 .*\(9, 2\)"),
        (torch.full((16,), 0.5), ValueError, r"probabilities must have shape \[16, K\]"),
        (torch.ones(16, 2, dtype=torch.int64), TypeError, "probabilities must be a floating-point tensor"),
    ],
)
def test_other_probabilities_are_refused(ax, probabilities, error, message):
    for function, given in ((plot_boundary, {}), (plot_confidence, {"color": "black"})):
        with pytest.raises(error, match=message):
            function(ax, plane_points(1.0, 4)[0], probabilities, **given)
