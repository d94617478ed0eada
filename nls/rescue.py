"""What a few clean labels buy beside a probe: outputs put right, a network trained on with them, or from scratch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from nls import _checks
from nls.activations import plain_features
from nls.models import seeded_state
from nls.stack import StackedMLP
from nls.training import seeded_generator


def untrained(network: nn.Module | StackedMLP, seed: int = 0) -> nn.Module | StackedMLP:
    """Return a network of the same architecture as it is before any training.

    Args:
        network: A module whose parameters all belong to parts with a ``reset_parameters``; or a stack, each of whose
            members gets an initialisation of its own.
        seed: Draws it, at least 0.

    Returns:
        A new network; the old one stays as it is.

    Raises:
        ValueError: If a part cannot be initialised anew.

    Examples:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> bool((untrained(network)[0].weight == network[0].weight).any())
        False
    """
    if isinstance(network, StackedMLP):
        fresh = network.part(slice(None))
        for i in range(network.num_members):
            generator = seeded_generator(seed, f"untrained {i}")
            options = (network.parameters.dtype, network.parameters.device)
            fresh.put(slice(i, i + 1), StackedMLP(network.sizes, 1, generator, *options))
        return fresh
    fresh = copy.deepcopy(network)
    with seeded_state(seed, "untrained"):
        for name, module in fresh.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif next(module.parameters(recurse=False), None) is not None:
                got = f"{name or 'the network'} ({type(module).__name__})"
                raise ValueError(f"network must have parts that can be initialised anew, got {got}, which cannot")
    return fresh.eval()


def gold_map(model: torch.Tensor, labels: torch.Tensor, test_model: torch.Tensor, num_classes: int) -> torch.Tensor:
    r"""Return class scores from probabilities of noisy labels, put right by the mean probabilities of clean classes.

    With :math:`\hat T_{ij}` the mean of :math:`p_j(x)` over the clean examples of class i, the scores are
    :math:`p(x)\, \hat T^{+}`.

    Args:
        model: Probabilities on clean examples [..., n, K].
        labels: Their classes [..., n], each class at least once.
        test_model: Probabilities [..., m, K].
        num_classes: K.

    Returns:
        Scores [..., m, K].

    Examples:
        >>> model = torch.tensor([[0.2, 0.8], [0.9, 0.1]])  # the classes have changed places
        >>> gold_map(model, torch.tensor([0, 1]), model, 2).argmax(1)
        tensor([0, 1])

    References:
        Hendrycks et al., 2018, arXiv:1802.05300, for the estimate.
    """
    shares = functional.one_hot(labels, num_classes).double()
    shares = shares / shares.sum(-2, keepdim=True)
    return test_model.double() @ torch.linalg.pinv(shares.mT @ model.double(), rtol=1e-6)


def fine_tune(
    network: nn.Module | StackedMLP,
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int = 100,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    frozen_statistics: bool = True,
) -> nn.Module | StackedMLP:
    """Return a copy of a network trained on with a few examples, all of them in every step, by Adam.

    Classes are trained with cross entropy, real targets with the squared error.

    Args:
        network: A module, or a stack of B MLPs.
        features: [n, ...]; for a stack [n, d], or [B, n, d] for data of each member's own.
        labels: [n], or [B, n].
        steps: At least 0.
        learning_rate: Above 0.
        weight_decay: At least 0.
        frozen_statistics: Whether batch normalisation keeps what it has and dropout is off, as befits a few examples;
            a new network needs False.

    Returns:
        The trained copy, in evaluation mode.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range.

    Examples:
        >>> network = nn.Linear(2, 2)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0])
        >>> fine_tune(network, x, y, steps=200, learning_rate=0.1)(x).argmax(1)
        tensor([1, 0])
    """
    steps = _checks.integer(steps, "steps")
    speed = _checks.number(learning_rate, "learning_rate", low=1e-12)
    options = {"lr": speed, "weight_decay": _checks.number(weight_decay, "weight_decay", low=0.0)}
    if isinstance(network, StackedMLP):
        tuned = network.part(slice(None))
        tuned.parameters.requires_grad_()
        forward, parameters = _differentiable(tuned, features), [tuned.parameters]
        groups = tuned.num_members
    else:
        tuned, groups = copy.deepcopy(network).train(not frozen_statistics), 1
        x = plain_features(tuned, features).to(next(tuned.parameters()).device)
        forward, parameters = (lambda: tuned(x)), list(tuned.parameters())
    optimizer = torch.optim.Adam(parameters, **options)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            (groups * _loss(forward(), labels)).backward()
            optimizer.step()
    if isinstance(network, StackedMLP):
        tuned.parameters.requires_grad_(False)
        return tuned
    return tuned.eval()


def _loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if labels.is_floating_point():
        return (outputs.squeeze(-1) - labels.to(outputs.dtype)).square().mean()
    return functional.cross_entropy(outputs.flatten(0, -2), labels.expand(outputs.shape[:-1]).flatten())


def _differentiable(stack: StackedMLP, features: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a function of the parameters alone that gives logits [B, n, K] with a gradient."""
    x = features.expand(stack.num_members, *features.shape[-2:])

    def forward() -> torch.Tensor:
        weights, bias = stack.views(stack.parameters)
        values = x
        for i, (weight, shift) in enumerate(zip(weights, bias.split(stack.sizes[1:], 1), strict=True)):
            values = torch.baddbmm(shift[:, None], values.relu() if i else values, weight.mT)
        return values

    return forward
