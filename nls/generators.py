"""Data sets that are drawn rather than collected, each with its true posterior P(y | x)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from nls import _checks

_DIMENSION = 20
_SHIFT = 2 / math.sqrt(_DIMENSION)
_NUM_WAVE_POINTS = 21
_WAVE_PAIRS = ((0, 1), (0, 2), (1, 2))
_TRIANGLE = ((0.0, math.sqrt(3)), (-1.5, -math.sqrt(3) / 2), (1.5, -math.sqrt(3) / 2))
# The integrand is a Gaussian bump of width 1 / |h_a - h_b| (0.06 to 0.09) on [0, 1]; 48 nodes leave errors below 1e-13.
_NUM_NODES = 48
_RINGS, _RING_SPREAD = (1.0, 2.0), 0.4
_BOARD_SIZE, _BOARD_BLUR = 4, 0.1


def _arc(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return points [m, 2] in polar coordinates."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _moons() -> np.ndarray:
    """Return the centres [2, 24, 2] along a half circle and along its mirror image, which hooks into it."""
    upper = _arc(np.ones(24), np.pi * (np.arange(24) + 0.5) / 24)
    return np.stack([upper, [1.0, 0.5] - upper])


def _spirals() -> np.ndarray:
    """Return the centres [3, 80, 2] along three arms, each 0.6 of a turn from radius 0.4 to 2.4."""
    along = (np.arange(80) + 0.5) / 80
    return np.stack([_arc(0.4 + 2 * along, 2 * np.pi * (0.6 * along + arm / 3)) for arm in range(3)])


# Centres of equal weight and their common spread. They lie so close, under half a spread, that a class is a smooth arc.
_MIXTURES = {"two_moons": (_moons(), 0.3), "spirals": (_spirals(), 0.25)}


def _waves() -> np.ndarray:
    """Return the three triangular waves [3, 21], with peaks at points 11, 15 and 7."""
    points = np.arange(1, _NUM_WAVE_POINTS + 1)
    return np.stack([np.maximum(6.0 - np.abs(points - peak), 0) for peak in (11, 15, 7)])


def _check_features(features: torch.Tensor, num_features: int) -> torch.Tensor:
    """Return ``features`` as float64 if it is a finite matrix [n, num_features]."""
    _checks.floating(features, "features")
    if features.ndim != 2 or features.shape[1] != num_features:
        raise ValueError(f"features must have shape [n, {num_features}], got {_checks.describe(features)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite")
    return features.double()


def gaussian_posterior(features: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    r"""Return the true posterior of a mixture of Gaussians with equal weights and unit covariance.

    .. math:: P(y = k \mid x) = \operatorname{softmax}_k\big(x \cdot \mu_k - \tfrac12 \lVert \mu_k \rVert^2\big)

    The logits are linear in x: a linear model with an intercept contains this posterior, whatever the means.

    Args:
        features: Raw (not standardised) features [n, d], floating point.
        means: Centres :math:`\mu_k` of the K classes [K, d], floating point, K at least 2, d at least 1.

    Returns:
        Posterior [n, K], float64.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If an argument has another shape or is not finite.

    Examples:
        >>> means = torch.tensor([[-1.0], [1.0]])
        >>> gaussian_posterior(torch.tensor([[0.0], [0.5]]), means)
        tensor([[0.5000, 0.5000],
                [0.2689, 0.7311]], dtype=torch.float64)

    References:
        Hastie, Tibshirani, Friedman (2009), The elements of statistical learning, section 4.3.
    """
    _checks.floating(means, "means")
    if means.ndim != 2 or len(means) < 2 or not means.shape[1]:
        raise ValueError(f"means must have shape [K, d] with K >= 2 and d >= 1, got {_checks.describe(means)}")
    if not bool(torch.isfinite(means).all()):
        raise ValueError("means must be finite")
    raw = _check_features(features, means.shape[1])
    centres = means.to(raw)
    # |x|^2 is common to all classes and left out: far from the centres it would swamp what tells them apart.
    return (raw @ centres.T - centres.square().sum(1) / 2).softmax(1)


def twonorm_posterior(features: torch.Tensor) -> torch.Tensor:
    r"""Return the true posterior of ``twonorm`` at raw features.

    .. math:: P(y = 0 \mid x) = \sigma\Big(2 a \sum_i x_i\Big), \qquad a = 2 / \sqrt{20}.

    Args:
        features: Raw (not standardised) features [n, 20], floating point.

    Returns:
        Posterior [n, 2], float64.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If it has another shape or is not finite.

    Examples:
        >>> twonorm_posterior(torch.zeros(1, 20))
        tensor([[0.5000, 0.5000]], dtype=torch.float64)

    References:
        Breiman (1998), Arcing classifiers, doi:10.1214/aos/1024691079.
    """
    logit = _SHIFT * _check_features(features, _DIMENSION).sum(1)
    return torch.stack([logit, -logit], 1).softmax(1)


def ringnorm_posterior(features: torch.Tensor) -> torch.Tensor:
    r"""Return the true posterior of ``ringnorm`` at raw features.

    .. math::

        \log \frac{P(y = 0 \mid x)}{P(y = 1 \mid x)} = \tfrac12 \lVert x - a \rVert^2
        - \tfrac18 \lVert x \rVert^2 - 20 \log 2, \qquad a_i = 2 / \sqrt{20}.

    Args:
        features: Raw (not standardised) features [n, 20], floating point.

    Returns:
        Posterior [n, 2], float64.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If it has another shape or is not finite.

    Examples:
        >>> ringnorm_posterior(torch.zeros(1, 20)).argmax(1)
        tensor([1])

    References:
        Breiman (1998), Arcing classifiers, doi:10.1214/aos/1024691079.
    """
    raw = _check_features(features, _DIMENSION)
    wide = -raw.square().sum(1) / 8 - _DIMENSION * math.log(2)
    narrow = -(raw - _SHIFT).square().sum(1) / 2
    return torch.stack([wide, narrow], 1).softmax(1)


def waveform_posterior(features: torch.Tensor) -> torch.Tensor:
    r"""Return the true posterior of ``waveform`` at raw features.

    Class c mixes the waves :math:`h_a, h_b` of its pair, and the integral is a Gauss-Legendre sum over u:

    .. math:: P(y = c \mid x) \propto \int_0^1 \exp\big(-\tfrac12 \lVert x - u h_a - (1 - u) h_b \rVert^2\big)\, du.

    Args:
        features: Raw (not standardised) features [n, 21], floating point.

    Returns:
        Posterior [n, 3], float64.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If it has another shape or is not finite.

    Examples:
        >>> waveform_posterior(torch.zeros(1, 21)).argmax(1)
        tensor([2])

    References:
        Breiman, Friedman, Olshen, Stone (1984), Classification and regression trees, section 2.6.1.
    """
    raw = _check_features(features, _NUM_WAVE_POINTS)
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    mixing = ((nodes + 1) / 2)[:, None]
    waves = _waves()
    centres = torch.from_numpy(np.concatenate([mixing * waves[a] + (1 - mixing) * waves[b] for a, b in _WAVE_PAIRS]))
    # |x|^2 is common to all terms, so x . m - |m|^2 / 2 stands for -|x - m|^2 / 2.
    exponent = (raw @ centres.T - centres.square().sum(1) / 2).view(len(raw), 3, _NUM_NODES)
    return (exponent + torch.from_numpy(np.log(weights))).logsumexp(2).softmax(1)


def _mixture_posterior(features: torch.Tensor, name: str) -> torch.Tensor:
    """Return the true posterior where each class is a mixture of Gaussians of equal weights and one spread."""
    centres, spread = torch.from_numpy(_MIXTURES[name][0]), _MIXTURES[name][1]
    raw = _check_features(features, 2)
    # |x|^2 is common to all terms and left out, as in gaussian_posterior.
    exponent = (raw @ centres.flatten(0, 1).T - centres.flatten(0, 1).square().sum(1) / 2) / spread**2
    return exponent.view(len(raw), *centres.shape[:2]).logsumexp(2).softmax(1)


def two_moons_posterior(features: torch.Tensor) -> torch.Tensor:
    r"""Return the true posterior of ``two_moons`` at raw features.

    Class c is a mixture of 24 Gaussians whose centres :math:`\mu_{cj}` lie along a half circle:

    .. math::

        P(y = c \mid x) \propto \sum_j \exp\big(-\lVert x - \mu_{cj} \rVert^2 / 2 \sigma^2\big), \qquad \sigma = 0.3.

    Args:
        features: Raw (not standardised) features [n, 2], floating point.

    Returns:
        Posterior [n, 2], float64.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If it has another shape or is not finite.

    Examples:
        >>> two_moons_posterior(torch.tensor([[0.5, 0.25], [0.0, 1.0]])).round(decimals=4)
        tensor([[0.5000, 0.5000],
                [0.9557, 0.0443]], dtype=torch.float64)
    """
    return _mixture_posterior(features, "two_moons")


def spirals_posterior(features: torch.Tensor) -> torch.Tensor:
    r"""Return the true posterior of ``spirals`` at raw features.

    Class c is a mixture of 80 Gaussians whose centres :math:`\mu_{cj}` lie along its arm:

    .. math::

        P(y = c \mid x) \propto \sum_j \exp\big(-\lVert x - \mu_{cj} \rVert^2 / 2 \sigma^2\big), \qquad \sigma = 0.25.

    Args:
        features: Raw (not standardised) features [n, 2], floating point.

    Returns:
        Posterior [n, 3], float64.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If it has another shape or is not finite.

    Examples:
        >>> spirals_posterior(torch.zeros(1, 2)).round(decimals=4)
        tensor([[0.3333, 0.3333, 0.3333]], dtype=torch.float64)
    """
    return _mixture_posterior(features, "spirals")


def circles_posterior(features: torch.Tensor) -> torch.Tensor:
    r"""Return the true posterior of ``circles`` at raw features.

    A point of the circle of radius :math:`R_c`, moved by :math:`N(0, \sigma^2 I)`, has a density that depends on
    :math:`\rho = \lVert x \rVert` only, with the modified Bessel function :math:`I_0`:

    .. math::

        P(y = c \mid x) \propto \exp\big(-R_c^2 / 2 \sigma^2\big)\, I_0\big(\rho R_c / \sigma^2\big),
        \qquad R = (1, 2), \; \sigma = 0.4.

    Args:
        features: Raw (not standardised) features [n, 2], floating point.

    Returns:
        Posterior [n, 2], float64.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If it has another shape or is not finite.

    Examples:
        >>> circles_posterior(torch.tensor([[1.0, 0.0], [0.0, -2.0]])).argmax(1)
        tensor([0, 1])

    References:
        Rice (1944), Mathematical analysis of random noise, doi:10.1002/j.1538-7305.1944.tb00874.x, for the density.
    """
    distance = _check_features(features, 2).norm(dim=1, keepdim=True)
    radius = torch.tensor(_RINGS, dtype=torch.float64)
    product = distance * radius / _RING_SPREAD**2
    # i0e is I0 without its growth, exp(product), which would overflow.
    logits = torch.special.i0e(product).log() + product - radius**2 / (2 * _RING_SPREAD**2)
    return logits.softmax(1)


def checkerboard_posterior(features: torch.Tensor) -> torch.Tensor:
    r"""Return the true posterior of ``checkerboard`` at raw features.

    A point is uniform on the cells of one colour of a board of 4 x 4 unit cells around the origin and moved by
    :math:`N(0, \sigma^2 I)`. Its column and its row are independent given x, with

    .. math::

        P(\text{column } i \mid x) \propto \Phi\Big(\frac{b_{i+1} - x_1}{\sigma}\Big)
        - \Phi\Big(\frac{b_i - x_1}{\sigma}\Big), \qquad b = (-2, -1, 0, 1, 2), \; \sigma = 0.1,

    the same for rows and :math:`x_2`, and class 0 where their sum is even.

    Args:
        features: Raw (not standardised) features [n, 2], floating point.

    Returns:
        Posterior [n, 2], float64.

    Raises:
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If it has another shape or is not finite.

    Examples:
        >>> checkerboard_posterior(torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.0, 0.5]])).round(decimals=4)
        tensor([[1.0000, 0.0000],
                [0.0000, 1.0000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    # From 1,000 on, one cell has all of the probability; from 1e17 on, its two edges would be one number.
    raw = _check_features(features, 2).clamp(-1e3, 1e3)
    edges = torch.arange(_BOARD_SIZE + 1, dtype=torch.float64) - _BOARD_SIZE / 2
    ends = (edges - raw[..., None]) / _BOARD_BLUR
    left, right = ends[..., :-1], ends[..., 1:]
    # Both tails are the same, and on the left one a difference of logarithms keeps its digits.
    mirrored = left + right > 0
    low, high = torch.where(mirrored, -right, left), torch.where(mirrored, -left, right)
    low, high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    cells = (high + torch.log1p(-(low - high).exp())).softmax(2)
    even, odd = cells[..., ::2].sum(2), cells[..., 1::2].sum(2)
    # Sums of products of positive numbers: a small probability is not the difference of two large ones.
    return torch.stack([even.prod(1) + odd.prod(1), even[:, 0] * odd[:, 1] + odd[:, 0] * even[:, 1]], 1)


def _three_gaussians_posterior(features: torch.Tensor) -> torch.Tensor:
    """Return the true posterior of ``three_gaussians`` at raw features [n, 2]."""
    return gaussian_posterior(features, torch.tensor(_TRIANGLE, dtype=torch.float64))


def _draw_three_gaussians(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return features [n, 2]: N(m, I) with m a corner of the triangle."""
    return generator.standard_normal((len(labels), 2)) + np.array(_TRIANGLE)[labels]


def _draw_mixture(name: str, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return features [n, 2]: one of the centres of the class, plus its spread."""
    centres, spread = _MIXTURES[name]
    chosen = centres[labels, generator.integers(centres.shape[1], size=len(labels))]
    return chosen + spread * generator.standard_normal((len(labels), 2))


def _draw_circles(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return features [n, 2]: a point on the circle of the class, plus its spread."""
    points = _arc(np.array(_RINGS)[labels], 2 * np.pi * generator.random(len(labels)))
    return points + _RING_SPREAD * generator.standard_normal((len(labels), 2))


def _draw_checkerboard(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return features [n, 2]: a uniform point of a cell of the class's colour, plus the blur."""
    column = generator.integers(_BOARD_SIZE, size=len(labels))
    row = 2 * generator.integers(_BOARD_SIZE // 2, size=len(labels)) + (column + labels) % 2
    corner = np.stack([column, row], 1) - _BOARD_SIZE / 2
    inside = generator.random((len(labels), 2))
    return corner + inside + _BOARD_BLUR * generator.standard_normal((len(labels), 2))


def _draw_twonorm(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return features [n, 20]: N(a, I) for class 0, N(-a, I) for class 1."""
    return generator.standard_normal((len(labels), _DIMENSION)) + _SHIFT * (1 - 2 * labels)[:, None]


def _draw_ringnorm(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return features [n, 20]: N(0, 4 I) for class 0, N(a, I) for class 1."""
    noise = generator.standard_normal((len(labels), _DIMENSION))
    return np.where(labels[:, None] == 0, 2 * noise, noise + _SHIFT)


def _draw_waveform(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return features [n, 21]: a random mixture of the two waves of each class, plus N(0, I)."""
    first, second = _waves()[np.array(_WAVE_PAIRS)[labels].T]
    mixing = generator.random((len(labels), 1))
    noise = generator.standard_normal((len(labels), _NUM_WAVE_POINTS))
    return mixing * first + (1 - mixing) * second + noise


class RawData(NamedTuple):
    """A data set before it is split: raw features [n, d], labels [n], texts for its card, posterior [n, K] or None."""

    features: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    licence: str
    description: str
    posterior: torch.Tensor | None = None


class Recipe(NamedTuple):
    """How one generated data set is drawn, its posterior and what its card says."""

    draw_features: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    posterior: Callable[[torch.Tensor], torch.Tensor]
    class_names: tuple[str, ...]
    source: str
    description: str


RECIPES = {
    "twonorm": Recipe(
        _draw_twonorm,
        twonorm_posterior,
        ("plus", "minus"),
        "Breiman (1998), Arcing classifiers, Annals of Statistics 26(3)",
        "20 features, N(+a, I) against N(-a, I) with every coordinate of a equal to 2/sqrt(20). Bayes error 2.28 %.",
    ),
    "ringnorm": Recipe(
        _draw_ringnorm,
        ringnorm_posterior,
        ("wide", "narrow"),
        "Breiman (1998), Arcing classifiers, Annals of Statistics 26(3)",
        "20 features, N(0, 4 I) against N(a, I) with every coordinate of a equal to 2/sqrt(20). Sources differ on a: "
        "2/sqrt(20) (DELVE) gives a Bayes error of 1.24 %, 1/sqrt(20) (mlbench) gives 1.50 %; the published "
        "theoretical error is 1.3 %, so 2/sqrt(20) is used.",
    ),
    "three_gaussians": Recipe(
        _draw_three_gaussians,
        _three_gaussians_posterior,
        ("top", "left", "right"),
        "drawn for this book",
        "2 features, N(m, I) with m one of the corners of an equilateral triangle of side 3 around the origin, the "
        "first one on top. Bayes error 11.53 %.",
    ),
    "waveform": Recipe(
        _draw_waveform,
        waveform_posterior,
        ("waves 1 and 2", "waves 1 and 3", "waves 2 and 3"),
        "Breiman, Friedman, Olshen, Stone (1984), Classification and regression trees",
        "21 features, u h_a + (1 - u) h_b + N(0, I) with u uniform on [0, 1] and triangular waves of height 6 that "
        "peak at points 11, 15 and 7. Three classes (two-class versions exist). Bayes error 13.3 % (published: 14 %).",
    ),
    "two_moons": Recipe(
        functools.partial(_draw_mixture, "two_moons"),
        two_moons_posterior,
        ("upper", "lower"),
        "drawn for this book",
        "2 features, N(m, 0.09 I) with m one of 24 equally spaced points of a half circle of radius 1; the second half "
        "circle is the first one mirrored at (0.5, 0.25). Bayes error 8.51 %.",
    ),
    "circles": Recipe(
        _draw_circles,
        circles_posterior,
        ("inner", "outer"),
        "drawn for this book",
        "2 features, N(m, 0.16 I) with m uniform on a circle around the origin, of radius 1 or 2. The class means are "
        "equal. Bayes error 11.01 %.",
    ),
    "spirals": Recipe(
        functools.partial(_draw_mixture, "spirals"),
        spirals_posterior,
        ("arm 1", "arm 2", "arm 3"),
        "drawn for this book",
        "2 features, N(m, 0.0625 I) with m one of 80 points of an arm that winds outwards by 0.6 of a turn, from "
        "radius 0.4 to 2.4; the arms are a third of a turn apart. Bayes error 3.99 %.",
    ),
    "checkerboard": Recipe(
        _draw_checkerboard,
        checkerboard_posterior,
        ("even", "odd"),
        "drawn for this book",
        "2 features, uniform on the cells of one colour of a board of 4 x 4 unit cells around the origin, plus "
        "N(0, 0.01 I). The class means are equal. Bayes error 11.25 %.",
    ),
}


def draw(name: str, num_examples: int, generator: np.random.Generator) -> RawData:
    """Draw a sample of a generated set, with equally likely classes.

    Args:
        name: One of the keys of ``RECIPES``.
        num_examples: Number of examples n.
        generator: Source of randomness.

    Returns:
        Raw features, labels and their true posterior.

    Examples:
        >>> draw("waveform", 5, np.random.default_rng(0)).features.shape
        (5, 21)
    """
    recipe = RECIPES[name]
    labels = generator.integers(len(recipe.class_names), size=num_examples)
    features = recipe.draw_features(labels, generator)
    posterior = recipe.posterior(torch.from_numpy(features))
    licence = "MIT (drawn by this package, no file behind it)"
    return RawData(features, labels, recipe.class_names, recipe.source, licence, recipe.description, posterior)
