r"""Does a model know how often it is right? Calibration of every class, in bins of equal mass, and as a curve.

The error of the top class in bins of equal width is :func:`nls.posterior.expected_calibration_error`.
All of these compare probabilities with the labels that they are given: noisy labels tell whether a model is calibrated
to noisy labels. Everything here is computed in float64, and no result depends on the order of the examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import stats

from nls import _checks


@dataclass(frozen=True)
class ReliabilityCurve:
    """What :func:`reliability_curve` returns: float64 tensors [num_bins], ``nan`` in empty bins, and the counts.

    Attributes:
        confidence: Mean probability of the predicted class.
        accuracy: Share of the predictions that equal the label.
        count: Number of examples, int64.
        low: Lower end of the interval of the accuracy.
        high: Its upper end.
    """

    confidence: torch.Tensor
    accuracy: torch.Tensor
    count: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def classwise_calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, num_bins: int = 15) -> float:
    r"""Return the calibration error averaged over classes, in bins of equal width.

    .. math:: \frac1K \sum_k \sum_b \frac{N_{bk}}{N} \bigl|\mathrm{frequency}_{bk} - \mathrm{probability}_{bk}\bigr|

    Bin b of class k holds the :math:`N_{bk}` examples whose probability of class k lies in it, whatever class is
    predicted; the frequency is the share of them that have label k. A class without a label has frequency 0: what
    the model gives to it counts as error. With many classes most probabilities are close to 0, and so is the average.
    On few examples the error is biased upwards. Bins are closed on the left, the last one on both sides.

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
        >>> probabilities = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])
        >>> classwise_calibration_error(probabilities, torch.tensor([0, 0]))  # by class 1/2, 1/4 and 1/4
        0.3333333333333333

    References:
        Nixon et al., 2019, arXiv:1904.01685 (static calibration error); Kull et al., 2019, arXiv:1910.12656.
    """
    columns, hits, num_bins = _by_class(probabilities, labels, num_bins)
    return float(_gaps(columns, hits, _equal_width(columns, num_bins), num_bins).mean())


def adaptive_calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, num_bins: int = 15) -> float:
    r"""Return the calibration error averaged over classes, in bins of equal mass.

    .. math:: \frac1K \sum_k \sum_b \frac{N_{bk}}{N} \bigl|\mathrm{frequency}_{bk} - \mathrm{probability}_{bk}\bigr|

    As :func:`classwise_calibration_error`, but the bins of a class split its N probabilities into parts of equal size,
    up to one example. Equal probabilities are never split, for then the order of the examples would matter: ties make
    bins larger and leave others empty, and the weight :math:`N_{bk} / N` follows.

    Args:
        probabilities: Predicted class probabilities, shape [N, K], N >= 1.
        labels: Class indices in [0, K), shape [N]; clean ones, unless calibration to noisy labels is meant.
        num_bins: Number of bins, at least 1; more than N is as good as N.

    Returns:
        The error, in [0, 1].

    Raises:
        TypeError: If ``probabilities`` is not a floating-point tensor or ``labels`` are not integers.
        ValueError: If ``probabilities`` are not probabilities, a shape or label does not fit, or ``num_bins`` < 1.

    Examples:
        >>> probabilities = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
        >>> adaptive_calibration_error(probabilities, torch.tensor([0, 1, 0]))
        0.0

    References:
        Nixon et al., 2019, arXiv:1904.01685.
    """
    columns, hits, num_bins = _by_class(probabilities, labels, num_bins)
    return float(_gaps(columns, hits, _equal_mass(columns, num_bins), num_bins).mean())


def reliability_curve(
    probabilities: torch.Tensor,
    labels: torch.Tensor,
    num_bins: int = 15,
    *,
    adaptive: bool = False,
    level: float = 0.95,
) -> ReliabilityCurve:
    r"""Return, for each bin of confidence, how often the predicted class is right, with an interval.

    The confidence is the largest probability. The interval is Wilson's for the accuracy :math:`a` of a bin of n
    examples; unlike the usual one it stays in [0, 1] and has a width where all or none are right:

    .. math:: \frac{a + z^2 / 2n \pm z \sqrt{a (1 - a) / n + z^2 / 4n^2}}{1 + z^2 / n}

    The weighted gaps :math:`\sum_b (n_b / N) |a_b - \mathrm{confidence}_b|` of equal-width bins add up to
    :func:`nls.posterior.expected_calibration_error`, but for examples with a confidence of exactly 1: here they
    belong to the last bin, there they have a bin of their own.

    Args:
        probabilities: Predicted class probabilities, shape [N, K], N >= 1. Of equal largest ones the first counts.
        labels: Class indices in [0, K), shape [N]; clean ones, unless calibration to noisy labels is meant.
        num_bins: Number of bins, at least 1.
        adaptive: Whether the bins have equal mass rather than equal width; ties are not split.
        level: Confidence level of the intervals, in (0, 1).

    Returns:
        The curve, one entry for each bin; empty bins have a count of 0 and ``nan`` elsewhere.

    Raises:
        TypeError: If ``probabilities`` is not a floating-point tensor or ``labels`` are not integers.
        ValueError: If ``probabilities`` are not probabilities, a shape or label does not fit, ``num_bins`` < 1, or
            ``level`` is out of range.

    Examples:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75]])
        >>> curve = reliability_curve(probabilities, torch.tensor([0, 1, 0]), num_bins=2)
        >>> curve.count, curve.confidence, curve.accuracy
        (tensor([0, 3]), tensor([   nan, 0.7500], dtype=torch.float64), tensor([   nan, 0.3333], dtype=torch.float64))

    References:
        Guo et al., 2017, arXiv:1706.04599; Wilson, 1927, doi:10.1080/01621459.1927.10502953.
    """
    exact, labels, num_bins = _checked(probabilities, labels, num_bins)
    level = _checks.number(level, "level", low=1e-9, high=1 - 1e-9)
    top = exact.max(1)
    confidence, hits = top.values[None], (top.indices == labels).double()[None]
    bins = (_equal_mass if adaptive else _equal_width)(confidence, num_bins)
    count, sure, right = (
        _sums(values, bins, num_bins)[0] for values in (torch.ones_like(confidence), confidence, hits)
    )
    accuracy, z2 = right / count, float(stats.norm.ppf((1 + level) / 2)) ** 2
    half = (z2 * (accuracy * (1 - accuracy) / count + z2 / (4 * count**2))).sqrt()
    low, high = ((accuracy + z2 / (2 * count) + side * half) / (1 + z2 / count) for side in (-1, 1))
    # In exact arithmetic an end is 0 or 1 where none or all are right.
    return ReliabilityCurve(sure / count, accuracy, count.long(), low.clamp(min=0), high.clamp(max=1))


def _checked(probabilities: object, labels: object, num_bins: object) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the probabilities in float64, the labels in int64 and the number of bins."""
    num_bins = _checks.integer(num_bins, "num_bins", low=1)
    exact = _checks.probabilities(probabilities, "probabilities").detach().double()
    if exact.ndim != 2 or not len(exact):
        raise ValueError(f"probabilities must have shape [N, K] with N >= 1, got {_checks.describe(probabilities)}")
    labels = _checks.integer_labels(labels, "labels", exact.shape[1])
    if labels.shape != exact.shape[:1]:
        raise ValueError(f"labels must have shape ({len(exact)},), one for each row, got {tuple(labels.shape)}")
    # A sum within the tolerance of 1 can leave an entry just above 1.
    return exact.clamp(max=1), labels, num_bins


