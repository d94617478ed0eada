import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, ncx2, norm, rice

from nls import generators
from nls.generators import (
    RECIPES,
    checkerboard_posterior,
    circles_posterior,
    draw,
    gaussian_posterior,
    ringnorm_posterior,
    spirals_posterior,
    two_moons_posterior,
    twonorm_posterior,
    waveform_posterior,
)

POSTERIORS = {
    "twonorm": twonorm_posterior,
    "ringnorm": ringnorm_posterior,
    "waveform": waveform_posterior,
    "three_gaussians": generators._three_gaussians_posterior,
    "two_moons": two_moons_posterior,
    "circles": circles_posterior,
    "spirals": spirals_posterior,
    "checkerboard": checkerboard_posterior,
}
NUM_FEATURES = {"twonorm": 20, "ringnorm": 20, "waveform": 21} | dict.fromkeys(list(POSTERIORS)[3:], 2)
PLANE = list(POSTERIORS)[4:]
TRIANGLE = 3 * np.array([[0.5, math.sqrt(3) / 2], [0, 0], [1, 0]])
TRIANGLE -= TRIANGLE.mean(0)
PAIRS = ((0, 1), (0, 2), (1, 2))


def wave(number, point):
    """The textbook's h1, h2, h3 at the points 1 to 21."""
    shift = (0, -4, 4)[number]
    return max(6 - abs(point + shift - 11), 0)


WAVES = np.array([[wave(number, point) for point in range(1, 22)] for number in range(3)], dtype=float)


def polar(radius, angle):
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def plane_classes(name):
    """Return, for each class of a set in the plane, nodes [m, 2] and weights [m] of a quadrature over what a point is
    before the noise is added, and the deviation of the noise."""
    if name == "two_moons":
        angle = math.pi * (np.arange(24) + 0.5) / 24
        arcs = [polar(1.0, angle), np.array([1.0, 0.5]) - polar(1.0, angle)]
        return [(arc, np.full(24, 1 / 24)) for arc in arcs], 0.3
    if name == "spirals":
        along = (np.arange(80) + 0.5) / 80
        arms = [polar(0.4 + 2 * along, 2 * math.pi * (0.6 * along + k / 3)) for k in range(3)]
        return [(arm, np.full(80, 1 / 80)) for arm in arms], 0.25
    if name == "circles":  # equal weights on a circle are exact to all digits
        angle = 2 * math.pi * np.arange(300) / 300
        return [(polar(radius, angle), np.full(300, 1 / 300)) for radius in (1.0, 2.0)], 0.4
    nodes, weights = np.polynomial.legendre.leggauss(40)
    inside, weights = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2) / 2, np.outer(weights, weights).ravel()
    classes = []
    for colour in (0, 1):
        cells = [(i - 1.5, j - 1.5) for i in range(4) for j in range(4) if (i + j) % 2 == colour]
        classes.append((np.concatenate([inside + cell for cell in cells]), np.tile(weights / 4 / 8, 8)))
    return classes, 0.1


def plane_density(name, features):
    """Return the density of each class [n, K] by that quadrature."""
    classes, deviation = plane_classes(name)
    out = []
    for nodes, weights in classes:
        square = ((features[:, None] - nodes) ** 2).sum(2)
        out.append(np.exp(-square / (2 * deviation**2)) @ weights / (2 * math.pi * deviation**2))
    return np.stack(out, 1)


@pytest.fixture(scope="module")
def large_samples():
    return {name: draw(name, 60_000, np.random.default_rng(7)) for name in RECIPES}


def exact_ringnorm_error(a):
    """Bayes error: class 1 wins inside a ball around 4a/3, so both errors are noncentral chi-square tails."""
    square = 20 * a**2
    radius = (20 * math.log(2) + square / 6) * 8 / 3
    narrow_lost = ncx2.sf(radius, 20, square / 9)
    wide_lost = ncx2.cdf(radius / 4, 20, 16 / 9 * square / 4)
    return (narrow_lost + wide_lost) / 2


