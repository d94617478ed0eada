r"""The generalised label smoothing loss with its gradient formed in the same pass.

.. math::
    \ell_r = \operatorname{lse}(z) - (1 - r)\, z_y - \frac{r}{K} \sum_k z_k, \qquad
    \frac{\partial \ell_r}{\partial z} = \operatorname{softmax}(z) - \frac{r}{K} - (1 - r)\, \mathrm{onehot}(y)

The gradient needs nothing that the loss has not computed, so the forward pass forms it, scaled for the reduction, and
the backward pass hands it over. Autograd over the formula keeps log-probabilities and builds two more tensors of the
size of the logits. With many classes most of the time goes to fresh memory, see :func:`tune_allocator`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from nls import _checks
from nls.losses import (
    _REDUCTIONS,
    _check_labels_fit,
    _class_indices,
    _label_shape,
    _prepare_logits,
    _prepare_rate,
    _reduce,
    _scale,
    gls_loss,
)

__all__ = ["fused_gls_loss", "loss_and_gradient", "tune_allocator"]

# Elements of the logits below which a compiled kernel gains nothing over the eager pass.
COMPILE_FROM = 2**20

# Elements that the eager pass takes at a time on a CPU, so that its seven sweeps stay in the cache.
CHUNK = 2**19

_LOG2_E = 1.4426950408889634
_FAILED: set[str] = set()


def fused_gls_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smooth_rate: float | torch.Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    compile: bool | None = None,
) -> torch.Tensor:
    r"""Return what :func:`nls.losses.gls_loss` returns for class indices, faster and in less memory.

    .. math:: \ell_r(z, y) = \operatorname{lse}(z) - (1 - r)\, z_y - \frac{r}{K} \sum_k z_k

    Soft labels, class weights and ``torch.func`` transforms are not supported: use :func:`nls.losses.gls_loss`.
    That function also does the work where no gradient of the logits is asked for, where the rate itself needs one,
    and inside a function that is being compiled, where the compiler fuses the formula by itself. A second derivative
    is right: with ``create_graph=True`` the backward pass recomputes the gradient from the logits, so they must not be
    changed in place before it.

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2.
        labels: Class indices of shape [N] or [N, d1, ...].
        smooth_rate: :math:`r \le 1`, a number or a tensor of shape [], [N] (one rate per example) or that of the
            labels.
        ignore_index: Class index that adds neither loss nor gradient; may lie outside [0, K).
        reduction: ``"mean"`` over the labels that are not ignored, ``"sum"`` or ``"none"``.
        compile: None compiles the pass with ``torch.compile`` where a compiler is at hand and the logits have at least
            2**20 elements; the first call then takes seconds. True always tries, False never. Where compilation fails,
            a warning says why, once, and the eager pass does the work.

    Returns:
        A scalar, or the losses per example in the shape of the labels for ``"none"``; float32 for float16 and bfloat16
        logits, else of their type.

    Raises:
        TypeError: If an argument has the wrong type, or a transform such as ``vmap`` is active.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> logits = torch.zeros(1, 4, requires_grad=True)
        >>> loss = fused_gls_loss(logits, torch.tensor([1]), -1.0)
        >>> loss.backward()
        >>> loss.detach(), logits.grad
        (tensor(1.3863), tensor([[ 0.5000, -1.5000,  0.5000,  0.5000]]))

    References:
        Wei et al. 2022, "To Smooth or Not? When Label Smoothing Meets Noisy Labels", arXiv 2106.04149.
    """
    settings = {"ignore_index": ignore_index, "reduction": reduction}
    if torch.compiler.is_compiling():
        return gls_loss(logits, labels, smooth_rate, **settings)
    _refuse_transforms()
    _check_compile(compile)
    rate_needs_grad = isinstance(smooth_rate, torch.Tensor) and smooth_rate.requires_grad
    logits_need_grad = isinstance(logits, torch.Tensor) and logits.requires_grad
    _check_hard_labels(labels)
    if rate_needs_grad or not (logits_need_grad and torch.is_grad_enabled()):
        return gls_loss(logits, labels, smooth_rate, **settings)
    _checks.choice(reduction, "reduction", _REDUCTIONS)
    labels, ignored, rate = _prepare(logits, labels, smooth_rate, ignore_index)
    return _FusedLoss.apply(logits, labels, ignored, rate, reduction, compile)


def loss_and_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smooth_rate: float | torch.Tensor,
    *,
    ignore_index: int = -100,
    scale: float = 1.0,
    compile: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return the losses per example and their gradients, without autograd.

    .. math:: \ell_r(z, y), \qquad s \left( \operatorname{softmax}(z) - r / K - (1 - r)\, \mathrm{onehot}(y) \right)

    Args:
        logits: Shape [N, K] or [N, K, d1, ...], K at least 2; a graph behind them is not followed.
        labels: Class indices of shape [N] or [N, d1, ...].
        smooth_rate: :math:`r \le 1`, a number or a tensor of shape [], [N] or that of the labels.
        ignore_index: Class index that adds neither loss nor gradient; may lie outside [0, K).
        scale: Factor :math:`s` of the gradients; :math:`1/N` gives the gradient of the mean in the same pass.
        compile: As for :func:`fused_gls_loss`.

    Returns:
        Losses in the shape of the labels, float32 for float16 and bfloat16 logits, else of their type; and gradients in
        the shape and type of the logits.

    Raises:
        TypeError: If an argument has the wrong type, or a transform such as ``vmap`` is active.
        ValueError: If a shape does not fit, or a value is out of range.

    Examples:
        >>> losses, gradient = loss_and_gradient(torch.zeros(1, 4), torch.tensor([1]), -1.0)
        >>> losses, gradient
        (tensor([1.3863]), tensor([[ 0.5000, -1.5000,  0.5000,  0.5000]]))

    References:
        Wei et al. 2022, "To Smooth or Not? When Label Smoothing Meets Noisy Labels", arXiv 2106.04149.
    """
    _refuse_transforms()
    _check_compile(compile)
    scale = _checks.number(scale, "scale")
    with torch.no_grad():
        labels, ignored, rate = _prepare(logits, labels, smooth_rate, ignore_index)
        factor = scale if ignored is None else _column(~ignored).to(_compute_type(logits)) * scale
        losses, gradient, _ = _form(logits, labels, ignored, rate, factor, compile, logits.dtype)
        return losses.view(_label_shape(logits)), _classes_first(gradient, logits)


