r"""Losses of other papers, in one form: ``f(logits, labels, <its parameter>, *, reduction="mean")``.

With :math:`l_k = -\log p_k`, the label-free :math:`A = \operatorname{lse}(z) - \bar z` and the linear margin
:math:`m_y = z_y - \bar z` of :func:`nls.gls_loss`, a loss :math:`\alpha A - \beta\, m_y` with :math:`\alpha > 0` is
:math:`\alpha` times generalised label smoothing at the rate :math:`1 - \beta / \alpha`; with :math:`\alpha = 0` it is
the limit of rates to minus infinity. Each docstring says where its loss lies.

Logits have shape [N, K] or [N, K, d1, ...] and labels [N] or [N, d1, ...], as for :func:`nls.gls_loss`; float16 and
bfloat16 are computed in float32. Labels are class indices, and none is ignored. A parameter is a number, or a tensor
with one value for each example. So the members of a stack, logits [B, n, K] and labels [B, n], are
``f(logits.mT, labels, parameter, reduction="none")`` with a parameter [B].
"""

from __future__ import annotations

import torch

from nls import _checks
from nls.losses import _REDUCTIONS, _centre, _check_labels_fit, _class_indices, _prepare_logits, _readable, _reduce

__all__ = [
    "complementary_loss",
    "confidence_penalty_loss",
    "draw_complementary_labels",
    "nlnl_loss",
    "peer_loss",
    "sampled_peer_loss",
    "unbiased_complementary_loss",
    "unhinged_loss",
]


def unhinged_loss(logits: torch.Tensor, labels: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    r"""Return the linear loss of a label, the limit of the normalised smoothing loss as the rate falls.

    .. math:: \ell(z, y) = \bar z - z_y = -m_y(z) = \lim_{r \to -\infty} \frac{\ell_r(z, y)}{1 - r}

    For two classes the paper writes :math:`1 - v` with the signed score :math:`v = m_y`, which differs by a constant.
    Over the classes the losses sum to zero, so symmetric noise only scales them. There is no lower bound: keep the
    weights or the logits bounded. Here :math:`\alpha = 0, \beta = 1`.

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
        >>> unhinged_loss(torch.tensor([[2.0, 0.0, -2.0], [0.0, 1.0, 0.5]]), torch.tensor([0, 0]), reduction="none")
        tensor([-2.0000,  0.5000])

    References:
        Van Rooyen, Menon and Williamson 2015, "Learning with Symmetric Label Noise: The Importance of Being
        Unhinged", arXiv 1505.07634.
    """
    centred, _, picked = _prepare(logits, labels, reduction)
    return _reduce(centred.mean(1) - picked, reduction)


def peer_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    peer_weight: float | torch.Tensor = 1.0,
    *,
    prior: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    r"""Return peer loss with its peers averaged out: the peer label follows a prior and sees nothing of the input.

    .. math:: \ell(z, y) = l_y - a \sum_k \pi_k\, l_k = (1 - a) \operatorname{lse}(z) - z_y + a \sum_k \pi_k z_k

    With the noisy label frequencies as the prior, its mean over a batch is the mean of :func:`sampled_peer_loss` over
    all draws. With a uniform prior :math:`\alpha = 1 - a, \beta = 1`, the rate :math:`-a / (1 - a)`: at
    :math:`a = 1` it is :func:`unhinged_loss`, at :math:`a = c` the exact correction of symmetric noise, up to the
    factor :math:`1 - c`. With :math:`a > 0` it has no lower bound, unless every peer has the label.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices in [0, K), shape [N] or [N, d1, ...].
        peer_weight: :math:`a \ge 0`, a number or a tensor of shape [], [N] or that of the labels.
        prior: :math:`\pi`, probabilities of the classes of peer labels, shape [K]; uniform by default.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> logits, labels = torch.tensor([[2.0, 0.0, -2.0], [0.0, 1.0, 0.5]]), torch.tensor([0, 0])
        >>> peer_loss(logits, labels, reduction="none")
        tensor([-2.0000,  0.5000])
        >>> peer_loss(logits, labels, prior=torch.tensor([0.5, 0.5, 0.0]), reduction="none")
        tensor([-1.0000,  0.5000])

    References:
        Liu and Guo 2020, "Peer Loss Functions: Learning from Noisy Labels without Knowing Noise Rates",
        arXiv 1910.03231.
    """
    centred, lse, picked = _prepare(logits, labels, reduction)
    weight = _parameter(peer_weight, "peer_weight", picked)
    if prior is None:
        expected = centred.mean(1)
    else:
        _checks.floating(prior, "prior")
        if prior.shape != centred.shape[1:2]:
            raise ValueError(f"prior must have shape ({centred.shape[1]},), one per class, got {tuple(prior.shape)}")
        if _readable(prior):
            _checks.probabilities(prior, "prior")
        expected = torch.tensordot(centred.movedim(1, -1), prior.to(centred), 1)
    return _reduce((1 - weight) * lse - picked + weight * expected, reduction)


def sampled_peer_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    peers: torch.Tensor,
    peer_weight: float | torch.Tensor = 1.0,
    *,
    reduction: str = "mean",
) -> torch.Tensor:
    r"""Return peer loss as published: an example less a peer made of the input of one and the label of another.

    .. math:: \ell_i = l_{y_i}(z_i) - a\, l_{y_{v(i)}}(z_{u(i)})

    Draw u and v independently and uniformly, anew for each step. Then the mean over the batch is that of
    :func:`peer_loss` at the batch's own label frequencies in expectation; the loss of a single example is not.

    Args:
        logits: Shape [N, K], K at least 2.
        labels: Class indices in [0, K), shape [N].
        peers: Positions in the batch, integers in [0, N), shape [2, N]: u picks the input, v the label.
        peer_weight: :math:`a \ge 0`, a number or a tensor of shape [] or [N].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> sampled_peer_loss(logits, labels, torch.tensor([[1, 0], [1, 1]]), reduction="none")
        tensor([-0.1863, -1.8137])

    References:
        Liu and Guo 2020, "Peer Loss Functions: Learning from Noisy Labels without Knowing Noise Rates",
        arXiv 1910.03231.
    """
    centred, lse, picked = _prepare(logits, labels, reduction)
    if centred.ndim != 2:
        raise ValueError(f"logits must have shape [N, K] for drawn peers, got {tuple(logits.shape)}")
    weight = _parameter(peer_weight, "peer_weight", picked)
    if _checks.tensor(peers, "peers").shape != (2, len(labels)):
        raise ValueError(f"peers must have shape (2, {len(labels)}) for {len(labels)} labels, got {tuple(peers.shape)}")
    if not torch.compiler.is_compiling():
        _checks.integer_labels(peers, "peers", len(labels))
    inputs, others = peers.long()
    peer = lse[inputs] - centred[inputs, labels.long()[others]]
    return _reduce(lse - picked - weight * peer, reduction)