def plane_error(name):
    """Bayes error: what the largest of the K densities over K leaves, summed over a grid of step 0.03."""
    if name == "checkerboard":
        # Column and row are independent: (1 - E|a|^2) / 2, with a the difference of even and odd columns at x.
        edges = np.arange(5) - 2
        even = lambda x: np.diff(norm.cdf((edges - x) / 0.1)) @ [1, -1, 1, -1] / 4  # noqa: E731
        return (1 - quad(lambda x: abs(even(x)), -3, 3, points=edges, limit=200)[0] ** 2) / 2
    if name == "circles":  # the distance from the origin has Rice's distribution
        inner, outer = (rice(radius / 0.4, scale=0.4) for radius in (1, 2))
        return quad(lambda x: min(inner.pdf(x), outer.pdf(x)) / 2, 0, 5, points=[1, 1.5, 2])[0]
    axis = np.arange(-4, 4, 0.03)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    largest = [plane_density(name, rows).max(1).sum() for rows in np.array_split(grid, 100)]
    return 1 - np.sum(largest) * 0.03**2 / len(RECIPES[name].class_names)


def closed_form_waveform(features):
    """The integral over u is Gaussian: completing the square leaves a difference of normal distribution functions."""
    parts = []
    for first, second in PAIRS:
        step = WAVES[first] - WAVES[second]
        length = np.linalg.norm(step)
        rest = features - WAVES[second]
        centre = rest @ step / length
        lower, upper = -centre, length - centre
        flip = lower > 0
        lower, upper = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
        log_mass = norm.logcdf(upper) + np.log1p(-np.exp(norm.logcdf(lower) - norm.logcdf(upper)))
        parts.append(-((rest**2).sum(1) - centre**2) / 2 + log_mass - math.log(length))
    logits = np.stack(parts, 1)
    mass = np.exp(logits - logits.max(1, keepdims=True))
    return mass / mass.sum(1, keepdims=True)


def test_the_three_waves_are_the_textbook_ones():
    np.testing.assert_array_equal(generators._waves(), WAVES)
    assert WAVES.sum(1).tolist() == [36, 36, 36]
    assert WAVES.argmax(1).tolist() == [10, 14, 6]