def tune_allocator() -> bool:
    """Let glibc keep large blocks that are freed, and return whether it agreed.

    By default it gives blocks of some megabytes back to the kernel, which clears them again page by page on the next
    allocation: on a CPU that takes longer than the loss itself. Call it once, before training. Memory once used then
    stays with the process. Elsewhere than on Linux with glibc nothing happens.

    Returns:
        True if the two settings were accepted, False where there is no glibc.

    Examples:
        >>> keeps_memory = tune_allocator()  # doctest: +SKIP
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # M_MMAP_MAX = 0: never map a block of its own. M_TRIM_THRESHOLD: never give the top of the heap back.
    return bool(library.mallopt(-4, 0)) and bool(library.mallopt(-1, 2**31 - 1))


class _FusedLoss(torch.autograd.Function):
    """The reduced loss; its gradient is formed in the forward pass."""

    @staticmethod
    def forward(ctx, logits, labels, ignored, rate, reduction, compile):
        """Return the reduced loss, and keep its gradient."""
        count = len(labels) if ignored is None else (~ignored).sum()
        factor = 1.0 if ignored is None else _column(~ignored).to(_compute_type(logits))
        if reduction == "mean":
            factor = factor / max(count, 1) if ignored is None else factor / count.clamp_min(1)
        # Half precision with a scaled loss: entries of the size 1/N underflow before the scale can lift them.
        kept_type = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        losses, gradient, ctx.terms = _form(logits, labels, ignored, rate, factor, compile, kept_type)
        ctx.save_for_backward(logits, labels, ignored, gradient)
        ctx.per_example = reduction == "none"
        if reduction == "mean":
            return losses.sum() / count
        return losses.view(_label_shape(logits)) if ctx.per_example else _reduce(losses, reduction)

    @staticmethod
    def backward(ctx, grad_output):
        """Return the gradient of the logits times ``grad_output``."""
        logits, labels, ignored, gradient = ctx.saved_tensors
        outer = _column(grad_output.reshape(-1)) if ctx.per_example else grad_output
        if torch.is_grad_enabled():
            gradient = _differentiable_gradient(_rows(logits), labels, ignored, ctx.terms) * outer
        elif _used_again(grad_output):
            gradient = gradient * outer
        # Reading one number from an accelerator would stall it for longer than the product takes.
        elif ctx.per_example or outer.device.type != "cpu" or outer.item() != 1:
            gradient = gradient.mul_(outer)
        return _classes_first(gradient.to(logits.dtype), logits), None, None, None, None, None


def _form(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignored: torch.Tensor | None,
    rate: float | torch.Tensor,
    factor: float | torch.Tensor,
    compile: bool | None,
    gradient_type: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, tuple]:
    """Return losses [M], gradients [M, K] times ``factor``, and the three terms that the gradients are made of."""
    rows = _rows(logits)
    own = labels.unsqueeze(1)
    rate = _column(rate) if isinstance(rate, torch.Tensor) and rate.ndim else rate
    slope, lead = rate * factor / rows.shape[1], (1 - rate) * factor
    top, log_sum, spread, gradient = _sweep(rows, factor, slope, gradient_type, compile)
    picked = rows.gather(1, own).to(top.dtype) - top
    # The entry of the label is written, not subtracted from, so that half precision rounds it once.
    entry = (picked - log_sum).exp_().mul_(factor).sub_(slope + lead)
    gradient.scatter_(1, own, entry.to(gradient.dtype))
    losses = _subtract(_subtract(log_sum, 1 - rate, picked), rate / rows.shape[1], spread, zero_wins=True).squeeze(1)
    if ignored is not None:
        # Not left to the factor: zero times nan is nan.
        losses, gradient[ignored] = losses.masked_fill(ignored, 0), 0
    return losses, gradient, (factor, slope, lead)


def _subtract(
    total: torch.Tensor, rate: float | torch.Tensor, value: torch.Tensor, zero_wins: bool = False
) -> torch.Tensor:
    """Take ``rate * value`` from ``total`` in place; if ``zero_wins``, a rate of zero cancels an infinite value."""
    if isinstance(rate, torch.Tensor):
        return total.sub_(_scale(rate, value) if zero_wins else rate * value)
    return total if zero_wins and rate == 0 else total.sub_(value, alpha=rate)


def _sweep(
    rows: torch.Tensor,
    factor: float | torch.Tensor,
    slope: float | torch.Tensor,
    gradient_type: torch.dtype,
    compile: bool | None,
) -> tuple[torch.Tensor, ...]:
    """Return row maxima, log-sum-exps and sums of the centred rows, all [M, 1], and ``softmax * factor - slope``."""
    device = rows.device.type
    if compile is None:
        compile = rows.numel() >= COMPILE_FROM and _compiler_at_hand(device)
    if compile and rows.numel() and device not in _FAILED:
        # Rates and factors as tensors of one shape: a Python number would be compiled in.
        columns = [_full_column(value, rows) for value in (factor, slope)]
        try:
            return _compiled_sweep()(rows.contiguous(), *columns, gradient_type)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in many ways, and every one of them has a way out
            _FAILED.add(device)
            reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
            warnings.warn(f"the fused loss runs eagerly, since it could not be compiled: {reason}", stacklevel=5)
    return _sweep_eagerly(rows, factor, slope, gradient_type)


def _sweep_once(
    rows: torch.Tensor, factor: torch.Tensor, slope: torch.Tensor, gradient_type: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Do the sweep in one expression, for the compiler."""
    wide = rows.to(_compute_type(rows))
    top = wide.amax(1, keepdim=True)
    centred = wide - top
    powers = centred.exp()
    total = powers.sum(1, keepdim=True)
    gradient = powers * (factor / total) - slope
    return top, total.log(), centred.sum(1, keepdim=True), gradient.to(gradient_type)


