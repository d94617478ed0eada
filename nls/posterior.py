"""Class posteriors: what noise and smoothing do to them, and how to measure it in nats, margins and calibration.

:func:`noisy_posterior` and :func:`gls_posterior` compute in float64 and return the dtype of their first argument;
the measures return float64, or a float where they average over examples.
"""

from __future__ import annotations

import numpy as np
import torch

from nls import _checks

# Entries this far below zero are rounding, as where a negative rate just reaches the edge of the simplex.
ROUNDING = 1e-6

FLOOR = 1e-6
"""Least probability that :func:`output_map` gives a class, before normalising."""


def noisy_posterior(posterior: torch.Tensor, transition: torch.Tensor) -> torch.Tensor:
    r"""Return the posterior of the noisy label, where noise depends on the clean label only.

    .. math:: \tilde\eta(x) = T^\top \eta(x)

    Args:
        posterior: Clean class probabilities, shape [..., K], each in [0, 1] and summing to 1.
        transition: Row-stochastic matrix [K, K], ``transition[i, j]`` = P(noisy j | clean i).

    Returns:
        The noisy posterior, of the shape, dtype and device of ``posterior``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If an argument is not made of probabilities, or the numbers of classes differ.

    Examples:
        >>> clean = torch.tensor([1.0, 0.0])
        >>> noisy_posterior(clean, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
        tensor([0.7500, 0.2500])

    References:
        Patrini et al., 2017, arXiv:1609.03683.
    """
    matrix = _checks.transition_matrix(transition)
    exact = _simplex(posterior, "posterior")
    _same_classes(exact, "posterior", matrix, "transition")
    return (exact @ matrix.to(exact.device)).to(posterior.dtype)


def gls_posterior(posterior: torch.Tensor, smooth_rate: float | torch.Tensor) -> torch.Tensor:
    r"""Return the class weights that generalised label smoothing gives a posterior.

    .. math:: q = (1 - r)\,\eta + \tfrac{r}{K}, \qquad r \le 1

    The weights sum to 1 for every rate, but for :math:`r < 0` they may be negative. They are returned as they are,
    so that two rates compose; the risk has no minimum where a weight is negative
    (:func:`nls.rates.feasible_rate`).

    Args:
        posterior: Vectors that sum to 1, shape [..., K]; probabilities, or what this function returned.
        smooth_rate: Rate r up to 1, a number or a floating-point tensor that broadcasts over the leading axes.

    Returns:
        The weights, of the dtype of ``posterior``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If ``smooth_rate`` is above 1 or not finite, or ``posterior`` does not sum to 1.

    Examples:
        >>> posterior = torch.tensor([0.75, 0.25])
        >>> gls_posterior(posterior, 0.5)
        tensor([0.6250, 0.3750])
        >>> gls_posterior(posterior, -2.0)
        tensor([ 1.2500, -0.2500])

    References:
        Wei et al., 2022, arXiv:2106.04149; Szegedy et al., 2016, arXiv:1512.00567.
    """
    exact = _summing_to_one(posterior, "posterior")
    if isinstance(smooth_rate, torch.Tensor):
        rate = _checks.floating(smooth_rate, "smooth_rate").to(exact).unsqueeze(-1)
        if not bool((torch.isfinite(rate) & (rate <= 1)).all()):
            largest = float(rate.detach().max())
            raise ValueError(f"smooth_rate must be finite and at most 1, got a largest value of {largest:g}")
        _broadcast(exact, "posterior", rate, "smooth_rate")
    else:
        rate = _checks.number(smooth_rate, "smooth_rate", high=1)
    return ((1 - rate) * exact + rate / exact.shape[-1]).to(posterior.dtype)


def entropy(posterior: torch.Tensor) -> torch.Tensor:
    r"""Return the Shannon entropy in nats over the last axis.

    .. math:: H(\eta) = -\sum_k \eta_k \log \eta_k, \qquad 0 \log 0 = 0

    Args:
        posterior: Class probabilities, shape [..., K].

    Returns:
        Entropies in [0, log K], float64, shape [...].

    Raises:
        TypeError: If ``posterior`` is not a floating-point tensor.
        ValueError: If it has negative entries (weights of a negative rate below its feasible one have no entropy)
            or does not sum to 1.

    Examples:
        >>> entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([0.0000, 0.6931], dtype=torch.float64)

    References:
        Shannon, 1948, doi:10.1002/j.1538-7305.1948.tb01338.x.
    """
    return torch.special.entr(_simplex(posterior, "posterior")).sum(-1)