@pytest.mark.parametrize(
    ("name", "means", "variances"),
    [
        ("twonorm", (2 / math.sqrt(20), -2 / math.sqrt(20)), (1, 1)),
        ("ringnorm", (0, 2 / math.sqrt(20)), (4, 1)),
        ("three_gaussians", TRIANGLE, (1, 1, 1)),
    ],
)
def test_normal_posteriors_match_the_densities(name, means, variances):
    raw = draw(name, 500, np.random.default_rng(3))
    density = [
        multivariate_normal(np.broadcast_to(mean, raw.features.shape[1:]), variance).pdf(raw.features)
        for mean, variance in zip(means, variances, strict=True)
    ]
    expected = np.stack(density, 1) / np.sum(density, 0)[:, None]
    posterior = POSTERIORS[name](torch.from_numpy(raw.features))
    assert posterior.dtype == torch.float64
    np.testing.assert_allclose(posterior, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(posterior, raw.posterior)


@pytest.mark.parametrize("name", PLANE)
def test_plane_posteriors_match_bayes_by_quadrature(name):
    raw = draw(name, 100, np.random.default_rng(3))
    density = plane_density(name, raw.features)
    posterior = POSTERIORS[name](torch.from_numpy(raw.features))
    assert posterior.dtype == torch.float64
    np.testing.assert_allclose(posterior, density / density.sum(1, keepdims=True), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(posterior.sum(1), torch.ones(100, dtype=torch.float64))
    assert torch.equal(posterior, raw.posterior)


@pytest.mark.parametrize("name", PLANE)
def test_plane_samples_have_the_stated_density(name, large_samples):
    """The share of a class in each square of side 0.5 is its probability within 5 binomial standard errors."""
    raw, edges = large_samples[name], np.arange(-3.5, 3.75, 0.5)
    classes, deviation = plane_classes(name)
    checked = 0
    for label, (nodes, weights) in enumerate(classes):
        rows = raw.features[raw.labels == label]
        counts, _, _ = np.histogram2d(*rows.T, bins=(edges, edges))
        below = norm.cdf((edges[:, None, None] - nodes) / deviation)
        sides = below[1:] - below[:-1]
        expected = (sides[:, None, :, 0] * sides[None, :, :, 1]) @ weights
        assert expected.sum() == pytest.approx(1, abs=1e-2)
        n = len(rows)
        error = np.sqrt(expected * (1 - expected) / n)
        kept = expected * n > 20
        assert (np.abs(counts / n - expected)[kept] < 5 * error[kept]).all()
        checked += kept.sum()
    assert checked > 60


def test_dense_centres_stand_for_an_arc():
    """Between the centres the density of two_moons is that of a continuous half circle; only its ends differ."""
    along = np.linspace(0.5, math.pi - 0.5, 40)
    points = polar(1.2, along)
    for x, found in zip(points, plane_density("two_moons", points)[:, 0], strict=True):
        # exp(-|x - m|^2 / 2 s^2) over the angle of m
        exact, _ = quad(lambda t, x=x: math.exp(-((polar(1.0, t) - x) ** 2).sum() / 0.18), 0, math.pi, epsabs=1e-12)
        assert found == pytest.approx(exact / math.pi / (2 * math.pi * 0.09), rel=0.02)
    ripple = np.diff(plane_density("two_moons", polar(1.0, np.linspace(1.4, 1.7, 50)))[:, 0])
    assert np.abs(ripple).max() < 1e-4


@pytest.mark.parametrize("name", ["circles", "checkerboard"])
def test_classes_with_equal_means(name):
    means = [weights @ nodes for nodes, weights in plane_classes(name)[0]]
    np.testing.assert_allclose(means, np.zeros((2, 2)), atol=1e-12)
    assert "The class means are equal" in RECIPES[name].description


def test_the_board_has_the_symmetries_of_a_board():
    """Columns swap colours from one to the next, and a diagonal mirrors the board onto itself."""
    features = torch.from_numpy(np.random.default_rng(1).uniform(-1.5, 0.5, (200, 2)))
    posterior = checkerboard_posterior(features)
    torch.testing.assert_close(checkerboard_posterior(features.flip(1)), posterior)
    # One cell further, away from the rim, the colours are exchanged.
    inner = features.clamp(-1, 0)
    torch.testing.assert_close(
        checkerboard_posterior(inner + torch.tensor([1.0, 0.0])), checkerboard_posterior(inner).flip(1)
    )
    # A small probability keeps its digits: beyond the corner, 5 deviations from one cell and 15 from the next.
    far = checkerboard_posterior(torch.tensor([[2.5, 2.5]], dtype=torch.float64))[0, 1].item()
    assert far == pytest.approx(2 * norm.sf(15) / norm.sf(5), rel=1e-8, abs=0)


def test_gaussian_posterior_matches_the_densities():
    """Any means in any dimension; twonorm is the case of two opposite ones."""
    rng = np.random.default_rng(2)
    for num_classes, d in ((2, 1), (3, 2), (10, 5)):
        means, features = rng.normal(0, 2, (num_classes, d)), rng.normal(0, 3, (200, d))
        density = np.stack([multivariate_normal(mean).pdf(features) for mean in means], 1)
        posterior = gaussian_posterior(torch.from_numpy(features), torch.from_numpy(means))
        assert posterior.dtype == torch.float64
        np.testing.assert_allclose(posterior, density / density.sum(1, keepdims=True), rtol=1e-9, atol=1e-14)
    a = torch.full((20,), 2 / math.sqrt(20), dtype=torch.float64)
    features = torch.from_numpy(draw("twonorm", 100, rng).features)
    torch.testing.assert_close(gaussian_posterior(features, torch.stack([a, -a])), twonorm_posterior(features))


def test_gaussian_posterior_ignores_the_origin_and_keeps_its_type():
    means, features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double(), torch.ones(1, 4).double()
    moved = gaussian_posterior(features + 7, means + 7)
    torch.testing.assert_close(moved, gaussian_posterior(features, means))
    assert gaussian_posterior(features.float(), means.float()).dtype == torch.float64
    assert gaussian_posterior(features[:0], means).shape == (0, 3)
    assert gaussian_posterior(features, torch.ones(3, 4)).tolist() == [[1 / 3] * 3]


@pytest.mark.parametrize(
    ("means", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"means must have shape \[K, d\] with K >= 2 and d >= 1, got .*\(3,\)"),
        (torch.zeros(1, 2), ValueError, r"means must have shape \[K, d\]"),
        (torch.zeros(2, 0), ValueError, r"means must have shape \[K, d\]"),
        (torch.zeros(3, 4), ValueError, r"features must have shape \[n, 4\], got .*\(5, 2\)"),
        (torch.full((3, 2), math.inf), ValueError, "means must be finite"),
        (torch.zeros(3, 2, dtype=torch.int64), TypeError, "means must be a floating-point tensor"),
        ([[0.0, 1.0]], TypeError, "means must be a torch tensor"),
    ],
)
def test_gaussian_posterior_refuses_other_means(means, error, message):
    with pytest.raises(error, match=message):
        gaussian_posterior(torch.zeros(5, 2), means)


def test_waveform_posterior_matches_fine_quadrature():
    raw = draw("waveform", 25, np.random.default_rng(4))
    grid = np.linspace(0, 1, 40_001)
    simpson = np.where(np.arange(len(grid)) % 2, 4.0, 2.0)
    simpson[[0, -1]] = 1
    for features, posterior in zip(raw.features, raw.posterior, strict=True):
        mass = []
        for first, second in PAIRS:
            centre = grid[:, None] * WAVES[first] + (1 - grid[:, None]) * WAVES[second]
            mass.append(simpson @ np.exp(-((features - centre) ** 2).sum(1) / 2))
        np.testing.assert_allclose(posterior, np.array(mass) / np.sum(mass), rtol=0, atol=1e-10)


def test_waveform_posterior_matches_the_closed_form(large_samples):
    raw = large_samples["waveform"]
    np.testing.assert_allclose(raw.posterior, closed_form_waveform(raw.features), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", RECIPES)
def test_posteriors_are_calibrated(name, large_samples):
    """In each bin of P(y = k | x) the share of label k is the mean posterior within 4 standard errors."""
    raw = large_samples[name]
    posterior = raw.posterior.numpy()
    checked = 0
    for label in range(posterior.shape[1]):
        bins = np.digitize(posterior[:, label], np.linspace(0, 1, 11)[1:-1])
        for index in range(10):
            inside = bins == index
            expected, n = posterior[inside, label], inside.sum()
            if n < 100:
                continue
            error = math.sqrt((expected * (1 - expected)).sum()) / n
            assert abs((raw.labels[inside] == label).mean() - expected.mean()) < 4 * error
            checked += 1
    assert checked >= 16


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("twonorm", norm.cdf(-2)),
        ("ringnorm", exact_ringnorm_error(2 / math.sqrt(20))),
        # A corner wins where x is nearer to it than to both others: two normals of correlation cos 60 degrees.
        ("three_gaussians", 1 - multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]]).cdf([1.5, 1.5])),
        *((name, plane_error(name)) for name in PLANE),
    ],
)
def test_bayes_error_is_the_exact_one(name, error, large_samples):
    raw = large_samples[name]
    n = len(raw.labels)
    measured = (raw.posterior.argmax(1).numpy() != raw.labels).mean()
    assert abs(measured - error) < 4 * math.sqrt(error * (1 - error) / n)
    assert (
        f"Bayes error {100 * error:.2f} %" in raw.description
        or f"Bayes error of {100 * error:.2f} %" in raw.description
    )


