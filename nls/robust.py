r"""Losses that bound what one wrong label can do, in the form of :mod:`nls.baselines`, and one with a memory.

With p the softmax of the logits and :math:`l_k = -\log p_k`, a function here takes
``f(logits, labels, <its parameter>, *, reduction="mean")``: logits [N, K] or [N, K, d1, ...], labels [N] or
[N, d1, ...], a parameter that is a number or a tensor with one value for each example. None of these losses is a rate
of generalised label smoothing, but at the ends of a range some are: each docstring says what they tend to there.
"""

from __future__ import annotations

import torch
from torch import nn

from nls import _checks
from nls.baselines import _parameter, _prepare
from nls.losses import _reduce
from nls.training import TINY

__all__ = [
    "ELRLoss",
    "active_passive_loss",
    "bootstrap_loss",
    "gce_loss",
    "mae_loss",
    "normalized_cross_entropy_loss",
    "sce_loss",
]


def mae_loss(logits: torch.Tensor, labels: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    r"""Return the mean absolute error of the prediction, summed over the classes.

    .. math:: \ell(z, y) = \sum_k |p_k - \mathrm{onehot}(y)_k| = 2\,(1 - p_y)

    Over the classes the losses sum to :math:`2(K - 1)`, so symmetric noise only scales their differences. Its gradient
    has the factor :math:`p_y`: an example that the network gets wrong with confidence hardly counts.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices in [0, K), shape [N] or [N, d1, ...].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> mae_loss(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 1]), reduction="none")
        tensor([1.7616, 1.0000])

    References:
        Ghosh, Kumar and Sastry 2017, "Robust Loss Functions under Label Noise for Deep Neural Networks",
        arXiv 1712.09482.
    """
    _, lse, picked = _prepare(logits, labels, reduction)
    return _reduce(-2 * torch.expm1(picked - lse), reduction)


def gce_loss(
    logits: torch.Tensor, labels: torch.Tensor, q: float | torch.Tensor = 0.7, *, reduction: str = "mean"
) -> torch.Tensor:
    r"""Return the generalised cross entropy, which lies between cross entropy and absolute error.

    .. math:: \ell(z, y) = \frac{1 - p_y^q}{q}

    It tends to the cross entropy as :math:`q \to 0`; at :math:`q = 1` it is :math:`1 - p_y`, half of
    :func:`mae_loss`. It lies in :math:`[0, 1/q]`, and its gradient is that of the cross entropy times :math:`p_y^q`.
    The paper's truncated form, which drops examples as it trains, is not here.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices in [0, K), shape [N] or [N, d1, ...].
        q: In (0, 1], a number or a tensor of shape [], [N] or that of the labels; 0.7 is the paper's.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> gce_loss(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 1]), 0.5, reduction="none")
        tensor([1.3095, 0.5858])

    References:
        Zhang and Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
        arXiv 1805.07836.
    """
    _, lse, picked = _prepare(logits, labels, reduction)
    q = _parameter(q, "q", picked, low=TINY, high=1.0)
    return _reduce(-torch.expm1(q * (picked - lse)) / q, reduction)


def sce_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float | torch.Tensor = 0.1,
    beta: float | torch.Tensor = 1.0,
    *,
    log_zero: float = -4.0,
    reduction: str = "mean",
) -> torch.Tensor:
    r"""Return symmetric cross entropy: a share of cross entropy, and the cross entropy with its sides exchanged.

    .. math:: \ell(z, y) = \alpha\, l_y - \beta \sum_k p_k \log \mathrm{onehot}(y)_k
        = \alpha\, l_y - \beta A\,(1 - p_y), \qquad \log 0 := A

    At :math:`\beta = 0` it is :math:`\alpha` times the cross entropy, at :math:`\alpha = 0` it is
    :math:`-\beta A / 2` times :func:`mae_loss`. Implementations that clip the one-hot label at :math:`10^{-4}` use
    :math:`A = \log 10^{-4} \approx -9.2` where the paper has :math:`-4`.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices in [0, K), shape [N] or [N, d1, ...].
        alpha: :math:`\alpha \ge 0`, a number or a tensor of shape [], [N] or that of the labels.
        beta: :math:`\beta \ge 0`, likewise; 0.1 and 1 are the paper's values for CIFAR-10.
        log_zero: A, below 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> sce_loss(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 1]), 1.0, 0.5, reduction="none")
        tensor([3.8885, 1.6931])

    References:
        Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels", arXiv 1908.06112.
    """
    _, lse, picked = _prepare(logits, labels, reduction)
    alpha, beta = _parameter(alpha, "alpha", picked), _parameter(beta, "beta", picked)
    log_zero = _checks.number(log_zero, "log_zero", high=-TINY)
    return _reduce(alpha * (lse - picked) + beta * log_zero * torch.expm1(picked - lse), reduction)