def kl_divergence(target: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    r"""Return the Kullback-Leibler divergence in nats over the last axis.

    .. math:: \mathrm{KL}(t \,\|\, p) = \sum_k t_k \log \frac{t_k}{p_k}

    Args:
        target: Class probabilities, shape [..., K].
        predicted: Class probabilities, a shape that broadcasts with that of ``target``, the same K.

    Returns:
        Divergences, at least 0, float64; infinite where ``predicted`` is 0 and ``target`` is not.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If an argument is not made of probabilities, or the shapes do not fit.

    Examples:
        >>> target = torch.tensor([0.5, 0.5])
        >>> kl_divergence(target, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0., inf], dtype=torch.float64)

    References:
        Kullback and Leibler, 1951, doi:10.1214/aoms/1177729694.
    """
    target, predicted = _pair(target, "target", predicted, "predicted")
    terms = torch.special.xlogy(target, target) - torch.special.xlogy(target, predicted)
    # Rounding can leave a sum of -1e-17 for equal arguments.
    return terms.sum(-1).clamp(min=0)


def js_divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    r"""Return the Jensen-Shannon divergence in nats over the last axis.

    .. math:: \mathrm{JS}(a, b) = \tfrac12 \mathrm{KL}(a \,\|\, m) + \tfrac12 \mathrm{KL}(b \,\|\, m),
        \qquad m = \tfrac12 (a + b)

    Args:
        first: Class probabilities, shape [..., K].
        second: Class probabilities, a shape that broadcasts with that of ``first``, the same K.

    Returns:
        Divergences in [0, log 2], float64; always finite, unlike :func:`kl_divergence`.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If an argument is not made of probabilities, or the shapes do not fit.

    Examples:
        >>> js_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor(0.6931, dtype=torch.float64)

    References:
        Lin, 1991, doi:10.1109/18.61115.
    """
    first, second = _pair(first, "first", second, "second")
    middle = (first + second) / 2
    return (kl_divergence(first, middle) + kl_divergence(second, middle)) / 2


def mutual_information(posterior: torch.Tensor, transition: torch.Tensor) -> float:
    r"""Return what an input tells about its noisy label, in nats, over a sample of inputs.

    .. math:: I(X; \tilde Y) = H\Bigl(\frac1N \sum_n \tilde\eta(x_n)\Bigr) - \frac1N \sum_n H(\tilde\eta(x_n))

    Args:
        posterior: Clean class probabilities, one row per input, shape [N, K] with N >= 1. With estimated
            posteriors, and with few rows, the result is biased.
        transition: Row-stochastic matrix [K, K]; the identity gives :math:`I(X; Y)`.

    Returns:
        The mutual information, at least 0 and at most log K.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If an argument is not made of probabilities, the numbers of classes differ, or N is 0.

    Examples:
        >>> round(mutual_information(torch.eye(2), torch.eye(2)), 4)
        0.6931
        >>> mutual_information(torch.eye(2), torch.full((2, 2), 0.5))
        0.0

    References:
        Shannon, 1948, doi:10.1002/j.1538-7305.1948.tb01338.x.
    """
    _checks.floating(posterior, "posterior")
    if posterior.ndim != 2 or not len(posterior):
        raise ValueError(f"posterior must have shape [N, K] with N >= 1, got {_checks.describe(posterior)}")
    noisy = noisy_posterior(posterior.detach().double(), transition)
    return max(0.0, float(entropy(noisy.mean(0)) - entropy(noisy).mean()))


def margin(posterior: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    r"""Return the margin of the largest class, or of a given label.

    .. math:: \eta_{(1)} - \eta_{(2)}, \qquad\text{or}\qquad \eta_y - \max_{k \ne y} \eta_k

    Args:
        posterior: Vectors that sum to 1, shape [..., K]; weights of a negative rate are allowed.
        labels: Class indices in [0, K), shape [...], or None for the gap between the two largest entries.

    Returns:
        Margins, float64, shape [...]. Without labels at least 0; with labels negative where the label is not the
        largest class.

    Raises:
        TypeError: If ``posterior`` is not a floating-point tensor or ``labels`` are not integers.
        ValueError: If ``posterior`` does not sum to 1, or ``labels`` have another shape or are out of range.

    Examples:
        >>> posterior = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
        >>> margin(posterior)
        tensor([0.2500, 0.2500], dtype=torch.float64)
        >>> margin(posterior, torch.tensor([0, 1]))
        tensor([ 0.2500, -0.2500], dtype=torch.float64)
    """
    exact = _summing_to_one(posterior, "posterior")
    if labels is None:
        first, second = exact.topk(2, dim=-1).values.unbind(-1)
        return first - second
    labels = _labels_of(exact, "posterior", labels).unsqueeze(-1)
    others = exact.scatter(-1, labels, -torch.inf).amax(-1)
    return exact.gather(-1, labels).squeeze(-1) - others


def output_map(
    posterior: torch.Tensor, smooth_rate: float | torch.Tensor, noise_rate: float | torch.Tensor, floor: float = FLOOR
) -> torch.Tensor:
    r"""Undo, after training, what a smooth rate and symmetric noise do to a posterior.

    .. math:: \hat\eta = \frac{q - (1 - s) / K}{s}, \qquad s = (1 - r)(1 - c), \qquad c = \frac{K \epsilon}{K - 1}

    A model that fits rate r on labels of noise rate :math:`\epsilon` predicts :math:`q = s\,\eta + (1 - s)/K`. At
    :math:`r = -c/(1-c)` the map is the identity, since then s = 1: that rate asks the network for the clean posterior,
    the map computes it from what any other rate gives.

    Args:
        posterior: Predictions q, shape [..., K], in any floating type. They are not checked: a model that diverged may
            hold nan, and gets nan.
        smooth_rate: r, at most 1, a number or a tensor that broadcasts over the leading axes.
        noise_rate: :math:`\epsilon` in [0, 1], likewise. Where s is not above 0 the result is nan.
        floor: Least probability before normalising, in (0, 1); noise in q can push an entry of the map below zero.

    Returns:
        Probabilities of the shape and type of ``posterior``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``posterior`` has fewer than 2 classes, a rate or ``floor`` is out of range, or a rate has
            a shape that does not broadcast.

    Examples:
        >>> output_map(torch.tensor([0.3, 0.7]), 0.0, 0.2)
        tensor([0.1667, 0.8333])

    References:
        The inverse of :func:`noisy_posterior` for symmetric noise, followed by that of :func:`gls_posterior`.
    """
    if _checks.floating(posterior, "posterior").ndim == 0 or posterior.shape[-1] < 2:
        raise ValueError(f"posterior must have at least 2 classes on its last axis, got {_checks.describe(posterior)}")
    floor = _checks.number(floor, "floor", low=1e-30, high=1, open_high=True)
    num_classes = posterior.shape[-1]
    rate = _rate_like(smooth_rate, "smooth_rate", torch.finfo(posterior.dtype).min, posterior)
    noise = _rate_like(noise_rate, "noise_rate", 0.0, posterior)
    try:
        np.broadcast_shapes(posterior.shape[:-1], rate.shape, noise.shape)  # torch's own imports sympy: 0.5 s
    except ValueError:
        shapes = f"{tuple(rate.shape)}, {tuple(noise.shape)} and {tuple(posterior.shape[:-1])}"
        message = f"smooth_rate and noise_rate must broadcast with posterior, got leading shapes {shapes}"
        raise ValueError(message) from None
    scale = ((1 - rate) * (1 - num_classes * noise / (num_classes - 1))).unsqueeze(-1)
    scale = scale.masked_fill(scale <= 0, torch.nan)
    mapped = ((posterior - (1 - scale) / num_classes) / scale).clamp_min(floor)
    return mapped / mapped.sum(-1, keepdim=True)


def _rate_like(value: object, name: str, low: float, like: torch.Tensor) -> torch.Tensor:
    """Return a rate in [low, 1], a number or a tensor, in the type and on the device of ``like``."""
    if not isinstance(value, torch.Tensor):
        return like.new_tensor(_checks.number(value, name, low=low, high=1))
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {_checks.describe(value)}")
    # In float64, where every low of a narrower type can be told from what lies beyond it.
    exact = value.detach().double()
    outside = ~((exact >= low) & (exact <= 1))
    if outside.any():
        raise ValueError(f"{name} must lie in [{low:g}, 1], got {float(exact[outside][0]):g}")
    return value.to(like)


def expected_calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, num_bins: int = 15) -> float:
    r"""Return the expected calibration error of the top class, over bins of equal width.

    .. math:: \mathrm{ECE} = \sum_b \frac{N_b}{N} \bigl|\mathrm{accuracy}_b - \mathrm{confidence}_b\bigr|

    It looks at the top class only, so a model can have an error of 0 and wrong probabilities for the other classes,
    or wrong ones that cancel within a bin. The value depends on ``num_bins``, and on few examples it is biased
    upwards. Bins are closed on the left; a confidence of exactly 1 has a bin of its own. The computation is that of
    torchmetrics, in float32.

    Args:
        probabilities: Predicted class probabilities, shape [N, K], N >= 1.
        labels: Class indices in [0, K), shape [N]; clean ones, unless calibration to noisy labels is meant.
        num_bins: Number of bins, at least 1.

    Returns:
        The error, in [0, 1].

    Raises:
        TypeError: If ``probabilities`` is not a floating-point tensor or ``labels`` are not integers.
        ValueError: If ``probabilities`` are not probabilities, a shape or label does not fit, or ``num_bins`` < 1.

    Examples:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
        >>> expected_calibration_error(probabilities, torch.tensor([0, 1]))
        0.25

    References:
        Naeini et al., 2015, doi:10.1609/aaai.v29i1.9602; Guo et al., 2017, arXiv:1706.04599.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    num_bins = _checks.integer(num_bins, "num_bins", low=1)
    exact = _simplex(probabilities, "probabilities")
    if exact.ndim != 2 or not len(exact):
        raise ValueError(f"probabilities must have shape [N, K] with N >= 1, got {_checks.describe(probabilities)}")
    labels = _labels_of(exact, "probabilities", labels)
    # A confidence that rounding leaves just above 1 would make torchmetrics take the rows for logits.
    exact = exact.detach().clamp(max=1)
    return float(multiclass_calibration_error(exact, labels, exact.shape[-1], n_bins=num_bins, norm="l1"))


def _simplex(value: object, name: str) -> torch.Tensor:
    """Return ``value`` as float64 probabilities; entries below zero by rounding become 0."""
    exact = _checks.floating(value, name).double()
    exact = torch.where(exact > -ROUNDING, exact.clamp(min=0), exact)
    _checks.probabilities(exact.detach(), name, atol=_checks.sum_tolerance(value.dtype))
    return exact


def _summing_to_one(value: object, name: str) -> torch.Tensor:
    """Return ``value`` as float64 if its last axis sums to 1; entries may be negative."""
    exact = _checks.floating(value, name).double()
    if exact.ndim == 0 or exact.shape[-1] < 2:
        raise ValueError(f"{name} must have at least 2 classes on its last axis, got {_checks.describe(value)}")
    # Large weights of both signs cancel in the sum, and so does the precision of their dtype.
    off = (exact.detach().sum(-1) - 1).abs()
    if not bool((off <= _checks.sum_tolerance(value.dtype) * (1 + exact.detach().abs().amax(-1))).all()):
        worst = float(off.max())
        raise ValueError(f"{name} must be finite and sum to 1 over its last axis, got a sum off by {worst:g}")
    return exact


def _pair(first: object, first_name: str, second: object, second_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two arrays of probabilities that have the same classes and broadcast."""
    first, second = _simplex(first, first_name), _simplex(second, second_name)
    _same_classes(first, first_name, second, second_name)
    _broadcast(first, first_name, second, second_name)
    return first, second


def _same_classes(first: torch.Tensor, first_name: str, second: torch.Tensor, second_name: str) -> None:
    """Raise unless both have the same number of classes on their last axis."""
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"{first_name} and {second_name} must have the same number of classes, "
            f"got {first.shape[-1]} and {second.shape[-1]}"
        )


def _broadcast(first: torch.Tensor, first_name: str, second: torch.Tensor, second_name: str) -> None:
    """Raise a ValueError, not torch's RuntimeError, unless the shapes broadcast."""
    try:
        np.broadcast_shapes(first.shape, second.shape)
    except ValueError:
        raise ValueError(
            f"{second_name} must broadcast with {first_name}, "
            f"got leading shapes {tuple(second.shape[:-1])} and {tuple(first.shape[:-1])}"
        ) from None


def _labels_of(posterior: torch.Tensor, name: str, labels: object) -> torch.Tensor:
    """Return ``labels`` as int64 if there is one for each row of ``posterior``."""
    labels = _checks.integer_labels(labels, "labels", posterior.shape[-1])
    if labels.shape != posterior.shape[:-1]:
        raise ValueError(
            f"labels must have one entry per row of {name}, shape {tuple(posterior.shape[:-1])}, "
            f"got shape {tuple(labels.shape)}"
        )
    return labels