def _sweep_eagerly(
    rows: torch.Tensor, factor: float | torch.Tensor, slope: float | torch.Tensor, gradient_type: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Do the sweep in blocks of rows that stay in the cache, in place on the gradient."""
    size = max(1, CHUNK // rows.shape[1]) if rows.device.type == "cpu" else max(1, len(rows))
    gradient = torch.empty_like(rows, dtype=gradient_type, memory_format=torch.contiguous_format)
    parts = []
    for start in range(0, max(1, len(rows)), size):
        part = slice(start, start + size)
        wide, into = rows[part].to(_compute_type(rows)), gradient[part]
        top = wide.amax(1, keepdim=True)
        powers = torch.sub(wide, top, out=into) if into.dtype == wide.dtype else wide - top
        spread = powers.sum(1, keepdim=True)
        # A power of 2 takes a quarter of the time of exp on a CPU, and the product rounds far less than it matters.
        powers.mul_(_LOG2_E).exp2_()
        total = powers.sum(1, keepdim=True)
        powers.mul_(_rows_of(factor, part) / total).sub_(_rows_of(slope, part))
        if powers.dtype != into.dtype:
            into.copy_(powers)
        parts.append((top, total.log_(), spread))
    columns = parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts, strict=True))
    return *columns, gradient


def _differentiable_gradient(
    rows: torch.Tensor, labels: torch.Tensor, ignored: torch.Tensor | None, terms: tuple
) -> torch.Tensor:
    """Return the gradient as a differentiable function of the logits."""
    factor, slope, lead = terms
    softmax = rows.to(_compute_type(rows)).softmax(1)
    onehot = torch.zeros_like(softmax).scatter_(1, labels.unsqueeze(1), 1)
    gradient = softmax * factor - slope - lead * onehot
    return gradient if ignored is None else gradient.masked_fill(_column(ignored), 0)


@functools.cache
def _compiled_sweep() -> Callable:
    """Return the compiled sweep; nothing is compiled before its first call."""
    return torch.compile(_sweep_once, dynamic=True, fullgraph=True)


@functools.cache
def _compiler_at_hand(device: str) -> bool:
    """Return whether ``torch.compile`` finds what it needs for a type of device, without asking it."""
    if device == "cuda":
        return importlib.util.find_spec("triton") is not None
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    found = shutil.which(os.environ.get("CXX", default)) is not None
    return device == "cpu" and found and Path(sysconfig.get_path("include"), "Python.h").exists()


def _used_again(grad_output: torch.Tensor) -> bool:
    """Return whether the saved gradient may be read once more, after this backward pass or within it."""
    wrapped = torch._C._functorch
    # Many gradients at once, as with is_grads_batched=True: each of them reads it.
    if wrapped.is_legacy_batchedtensor(grad_output) or wrapped.is_functorch_wrapped_tensor(grad_output):
        return True
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps_graph is None or keeps_graph()


def _prepare(
    logits: object, labels: object, smooth_rate: object, ignore_index: object
) -> tuple[torch.Tensor, torch.Tensor | None, float | torch.Tensor]:
    """Return checked labels [M]; which of them are ignored, None for none; and the rate, a number, [] or [M]."""
    half = isinstance(logits, torch.Tensor) and logits.dtype in (torch.float16, torch.bfloat16)
    # Checked without data, as the check would convert it.
    _prepare_logits(logits.detach().to("meta") if half else logits)
    ignore_index = _checks.integer(ignore_index, "ignore_index", low=-(2**63), high=2**63 - 1)
    _check_hard_labels(labels)
    _check_labels_fit(labels, logits)
    shape, num_classes = labels.shape, logits.shape[1]
    rate = _prepare_rate(smooth_rate, shape, logits.new_empty(0, dtype=_compute_type(logits)))
    if isinstance(rate, torch.Tensor) and rate.ndim:
        rate = rate.expand(shape).reshape(-1)
    labels = labels.reshape(-1)
    if _all_valid(labels, num_classes) and not 0 <= ignore_index < num_classes:
        return labels, None, rate
    labels = _class_indices(labels, num_classes, ignore_index)
    ignored = labels == ignore_index
    return labels.masked_fill(ignored, 0), ignored, rate


def _all_valid(labels: torch.Tensor, num_classes: int) -> bool:
    """Return whether labels are class indices for sure, in one cheap look."""
    if labels.dtype != torch.int64 or labels.device.type != "cpu" or not labels.numel():
        return False
    low, high = labels.aminmax()
    return low.item() >= 0 and high.item() < num_classes


def _check_hard_labels(labels: object) -> None:
    """Raise for labels that are not a tensor, or soft."""
    if _checks.tensor(labels, "labels").is_floating_point():
        raise TypeError(
            f"labels must hold integer class indices, got {_checks.describe(labels)}; gls_loss takes soft labels"
        )


def _refuse_transforms() -> None:
    """Raise inside ``vmap``, ``grad`` and their like."""
    if torch._C._are_functorch_transforms_active():
        raise TypeError("the fused loss does not work inside torch.func transforms such as vmap or grad; use gls_loss")


def _check_compile(compile: object) -> None:
    """Raise unless ``compile`` is None or a bool."""
    if compile is not None and not isinstance(compile, bool):
        raise TypeError(f"compile must be None, True or False, got {_checks.describe(compile)}")


def _compute_type(logits: torch.Tensor) -> torch.dtype:
    """Return the type that losses of ``logits`` are computed in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _rows(logits: torch.Tensor) -> torch.Tensor:
    """Return ``logits`` as [M, K]."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).reshape(-1, logits.shape[1])


def _classes_first(gradient: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return a gradient [M, K] in the shape of ``logits``."""
    if logits.ndim == 2:
        return gradient
    return gradient.view(logits.shape[:1] + logits.shape[2:] + logits.shape[1:2]).movedim(-1, 1)


def _column(vector: torch.Tensor) -> torch.Tensor:
    """Return a vector as a column."""
    return vector.unsqueeze(1)


def _full_column(value: float | torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return a number or a column as a contiguous column, one entry for each of ``rows``."""
    if not isinstance(value, torch.Tensor):
        return torch.full((len(rows), 1), value, dtype=_compute_type(rows), device=rows.device)
    return value.to(_compute_type(rows)).expand(len(rows), 1).contiguous()


def _rows_of(value: float | torch.Tensor, part: slice) -> float | torch.Tensor:
    """Return the rows of a column that belong to a part; a number belongs to all."""
    return value[part] if isinstance(value, torch.Tensor) and value.ndim else value
