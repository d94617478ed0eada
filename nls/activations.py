"""What the layers of a trained network hold for each example, read after their nonlinearity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from nls import _checks
from nls.batches import Normalisation
from nls.each import EachHistory
from nls.models import predict_logits
from nls.stack import StackedMLP
from nls.training import StackHistory

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus)
"""Modules whose outputs :func:`activations` reads if it is told no layers."""

_POOLINGS = ("mean", "flatten")

Network = nn.Module | StackedMLP | EachHistory | StackHistory


def unwrapped(network: Network) -> nn.Module | StackedMLP:
    """Return the network itself, of a network or of what a fit returned.

    Args:
        network: As for :func:`activations`.

    Returns:
        A module or a stack.

    Raises:
        TypeError: If it is something else.

    Examples:
        >>> unwrapped(nn.Linear(2, 3))
        Linear(in_features=2, out_features=3, bias=True)
    """
    if isinstance(network, (EachHistory, StackHistory)):
        network = network.network if isinstance(network, EachHistory) else network.stack
    if not isinstance(network, (nn.Module, StackedMLP)):
        raise TypeError(f"network must be a torch module, a stack of MLPs or a fit, got {type(network).__name__}")
    return network


def activations(
    network: Network,
    features: torch.Tensor | Iterable,
    layers: Sequence[str] | None = None,
    *,
    pooling: str = "mean",
    batch_size: int = 1024,
) -> dict[str, torch.Tensor]:
    r"""Return what the layers of a trained network hold for each example, in evaluation mode.

    The default layers are read *after* their nonlinearity, :math:`h = \max(0, W x + b)`. Any module can be named, and
    what it returns is read: the name of a linear or a normalising layer gives values from before the nonlinearity.
    A module that is called several times, as in a residual block, is read at its last call.

    Args:
        network: An ``nn.Module``; a :class:`nls.stack.StackedMLP`, all of whose members are read at once; or what
            :func:`nls.fit_each` or :func:`nls.fit_stack` returned.
        features: What the network reads: a tensor [N, ...], of which uint8 images are normalised as in training; or,
            for networks on graphs and the like, an iterable of batches, each handed to the network as it is.
        layers: Names of modules, or ``"input"`` (the features, flattened; of a tensor), ``"penultimate"`` (what enters
            the last ``nn.Linear``) and ``"logits"`` (what the network returns). By default all modules of a class in
            ``ACTIVATIONS``, in order of execution. For a stack ``"hidden1"``, ``"hidden2"``, ..., ``"penultimate"``,
            ``"input"`` and ``"logits"``; by default all hidden ones.
        pooling: What becomes of places, as in [N, C, H, W]: their ``"mean"``, or ``"flatten"`` to keep them all.
        batch_size: Examples at a time of a tensor, at least 1.

    Returns:
        Name to values [N, D], or [B, N, D] for a stack of B members; ``"input"`` is [N, D] for both.

    Raises:
        TypeError: If ``network`` is something else.
        ValueError: If a layer is unknown, none is found, or its rows are not one for each example.

    Examples:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> found = activations(network, torch.randn(5, 2))
        >>> list(found), found["1"].shape, bool((found["1"] >= 0).all())
        (['1'], torch.Size([5, 3]), True)
    """
    _checks.choice(pooling, "pooling", _POOLINGS)
    network = unwrapped(network)
    if isinstance(network, StackedMLP):
        return _stack_activations(network, features, layers, batch_size)
    modules = dict(network.named_modules())
    if layers is None:
        layers = [name for name, module in modules.items() if isinstance(module, ACTIVATIONS)]
        if not layers:
            raise ValueError(
                f"layers must be named, as the network has no module for its nonlinearity; {_known(modules)}"
            )
    found: dict[str, list[torch.Tensor]] = {name: [] for name in layers if name not in ("input", "logits")}
    latest: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for name in found:
            hooks.callback(_hook(modules, name, latest, pooling).remove)
        logits = _run(network, features, batch_size, lambda: _collect(found, latest))
    joined = {name: torch.cat(found[name]) for name in latest}  # hooks fire in order of execution
    for name, values in joined.items():
        if len(values) != len(logits):
            raise ValueError(f"layer {name!r} must have one row for each of {len(logits)} examples, got {len(values)}")
    joined |= {"logits": logits} if "logits" in layers else {}
    return ({"input": flat_features(features)} if "input" in layers else {}) | joined


def _known(modules: Mapping[str, nn.Module]) -> str:
    names = ", ".join(repr(name) for name in modules if name)
    return f"it has {names}, and 'input', 'penultimate' and 'logits' are names too"


def flat_features(features: torch.Tensor) -> torch.Tensor:
    """Return features as they are, flattened to floats [N, D].

    Args:
        features: [N, ...].

    Returns:
        float32, or the type of floats.

    Examples:
        >>> flat_features(torch.ones(2, 3, 4, dtype=torch.uint8)).shape
        torch.Size([2, 12])
    """
    values = _checks.tensor(features, "features for the layer 'input'")
    values = values.flatten(1) if values.ndim > 1 else values[:, None]
    return values if values.is_floating_point() else values.float()


def _hook(modules: dict[str, nn.Module], name: str, latest: dict, pooling: str) -> object:
    """Register what writes a layer's values into ``latest``, and return the handle."""

    def keep(value: torch.Tensor) -> None:
        if value.ndim > 2:
            value = value.flatten(2).mean(2) if pooling == "mean" else value.flatten(1)
        latest[name] = value.detach().clone()  # an activation that works in place would overwrite it

    if name == "penultimate":
        linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(f"layers must not hold 'penultimate' without a linear layer; {_known(modules)}")
        return linear[-1].register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
    if name not in modules or not name:
        raise ValueError(f"layers must be names of modules, got {name!r}; {_known(modules)}")
    return modules[name].register_forward_hook(lambda _, __, output: keep(output))


