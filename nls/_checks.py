"""Argument checks; every message names the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers

import torch


def describe(value: object) -> str:
    """Return a short description of ``value`` for an error message."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"{value!r} ({type(value).__name__})"


def number(
    value: object, name: str, *, low: float = -math.inf, high: float = math.inf, open_high: bool = False
) -> float:
    """Return ``value`` as a finite float in [low, high], or in [low, high) if ``open_high``."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {describe(value)}")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    inside = low <= value < high if open_high else low <= value <= high
    if not (math.isfinite(value) and inside):
        bracket = ")" if open_high or math.isinf(high) else "]"
        left = "(" if math.isinf(low) else "["
        raise ValueError(f"{name} must be a finite number in {left}{low:g}, {high:g}{bracket}, got {value!r}")
    return value


def integer(value: object, name: str, *, low: int = 0, high: float = math.inf) -> int:
    """Return ``value`` as an int of at least ``low`` and at most ``high``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {describe(value)}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if value > high:
        raise ValueError(f"{name} must be at most {high}, got {value}")
    return int(value)


def choice(value: object, name: str, options: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``options``."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def tensor(value: object, name: str) -> torch.Tensor:
    """Return ``value`` if it is a dense tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")
    return value


def floating(value: object, name: str) -> torch.Tensor:
    """Return ``value`` if it is a floating-point tensor."""
    if not tensor(value, name).is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {describe(value)}")
    return value


def integer_labels(value: object, name: str, num_classes: int, ignore_index: int | None = None) -> torch.Tensor:
    """Return ``value`` as int64 if it holds class indices in [0, num_classes) or ``ignore_index``.

    Values are read on the CPU only: on an accelerator a check would force a synchronisation.
    """
    tensor(value, name)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold integer class indices, got {describe(value)}")
    labels = value.long()
    if labels.device.type == "cpu" and labels.numel():
        # From 2**63 on, a uint64 turns negative in int64 and could equal ignore_index.
        if value.dtype == torch.uint64 and (labels < 0).any():
            wrong = int(labels[labels < 0][0]) + 2**64
            raise ValueError(f"{name} must lie in [0, {num_classes - 1}], got the value {wrong}")
        kept = labels if ignore_index is None else labels[labels != ignore_index]
        if kept.numel():
            low, high = (int(v) for v in kept.aminmax())
            if low < 0 or high >= num_classes:
                wrong = low if low < 0 else high
                raise ValueError(f"{name} must lie in [0, {num_classes - 1}], got the value {wrong}")
    return labels


def sum_tolerance(dtype: torch.dtype) -> float:
    """Return how far a sum of probabilities of a type may be from 1; half precision rounds each of them visibly."""
    return 2 * torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 1e-4


def probabilities(value: object, name: str, *, atol: float | None = None) -> torch.Tensor:
    """Return ``value`` if its last axis holds probability vectors, within ``atol`` or the rounding of its type."""
    given, value = value, floating(value, name).detach()
    if value.ndim == 0 or value.shape[-1] < 2:
        raise ValueError(f"{name} must have at least 2 classes on its last axis, got {describe(value)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(value)).sum())} values that are not")
    if value.numel() and float(value.min()) < 0:
        raise ValueError(f"{name} must not be negative, got a smallest value of {float(value.min()):g}")
    total = value.double().sum(-1)
    off = (total - 1).abs()
    if off.numel() and float(off.max()) > (sum_tolerance(value.dtype) if atol is None else atol):
        worst = float(total.flatten()[off.flatten().argmax()])
        raise ValueError(f"{name} must sum to 1 over its last axis, got a sum of {worst:.6g}")
    return given


def transition_matrix(value: object, name: str = "transition") -> torch.Tensor:
    """Return ``value`` as float64 if it is a row-stochastic square matrix."""
    floating(value, name)
    if value.ndim != 2 or value.shape[0] != value.shape[1] or value.shape[0] < 2:
        raise ValueError(f"{name} must be a square matrix [K, K] with K >= 2, got shape {tuple(value.shape)}")
    matrix = value.detach().double()
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} must be finite")
    if float(matrix.min()) < 0:
        raise ValueError(f"{name} must not be negative, got a smallest entry of {float(matrix.min()):g}")
    rows_off = (matrix.sum(1) - 1).abs()
    if float(rows_off.max()) > 1e-6:
        row = int(rows_off.argmax())
        columns_fit = float((matrix.sum(0) - 1).abs().max()) <= 1e-6
        hint = (
            "; its columns sum to 1, so pass the transpose: transition[i, j] = P(noisy j | clean i)"
            if columns_fit
            else ""
        )
        raise ValueError(f"{name} must have rows that sum to 1, got {float(matrix[row].sum()):.6g} in row {row}{hint}")
    return matrix
