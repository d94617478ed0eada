r"""Many small networks as one: parameters in blocks with the members first, gradients by hand.

Inside a training step the examples are the last axis, [B, width, n]. The first layer of all members is then one matrix
product whose result needs no copy, and the sums over a few classes run over long vectors instead of short ones.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

# Values in the buffers of one run of batches, 4 MiB in float32: loading it is then a few calls for many steps.
SEGMENT = 2**20

# Bytes that a step may touch: measured to be about the best on processors with 1 MiB of L2 and a shared L3.
CACHE = 2**22

# The largest relative error of a product in float32 that counts as full precision.
FULL_PRECISION = 1e-6

# The gradient of relu in one pass, as autograd takes it: passes ``gradient`` where the activation exceeds 0.
_mask_inactive = torch.ops.aten.threshold_backward.grad_input

Loss = Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]


class StackedMLP:
    r"""B multilayer perceptrons of one shape that read the same inputs.

    :math:`z_b = W_b^{(L)} \max(0, \ldots \max(0, W_b^{(1)} x + v_b^{(1)}) \ldots) + v_b^{(L)}`.

    All parameters lie in one flat buffer, ``parameters``, so that an optimiser is a few in-place operations;
    ``weights``, [B, out, in] for each layer, and ``biases``, [B, out], are views of it.

    Args:
        sizes: Layer widths ``(num_features, hidden..., num_classes)``; ``(d, K)`` is a linear model.
        num_members: B, at least 1.
        generator: A CPU generator; it draws one initialisation, which every member starts from.
        dtype: ``torch.float32`` or ``torch.float64``.
        device: Where the parameters lie.

    Examples:
        >>> stack = StackedMLP((4, 8, 3), num_members=5, generator=torch.Generator().manual_seed(0))
        >>> stack.forward(torch.zeros(7, 4)).shape
        torch.Size([5, 7, 3])
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        num_members: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._lay_out(sizes, num_members, dtype, device)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            fan_out, fan_in = weight.shape[1:]
            bound = 1 / math.sqrt(fan_in)  # the default of torch.nn.Linear
            start = torch.empty(fan_in, fan_out, dtype=dtype).uniform_(-bound, bound, generator=generator)
            weight.copy_(start.T)
            bias.copy_(torch.empty(fan_out, dtype=dtype).uniform_(-bound, bound, generator=generator))

    def _lay_out(
        self, sizes: tuple[int, ...], num_members: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.sizes, self.num_members = tuple(sizes), num_members
        self.num_parameters = sum((d + 1) * h for d, h in itertools.pairwise(sizes))
        self.parameters = torch.empty(num_members * self.num_parameters, dtype=dtype, device=device)
        self.weights, bias = self.views(self.parameters)
        self.biases = bias.split(self.sizes[1:], 1)

    def views(self, flat: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return a flat buffer's weights, [B, out, in] for each layer, and the biases of all layers side by side."""
        shapes = [(self.num_members, h, d) for d, h in itertools.pairwise(self.sizes)]
        shapes.append((self.num_members, sum(self.sizes[1:])))
        parts = flat.split([math.prod(shape) for shape in shapes])
        *weights, bias = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return weights, bias

    def rows(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return a flat buffer as a few views [B, m], whose row b holds what is member b's."""
        weights, bias = self.views(flat)
        return [*(weight.flatten(1) for weight in weights), bias]

    def per_parameter(self, values: torch.Tensor) -> torch.Tensor:
        """Spread one value per member, [B], over a flat buffer."""
        flat = torch.empty_like(self.parameters)
        for row in self.rows(flat):
            row.copy_(values[:, None])
        return flat

    def part(self, members: slice) -> StackedMLP:
        """Return a copy of some of the members, with buffers of its own."""
        stack = object.__new__(StackedMLP)
        count = len(range(self.num_members)[members])
        stack._lay_out(self.sizes, count, self.parameters.dtype, self.parameters.device)
        for new, row in zip(stack.rows(stack.parameters), self.rows(self.parameters), strict=True):
            new.copy_(row[members])
        return stack

    def put(self, members: slice, stack: StackedMLP) -> None:
        """Overwrite some of the members by those of another stack of the same sizes."""
        for row, new in zip(self.rows(self.parameters), stack.rows(stack.parameters), strict=True):
            row[members] = new

    def member(self, index: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return copies of one member's (weight [in, out], bias [out]) pairs, layer by layer."""
        return [(w[index].T.clone(), b[index].clone()) for w, b in zip(self.weights, self.biases, strict=True)]

    def forward(self, features: torch.Tensor, *, classes_last: bool = True) -> torch.Tensor:
        """Return logits of features [n, d].

        Args:
            features: Any number of examples; they pass in blocks that stay in cache.
            classes_last: Return [B, n, K]; else [B, K, n], over whose classes a softmax takes a tenth of the time.

        Returns:
            The logits.
        """
        n, widest = len(features), max(self.sizes[1:])
        block = max(1, min(n, SEGMENT // 4 // (self.num_members * widest)))
        logits = self.parameters.new_empty(self.num_members, self.sizes[-1], n)
        passes = {size: _Pass(self, size) for size in {block, n % block} - {0}}
        for rows, out in zip(features.split(block), logits.split(block, 2), strict=True):
            out.copy_(passes[len(rows)].forward(rows))
        return logits.transpose(1, 2).contiguous() if classes_last else logits


class _Pass:
    """Buffers for batches of one size, and the two passes through a stack that use them."""

    def __init__(self, stack: StackedMLP, size: int) -> None:
        new, count = stack.parameters.new_empty, stack.num_members
        self.weights, self.biases = stack.weights, [bias.unsqueeze(2) for bias in stack.biases]
        self.first_weight, self.first_bias = stack.weights[0].flatten(0, 1), new(count, stack.sizes[1], 1)
        self.first_bias_column = self.first_bias.view(-1, 1)
        self.outputs = [new(count, width, size) for width in stack.sizes[1:]]
        self.deltas = [torch.empty_like(output) for output in self.outputs[:-1]]
        self.bias_sums = new(count, sum(stack.sizes[1:]))
        self.sums = self.bias_sums.split(stack.sizes[1:], 1)
        self.turned_weights = [weight.mT for weight in self.weights]
        self.turned_outputs = [output.mT for output in self.outputs]

    def forward(self, rows: torch.Tensor, logits: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [B, K, n] of rows [n, d], written to ``logits`` if it is given."""
        outputs = self.outputs if logits is None else [*self.outputs[:-1], logits]
        self.first_bias.copy_(self.biases[0])  # a matrix product needs it as one column
        torch.addmm(self.first_bias_column, self.first_weight, rows.T, out=outputs[0].view(-1, len(rows)))
        for i in range(1, len(outputs)):
            torch.baddbmm(self.biases[i], self.weights[i], outputs[i - 1].relu_(), out=outputs[i])
        return outputs[-1]

    def backward(self, rows: torch.Tensor, delta: torch.Tensor, gradients: list[torch.Tensor], keep: float) -> None:
        """Scale the gradients by ``keep`` and add those of the last forward pass, given ``delta``, those on the logits.

        With ``keep`` equal to the momentum, the gradients are the velocity, at no cost.
        """
        *weight_gradients, bias_gradient = gradients
        for i in range(len(self.weights) - 1, 0, -1):
            torch.sum(delta, 2, out=self.sums[i])
            weight_gradients[i].baddbmm_(delta, self.turned_outputs[i - 1], beta=keep)
            below = torch.bmm(self.turned_weights[i], delta, out=self.deltas[i - 1])
            delta = _mask_inactive(below, self.outputs[i - 1], 0, grad_input=below)
        torch.sum(delta, 2, out=self.sums[0])
        weight_gradients[0].view(self.first_weight.shape).addmm_(delta.view(-1, len(rows)), rows, beta=keep)
        torch.add(self.bias_sums, bias_gradient, alpha=keep, out=bias_gradient)


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


def target_values(smooth_rate: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return what a target of generalised label smoothing holds off and on the label.

    :math:`r/K` and :math:`1 - r + r/K`.

    Args:
        smooth_rate: r, any shape, at most 1.
        num_classes: K, at least 2.

    Returns:
        Two tensors of the shape of ``smooth_rate``.

    Examples:
        >>> [value.tolist() for value in target_values(torch.tensor([0.5, -1.0]), 2)]
        [[0.25, -0.5], [0.75, 1.5]]
    """
    off = smooth_rate / num_classes
    return off, 1 - smooth_rate + off


class Segment:
    """A run of batches of one size: loaded at once, then trained step by step.

    Args:
        stack: The networks.
        size: Examples in a batch.
        steps: Batches of an epoch.
        rate: r of each member, [B].
        scale: Factor of each member's loss, [B].
    """

    def __init__(self, stack: StackedMLP, size: int, steps: int, rate: torch.Tensor, scale: torch.Tensor) -> None:
        new, shape = stack.parameters.new_empty, (stack.num_members, stack.sizes[-1], size)
        # As many batches as fit, spread evenly over the runs of an epoch.
        most = max(1, SEGMENT // (size * max(shape[0] * shape[1], stack.sizes[0])))
        steps = math.ceil(steps / math.ceil(steps / most))
        self.size, self.steps, self.scale = size, steps, (scale / size)[:, None, None]
        self.passes = _Pass(stack, size)
        self.inputs = new(steps * size, stack.sizes[0])
        self.rows = self.inputs.view(steps, size, -1).unbind()
        self.labels = torch.empty(steps, shape[0], 1, size, dtype=torch.long, device=stack.parameters.device)
        self.logits, self.log_model, self.targets = (new(steps, *shape) for _ in range(3))
        self.delta = new(shape)
        self.each_logits, self.each_target = self.logits.unbind(), self.targets.unbind()
        # Targets carry the factor of the mean and a minus sign: the gradient is then one pass over softmax.
        off, on = target_values(rate, shape[1])
        self.off, self.on = ((-scale / size * value)[:, None, None] for value in (off, on))
        self.on = self.on.expand(self.labels.shape)

    def load(self, features: torch.Tensor, labels: torch.Tensor, order: torch.Tensor) -> int:
        """Gather as many whole batches from the start of ``order`` as fit, and return how many examples they hold."""
        self.count = min(self.steps, len(order) // self.size)
        chosen = order[: self.count * self.size]
        torch.index_select(features, 0, chosen, out=self.inputs[: len(chosen)])
        by_step = labels.index_select(1, chosen).view(-1, self.count, 1, self.size).transpose(0, 1)
        self.labels[: self.count].copy_(by_step)
        self.load_targets()
        return len(chosen)

    def load_targets(self) -> None:
        """Write the targets of the batches that are loaded."""
        labels = self.labels[: self.count]
        self.targets[: self.count].copy_(self.off).scatter_(2, labels, self.on[: self.count])

    def backward(self, step: int, gradients: list[torch.Tensor], keep: float) -> None:
        """Scale the gradients by ``keep`` and add those of one batch."""
        logits = self.passes.forward(self.rows[step], self.each_logits[step])
        self.passes.backward(self.rows[step], self.logit_gradient(step, logits), gradients, keep)

    def logit_gradient(self, step: int, logits: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the scaled mean loss on logits [B, K, n]."""
        torch.softmax(logits, 1, out=self.delta)
        return torch.addcmul(self.each_target[step], self.delta, self.scale, out=self.delta)

    def losses(self) -> torch.Tensor:
        """Return the loss of each member summed over the batches that are loaded, [B]."""
        log_model = torch.log_softmax(self.logits[: self.count], 2, out=self.log_model[: self.count])
        total = log_model.mul_(self.targets[: self.count]).sum((2, 3)).double().sum(0)
        return total / self.scale.flatten()


class LossSegment(Segment):
    """A segment with a loss of the caller's own, whose gradient on the logits comes by autograd.

    Args:
        loss: Called with logits [B, n, K], labels [B, n] and ``members``; returns losses [B, n].
        members: Which members of the whole these are.
        rest: As for :class:`Segment`.
    """

    def __init__(self, loss: Loss, members: slice, *rest: object) -> None:
        super().__init__(*rest)
        self.loss, self.members = loss, members

    def load_targets(self) -> None:
        """Start the sum of the losses; there are no targets."""
        self.total = self.scale.new_zeros(len(self.scale), dtype=torch.float64)

    def logit_gradient(self, step: int, logits: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the scaled mean loss on logits [B, K, n]."""
        with torch.enable_grad():
            given = logits.detach().mT.contiguous().requires_grad_()
            losses = _checked_losses(self.loss(given, self.labels[step].squeeze(1), self.members), given)
            (gradient,) = torch.autograd.grad(losses, given, torch.ones_like(losses))
        self.total += losses.detach().sum(1)
        return torch.mul(gradient.mT, self.scale, out=self.delta)

    def losses(self) -> torch.Tensor:
        """Return the loss of each member summed over the batches that are loaded, [B]."""
        return self.total


def _checked_losses(losses: object, logits: torch.Tensor) -> torch.Tensor:
    """Return what a caller's loss returned for logits [B, n, K] if it is differentiable and has shape [B, n]."""
    if not isinstance(losses, torch.Tensor) or losses.shape != logits.shape[:2]:
        got = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ValueError(f"loss must return one value per example, shape {tuple(logits.shape[:2])}, got {got}")
    if not losses.requires_grad:
        raise ValueError("loss must return values that depend on the logits, got a tensor without a gradient")
    return losses


class VmapEngine:
    """The readable way to train: one plain network mapped over the members, gradients by autograd, steps written out.

    Args:
        stack: The networks; they are trained in place.
        data: With ``features`` [n, d], ``labels`` [B, n] and ``batch_size``.
        phase: With ``values``, each member's settings, and ``loss``, the caller's own or None.
        members: Which members of the whole these are.
        optimizer: ``"adam"`` or ``"sgd"``.
        momentum: Used by ``"sgd"``.
    """

    def __init__(
        self, stack: StackedMLP, data: object, phase: object, *, members: slice, optimizer: str, momentum: float
    ) -> None:
        self.data, self.values, self.loss, self.members = data, phase.values, phase.loss, members
        self.optimizer, self.momentum, self.count = optimizer, momentum, 0
        layers = [nn.Linear(*size, device="meta") for size in itertools.pairwise(stack.sizes)]
        self.network = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
        # Views of the stack, laid out as torch.func.stack_module_state does: a step on them is a step of the stack.
        stacked = [value for pair in zip(stack.weights, stack.biases, strict=True) for value in pair]
        self.parameters = dict(zip(dict(self.network.named_parameters()), stacked, strict=True))
        self.state = {name: torch.stack([value, value]).zero_() for name, value in self.parameters.items()}

    def train_epoch(self, order: torch.Tensor, factors: list[float]) -> torch.Tensor:
        """Take the steps of an epoch and return each member's loss summed over the examples, before each step."""
        total = torch.zeros(len(self.data.labels), dtype=torch.float64, device=order.device)
        for batch, factor in zip(order.split(self.data.batch_size), factors, strict=True):
            gradient = torch.func.grad(self.objective, has_aux=True)
            gradients, losses = gradient(self.parameters, self.data.features[batch], self.data.labels[:, batch])
            self.step(gradients, factor)
            total += losses
        return total

    def objective(
        self, parameters: dict[str, torch.Tensor], features: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the members' scaled mean losses, and each member's losses summed, [B]."""
        logits = torch.vmap(lambda own: torch.func.functional_call(self.network, own, (features,)))(parameters)
        if self.loss is None:
            losses, rate = -logits.log_softmax(-1), self.values["smooth_rate"][:, None]
            losses = (1 - rate) * losses.gather(-1, labels[:, :, None]).squeeze(-1) + rate * losses.mean(-1)
        else:
            losses = _checked_losses(self.loss(logits, labels, self.members), logits)
        return (self.values["loss_scale"] * losses.mean(1)).sum(), losses.double().sum(1)

    def step(self, gradients: dict[str, torch.Tensor], factor: float) -> None:
        """Take one step; a limit holds for all parameters of a member together."""
        self.count += 1
        updates = {}
        for name, value in self.parameters.items():
            speed, decay = (_like(self.values[key], value) for key in ("learning_rate", "weight_decay"))
            updates[name] = factor * speed * self.direction(name, gradients[name] + decay * value)
        length = sum(update.flatten(1).square().sum(1) for update in updates.values()).sqrt()
        limit = self.values["max_update_norm"]
        share = torch.ones_like(length) if limit is None else torch.where(length > limit, limit / length, 1)
        for name, value in self.parameters.items():
            value -= _like(share, value) * updates[name]

    def direction(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """Return what the optimiser makes of a gradient, before the step size."""
        first, second = self.state[name]
        if self.optimizer == "sgd":
            return first.copy_(self.momentum * first + gradient)
        first.copy_(0.9 * first + 0.1 * gradient)
        second.copy_(0.999 * second + 0.001 * gradient**2)
        return first / (1 - 0.9**self.count) / ((second / (1 - 0.999**self.count)).sqrt() + 1e-8)

    def drop(self, gone: torch.Tensor) -> None:
        """Leave members that diverged as they are: nothing here mixes members."""


def _like(values: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return one value per member, [B], shaped to broadcast over a parameter [B, ...]."""
    return values.view(-1, *[1] * (parameter.ndim - 1))


def automatic_chunk(sizes: tuple[int, ...], batch_size: int, parameters: torch.Tensor) -> int:
    """Return how many members to train at once, so that what a step touches stays in the processor's cache.

    Args:
        sizes: Layer widths, as for :class:`StackedMLP`.
        batch_size: Examples in a step.
        parameters: Of their type and device; an accelerator takes far more members, since its steps wait for launches.

    Returns:
        A number of at least 1.

    Examples:
        >>> automatic_chunk((64, 32, 32, 10), 64, torch.zeros(1))
        61
    """
    num_parameters = sum((d + 1) * h for d, h in itertools.pairwise(sizes))
    # Parameters and gradients; activations and their gradients; the targets.
    values = 2 * num_parameters + (2 * sum(sizes[1:]) + sizes[-1]) * batch_size
    budget = CACHE if parameters.device.type == "cpu" else 256 * CACHE
    return max(1, budget // (values * parameters.element_size()))


@contextlib.contextmanager
def fast_matmul() -> Iterator[bool]:
    """Let float32 products take the processor's fastest kernels, if these keep full precision here.

    The setting permits products in lower precision, but on some processors it only changes which library computes:
    nothing is lost, and many members or wide layers train faster, a few small ones slower. Some products are compared
    with float64, and the setting is used if the largest relative error stays below 1e-6. The choice depends on errors
    alone, so it is the same in every run on one machine. The old setting comes back at the end.

    Yields:
        Whether the setting is in use.

    Examples:
        >>> before = torch.get_float32_matmul_precision()
        >>> with fast_matmul() as used:
        ...     isinstance(used, bool)
        True
        >>> torch.get_float32_matmul_precision() == before
        True
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        used = _matmul_error() < FULL_PRECISION
        if not used:
            torch.set_float32_matmul_precision(before)
        yield used
    finally:
        torch.set_float32_matmul_precision(before)


def _matmul_error() -> float:
    """Return the largest error of products in float32, relative to the largest entry, at sizes of small networks."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for members, inner in ((1, 16), (4, 64), (16, 128), (64, 32)):
        left, right = (torch.randn(members, 64, inner, generator=generator) for _ in range(2))
        exact = left.double() @ right.double().mT
        stacked = left.flatten(0, 1) @ right[0].T
        for got, expected in ((left @ right.mT, exact), (stacked, left.flatten(0, 1).double() @ right[0].double().T)):
            worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
    return worst
