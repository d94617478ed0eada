"""Data sets that are drawn rather than collected, each with its true posterior P(y | x)."""

from __future__ import annotations

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


def _three_gaussians_posterior(features: torch.Tensor) -> torch.Tensor:
    """Return the true posterior of ``three_gaussians`` at raw features [n, 2]."""
    return gaussian_posterior(features, torch.tensor(_TRIANGLE, dtype=torch.float64))


def _draw_three_gaussians(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return features [n, 2]: N(m, I) with m a corner of the triangle."""
    return generator.standard_normal((len(labels), 2)) + np.array(_TRIANGLE)[labels]


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