def bootstrap_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    beta: float | torch.Tensor = 0.95,
    *,
    hard: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    r"""Return the cross entropy against a mixture of the label and the model's own prediction.

    .. math:: \ell_{\mathrm{soft}} = \beta\, l_y + (1 - \beta) \sum_k p_k l_k = \beta\, l_y + (1 - \beta)\, H(p),
        \qquad \ell_{\mathrm{hard}} = \beta\, l_y + (1 - \beta) \min_k l_k

    The gradient of the soft form passes through the prediction on both of its sides, so that it is :math:`\beta` times
    :func:`nls.baselines.confidence_penalty_loss` at the negative penalty :math:`-(1 - \beta)/\beta`. At
    :math:`\beta = 1` both forms are the cross entropy.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices in [0, K), shape [N] or [N, d1, ...].
        beta: :math:`\beta` in [0, 1], a number or a tensor of shape [], [N] or that of the labels; the paper has 0.95
            for the soft and 0.8 for the hard form.
        hard: Whether the prediction is its arg-max, of equal logits the first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 1])
        >>> bootstrap_loss(logits, labels, 0.5, reduction="none")
        tensor([1.2461, 0.6931])
        >>> bootstrap_loss(logits, labels, 0.5, hard=True, reduction="none")
        tensor([1.1269, 0.6931])

    References:
        Reed et al. 2015, "Training Deep Neural Networks on Noisy Labels with Bootstrapping", arXiv 1412.6596.
    """
    centred, lse, picked = _prepare(logits, labels, reduction)
    beta = _parameter(beta, "beta", picked, high=1.0)
    if _checks.choice(hard, "hard", (False, True)):
        own = centred.gather(1, centred.argmax(1, keepdim=True)).squeeze(1)
    else:
        own = (centred.softmax(1) * centred).sum(1)
    return _reduce(lse - beta * picked - (1 - beta) * own, reduction)


def normalized_cross_entropy_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, reduction: str = "mean"
) -> torch.Tensor:
    r"""Return the cross entropy as a share of its sum over all labels.

    .. math:: \ell(z, y) = \frac{l_y}{\sum_k l_k} = \frac{A(z) - m_y(z)}{K A(z)}
        = \frac{1}{K}\Bigl(1 - \frac{m_y(z)}{A(z)}\Bigr)

    Over the classes the losses sum to one, so symmetric noise only scales their differences; it lies in [0, 1].

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices in [0, K), shape [N] or [N, d1, ...].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> normalized_cross_entropy_loss(logits, torch.tensor([1, 1]), reduction="none")
        tensor([0.9437, 0.5000])

    References:
        Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv 2006.13554.
    """
    centred, lse, picked = _prepare(logits, labels, reduction)
    return _reduce(_normalized(centred, lse, picked), reduction)


def active_passive_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    passive: float | torch.Tensor = 1.0,
    active: float | torch.Tensor = 1.0,
    *,
    kind: str = "mae",
    log_zero: float = -4.0,
    reduction: str = "mean",
) -> torch.Tensor:
    r"""Return normalised cross entropy, which pulls at the label, with a loss that pushes at the other classes.

    .. math:: \ell(z, y) = a\, \frac{l_y}{\sum_k l_k} + b\, \cdot 2\,(1 - p_y)
        \qquad\text{or}\qquad a\, \frac{l_y}{\sum_k l_k} - b A\,(1 - p_y)

    Both parts sum to a constant over the classes, and so does the whole. The second form, with the reverse cross
    entropy of :func:`sce_loss`, is the first with another weight. At :math:`b = 0` it is
    :func:`normalized_cross_entropy_loss`, at :math:`a = 0` it is :func:`mae_loss`.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices in [0, K), shape [N] or [N, d1, ...].
        passive: :math:`b \ge 0`, a number or a tensor of shape [], [N] or that of the labels.
        active: :math:`a \ge 0`, likewise; both are 1 in the paper for CIFAR-10.
        kind: ``"mae"`` or ``"rce"``, the part that pushes.
        log_zero: A, below 0, for ``"rce"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> active_passive_loss(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 1]), reduction="none")
        tensor([2.7053, 1.5000])

    References:
        Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv 2006.13554.
    """
    centred, lse, picked = _prepare(logits, labels, reduction)
    active, passive = _parameter(active, "active", picked), _parameter(passive, "passive", picked)
    log_zero = _checks.number(log_zero, "log_zero", high=-TINY)
    factor = -2.0 if _checks.choice(kind, "kind", ("mae", "rce")) == "mae" else log_zero
    losses = active * _normalized(centred, lse, picked) + passive * factor * torch.expm1(picked - lse)
    return _reduce(losses, reduction)


