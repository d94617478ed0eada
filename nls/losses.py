r"""Cross entropy with a smooth rate of any sign, and the two corrections by a transition matrix.

Every loss here is the expected log loss under a row of target weights :math:`t`, which need not be probabilities:

.. math:: \ell(z, t) = \operatorname{lse}(z) \sum_k t_k - \sum_k t_k z_k .

Logits are centred by their row maximum first, so that a common offset costs no precision.
They are computed in float32 from float16 and bfloat16, and in their own type otherwise; the result has that type.
Values are checked on the CPU only, where reading them needs no synchronisation, and not while compiling.
"""

from __future__ import annotations

import torch
from torch import nn

from nls import _checks

__all__ = ["GLSLoss", "backward_corrected_loss", "forward_corrected_loss", "gls_loss", "gls_parts", "gls_targets"]

_REDUCTIONS = ("mean", "sum", "none")


def gls_targets(labels: torch.Tensor, num_classes: int, smooth_rate: float | torch.Tensor) -> torch.Tensor:
    r"""Return the target rows of generalised label smoothing.

    .. math:: t = (1 - r)\, \mathrm{onehot}(y) + r / K

    A row sums to one for every rate; below zero all its entries but the one of the label are negative.

    Args:
        labels: Class indices in [0, K), shape [N] or [N, ...].
        num_classes: K, at least 2.
        smooth_rate: :math:`r \le 1`, a number or a tensor of shape [], [N] or that of the labels.

    Returns:
        Targets of shape [N, ..., K], float64 where the rate is a float64 tensor, else of the default type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a label or a rate is out of range, or a shape does not fit.

    Examples:
        >>> gls_targets(torch.tensor([0, 2]), 4, -0.4)
        tensor([[ 1.3000, -0.1000, -0.1000, -0.1000],
                [-0.1000, -0.1000,  1.3000, -0.1000]])

    References:
        Wei et al. 2022, "To Smooth or Not? When Label Smoothing Meets Noisy Labels", arXiv 2106.04149.
        Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567.
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    if _checks.tensor(labels, "labels").ndim == 0:
        raise ValueError("labels must have at least one axis, [N] or [N, ...], got shape ()")
    labels = _class_indices(labels, num_classes)
    wide = isinstance(smooth_rate, torch.Tensor) and smooth_rate.dtype == torch.float64
    like = torch.empty(0, dtype=torch.float64 if wide else None, device=labels.device)
    rate = _prepare_rate(smooth_rate, labels.shape, like)
    rate = rate.unsqueeze(-1) if isinstance(rate, torch.Tensor) else rate
    onehot = labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)
    return (1 - rate) * onehot.to(like.dtype) + rate / num_classes


def gls_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smooth_rate: float | torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    r"""Return the cross entropy of logits against generalised label smoothing targets.

    .. math:: \ell_r(z, y) = \operatorname{lse}(z) - (1 - r)\, z_y - \frac{r}{K} \sum_k z_k = A(z) - (1 - r)\, m_y(z)

    with :math:`A = \operatorname{lse}(z) - \bar z`, which does not see the label, and the linear margin
    :math:`m_y = z_y - \bar z`. A rate above zero is label smoothing, zero is cross entropy, below zero is negative
    label smoothing. The loss is convex in the logits for every real rate. Below zero it is unbounded below: a network
    that memorises its labels lowers it for ever, and the gradient does not vanish.

    :func:`torch.nn.functional.cross_entropy` takes a negative ``label_smoothing`` without an error and ignores it;
    a rate never reaches it from here.

    Where :math:`r \le 1` is assumed: only in the check of ``smooth_rate``. Beyond one the label has a negative weight
    and its class the lowest target; where you mean that, pass the target rows as soft labels at rate zero.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2. A class masked by :math:`-\infty` gives what torch gives
            for rates in [0, 1]: an infinite loss above zero, a finite one at zero. Below zero no such value is useful:
            the loss is :math:`-\infty`, or nan if the label itself is masked.
        labels: Class indices of shape [N] or [N, d1, ...], or soft labels shaped like the logits. The classes of a soft
            label sum to one; its entries may be any real number.
        smooth_rate: :math:`r \le 1`, a number or a tensor of shape [], [N] (one rate per example) or that of the
            class indices.
        weight: Weights of the classes, shape [K], at least 0; they multiply the entries of the target row.
        ignore_index: Class index that adds neither loss nor gradient; may lie outside [0, K). Not for soft labels.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. The mean divides by the summed weight of the labels that are
            not ignored (nan if there are none, or in an empty batch), for soft labels by the number of examples.

    Returns:
        A scalar, or the losses per example in the shape of the class indices for ``"none"``; float32 for float16 and
        bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0, -2.0], [0.0, 1.0, 0.0]])
        >>> labels = torch.tensor([0, 2])
        >>> gls_loss(logits, labels, -1.0, reduction="none")
        tensor([-1.8571,  1.8848])
        >>> gls_loss(logits, labels, torch.tensor([0.0, -1.0]))
        tensor(1.0139)

    References:
        Wei et al. 2022, "To Smooth or Not? When Label Smoothing Meets Noisy Labels", arXiv 2106.04149.
        Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567.
        Silent negative ``label_smoothing`` in torch: https://github.com/pytorch/pytorch/issues/134767.
    """
    logits = _prepare_logits(logits)
    num_classes = logits.shape[1]
    weight = None if weight is None else _prepare_weight(weight, num_classes).to(logits)
    ignore_index = _checks.integer(ignore_index, "ignore_index", low=-(2**63), high=2**63 - 1)
    _checks.choice(reduction, "reduction", _REDUCTIONS)
    _check_labels_fit(labels, logits)
    rate = _prepare_rate(smooth_rate, _label_shape(logits), logits)
    if labels.is_floating_point():
        _check_soft_labels(labels, ignore_index)
        rate = rate.unsqueeze(1) if isinstance(rate, torch.Tensor) else rate
        rows = (1 - rate) * labels.to(logits.dtype) + rate / num_classes
        rows = rows if weight is None else rows * _along_classes(weight, logits)
        return _reduce(_expected_loss(logits, rows), reduction)

    labels = _class_indices(labels, num_classes, ignore_index)
    ignored = labels == ignore_index
    labels = labels.masked_fill(ignored, 0)
    centred, lse = _centre(logits)
    picked = centred.gather(1, labels.unsqueeze(1)).squeeze(1)
    # No dense targets: a target row enters through its label, its mean and its sum only.
    if weight is None:
        counts = ~ignored
        loss = lse - (1 - rate) * picked - _scale(rate, centred.mean(1))
    else:
        counts = weight[labels].masked_fill(ignored, 0)
        own = (1 - rate) * counts
        spread = (centred * _along_classes(weight, logits)).mean(1)
        loss = (own + rate * weight.mean()) * lse - own * picked - _scale(rate, spread)
    loss = loss.masked_fill(ignored, 0)
    return loss.sum() / counts.sum() if reduction == "mean" else _reduce(loss, reduction)


def gls_parts(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return the two parts of the loss, per example: one that does not see the label, and one that is linear.

    .. math:: \ell_r(z, y) = A(z) - (1 - r)\, m_y(z), \qquad
        A(z) = \operatorname{lse}(z) - \bar z \ge \log K, \qquad m_y(z) = z_y - \bar z

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2, finite.
        labels: Class indices of shape [N] or [N, d1, ...], or soft labels shaped like the logits.

    Returns:
        :math:`A` and :math:`m_y`, each in the shape of the class indices; float32 for float16 and bfloat16 logits.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> logits, labels = torch.tensor([[2.0, 0.0, -2.0]]), torch.tensor([0])
        >>> label_free, linear = gls_parts(logits, labels)
        >>> label_free, linear
        (tensor([2.1429]), tensor([2.]))
        >>> torch.equal(gls_loss(logits, labels, -1.0, reduction="none"), label_free - 2 * linear)
        True
    """
    logits = _prepare_logits(logits)
    _check_labels_fit(labels, logits)
    centred = logits - logits.mean(1, keepdim=True)
    if labels.is_floating_point():
        _check_soft_labels(labels, -100)
        linear = (labels.to(logits.dtype) * centred).sum(1)
    else:
        linear = centred.gather(1, _class_indices(labels, logits.shape[1]).unsqueeze(1)).squeeze(1)
    return centred.logsumexp(1), linear