def complementary_loss(logits: torch.Tensor, labels: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    r"""Return the loss of the label less the mean loss of the other classes.

    .. math:: \ell(z, y) = l_y - \frac{1}{K - 1} \sum_{k \ne y} l_k = -\frac{K}{K - 1}\, m_y(z)

    For two classes this is :math:`l_y - l_{1 - y}`, the form in which Wei et al. compare negative smoothing with
    learning from complementary labels. Here :math:`\alpha = 0, \beta = K / (K - 1)`: the unhinged loss on another
    scale. It is not the loss of :func:`nlnl_loss`, nor that of :func:`unbiased_complementary_loss`.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices in [0, K) of ordinary labels, shape [N] or [N, d1, ...].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> complementary_loss(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), reduction="none")
        tensor([-2.,  1.])

    References:
        Wei et al. 2022, "To Smooth or Not? When Label Smoothing Meets Noisy Labels", arXiv 2106.04149.
    """
    centred, _, picked = _prepare(logits, labels, reduction)
    num_classes = centred.shape[1]
    return _reduce((centred.mean(1) - picked) * (num_classes / (num_classes - 1)), reduction)


def unbiased_complementary_loss(logits: torch.Tensor, labels: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    r"""Return the loss on a complementary label whose mean over such labels is the cross entropy on the true one.

    .. math:: \ell(z, \bar y) = \sum_k l_k - (K - 1)\, l_{\bar y} = A(z) + (K - 1)\, m_{\bar y}(z)

    A complementary label names a class that is wrong; here each wrong class is as likely. This is the backward
    correction of symmetric noise with flip rate 1: :math:`\alpha = 1, \beta = 1 - K`, the rate K on
    :math:`\bar y`. For three classes or more it has no lower bound. A complementary label made from a noisy label
    corrects nothing: the mean is then the cross entropy on that noisy label.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Complementary labels :math:`\bar y`, class indices in [0, K), shape [N] or [N, d1, ...].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0, -2.0]]).expand(2, -1)
        >>> unbiased_complementary_loss(logits, torch.tensor([1, 2]), reduction="none")
        tensor([ 2.1429, -1.8571])

    References:
        Ishida et al. 2019, "Complementary-Label Learning for Arbitrary Losses and Models", arXiv 1810.04327.
    """
    centred, lse, picked = _prepare(logits, labels, reduction)
    num_classes = centred.shape[1]
    return _reduce(lse + (num_classes - 1) * picked - num_classes * centred.mean(1), reduction)


def nlnl_loss(logits: torch.Tensor, labels: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    r"""Return the loss of negative learning: the complementary label should be improbable.

    .. math:: \ell(z, \bar y) = -\log(1 - p_{\bar y})

    It is the forward correction of symmetric noise with flip rate 1, less :math:`\log(K - 1)`, and at least 0. For two
    classes it is the cross entropy on the other class; for more it is no rate of label smoothing.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Complementary labels :math:`\bar y`, class indices in [0, K), shape [N] or [N, d1, ...].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> nlnl_loss(torch.tensor([[2.0, 0.0, -2.0]]).expand(2, -1), torch.tensor([0, 2]), reduction="none")
        tensor([2.0160, 0.0160])

    References:
        Kim et al. 2019, "NLNL: Negative Learning for Noisy Labels", arXiv 1908.07387.
        Yu et al. 2018, "Learning with Biased Complementary Labels", arXiv 1711.09535, for the forward correction.
    """
    centred, lse, _ = _prepare(logits, labels, reduction)
    # 1 - p from the other classes themselves: it keeps its digits where p is near 1.
    others = centred.scatter(1, labels.long().unsqueeze(1), -torch.inf)
    return _reduce(lse - others.logsumexp(1), reduction)


def draw_complementary_labels(
    labels: torch.Tensor, num_classes: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    r"""Draw a complementary label for each label: another class, each of them as likely.

    .. math:: P(\bar y = k \mid y) = \frac{1}{K - 1} \quad\text{for}\quad k \ne y

    Negative learning as published draws them anew for each step and trains on them with :func:`nlnl_loss`; its later
    phases, which select examples by their confidence, are not here.

    Args:
        labels: Class indices in [0, K), of any shape.
        num_classes: K, at least 2.
        generator: Where the draw comes from, on any device; torch's global one if None.

    Returns:
        Class indices of the shape of ``labels``, int64.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Examples:
        >>> draw_complementary_labels(torch.tensor([0, 1, 1]), 2)
        tensor([1, 0, 0])

    References:
        Kim et al. 2019, "NLNL: Negative Learning for Noisy Labels", arXiv 1908.07387.
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    labels = _checks.integer_labels(labels, "labels", num_classes)
    device = labels.device if generator is None else generator.device
    steps = torch.randint(1, num_classes, labels.shape, generator=generator, device=device)
    return (labels + steps.to(labels.device)) % num_classes


def confidence_penalty_loss(
    logits: torch.Tensor, labels: torch.Tensor, penalty: float | torch.Tensor, *, reduction: str = "mean"
) -> torch.Tensor:
    r"""Return the cross entropy less a multiple of the entropy of the prediction.

    .. math:: \ell(z, y) = l_y - b\, H(p) = l_y + b\, \mathrm{KL}(p \Vert u) - b \log K

    Label smoothing adds :math:`\mathrm{KL}(u \Vert p)` in the same way. Here :math:`\beta = 1`, and the
    label-free part is no multiple of A: near zero logits the loss acts as :math:`1 + b` times label smoothing at the
    rate :math:`b / (1 + b)`, for sure predictions as the cross entropy. A negative penalty rewards confidence and, as
    the entropy is at least 0, stays bounded below where a negative rate does not.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices in [0, K), shape [N] or [N, d1, ...].
        penalty: b, any real number, or a tensor of shape [], [N] or that of the labels.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> confidence_penalty_loss(torch.tensor([[1.0, 1.0], [8.0, 0.0]]), torch.tensor([0, 0]), 0.5, reduction="none")
        tensor([ 0.3466, -0.0012])

    References:
        Pereyra et al. 2017, "Regularizing Neural Networks by Penalizing Confident Output Distributions",
        arXiv 1701.06548.
    """
    centred, lse, picked = _prepare(logits, labels, reduction)
    weight = _parameter(penalty, "penalty", picked, low=-torch.inf)
    entropy = lse - (centred.softmax(1) * centred).sum(1)
    return _reduce(lse - picked - weight * entropy, reduction)


def _prepare(logits: object, labels: object, reduction: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits less their row maximum, their log-sum-exp, and those of the labels, all checked."""
    logits = _prepare_logits(logits)
    _checks.choice(reduction, "reduction", _REDUCTIONS)
    if _checks.tensor(labels, "labels").is_floating_point():
        raise TypeError(f"labels must hold integer class indices, got {_checks.describe(labels)}")
    _check_labels_fit(labels, logits)
    indices = _class_indices(labels, logits.shape[1])
    centred, lse = _centre(logits)
    return centred, lse, centred.gather(1, indices.unsqueeze(1)).squeeze(1)


def _parameter(
    value: object, name: str, like: torch.Tensor, *, low: float = 0.0, high: float = torch.inf
) -> float | torch.Tensor:
    """Return a parameter that broadcasts over the examples of ``like``, in its type."""
    if not isinstance(value, torch.Tensor):
        return _checks.number(value, name, low=low, high=high)
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {_checks.describe(value)}")
    if value.shape not in ((), like.shape[:1], like.shape):
        allowed = ", ".join(str(tuple(size)) for size in dict.fromkeys(((), like.shape[:1], like.shape)))
        raise ValueError(f"{name} must be a number or have one of the shapes {allowed}, got {tuple(value.shape)}")
    if _readable(value) and value.numel():
        wrong = ~(value.isfinite() & (value >= low) & (value <= high))
        if bool(wrong.any()):
            limits = "" if low == -torch.inf else f" and at least {low:g}"
            limits += "" if high == torch.inf else f" and at most {high:g}"
            raise ValueError(f"{name} must be finite{limits}, got {value[wrong][0].item():g}")
    value = value.to(like)
    return value.view(-1, *[1] * (like.ndim - 1)) if value.ndim < like.ndim else value