def _normalized(centred: torch.Tensor, lse: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    return (lse - picked) / (centred.shape[1] * lse - centred.sum(1))


class ELRLoss(nn.Module):
    r"""Early-learning regularisation: cross entropy, and a memory of past predictions that holds the network to them.

    .. math:: \ell_i = l_{y_i} + \lambda \log\bigl(1 - \textstyle\sum_k p_k t_{ik}\bigr), \qquad
        t_i \leftarrow \beta\, t_i + (1 - \beta)\, p

    The targets :math:`t_i`, one row for each training example, start at zero and move, in training mode, before each
    loss; no gradient passes through them. As in the authors' code p is kept within :math:`[10^{-4}, 1 - 10^{-4}]`, for
    the targets divided by its sum. Without that the loss has no lower bound: prediction and target can agree. At
    :math:`\lambda = 0` it is the cross entropy.

    The targets are a buffer, so they follow ``.to(device)`` and survive through ``state_dict``, as the ``loss`` of
    :func:`nls.fit_each` needs it.

    Args:
        num_examples: N, rows of the training set, at least 1.
        num_classes: K, at least 2.
        strength: :math:`\lambda \ge 0`; 3 is the paper's for CIFAR-10.
        momentum: :math:`\beta` in [0, 1]; 0.7 is the paper's for CIFAR-10.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Examples:
        >>> loss = ELRLoss(num_examples=5, num_classes=2, strength=1.0, momentum=0.5)
        >>> loss(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([3]))  # log 2 + log(1 - 1/4)
        tensor([0.4055])
        >>> loss.targets[3]
        tensor([0.2500, 0.2500])

    References:
        Liu et al. 2020, "Early-Learning Regularization Prevents Memorization of Noisy Labels", arXiv 2007.00151.
    """

    _MARGIN = 1e-4

    def __init__(self, num_examples: int, num_classes: int, strength: float = 3.0, momentum: float = 0.7) -> None:
        super().__init__()
        shape = _checks.integer(num_examples, "num_examples", low=1), _checks.integer(num_classes, "num_classes", low=2)
        self.strength = _checks.number(strength, "strength", low=0.0)
        self.momentum = _checks.number(momentum, "momentum", low=0.0, high=1.0)
        self.register_buffer("targets", torch.zeros(shape))

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Return the losses [b] of logits [b, K] and labels [b]; ``indices`` [b] are rows of the training set."""
        centred, lse, picked = _prepare(logits, labels, "none")
        if centred.ndim != 2 or centred.shape[1] != self.targets.shape[1]:
            got = tuple(centred.shape)
            raise ValueError(f"logits must have shape [b, {self.targets.shape[1]}] for these targets, got {got}")
        if _checks.tensor(indices, "indices").shape != labels.shape:
            raise ValueError(f"indices must have shape {tuple(labels.shape)}, got {tuple(indices.shape)}")
        rows = _checks.integer_labels(indices, "indices", len(self.targets))
        model = (centred - lse.unsqueeze(1)).exp().clamp(self._MARGIN, 1 - self._MARGIN)
        if self.training:
            now = (model.detach() / model.detach().sum(1, keepdim=True)).to(self.targets)
            self.targets[rows] = self.momentum * self.targets[rows] + (1 - self.momentum) * now
        agreement = (model * self.targets[rows].to(model)).sum(1)
        return lse - picked + self.strength * torch.log1p(-agreement)

    def extra_repr(self) -> str:
        """Return the settings as they are shown by ``repr``."""
        size = tuple(self.targets.shape)
        return f"num_examples={size[0]}, num_classes={size[1]}, strength={self.strength}, momentum={self.momentum}"
