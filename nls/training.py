r"""Train many small networks at once: one stack, one pass over the data, hand-written gradients."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nls import _checks

Evaluate = Callable[["StackedMLP"], dict[str, torch.Tensor]]

# The least step and the least factor of the loss: zero would train nothing and say so nowhere.
TINY = 1e-12


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator whose stream depends on ``seed`` and ``purpose`` alone.

    Args:
        seed: Any integer of at least 0.
        purpose: What the stream is for, such as ``"order"``; two purposes never share draws.

    Returns:
        A generator with a fixed state.

    Examples:
        >>> first = torch.rand(2, generator=seeded_generator(0, "order"))
        >>> bool((first == torch.rand(2, generator=seeded_generator(0, "order"))).all())
        True
        >>> bool((first == torch.rand(2, generator=seeded_generator(0, "noise"))).any())
        False
    """
    digest = hashlib.sha256(f"{_checks.integer(seed, 'seed')}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class StackedMLP:
    r"""B multilayer perceptrons of one shape that read the same inputs.

    :math:`z_b = W_b^{(L)} \max(0, \ldots \max(0, W_b^{(1)} x + v_b^{(1)}) \ldots) + v_b^{(L)}`.

    All parameters lie in one flat buffer, ``parameters``, and all gradients in another, ``gradients``, so an optimiser
    is a few in-place operations. The first layer of all members is a single matrix product, because they share ``x``.

    Args:
        sizes: Layer widths ``(num_features, hidden..., num_classes)``; ``(d, K)`` is a linear model.
        num_members: B, at least 1.
        generator: Draws one initialisation, which every member starts from.
        dtype: ``torch.float32`` or ``torch.float64``.

    Examples:
        >>> stack = StackedMLP((4, 8, 3), num_members=5, generator=seeded_generator(0, "init"))
        >>> stack.forward(torch.zeros(7, 4)).shape
        torch.Size([5, 7, 3])
    """

    def __init__(
        self, sizes: tuple[int, ...], num_members: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> None:
        self.sizes, self.num_members = tuple(sizes), num_members
        pairs = list(itertools.pairwise(sizes))
        # The first weight is [d, B, h], so that x @ weight is one product; later ones are [B, in, out] for bmm.
        shapes = [(d, num_members, h) if i == 0 else (num_members, d, h) for i, (d, h) in enumerate(pairs)]
        shapes += [(num_members, h) for _, h in pairs]
        self.parameters = torch.empty(sum(math.prod(s) for s in shapes), dtype=dtype)
        self.gradients = torch.empty_like(self.parameters)
        self.weights, self.biases = self._views(self.parameters, shapes)
        self.weight_gradients, self.bias_gradients = self._views(self.gradients, shapes)
        for i, (fan_in, fan_out) in enumerate(pairs):
            bound = 1 / math.sqrt(fan_in)  # the default of torch.nn.Linear
            weight = torch.empty(fan_in, fan_out, dtype=dtype).uniform_(-bound, bound, generator=generator)
            self.weights[i].copy_(weight[:, None] if i == 0 else weight)
            self.biases[i].copy_(torch.empty(fan_out, dtype=dtype).uniform_(-bound, bound, generator=generator))
        self._activations: list[torch.Tensor] = []

    @staticmethod
    def _views(flat: torch.Tensor, shapes: list[tuple[int, ...]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        parts = flat.split([math.prod(s) for s in shapes])
        views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return views[: len(views) // 2], views[len(views) // 2 :]

    def per_parameter(self, values: torch.Tensor) -> torch.Tensor:
        """Spread one value per member, [B], over the flat buffer of parameters."""
        flat = torch.empty_like(self.parameters)
        weights, biases = self._views(flat, [w.shape for w in self.weights] + [b.shape for b in self.biases])
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            weight.copy_(values[None, :, None] if i == 0 else values[:, None, None])
            bias.copy_(values[:, None])
        return flat

    def member(self, index: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return copies of one member's (weight [in, out], bias [out]) pairs, layer by layer."""
        pairs = zip(self.weights, self.biases, strict=True)
        return [((w[:, index] if i == 0 else w[index]).clone(), b[index].clone()) for i, (w, b) in enumerate(pairs)]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [B, n, K] of features [n, d]."""
        n, first = len(features), self.weights[0]
        out = torch.addmm(self.biases[0].view(-1), features, first.view(len(first), -1))
        out = out.view(n, self.num_members, -1).transpose(0, 1)
        self._activations = [features]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            self._activations.append(out.relu_())
            out = torch.baddbmm(bias[:, None], out, weight)
        return out

    def backward(self, logit_gradients: torch.Tensor) -> None:
        """Write the gradients of the last :meth:`forward`, given those on the logits, [B, n, K]."""
        delta = logit_gradients
        for i in range(len(self.weights) - 1, 0, -1):
            active = self._activations[i]
            torch.bmm(active.transpose(1, 2), delta, out=self.weight_gradients[i])
            torch.sum(delta, 1, out=self.bias_gradients[i])
            delta = torch.bmm(delta, self.weights[i].transpose(1, 2)).mul_(active > 0)
        rows = delta.transpose(0, 1).reshape(delta.shape[1], -1)
        torch.mm(self._activations[0].T, rows, out=self.weight_gradients[0].view(-1, rows.shape[1]))
        torch.sum(rows, 0, out=self.bias_gradients[0].view(-1))


def gls_loss_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor, smooth_rate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return the generalised label smoothing loss and its gradient on the logits in one pass.

    :math:`\ell_r = \log\sum_k e^{z_k} - (1-r) z_y - r \bar z` and
    :math:`\partial\ell_r/\partial z_k = p_k - (1-r)\,[k=y] - r/K`.

    Args:
        logits: [B, n, K], any finite values.
        labels: [B, n] class indices.
        smooth_rate: [B], one rate for each member, at most 1.

    Returns:
        The losses [B, n] and the gradients [B, n, K].

    Examples:
        >>> loss, gradient = gls_loss_and_gradient(torch.zeros(1, 1, 2), torch.tensor([[1]]), torch.tensor([-1.0]))
        >>> round(float(loss), 4), gradient.flatten().tolist()
        (0.6931, [1.0, -1.0])

    References:
        Wei et al. 2022, arXiv 2106.04149.
    """
    rate = smooth_rate[:, None]
    index = labels.unsqueeze(-1)
    centred = logits - logits.amax(-1, keepdim=True)
    gradient = centred.exp()
    total = gradient.sum(-1, keepdim=True)
    loss = total.log().squeeze(-1) - (1 - rate) * centred.gather(-1, index).squeeze(-1) - rate * centred.mean(-1)
    gradient.div_(total).sub_((rate / logits.shape[-1]).unsqueeze(-1))
    gradient.scatter_add_(-1, index, (rate - 1).unsqueeze(-1).expand(index.shape))
    return loss, gradient


@dataclass(frozen=True)
class StackHistory:
    """What :func:`fit_stack` returns.

    Attributes:
        curves: Name to [B, epochs]: ``train_loss`` (mean over the epoch's batches, before each step) and whatever
            ``evaluate`` returned. Not a number from a member's divergence on.
        diverged_epoch: [B], the first epoch, counted from 1, at whose end a member's parameters or mean loss were not
            finite; 0 for a member that stayed finite.
        stack: The trained networks.
    """

    curves: dict[str, torch.Tensor]
    diverged_epoch: torch.Tensor
    stack: StackedMLP


def fit_stack(
    features: torch.Tensor,
    labels: torch.Tensor,
    smooth_rate: float | torch.Tensor = 0.0,
    *,
    num_classes: int,
    hidden: tuple[int, ...] = (8,),
    epochs: int = 30,
    batch_size: int = 64,
    optimizer: str = "adam",
    learning_rate: float | torch.Tensor = 7e-4,
    weight_decay: float | torch.Tensor = 0.0,
    loss_scale: float | torch.Tensor = 1.0,
    momentum: float = 0.9,
    seed: int = 0,
    evaluate: Evaluate | None = None,
) -> StackHistory:
    r"""Train B networks together on the same inputs, each with its own labels, rate and step.

    Member b minimises :math:`a_b \cdot \frac1n\sum_i \ell_{r_b}(z_b(x_i), \tilde y_{bi}) +
    \frac{\gamma_b}{2}\lVert\theta_b\rVert^2`. All members start from one initialisation and see the batches in one
    order, both drawn from ``seed``, so that differences between members are paired. A member that diverges does not
    touch the others.

    Args:
        features: [n, d], float32 or float64; the networks have the same type.
        labels: [B, n] class indices in [0, num_classes).
        smooth_rate: r, at most 1: one number, or one for each member, [B].
        num_classes: K, at least 2.
        hidden: Widths of the hidden layers; ``()`` is a linear model.
        epochs: Passes over the data, at least 1.
        batch_size: Examples in a step, at least 1; the last batch of an epoch may be smaller.
        optimizer: ``"adam"`` (betas .9 and .999, eps 1e-8) or ``"sgd"`` (with ``momentum``).
        learning_rate: Step size above 0; one number or [B].
        weight_decay: :math:`\gamma`, at least 0; one number or [B]; added to the gradient under both optimisers.
        loss_scale: a, above 0; one number or [B]; ``1 / (1 - r)`` gives the normalised loss.
        momentum: In [0, 1), used by ``"sgd"``.
        seed: Draws the initialisation and the order of the batches.
        evaluate: Called with the stack after every epoch; returns name to [B].

    Returns:
        The curves, the divergence epochs and the trained stack.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a range is wrong.

    Examples:
        >>> x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
        >>> y = torch.tensor([[0, 0, 1, 1]]).expand(2, -1)
        >>> fit = fit_stack(x, y, torch.tensor([0.2, -1.0]), num_classes=2, epochs=5)
        >>> fit.curves["train_loss"].shape, fit.diverged_epoch.tolist()
        (torch.Size([2, 5]), [0, 0])
    """
    num_classes = _checks.integer(num_classes, "num_classes", low=2)
    features, labels = _checked_data(features, labels, num_classes)
    num_members, n = labels.shape
    rate = _per_member(smooth_rate, "smooth_rate", num_members, features.dtype, high=1.0)
    scale = _per_member(loss_scale, "loss_scale", num_members, features.dtype, low=TINY)
    epochs = _checks.integer(epochs, "epochs", low=1)
    batch_size = _checks.integer(batch_size, "batch_size", low=1)
    widths = tuple(_checks.integer(h, "hidden", low=1) for h in hidden)
    sizes = (features.shape[1], *widths, num_classes)
    stack = StackedMLP(sizes, num_members, seeded_generator(seed, "init"), features.dtype)
    speed = _per_member(learning_rate, "learning_rate", num_members, features.dtype, low=TINY)
    decay = _per_member(weight_decay, "weight_decay", num_members, features.dtype, low=0.0)
    step = _optimizer(stack, optimizer, speed, decay, momentum)
    order, curves = seeded_generator(seed, "order"), {}
    by_example = labels.T.contiguous()  # a batch is then a few contiguous rows, which is 10 times faster to gather
    diverged = torch.zeros(num_members, dtype=torch.long)
    for epoch in range(1, epochs + 1):
        total = torch.zeros(num_members, dtype=torch.float64)
        for batch in torch.randperm(n, generator=order).split(batch_size):
            loss, gradient = gls_loss_and_gradient(stack.forward(features[batch]), by_example[batch].T, rate)
            total += loss.sum(1)
            stack.backward(gradient.mul_((scale / len(batch))[:, None, None]))
            step()
        measured = {"train_loss": total / n} | (evaluate(stack) if evaluate else {})
        finite = total.isfinite() & stack.forward(features[:1]).isfinite().all(-1).all(-1)
        diverged[~finite & (diverged == 0)] = epoch
        for name, values in measured.items():
            if values.shape != (num_members,):
                raise ValueError(f"evaluate must return [{num_members}] values for {name!r}, got {tuple(values.shape)}")
            curves.setdefault(name, []).append(torch.where(diverged == 0, values.double(), torch.nan))
    return StackHistory({k: torch.stack(v, 1) for k, v in curves.items()}, diverged, stack)


def _checked_data(features: object, labels: object, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [n, d] without gradient and int64 labels [B, n]."""
    features, labels = _checks.floating(features, "features").detach(), _checks.tensor(labels, "labels")
    if features.dtype not in (torch.float32, torch.float64) or features.device.type != "cpu":
        raise ValueError(f"features must be float32 or float64 on the CPU, got {features.dtype} on {features.device}")
    shapes_fit = features.ndim == labels.ndim == 2 and labels.shape[1] == len(features)
    if not (shapes_fit and labels.numel() and features.numel()):
        got = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"features must have shape [n, d] and labels [B, n], none of them empty, got {got}")
    if not bool(features.isfinite().all()):
        raise ValueError(f"features must be finite, got {int((~features.isfinite()).sum())} values that are not")
    return features, _checks.integer_labels(labels, "labels", num_classes)


def _per_member(
    value: float | torch.Tensor,
    name: str,
    num_members: int,
    dtype: torch.dtype,
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> torch.Tensor:
    """Return [B] values from one number or one for each member, all finite and in [low, high]."""
    if isinstance(value, torch.Tensor) and value.ndim:
        if value.shape != (num_members,):
            raise ValueError(f"{name} must be one number or have shape ({num_members},), got {tuple(value.shape)}")
        for item in value.tolist():
            _checks.number(item, name, low=low, high=high)
        return value.to(dtype)
    return torch.full((num_members,), _checks.number(value, name, low=low, high=high), dtype=dtype)


def _optimizer(
    stack: StackedMLP, name: str, learning_rate: torch.Tensor, weight_decay: torch.Tensor, momentum: float
) -> Callable[[], None]:
    """Return a function that takes one step of Adam or of SGD with momentum on the whole stack."""
    _checks.choice(name, "optimizer", ("adam", "sgd"))
    momentum = _checks.number(momentum, "momentum", low=0.0, high=1.0, open_high=True)
    parameters, gradients = stack.parameters, stack.gradients
    rate, decay = stack.per_parameter(learning_rate), stack.per_parameter(weight_decay)
    decays = bool((weight_decay > 0).any())
    first, second = torch.zeros_like(parameters), torch.zeros_like(parameters)
    beta1, beta2, eps, count = 0.9, 0.999, 1e-8, 0

    def step_sgd() -> None:
        if decays:
            gradients.addcmul_(parameters, decay)
        torch.add(gradients, first, alpha=momentum, out=first)
        parameters.addcmul_(first, rate, value=-1)

    def step_adam() -> None:
        nonlocal count
        count += 1
        if decays:
            gradients.addcmul_(parameters, decay)
        first.lerp_(gradients, 1 - beta1)
        second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        scale = math.sqrt(1 - beta2**count)
        denominator = second.sqrt().add_(eps * scale)
        torch.mul(first, rate, out=gradients)  # the gradients are spent: reuse their memory
        parameters.addcdiv_(gradients, denominator, value=-scale / (1 - beta1**count))

    return step_adam if name == "adam" else step_sgd