class GLSLoss(nn.Module):
    r"""Generalised label smoothing as a module, see :func:`gls_loss`.

    .. math:: \ell_r(z, y) = \operatorname{lse}(z) - (1 - r)\, z_y - \frac{r}{K} \sum_k z_k

    A rate given as a tensor and the weights are buffers: they follow ``.to(device)`` and are part of ``state_dict``.
    After a warm-up, set the attribute ``smooth_rate`` anew; each call checks it.

    Args:
        smooth_rate: :math:`r \le 1`, a number or a tensor of shape [], [N] or that of the class indices.
        weight: Weights of the classes, shape [K], at least 0.
        ignore_index: Class index that adds neither loss nor gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range.

    Examples:
        >>> loss = GLSLoss(-0.4)
        >>> loss
        GLSLoss(smooth_rate=-0.4, ignore_index=-100, reduction='mean')
        >>> loss(torch.tensor([[2.0, 0.0, -2.0]]), torch.tensor([0]))
        tensor(-0.6571)

    References:
        Wei et al. 2022, "To Smooth or Not? When Label Smoothing Meets Noisy Labels", arXiv 2106.04149.
    """

    def __init__(
        self,
        smooth_rate: float | torch.Tensor,
        *,
        weight: torch.Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if isinstance(smooth_rate, torch.Tensor):
            _check_rate_values(smooth_rate)
            self.register_buffer("smooth_rate", smooth_rate)
        else:
            self.smooth_rate = _checks.number(smooth_rate, "smooth_rate", high=1.0)
        self.register_buffer("weight", None if weight is None else _prepare_weight(weight))
        self.ignore_index = _checks.integer(ignore_index, "ignore_index", low=-(2**63), high=2**63 - 1)
        self.reduction = _checks.choice(reduction, "reduction", _REDUCTIONS)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of ``logits`` [N, K, ...] against ``labels``."""
        settings = {"weight": self.weight, "ignore_index": self.ignore_index, "reduction": self.reduction}
        return gls_loss(logits, labels, self.smooth_rate, **settings)

    def extra_repr(self) -> str:
        """Return the settings as they are shown by ``repr``."""
        tensors = isinstance(self.smooth_rate, torch.Tensor)
        rate = f"<{_checks.describe(self.smooth_rate)}>" if tensors else self.smooth_rate
        weight = "" if self.weight is None else f"weight=<{_checks.describe(self.weight)}>, "
        return f"smooth_rate={rate}, {weight}ignore_index={self.ignore_index}, reduction={self.reduction!r}"


def backward_corrected_loss(
    logits: torch.Tensor, labels: torch.Tensor, transition: torch.Tensor, *, reduction: str = "mean"
) -> torch.Tensor:
    r"""Return the cross entropy corrected by the inverse of a transition matrix.

    .. math:: \ell(z, \tilde y) = -\sum_j (T^{-1})_{\tilde y j} \log p_j
        = \operatorname{lse}(z) - \sum_j (T^{-1})_{\tilde y j} z_j

    Rows of :math:`T^{-1}` sum to one, so logits replace log-probabilities. In expectation over the noise this is the
    cross entropy on clean labels, for every model. Entries of :math:`T^{-1}` may be negative, and then the loss is
    unbounded below. For symmetric noise of flip rate :math:`\varepsilon` it is :func:`gls_loss` at the rate
    :math:`-c/(1 - c)` with :math:`c = K \varepsilon/(K - 1)`.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Noisy class indices in [0, K), shape [N] or [N, d1, ...].
        transition: T, shape [K, K], rows sum to one, ``transition[i, j]`` = P(noisy j | clean i). An ill-conditioned
            matrix is accepted: it amplifies the variance of the loss and the rounding. Keep the matrix on the CPU to
            have it checked.
        reduction: ``"mean"`` over the examples, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the matrix is singular or not row-stochastic, a label is out of range, or a shape does not fit.

    Examples:
        >>> transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> backward_corrected_loss(logits, torch.tensor([0, 1]), transition, reduction="none")
        tensor([-0.0867,  1.9133])

    References:
        Patrini et al. 2017, "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach",
        arXiv 1609.03683.
    """
    logits, labels, matrix = _prepare_correction(logits, labels, transition, reduction)
    inverse = torch.linalg.inv_ex(matrix).inverse
    if _readable(matrix):
        # The condition number decides: rounding can leave a tiny pivot where exact arithmetic has none.
        condition = (matrix.abs().sum(1).amax() * inverse.abs().sum(1).amax()).item()
        limit = 1 / (matrix.shape[0] * torch.finfo(matrix.dtype).eps)
        if not condition < limit:
            raise ValueError(f"transition must be invertible, got a singular matrix of shape {tuple(matrix.shape)}")
    return _reduce(_expected_loss(logits, _pick_rows(inverse, labels, logits)), reduction)


def forward_corrected_loss(
    logits: torch.Tensor, labels: torch.Tensor, transition: torch.Tensor, *, reduction: str = "mean"
) -> torch.Tensor:
    r"""Return the cross entropy of the noisy posterior that the model implies.

    .. math:: \ell(z, \tilde y) = -\log (T^\top p)_{\tilde y} = -\log \sum_i T_{i \tilde y}\, p_i

    It is bounded below by :math:`-\log \max_i T_{i \tilde y}`. It shares the minimiser of the backward correction
    where T is invertible and the model can express the clean posterior, but neither its values nor its gradients.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Noisy class indices in [0, K), shape [N] or [N, d1, ...].
        transition: T, shape [K, K], rows sum to one, ``transition[i, j]`` = P(noisy j | clean i). Keep the matrix on
            the CPU to have it checked.
        reduction: ``"mean"`` over the examples, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the losses per example for ``"none"``; float32 for float16 and bfloat16 logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the matrix is not row-stochastic or never yields a given label, a label is out of range, or a
            shape does not fit.

    Examples:
        >>> transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> forward_corrected_loss(logits, torch.tensor([0, 1]), transition, reduction="none")
        tensor([0.4072, 1.0952])

    References:
        Patrini et al. 2017, "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach",
        arXiv 1609.03683.
    """
    logits, labels, matrix = _prepare_correction(logits, labels, transition, reduction)
    if _readable(matrix) and _readable(labels):
        impossible = (matrix.amax(0) == 0)[labels]
        _reject(impossible, labels, "labels must have a column of transition that is not all zero")
    centred, lse = _centre(logits)
    rows = _pick_rows(matrix.log().T, labels, logits)
    # lse is subtracted last: centred logits keep the precision that log-probabilities would have lost.
    return _reduce(lse - (rows + centred).logsumexp(1), reduction)


def _centre(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits less their row maximum, and the log-sum-exp of these, over axis 1."""
    # A common shift is a null direction of every loss here, so no gradient needs to pass through the maximum.
    centred = logits - logits.detach().amax(1, keepdim=True)
    return centred, centred.exp().sum(1).log()


def _expected_loss(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the log loss of ``logits`` weighted by target ``rows``, both with classes on axis 1."""
    centred, lse = _centre(logits)
    return lse * rows.sum(1) - (rows * centred).sum(1)


def _scale(rate: float | torch.Tensor, mean: torch.Tensor) -> float | torch.Tensor:
    """Return ``rate * mean``, zero at a rate of zero even where the mean is infinite."""
    if isinstance(rate, torch.Tensor):
        return rate * mean.masked_fill((rate == 0) & mean.isinf(), 0)
    return rate * mean if rate else 0.0


def _reduce(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return ``loss`` reduced over all its axes."""
    return loss if reduction == "none" else getattr(loss, reduction)()


def _along_classes(vector: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return a vector [K] shaped to broadcast along axis 1 of ``logits``."""
    return vector.view(-1, *[1] * (logits.ndim - 2))


def _pick_rows(matrix: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return ``matrix[labels]`` in the type of ``logits`` with its columns on axis 1."""
    return matrix.to(logits)[labels].movedim(-1, 1)


def _readable(value: torch.Tensor) -> bool:
    """Return whether values can be read without a synchronisation or a break in a compiled graph."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling()


def _reject(wrong: torch.Tensor, values: torch.Tensor, message: str) -> None:
    """Raise with the first of ``values`` where ``wrong`` holds."""
    if wrong.any():
        raise ValueError(f"{message}, got {values[wrong][0].item():.6g}")


def _label_shape(logits: torch.Tensor) -> torch.Size:
    """Return the shape of the class indices that belong to ``logits``."""
    return logits.shape[:1] + logits.shape[2:]


def _prepare_logits(logits: object) -> torch.Tensor:
    """Return ``logits`` [N, K, ...] in the type to compute in."""
    _checks.floating(logits, "logits")
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape [N, K] or [N, K, ...] with K >= 2, got {tuple(logits.shape)}")
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_labels_fit(labels: object, logits: torch.Tensor) -> None:
    """Raise if ``labels`` do not fit ``logits`` in shape and device."""
    soft = _checks.tensor(labels, "labels").is_floating_point()
    expected = logits.shape if soft else _label_shape(logits)
    if labels.shape != expected:
        kind = "soft labels" if soft else "labels"
        logits_shape, got = tuple(logits.shape), tuple(labels.shape)
        hint = (
            "; class indices must be integers: labels.long()" if soft and labels.shape == _label_shape(logits) else ""
        )
        raise ValueError(
            f"{kind} must have shape {tuple(expected)} for logits of shape {logits_shape}, got {got}{hint}"
        )
    if labels.device != logits.device:
        raise ValueError(f"labels must be on the device of the logits, {logits.device}, got {labels.device}")


def _class_indices(labels: torch.Tensor, num_classes: int, ignore_index: int | None = None) -> torch.Tensor:
    """Return ``labels`` as int64 class indices."""
    if torch.compiler.is_compiling():
        return labels.long()
    return _checks.integer_labels(labels, "labels", num_classes, ignore_index)


def _check_soft_labels(labels: torch.Tensor, ignore_index: int) -> None:
    """Raise unless the classes of ``labels`` sum to one, within the rounding of their type."""
    if ignore_index >= 0:
        raise ValueError(f"ignore_index must not be given with soft labels, got {ignore_index}")
    if not _readable(labels):
        return
    values = labels.detach().double()
    total = values.sum(1)
    # Entries outside [0, 1] round in proportion to their own size.
    tolerance = max(1e-5, 2 * torch.finfo(labels.dtype).eps) * values.abs().sum(1).clamp_min(1)
    wrong = ~((total - 1).abs() <= tolerance)
    _reject(wrong, total, "soft labels must sum to 1 over the classes, axis 1")


def _check_rate_values(rate: torch.Tensor) -> None:
    """Raise unless every rate in a tensor is a finite real number of at most 1."""
    _checks.tensor(rate, "smooth_rate")
    if rate.dtype == torch.bool or rate.is_complex():
        raise TypeError(f"smooth_rate must hold real numbers, got {_checks.describe(rate)}")
    if _readable(rate):
        _reject(~(rate.isfinite() & (rate <= 1)), rate, "smooth_rate must be finite and at most 1")


def _prepare_rate(rate: object, shape: torch.Size, like: torch.Tensor) -> float | torch.Tensor:
    """Return a rate that broadcasts over examples of ``shape``, in the type and on the device of ``like``."""
    if not isinstance(rate, torch.Tensor):
        if torch.compiler.is_compiling():
            return rate
        rate = _checks.number(rate, "smooth_rate", high=1.0)
        # It would turn into -inf, and the loss into nan.
        if rate < torch.finfo(like.dtype).min:
            raise ValueError(f"smooth_rate must be finite in {like.dtype}, got {rate:.6g}")
        return rate
    if rate.shape not in ((), shape[:1], shape):
        allowed = ", ".join(str(tuple(size)) for size in dict.fromkeys(((), shape[:1], shape)))
        raise ValueError(f"smooth_rate must be a number or have one of the shapes {allowed}, got {tuple(rate.shape)}")
    _check_rate_values(rate)
    given, rate = rate, rate.to(like)
    if rate.dtype != given.dtype and _readable(rate):
        _reject(rate.isinf(), given, f"smooth_rate must be finite in {rate.dtype}")
    return rate.view(-1, *[1] * (len(shape) - 1)) if rate.ndim < len(shape) else rate


def _prepare_weight(weight: object, num_classes: int | None = None) -> torch.Tensor:
    """Return ``weight`` if it holds one weight of at least 0 per class."""
    _checks.floating(weight, "weight")
    if weight.ndim != 1 or (num_classes is not None and len(weight) != num_classes):
        classes = "K" if num_classes is None else num_classes
        raise ValueError(f"weight must have shape ({classes},), one per class, got {tuple(weight.shape)}")
    if _readable(weight):
        _reject(~(weight.isfinite() & (weight >= 0)), weight, "weight must be finite and not negative")
    return weight


def _prepare_correction(
    logits: object, labels: object, transition: object, reduction: object
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return checked logits, class indices, and the transition matrix in float64."""
    logits = _prepare_logits(logits)
    num_classes = logits.shape[1]
    _checks.choice(reduction, "reduction", _REDUCTIONS)
    if _checks.tensor(labels, "labels").is_floating_point():
        raise TypeError(f"labels must hold integer class indices, got {_checks.describe(labels)}")
    _check_labels_fit(labels, logits)
    _checks.floating(transition, "transition")
    if transition.shape != (num_classes, num_classes):
        expected, logits_shape, got = (num_classes, num_classes), tuple(logits.shape), tuple(transition.shape)
        raise ValueError(f"transition must have shape {expected} for logits of shape {logits_shape}, got {got}")
    if _readable(transition):
        _checks.transition_matrix(transition.detach())
    return logits, _class_indices(labels, num_classes), transition.double()
