r"""Co-teaching: two networks that hand each other the examples that look right to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from nls import _checks
from nls.batches import TensorBatches, channel_statistics
from nls.callbacks import Evaluate, evaluated
from nls.models import build_network, seeded_state


@dataclass(frozen=True, eq=False)
class CoTeaching:
    """Two networks that taught each other.

    Attributes:
        networks: Both, in evaluation mode.
        curves: What ``evaluate`` returned of the first one after each epoch, and ``"purity"``, the share of handed-over
            examples whose label is right, if clean labels were given: name to float64 [epochs].
    """

    networks: tuple[nn.Module, nn.Module]
    curves: dict[str, torch.Tensor]


def kept_share(epoch: int, forget_rate: float, ramp_epochs: int) -> float:
    r"""Return the share of a batch that is handed over, :math:`1 - \tau \min(t / T_k, 1)`.

    Args:
        epoch: t, from 1.
        forget_rate: :math:`\tau` in [0, 1), the noise rate at best.
        ramp_epochs: :math:`T_k`, at least 1.

    Returns:
        A share in (0, 1].

    Examples:
        >>> [kept_share(epoch, 0.4, 4) for epoch in (1, 2, 4, 9)]
        [0.9, 0.8, 0.6, 0.6]
    """
    return 1 - forget_rate * min(epoch / ramp_epochs, 1.0)


def smallest(losses: torch.Tensor, share: float) -> torch.Tensor:
    """Return the rows of the smallest losses.

    Args:
        losses: [n].
        share: Of the rows, in (0, 1]; at least one row is returned.

    Returns:
        Rows [max(1, floor(share n))], the smallest loss first.

    Examples:
        >>> smallest(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5).tolist()
        [1, 2]
    """
    count = max(1, math.floor(share * len(losses) + 1e-9))
    return losses.detach().sort(stable=True).indices[:count]


def co_teach(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_classes: int,
    forget_rate: float,
    network: str | Callable[[], nn.Module] = "cnn",
    epochs: int = 30,
    ramp_epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    augment: str | None = None,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    clean_labels: torch.Tensor | None = None,
) -> CoTeaching:
    r"""Train two networks, each on those examples of a batch that have the smallest loss under the other.

    .. math:: \theta_1 \leftarrow \theta_1 - \eta \nabla \tfrac{1}{|S_2|} \sum_{i \in S_2} \ell_i(\theta_1),
        \qquad S_2 = \operatorname{smallest}_{R(t) n} \ell(\theta_2), \quad R(t) = 1 - \tau \min(t / T_k, 1),

    and the same with 1 and 2 exchanged; :math:`\ell` is cross entropy, and steps are those of SGD with momentum.

    Args:
        features: uint8 images [n, C, H, W], normalised by their own statistics; or floats, used as they are.
        labels: Noisy labels [n].
        num_classes: K, at least 2.
        forget_rate: :math:`\tau` in [0, 1); it must be told, and is the noise rate at best.
        network: One of ``nls.models.NETWORKS``, or a function that returns a new network; the two differ in their
            initialisation.
        epochs: Passes over the data, at least 1.
        ramp_epochs: :math:`T_k`, passes until the full rate is forgotten, at least 1.
        batch_size: Examples in a batch, at least 1.
        learning_rate: Step size above 0.
        momentum: In [0, 1).
        weight_decay: At least 0.
        augment: None or ``"crop_flip"``.
        seed: Draws both initialisations, order and augmentation, at least 0.
        evaluate: Called after every epoch with the first network; returns name to one number.
        clean_labels: True labels [n], to say how pure the selection is; they train nothing.

    Returns:
        Both networks, and the curves.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range.

    Examples:
        >>> x, y = torch.randn(40, 3), torch.arange(40) % 2
        >>> taught = co_teach(x, y, num_classes=2, forget_rate=0.2, network=lambda: nn.Linear(3, 2), epochs=2)
        >>> len(taught.networks), taught.curves
        (2, {})

    References:
        Han et al., 2018, arXiv:1804.06872.
    """
    labels = _checks.integer_labels(labels, "labels", num_classes)
    forget_rate = _checks.number(forget_rate, "forget_rate", low=0.0, high=1.0, open_high=True)
    epochs = _checks.integer(epochs, "epochs", low=1)
    ramp_epochs = _checks.integer(ramp_epochs, "ramp_epochs", low=1)
    mean, std = channel_statistics(features) if features.dtype == torch.uint8 else (None, None)
    batches = TensorBatches(features, batch_size, augment=augment, mean=mean, std=std, seed=seed)
    pair = tuple(_new(network, num_classes, features, seed, member, mean, std) for member in range(2))
    options = {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
    optimizers = [torch.optim.SGD(member.parameters(), fused=True, **options) for member in pair]
    curves: dict[str, list[float]] = {}
    with seeded_state(seed, "training"):
        for epoch in range(1, epochs + 1):
            share = kept_share(epoch, forget_rate, ramp_epochs)
            kept = torch.cat(list(_epoch(pair, optimizers, batches, labels, share)))
            for member in pair:
                member.eval().epoch = epoch
            with torch.no_grad():
                found = evaluated(evaluate, pair[0])
            if clean_labels is not None:
                found = found | {"purity": float((labels[kept] == clean_labels[kept]).double().mean())}
            curves = {name: [*curves.get(name, []), value] for name, value in found.items()}
    return CoTeaching(pair, {name: torch.tensor(values, dtype=torch.float64) for name, values in curves.items()})


def _new(
    network: str | Callable[[], nn.Module],
    num_classes: int,
    features: torch.Tensor,
    seed: int,
    member: int,
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
) -> nn.Module:
    """Return the first or the second network, as yet untrained."""
    if callable(network):
        with seeded_state(seed, f"co-teaching {member}"):
            made = network()
    else:
        # The first is the one that fit_each trains with this seed; the second has a seed that no run uses.
        made = build_network(network, num_classes, features.shape[1], seed if member == 0 else 2**31 + seed)
    if mean is not None:
        made.register_buffer("pixel_mean", mean, persistent=False)
        made.register_buffer("pixel_std", std, persistent=False)
    if features.ndim == 4:
        made.to(memory_format=torch.channels_last)
    return made


def _epoch(
    pair: tuple[nn.Module, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    batches: TensorBatches,
    labels: torch.Tensor,
    share: float,
) -> Iterator[torch.Tensor]:
    """Take the steps of one epoch; yields the rows that the first network was taught on."""
    for member in pair:
        member.train()
    for features, index in batches:
        losses = [functional.cross_entropy(member(features), labels[index], reduction="none") for member in pair]
        chosen = [smallest(values, share) for values in losses]
        for own, rows, optimizer in zip(losses, reversed(chosen), optimizers, strict=True):
            optimizer.zero_grad()
            own[rows].mean().backward()
            optimizer.step()
        yield index[chosen[1]]