def _collect(found: dict[str, list[torch.Tensor]], latest: dict[str, torch.Tensor]) -> None:
    for name in found:
        if name not in latest:
            raise ValueError(f"layer {name!r} must take part in a forward pass, but it was never called")
        found[name].append(latest[name])


def _run(network: nn.Module, features: object, batch_size: int, after: Callable[[], None]) -> torch.Tensor:
    """Return the outputs of the network, batch after batch, calling ``after`` in between."""
    if isinstance(features, torch.Tensor):
        handle = network.register_forward_hook(lambda *_: after())
        try:
            return predict_logits(network, features, batch_size=batch_size)
        finally:
            handle.remove()
    training, outputs = network.training, []
    network.eval()
    try:
        with torch.no_grad():
            for batch in features:
                outputs.append(network(batch))
                after()
    finally:
        network.train(training)
    if not outputs:
        raise ValueError("features must hold at least one batch, got none")
    return torch.cat(outputs)


def _stack_activations(
    stack: StackedMLP, features: torch.Tensor, layers: Sequence[str] | None, batch_size: int
) -> dict[str, torch.Tensor]:
    """Return the hidden layers of all members after their ReLU."""
    depth = len(stack.weights)
    names = [*(f"hidden{i}" for i in range(1, depth)), "logits"]
    layers = names[:-1] if layers is None else list(layers)
    known = {name: i for i, name in enumerate(names)} | {"penultimate": depth - 2, "input": -1}
    for name in layers:
        _checks.choice(name, "layers", tuple(known))
    parts = []
    for rows in _checks.tensor(features, "features").split(batch_size):
        values, passed = rows.expand(stack.num_members, *rows.shape), []
        for i, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
            values = torch.baddbmm(bias[:, None], values, weight.mT)
            values = values.relu() if i < depth - 1 else values
            passed.append(values)
        parts.append(passed)
    read = [torch.cat(values, 1) for values in zip(*parts, strict=True)]
    return {name: features if known[name] == -1 else read[known[name]] for name in layers}


def plain_features(network: nn.Module | StackedMLP, features: torch.Tensor) -> torch.Tensor:
    """Return features as the network reads them: uint8 images normalised as in training.

    Args:
        network: What :func:`nls.fit_each` trained on uint8 images, or any network for other features.
        features: [N, ...].

    Returns:
        Features of a floating type, or others as they are.

    Raises:
        ValueError: If uint8 images come with a network that knows no mean and deviation.

    Examples:
        >>> plain_features(nn.Linear(2, 2), torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    if features.dtype != torch.uint8:
        return features
    mean, std = (getattr(network, name, None) for name in ("pixel_mean", "pixel_std"))
    normalise = Normalisation(features, *(value if value is None else value.cpu() for value in (mean, std)))
    return normalise(features.permute(0, 2, 3, 1))