def _by_class(probabilities: object, labels: object, num_bins: object) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return a row of probabilities for each class, [K, N], which of them have that label, and the number of bins."""
    exact, labels, num_bins = _checked(probabilities, labels, num_bins)
    hits = (labels == torch.arange(exact.shape[1], device=exact.device)[:, None]).double()
    return exact.T.contiguous(), hits, num_bins


def _equal_width(values: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Return the bin of each value in [0, 1]."""
    # Divided, not multiplied by a width, so that a decimal edge is the number that a reader types.
    edges = torch.arange(1, num_bins, dtype=torch.float64, device=values.device) / num_bins
    return torch.bucketize(values, edges, right=True)


def _equal_mass(values: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Return the bin of each value, row by row; equal values share a bin."""
    size = values.shape[1]
    ranks = torch.arange(1, num_bins, device=values.device) * size // num_bins
    starts = values.sort(1).values[:, ranks].contiguous()
    return torch.searchsorted(starts, values, right=True)


def _sums(values: torch.Tensor, bins: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Return the sums of values [K, N] over the bins of their row, [K, num_bins]."""
    return values.new_zeros(len(values), num_bins).scatter_add(1, bins, values)


def _gaps(values: torch.Tensor, hits: torch.Tensor, bins: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Return the weighted absolute gap of each row, [K]."""
    return _sums(hits - values, bins, num_bins).abs().sum(1) / values.shape[1]
