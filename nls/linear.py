"""Linear models under generalised label smoothing: the exact minimum of their convex risk, and when there is one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog, minimize

from nls import _checks


@dataclass(frozen=True)
class LinearModel:
    """A fitted linear model; called on features [N, d], it returns logits [N, K].

    Attributes:
        weight: Float64 [K, d].
        bias: Float64 [K]; zero without an intercept.
        value: The risk at these weights, with the ridge.
        converged: Whether the gradient is zero within the tolerance. False says that there is no minimum, or that
            it is far away: see :func:`critical_rate`. Separable labels at rate zero can give True with
            large weights, where the risk is as flat as at a minimum.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    value: float
    converged: bool

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return features.double() @ self.weight.T + self.bias


def fit_linear(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    smooth_rate: float = 0.0,
    *,
    ridge: float = 0.0,
    intercept: bool = True,
    weight: torch.Tensor | None = None,
    max_iterations: int = 2000,
) -> LinearModel:
    r"""Fit a linear model by minimising its mean GLS loss.

    .. math:: \min_{W, b}\; \frac{\sum_n w_n\, \ell_r(W x_n + b, y_n)}{\sum_n w_n} + \frac{\gamma}{2} \|W\|^2

    The risk is convex at every rate, so a zero gradient is a global minimum. Below zero there may be none; a ridge
    on W restores it, but for the bias, which is not penalised.

    Args:
        features: Shape [N, d], finite.
        labels: Class indices [N], or soft labels [N, K] whose rows sum to 1 and may have entries of any sign.
        num_classes: Number of classes K, at least 2.
        smooth_rate: Rate r, at most 1.
        ridge: :math:`\gamma`, at least 0.
        intercept: Whether there is a bias.
        weight: Weights of the examples [N], at least 0 and not all 0; equal by default.
        max_iterations: Most steps of L-BFGS.

    Returns:
        The model, float64.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or shapes do not fit.

    Examples:
        >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0], [-1.0], [1.0]])
        >>> labels = torch.tensor([0, 0, 1, 1, 1, 0])
        >>> model = fit_linear(features, labels, 2, ridge=0.1)
        >>> model.converged, model(features).argmax(1)
        (True, tensor([0, 0, 1, 1, 0, 1]))
        >>> fit_linear(features, labels, 2, smooth_rate=-4.0).converged
        False

    References:
        Wei et al., 2022, arXiv:2106.04149, for the loss; Liu and Nocedal, 1989, doi:10.1007/BF01589116, for L-BFGS.
    """
    x, targets = _checked(features, labels, num_classes, smooth_rate)
    ridge = _checks.number(ridge, "ridge", low=0)
    shares = _shares(weight, len(x))
    if intercept:
        x = np.column_stack([x, np.ones(len(x))])
    penalty = np.full(x.shape[1], ridge)
    penalty[x.shape[1] - intercept :] = 0.0
    # The linear part of the risk, -<W, M>, needs the examples only once.
    moments = (targets * shares[:, None]).T @ x

    def risk(flat: np.ndarray) -> tuple[float, np.ndarray]:
        matrix = flat.reshape(num_classes, -1)
        logits = x @ matrix.T
        top = logits.max(1, keepdims=True)
        scores = np.exp(logits - top)
        total = scores.sum(1, keepdims=True)
        value = shares @ (np.log(total) + top)[:, 0] - (matrix * moments).sum() + (penalty * matrix**2).sum() / 2
        return value, ((scores / total * shares[:, None]).T @ x - moments + penalty * matrix).ravel()

    # The tolerance is on the gradient alone: near a flat minimum the value stops changing long before.
    options = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "ftol": 0.0, "gtol": 1e-10, "maxcor": 30}
    start = np.zeros(num_classes * x.shape[1])
    found = minimize(risk, start, jac=True, method="L-BFGS-B", options=options)
    converged = bool(np.abs(found.jac).max() <= 1e-6 * max(1.0, float(np.abs(moments).max())))
    solution = torch.from_numpy(found.x.reshape(num_classes, -1))
    bias = solution[:, -1] if intercept else solution.new_zeros(num_classes)
    return LinearModel(solution[:, : x.shape[1] - intercept], bias, float(found.fun), converged)


