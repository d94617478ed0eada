r"""What a confidence is good for: an order in which to trust predictions, and a scale that one number can mend.

Whether the scale is right is what :mod:`nls.calibration` measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar

from nls import _checks

TEMPERATURES = (0.02, 50.0)
"""The least and the largest temperature that :func:`fit_temperature` returns."""

_NUM_COARSE = 41


@dataclass(frozen=True)
class RiskCoverage:
    """What :func:`risk_coverage` returns.

    Attributes:
        risk: Share of wrong predictions among the k surest, float64 [N], for k = 1, ..., N.
    """

    risk: torch.Tensor

    @property
    def coverage(self) -> torch.Tensor:
        """The shares k / N of the predictions that are kept, float64 [N]."""
        return torch.arange(1, len(self.risk) + 1, dtype=torch.float64, device=self.risk.device) / len(self.risk)

    @property
    def area(self) -> float:
        """The mean risk over all coverages (AURC), small where predictions are good and well ordered."""
        return float(self.risk.mean())

    def accuracy_at(self, coverage: float) -> float:
        """Return the accuracy on a share of the predictions, the surest ones.

        Args:
            coverage: In (0, 1]; at least one prediction is kept.

        Returns:
            The share of them that is right.

        Raises:
            TypeError: If ``coverage`` is not a number.
            ValueError: If it is out of range.

        Examples:
            >>> risk_coverage(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, True, False])).accuracy_at(0.5)
            1.0
        """
        share = _checks.number(coverage, "coverage", low=1e-12, high=1.0)
        # A hair below, so that rounding in a product such as 0.1 * 30 does not keep one more.
        return 1 - float(self.risk[max(math.ceil(share * len(self.risk) - 1e-9), 1) - 1])


def risk_coverage(confidence: torch.Tensor, right: torch.Tensor) -> RiskCoverage:
    r"""Return how often the surest predictions are wrong, for every share of them that one may keep.

    With the predictions sorted by confidence, the surest first, and :math:`e_i = 1` where one is wrong,

    .. math:: \mathrm{risk}_k = \frac1k \sum_{i \le k} e_i, \qquad
        \mathrm{area} = \frac1N \sum_{k=1}^{N} \mathrm{risk}_k .

    Only the order of the confidences matters. Equal ones are taken in a random order, of which this is the mean.

    Args:
        confidence: Any score that is larger for a prediction to be trusted more, finite, shape [N], N >= 1.
        right: Whether each prediction is right, bool [N].

    Returns:
        The curve.

    Raises:
        TypeError: If ``confidence`` is not a floating-point tensor or ``right`` not a boolean one.
        ValueError: If a shape does not fit or a confidence is not finite.

    Examples:
        >>> curve = risk_coverage(torch.tensor([0.9, 0.6, 0.8]), torch.tensor([True, False, True]))
        >>> curve.risk
        tensor([0.0000, 0.0000, 0.3333], dtype=torch.float64)
        >>> round(curve.area, 4)
        0.1111

    References:
        Geifman and El-Yaniv, 2017, arXiv:1705.08500; Geifman et al., 2019, arXiv:1805.08206.
    """
    confidence = _checks.floating(confidence, "confidence").detach().double()
    if confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"confidence must have shape [N] with N >= 1, got {tuple(confidence.shape)}")
    if not bool(confidence.isfinite().all()):
        raise ValueError(f"confidence must be finite, got {int((~confidence.isfinite()).sum())} values that are not")
    if _checks.tensor(right, "right").dtype != torch.bool:
        raise TypeError(f"right must be a boolean tensor, got {_checks.describe(right)}")
    if right.shape != confidence.shape:
        raise ValueError(f"right must have shape {tuple(confidence.shape)}, as confidence, got {tuple(right.shape)}")
    _, level, count = (-confidence).unique(return_inverse=True, return_counts=True)
    errors = torch.zeros_like(count, dtype=torch.float64).index_add(0, level, (~right).double())
    shared = (errors / count).repeat_interleave(count)  # of equal confidences each is wrong by the share of them
    return RiskCoverage(shared.cumsum(0) / torch.arange(1, len(shared) + 1, device=shared.device))


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, transition: torch.Tensor | None = None) -> float:
    r"""Return the temperature with which a model fits held-out labels best.

    .. math:: \hat\tau = \arg\min_\tau -\frac1N \sum_i \log \bigl(T^\top \operatorname{softmax}(z_i / \tau)\bigr)_{y_i}

    Without a ``transition`` T is the identity, and the labels have to be those that the model is to be calibrated to.
    With the matrix of the noise the labels may be noisy, and the model is fitted to the clean ones behind them.
    A temperature never changes a prediction.

    Args:
        logits: Of the model on examples that it was not trained on, shape [N, K], N >= 1.
        labels: Class indices in [0, K), shape [N].
        transition: Row-stochastic matrix [K, K], ``transition[i, j]`` = P(noisy j | clean i), or None.

    Returns:
        The temperature, within ``TEMPERATURES``; above 1 it makes the model less sure.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, logits are not finite, or a label cannot come about under ``transition``.

    Examples:
        >>> logits = torch.tensor([[1.0, 0.0]] * 4)
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 4)  # 1 / log 3, where the model says 3/4
        0.9102

    References:
        Guo et al., 2017, arXiv:1706.04599; the corrected loss is that of Patrini et al., 2017, arXiv:1609.03683.
    """
    exact = _checks.floating(logits, "logits").detach().double()
    if exact.ndim != 2 or not len(exact) or exact.shape[1] < 2:
        raise ValueError(f"logits must have shape [N, K] with N >= 1 and K >= 2, got {tuple(exact.shape)}")
    if not bool(exact.isfinite().all()):
        raise ValueError(f"logits must be finite, got {int((~exact.isfinite()).sum())} values that are not")
    labels = _checks.integer_labels(labels, "labels", exact.shape[1])
    if labels.shape != exact.shape[:1]:
        raise ValueError(f"labels must have shape ({len(exact)},), one for each row, got {tuple(labels.shape)}")
    paths = None if transition is None else _log_paths(transition, labels, exact)

    def loss(log_temperature: float) -> float:
        log_model = (exact / math.exp(log_temperature)).log_softmax(1)
        if paths is None:
            return -float(log_model.gather(1, labels[:, None]).mean())
        return -float((log_model + paths).logsumexp(1).mean())

    # Through a matrix the loss may have several minima: look everywhere first, then closely.
    low, high = (math.log(value) for value in TEMPERATURES)
    grid = torch.linspace(low, high, _NUM_COARSE, dtype=torch.float64).tolist()
    best = min(range(_NUM_COARSE), key=lambda i: loss(grid[i]))
    around = grid[max(best - 1, 0)], grid[min(best + 1, _NUM_COARSE - 1)]
    return math.exp(minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6}).x)


def _log_paths(transition: object, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return log P(label of the row | each class) [N, K]."""
    matrix = _checks.transition_matrix(transition).to(logits.device)
    if len(matrix) != logits.shape[1]:
        raise ValueError(f"transition must be {logits.shape[1]} x {logits.shape[1]}, as logits, got {len(matrix)} rows")
    paths = matrix.T[labels]
    impossible = ~(paths > 0).any(1)
    if impossible.any():
        raise ValueError(f"labels must be possible under transition, got {int(labels[impossible][0])}, which never is")
    return paths.log()
