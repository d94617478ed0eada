"""The two functions that a caller hands to a training run, a loss and an evaluation, checked when they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn

from nls import _checks

Evaluate = Callable[[nn.Module], dict[str, float]]
Loss = Callable[..., torch.Tensor]


def own_losses(loss: Loss, logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return a caller's losses [b] if they can be trained on."""
    losses = loss(logits, labels, index) if _takes_positions(loss) else loss(logits, labels)
    if not isinstance(losses, torch.Tensor) or losses.shape != labels.shape:
        got = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ValueError(f"loss must return one value per example, shape {tuple(labels.shape)}, got {got}")
    if not losses.requires_grad:
        raise ValueError("loss must return values that depend on the logits, got a tensor without a gradient")
    return losses


def _takes_positions(loss: Loss) -> bool:
    """Return whether a loss needs a third argument, or has one named ``indices``."""
    parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) > 2 and (places[2].default is inspect.Parameter.empty or places[2].name == "indices")


def evaluated(evaluate: Evaluate | None, network: nn.Module) -> dict[str, float]:
    """Return the caller's measurements as floats, which may be no numbers."""
    measured = {} if evaluate is None else evaluate(network)
    if not isinstance(measured, dict):
        raise TypeError(f"evaluate must return a dict, got {_checks.describe(measured)}")
    try:
        return {name: float(value) for name, value in measured.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"evaluate must return one number for each name, got {measured}") from error


def check_functions(loss: object, evaluate: object, smooth_rate: float) -> None:
    """Raise unless loss and evaluate are functions or None, and a loss of one's own comes without a rate."""
    for name, value in {"loss": loss, "evaluate": evaluate}.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function, got {_checks.describe(value)}")
    if loss is not None and smooth_rate:
        got = _checks.describe(smooth_rate)
        raise ValueError(f"smooth_rate must not be given with a loss of your own, which would ignore it, got {got}")