def critical_rate(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int = 2, *, intercept: bool = True
) -> float:
    r"""Return the rate below which the GLS risk of a linear model falls without bound.

    .. math::
        1 - r_{\mathrm{crit}} = \max\Bigl\{\tau : \sum_n (a_n - u)\, x_n^\top = \tau \sum_n (y_n - u)\, x_n^\top
        \ \text{for some probabilities}\ a_1, \ldots, a_N\Bigr\}

    with one-hot labels :math:`y_n` and the uniform vector u: a linear programme. The rate is the last one whose
    targets have moments that probabilities can have. Above it the risk has a minimum; at it the risk is bounded, and
    no weights reach its infimum; below it there is no bound. As the dual of this programme,

    .. math:: \frac{1}{1 - r_{\mathrm{crit}}} = \max_{W \ne 0}
        \frac{\sum_n m_{y_n}(W x_n)}{\sum_n (\max_k z_k - \bar z)(W x_n)} .

    Labels that a linear model separates, also with points on the border, give 0: there cross entropy already has no
    minimum.

    Args:
        features: Shape [N, d], finite.
        labels: Class indices [N], or soft labels [N, K] whose rows sum to 1, such as a noisy posterior.
        num_classes: Number of classes K, at least 2.
        intercept: Whether the model has a bias.

    Returns:
        The rate, at most 0 for class indices, to about 1e-9; ``-inf`` where every rate below 1 has a minimum, because
        the labels have nothing to do with the features.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or shapes do not fit.
        RuntimeError: If the linear programme is not solved.

    Examples:
        >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0], [-1.0], [1.0]])
        >>> round(critical_rate(features, torch.tensor([0, 0, 1, 1, 1, 0])), 12)
        -1.0
        >>> critical_rate(features, torch.tensor([0, 0, 1, 1, 0, 1]))
        0.0

    References:
        Albert and Anderson, 1984, doi:10.1093/biomet/71.1.1, for rate 0.
    """
    x, rows = _checked(features, labels, num_classes, 0.0)
    if intercept:
        x = np.column_stack([x, np.ones(len(x))])
    x = x / np.maximum(np.abs(x).max(0), np.finfo(float).tiny)  # the units of a feature do not matter
    num_examples, free = len(x), num_classes - 1  # both sides sum to zero over the classes: the last one follows
    moments = ((rows[:, :free] - 1 / num_classes).T @ x).ravel()
    if np.abs(moments).max() <= 1e-12 * num_examples:
        return -math.inf
    # The unknowns are the probabilities of all classes but the last, class by class, and tau.
    equal = sparse.hstack([sparse.block_diag([x.T] * free), -moments[:, None]], format="csc")
    at_most = None
    if free > 1:
        at_most = sparse.hstack([sparse.eye_array(num_examples)] * free + [np.zeros((num_examples, 1))], format="csc")
    found = linprog(
        np.append(np.zeros(free * num_examples), -1.0),
        A_ub=at_most,
        b_ub=None if at_most is None else np.ones(num_examples),
        A_eq=equal,
        b_eq=np.tile(x.sum(0) / num_classes, free),
        bounds=[(0, 1)] * (free * num_examples) + [(0, None)],
        method="highs-ds",
    )
    if found.status != 0:
        raise RuntimeError(f"the linear programme was not solved: {found.message}")
    rate = 1 - float(found.x[-1])
    return rate if abs(rate) > 1e-9 else 0.0


def _checked(
    features: object, labels: object, num_classes: object, smooth_rate: object
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features [N, d] and the target rows [N, K], float64."""
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    rate = _checks.number(smooth_rate, "smooth_rate", high=1)
    if _checks.floating(features, "features").ndim != 2 or not len(features):
        raise ValueError(f"features must have shape [N, d] with N >= 1, got {_checks.describe(features)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite")
    if _checks.tensor(labels, "labels").is_floating_point():
        rows = labels.detach().double()
        if rows.shape != (len(features), num_classes):
            expected = (len(features), num_classes)
            raise ValueError(f"soft labels must have shape {expected}, got {tuple(rows.shape)}")
        if not bool(((rows.sum(1) - 1).abs() <= 1e-5 * rows.abs().sum(1).clamp_min(1)).all()):
            raise ValueError("soft labels must have rows that sum to 1")
        # A sum that is off by the rounding of float32 would let a common offset of the logits run away.
        rows = rows / rows.sum(1, keepdim=True)
    else:
        if labels.shape != (len(features),):
            raise ValueError(f"labels must have shape ({len(features)},), got {tuple(labels.shape)}")
        rows = torch.eye(num_classes, dtype=torch.float64)[_checks.integer_labels(labels, "labels", num_classes)]
    return features.detach().double().numpy(), ((1 - rate) * rows + rate / num_classes).numpy()


def _shares(weight: object, num_examples: int) -> np.ndarray:
    """Return the weights of the examples, summing to 1."""
    if weight is None:
        return np.full(num_examples, 1 / num_examples)
    if _checks.floating(weight, "weight").shape != (num_examples,):
        raise ValueError(f"weight must have shape ({num_examples},), got {tuple(weight.shape)}")
    values = weight.detach().double().numpy()
    if not (np.isfinite(values).all() and values.min() >= 0 and values.sum() > 0):
        raise ValueError("weight must be finite, not negative and not all zero")
    return values / values.sum()