def test_waveform_bayes_error_is_about_14_percent(large_samples):
    raw = large_samples["waveform"]
    expected = 1 - raw.posterior.max(1).values.numpy()
    measured = (raw.posterior.argmax(1).numpy() != raw.labels).mean()
    standard_error = math.sqrt(0.14 * 0.86 / len(raw.labels))
    assert abs(measured - expected.mean()) < 4 * standard_error
    assert abs(expected.mean() - 0.133) < 4 * standard_error
    assert "Bayes error 13.3 % (published: 14 %)" in raw.description


def test_ringnorm_uses_the_constant_whose_error_is_nearer_the_published_one():
    """The published error is 1.3 %; Monte Carlo and the exact tails agree on both candidates."""
    generator = np.random.default_rng(11)
    n, errors = 400_000, {}
    for numerator in (1, 2):
        a = numerator / math.sqrt(20)
        lost = 0
        for label in (0, 1):
            x = generator.standard_normal((n // 2, 20)) * (2 - label) + a * label
            wide_wins = ((x - a) ** 2).sum(1) / 2 - (x**2).sum(1) / 8 > 20 * math.log(2)
            lost += (wide_wins == bool(label)).sum()
        errors[numerator] = exact_ringnorm_error(a)
        assert abs(lost / n - errors[numerator]) < 4 * math.sqrt(errors[numerator] / n)
    assert abs(errors[2] - 0.013) < abs(errors[1] - 0.013) / 3
    assert pytest.approx(2 / math.sqrt(20)) == generators._SHIFT
    description = RECIPES["ringnorm"].description
    assert f"{100 * errors[2]:.2f} %" in description
    assert f"{100 * errors[1]:.2f} %" in description


@pytest.mark.parametrize("name", RECIPES)
def test_samples_have_the_stated_moments(name, large_samples):
    raw = large_samples[name]
    n, num_classes = len(raw.labels), len(raw.class_names)
    share = 1 / num_classes
    counts = np.bincount(raw.labels, minlength=num_classes)
    assert np.all(np.abs(counts / n - share) < 4 * math.sqrt(share * (1 - share) / n))
    for label in range(num_classes):
        rows = raw.features[raw.labels == label]
        shift = 2 / math.sqrt(20)
        if name == "waveform":
            first, second = (WAVES[wave] for wave in PAIRS[label])
            mean, variance = (first + second) / 2, 1 + (first - second) ** 2 / 12
        elif name in PLANE:
            classes, deviation = plane_classes(name)
            nodes, weights = classes[label]
            mean = weights @ nodes
            variance = weights @ (nodes - mean) ** 2 + deviation**2
        else:
            mean = {"twonorm": (shift, -shift), "ringnorm": (0, shift), "three_gaussians": TRIANGLE}[name][label]
            variance = 4 if (name, label) == ("ringnorm", 0) else 1
        assert np.all(np.abs(rows.mean(0) - mean) < 5 * np.sqrt(variance / len(rows)))
        np.testing.assert_allclose(
            rows.var(0), np.broadcast_to(variance, rows.shape[1]), rtol=5 * math.sqrt(2 / len(rows))
        )


@pytest.mark.parametrize("name", RECIPES)
def test_draws_depend_on_the_generator_only(name):
    first, again = (draw(name, 50, np.random.default_rng(5)) for _ in range(2))
    other = draw(name, 50, np.random.default_rng(6))
    np.testing.assert_array_equal(first.features, again.features)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert not np.array_equal(first.features, other.features)


@pytest.mark.parametrize("name", RECIPES)
def test_posteriors_stay_finite_far_out(name):
    values = (-3e38, -1e6, -50.0, 0.0, 50.0, 1e6, 3e38)
    features = torch.cat([torch.full((1, NUM_FEATURES[name]), value) for value in values])
    features[1, 0] = 7.0
    posterior = POSTERIORS[name](features)
    assert posterior.isfinite().all()
    torch.testing.assert_close(posterior.sum(1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("name", RECIPES)
def test_posteriors_refuse_other_features(name):
    posterior, d = POSTERIORS[name], NUM_FEATURES[name]
    with pytest.raises(ValueError, match=rf"features must have shape \[n, {d}\], got .*\(4, 5\)"):
        posterior(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=rf"features must have shape \[n, {d}\]"):
        posterior(torch.zeros(d))
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        posterior(torch.zeros(4, d, dtype=torch.int64))
    with pytest.raises(ValueError, match="features must be finite"):
        posterior(torch.full((1, d), math.nan))
    assert torch.equal(posterior(torch.ones(2, d)), posterior(torch.ones(2, d).double()))
    assert posterior(torch.zeros(0, d)).shape == (0, len(RECIPES[name].class_names))
