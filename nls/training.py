r"""Train many small networks at once: one stack, one pass over the data, hand-written gradients."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from nls import _checks
from nls.stack import Loss, LossSegment, Segment, StackedMLP, VmapEngine, automatic_chunk
from nls.stack import gls_loss_and_gradient as gls_loss_and_gradient

Evaluate = Callable[[StackedMLP, slice], dict[str, torch.Tensor]]

# The least step and the least factor of the loss: zero would train nothing and say so nowhere.
TINY = 1e-12

SCHEDULES = ("constant", "cosine", "step", "thirds")

# The ends of what a member's settings may be.
RANGES = {
    "smooth_rate": (-math.inf, 1.0),
    "loss_scale": (TINY, math.inf),
    "learning_rate": (TINY, math.inf),
    "warmup_learning_rate": (TINY, math.inf),
    "weight_decay": (0.0, math.inf),
    "max_update_norm": (TINY, math.inf),
}


def schedule_factor(schedule: str, step: int, num_steps: int) -> float:
    r"""Return what the step size is multiplied by at a step of a run.

    With the progress :math:`t = s / S` through the run: :math:`1` for ``"constant"``,
    :math:`\tfrac12 (1 + \cos \pi t)` for ``"cosine"``, for ``"step"`` 1 before :math:`t = \tfrac12`, then 0.1, and
    0.01 from :math:`t = \tfrac34` on, and for ``"thirds"`` the same with drops at :math:`\tfrac13` and
    :math:`\tfrac23`.

    Args:
        schedule: One of ``SCHEDULES``.
        step: s, steps taken so far, in [0, num_steps).
        num_steps: S, the steps of the whole run, at least 1.

    Returns:
        The factor, in (0, 1].

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If the schedule is unknown or the step lies outside the run.

    Examples:
        >>> [schedule_factor("step", step, 8) for step in (0, 3, 4, 6)]
        [1.0, 1.0, 0.1, 0.01]
        >>> round(schedule_factor("cosine", 4, 8), 3)
        0.5

    References:
        Loshchilov and Hutter, 2017, arXiv:1608.03983 (cosine).
    """
    _checks.choice(schedule, "schedule", SCHEDULES)
    num_steps = _checks.integer(num_steps, "num_steps", low=1)
    step = _checks.integer(step, "step", high=num_steps - 1)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / num_steps)) / 2
    # In integers, so that no rounding moves a drop.
    if schedule == "step":
        return 0.01 if 4 * step >= 3 * num_steps else 0.1 if 2 * step >= num_steps else 1.0
    if schedule == "thirds":
        return 0.1 ** (3 * step // num_steps)
    return 1.0


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


@dataclass(frozen=True)
class StackHistory:
    """What :func:`fit_stack` returns.

    Attributes:
        curves: Name to float64 [B, warmup_epochs + epochs] on the CPU: ``train_loss`` (mean over the epoch's batches,
            before each step) and whatever ``evaluate`` returned. Not a number from a member's divergence on.
        diverged_epoch: [B], the first epoch, counted from 1, at whose end a member's parameters or mean loss were not
            finite; 0 for a member that stayed finite.
        stack: The trained networks, all members; the parameters of those that diverged are not numbers.
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
    schedule: str = "constant",
    warmup_epochs: int = 0,
    warmup_learning_rate: float | torch.Tensor | None = None,
    max_update_norm: float | torch.Tensor | None = None,
    loss: Loss | None = None,
    method: str = "manual",
    chunk: int | None = None,
    seed: int = 0,
    evaluate: Evaluate | None = None,
) -> StackHistory:
    r"""Train B networks together on the same inputs, each with its own labels, rate and step.

    Member b minimises :math:`a_b \cdot \frac1n\sum_i \ell_{r_b}(z_b(x_i), \tilde y_{bi}) +
    \frac{\gamma_b}{2}\lVert\theta_b\rVert^2`. All members start from one initialisation and see the batches in one
    order, both drawn from ``seed``, so that differences between members are paired. A member that diverges does not
    touch the others.

    At a rate below 0 the loss has no lower bound: a network that memorises its labels can follow it to infinity.
    ``max_update_norm`` keeps such a run finite.

    Args:
        features: [n, d], float32 or float64; the networks have the same type and lie on the same device.
        labels: [B, n] class indices in [0, num_classes).
        smooth_rate: r, at most 1: one number, or one for each member, [B].
        num_classes: K, at least 2.
        hidden: Widths of the hidden layers; ``()`` is a linear model.
        epochs: Passes over the data after the warm-up, at least 1.
        batch_size: Examples in a step, at least 1; the last batch of an epoch may be smaller.
        optimizer: ``"adam"`` (betas .9 and .999, eps 1e-8) or ``"sgd"`` (with ``momentum``).
        learning_rate: Step size above 0; one number or [B].
        weight_decay: :math:`\gamma`, at least 0; one number or [B]; added to the gradient under both optimisers.
        loss_scale: a, above 0; one number or [B]; ``1 / (1 - r)`` gives the normalised loss.
        momentum: In [0, 1), used by ``"sgd"``.
        schedule: What multiplies the step size, see :func:`schedule_factor`; it covers ``epochs``.
        warmup_epochs: Passes that come before ``epochs``, with plain cross entropy (r = 0, a = 1, no ``loss``), a
            constant step and an optimiser of their own.
        warmup_learning_rate: Their step size, above 0; one number or [B]; ``learning_rate`` by default.
        max_update_norm: The longest step, above 0, one number or [B]: a member's step, the change of all its
            parameters at once, is shortened to it if its Euclidean norm is larger.
        loss: None for generalised label smoothing, or a function of logits [B, n, K], labels [B, n] and the slice of
            the members that these are, which returns losses [B, n]. Then ``smooth_rate`` is not to be given.
        method: ``"manual"``, or ``"vmap"``: the same training, short and slow, by automatic differentiation.
        chunk: Members trained at a time, at least 1; by default as many as fit the processor's cache. It changes
            results by rounding only. For ``"manual"``.
        seed: Draws the initialisation and the order of the batches.
        evaluate: Called after every epoch with the stack of one chunk and the slice of the members that it holds;
            returns name to one value for each of these members. What it returns for a member that diverged is not
            kept: from the next epoch on that member is a network of zeros.

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
    features, labels = _checked_data(features, labels, _checks.integer(num_classes, "num_classes", low=2))
    _check_choices(optimizer, method, chunk, loss, smooth_rate, evaluate)
    given = {"smooth_rate": smooth_rate, "loss_scale": loss_scale, "learning_rate": learning_rate}
    given |= {"weight_decay": weight_decay, "max_update_norm": max_update_norm}
    given["warmup_learning_rate"] = learning_rate if warmup_learning_rate is None else warmup_learning_rate
    values = {name: _per_member(value, name, len(labels), features) for name, value in given.items()}
    data = _Data(features, labels, _checks.integer(batch_size, "batch_size", low=1), seed)
    phases = [
        _warmup(values, _checks.integer(warmup_epochs, "warmup_epochs"), data.num_steps),
        _Phase(values, loss, _factors(schedule, _checks.integer(epochs, "epochs", low=1), data.num_steps)),
    ]
    sizes = (features.shape[1], *(_checks.integer(width, "hidden", low=1) for width in hidden), num_classes)
    momentum = _checks.number(momentum, "momentum", low=0.0, high=1.0, open_high=True)
    make_engine = functools.partial(_ENGINES[method], optimizer=optimizer, momentum=momentum)
    whole = StackedMLP(sizes, len(labels), seeded_generator(seed, "init"), features.dtype, features.device)
    return _fit_chunks(whole, data, phases, make_engine, evaluate, _chunks(whole, chunk, method, batch_size))


@dataclass(frozen=True)
class _Data:
    """What the members train on, and in which order."""

    features: torch.Tensor
    labels: torch.Tensor
    batch_size: int
    seed: int

    @property
    def num_steps(self) -> int:
        """Steps in an epoch."""
        return math.ceil(len(self.features) / self.batch_size)


@dataclass(frozen=True)
class _Phase:
    """Epochs under one objective: the members' settings, the loss, and the factors of the step size, epoch by epoch."""

    values: dict[str, torch.Tensor | None]
    loss: Loss | None
    factors: list[list[float]]

    def part(self, members: slice) -> _Phase:
        """Return the phase for some of the members."""
        values = {name: None if value is None else value[members] for name, value in self.values.items()}
        return replace(self, values=values)


def _factors(schedule: str, epochs: int, num_steps: int) -> list[list[float]]:
    """Return the factors of a schedule over a number of epochs, a list for each."""
    _checks.choice(schedule, "schedule", SCHEDULES)
    total = epochs * num_steps
    factors = [schedule_factor(schedule, step, total) for step in range(total)]
    return [factors[start : start + num_steps] for start in range(0, total, num_steps)]


def _warmup(values: dict[str, torch.Tensor | None], epochs: int, num_steps: int) -> _Phase:
    """Return epochs of plain cross entropy at a constant step."""
    rate, scale = values["smooth_rate"], values["loss_scale"]
    plain = {"smooth_rate": torch.zeros_like(rate), "loss_scale": torch.ones_like(scale)}
    plain["learning_rate"] = values["warmup_learning_rate"]
    return _Phase(values | plain, None, _factors("constant", epochs, num_steps))


def _chunks(stack: StackedMLP, chunk: int | None, method: str, batch_size: int) -> list[slice]:
    """Return which members to train together; automatic chunks are as equal as can be."""
    total = stack.num_members
    if chunk is None:
        most = total if method == "vmap" else automatic_chunk(stack.sizes, batch_size, stack.parameters)
        chunk = math.ceil(total / math.ceil(total / most))
    return [slice(start, min(start + chunk, total)) for start in range(0, total, chunk)]


def _fit_chunks(
    whole: StackedMLP,
    data: _Data,
    phases: list[_Phase],
    make_engine: Callable,
    evaluate: Evaluate | None,
    chunks: list[slice],
) -> StackHistory:
    """Train chunk after chunk and join what comes out."""
    parts, diverged = [], []
    for members in chunks:
        stack = whole.part(members)
        labels = data.labels[members]
        curves, epochs = _fit_members(
            stack,
            replace(data, labels=labels),
            [phase.part(members) for phase in phases if phase.factors],
            functools.partial(make_engine, members=members),
            None if evaluate is None else functools.partial(_evaluated, evaluate, stack, members),
        )
        whole.put(members, stack)
        if parts and curves.keys() != parts[0].keys():
            raise ValueError(f"evaluate must return the same names every time, got {sorted(curves)}")
        parts.append(curves)
        diverged.append(epochs)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return StackHistory(joined, torch.cat(diverged), whole)


def _fit_members(
    stack: StackedMLP,
    data: _Data,
    phases: list[_Phase],
    make_engine: Callable,
    evaluate: Callable[[], dict[str, torch.Tensor]] | None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Train the members of one stack and return their curves, [B, epochs], and divergence epochs, [B]."""
    n, device = len(data.features), data.features.device
    order, epoch = seeded_generator(data.seed, "order"), 0
    curves: dict[str, list[torch.Tensor]] = {}
    diverged = torch.zeros(stack.num_members, dtype=torch.long, device=device)
    for phase in phases:
        engine = make_engine(stack, data, phase)
        for factors in phase.factors:
            epoch += 1
            if diverged.any():
                engine.drop(diverged > 0)
            total = engine.train_epoch(torch.randperm(n, generator=order).to(device), factors)
            measured = {"train_loss": total / n} | (evaluate() if evaluate else {})
            finite = total.isfinite()
            for row in stack.rows(stack.parameters):
                finite &= row.sum(1).isfinite()  # a sum is finite only if its terms are
            diverged.masked_fill_(~finite & (diverged == 0), epoch)
            if epoch > 1 and measured.keys() != curves.keys():
                raise ValueError(f"evaluate must return the same names every time, got {sorted(measured)}")
            for name, values in measured.items():
                curves.setdefault(name, []).append(torch.where(diverged == 0, values, torch.nan))
    for row in stack.rows(stack.parameters):
        row.masked_fill_((diverged > 0)[:, None], torch.nan)
    return {name: torch.stack(values, 1).cpu() for name, values in curves.items()}, diverged.cpu()


def _evaluated(evaluate: Evaluate, stack: StackedMLP, members: slice) -> dict[str, torch.Tensor]:
    """Return the caller's measurements in float64."""
    measured = evaluate(stack, members)
    if not isinstance(measured, dict):
        raise TypeError(f"evaluate must return a dict, got {_checks.describe(measured)}")
    for name, values in measured.items():
        if _checks.tensor(values, f"evaluate's {name!r}").shape != (stack.num_members,):
            got = tuple(values.shape)
            raise ValueError(f"evaluate must return [{stack.num_members}] values for {name!r}, got {got}")
    return {name: values.detach().to(stack.parameters.device, torch.float64) for name, values in measured.items()}


class _ManualEngine:
    """The fast way: gradients by hand, buffers made once, an optimiser on flat buffers."""

    def __init__(
        self, stack: StackedMLP, data: _Data, phase: _Phase, *, members: slice, optimizer: str, momentum: float
    ) -> None:
        self.stack, self.data = stack, data
        self.gradients = torch.zeros_like(stack.parameters)
        weights, bias = stack.views(self.gradients)
        self.views = [*weights, bias]
        self.step, self.keep, self.buffers = _optimizer(stack, optimizer, self.gradients, phase.values, momentum)
        objective = (phase.values["smooth_rate"], phase.values["loss_scale"])
        make = Segment if phase.loss is None else functools.partial(LossSegment, phase.loss, members)
        # The last batch of an epoch may be smaller: then it is a segment of its own.
        full, rest = divmod(len(data.features), data.batch_size)
        self.segments = [
            make(stack, size, steps, *objective) for size, steps in ((data.batch_size, full), (rest, 1)) if size * steps
        ]

    def train_epoch(self, order: torch.Tensor, factors: list[float]) -> torch.Tensor:
        """Take the steps of an epoch and return each member's loss summed over the examples, before each step."""
        total = torch.zeros(self.stack.num_members, dtype=torch.float64, device=order.device)
        done, factor = 0, iter(factors)
        for segment in self.segments:
            while len(order) - done >= segment.size:
                done += segment.load(self.data.features, self.data.labels, order[done:])
                for step in range(segment.count):
                    segment.backward(step, self.views, self.keep)
                    self.step(next(factor))
                total += segment.losses()
        return total

    def drop(self, gone: torch.Tensor) -> None:
        """Stop members: zeros that no step moves, since arithmetic on values that are not finite is slow."""
        for flat in (self.stack.parameters, self.gradients, *self.buffers):
            for row in self.stack.rows(flat):
                row.masked_fill_(gone[:, None], 0)


def _optimizer(
    stack: StackedMLP, name: str, gradients: torch.Tensor, values: dict[str, torch.Tensor | None], momentum: float
) -> tuple[Callable[[float], None], float, list[torch.Tensor]]:
    """Return a function that takes a step of Adam or of SGD, the share of the gradients to keep, and its state."""
    parameters, decay = stack.parameters, stack.per_parameter(values["weight_decay"])
    decays = bool((values["weight_decay"] > 0).any())
    move, speed = _mover(stack, gradients, values["learning_rate"], values["max_update_norm"])
    if name == "adam":
        first, second, spare = (torch.zeros_like(gradients) for _ in range(3))
    (beta1, beta2), epsilon, count = (0.9, 0.999), 1e-8, 0

    def step_sgd(factor: float) -> None:
        if decays:
            gradients.addcmul_(parameters, decay)
        move(factor)

    def step_adam(factor: float) -> None:
        nonlocal count
        count += 1
        if decays:
            gradients.addcmul_(parameters, decay)
        first.lerp_(gradients, 1 - beta1)
        second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        scale = math.sqrt(1 - beta2**count)
        torch.sqrt(second, out=spare).add_(epsilon * scale)
        torch.div(first, spare, out=gradients)  # the gradients are spent: reuse their memory
        move(factor * scale / (1 - beta1**count))

    return (step_adam, 0.0, [speed, first, second]) if name == "adam" else (step_sgd, momentum, [speed])


def _mover(
    stack: StackedMLP, direction: torch.Tensor, learning_rate: torch.Tensor, limit: torch.Tensor | None
) -> tuple[Callable[[float], None], torch.Tensor]:
    """Return a function that moves the parameters against ``direction``, and the step sizes that it reads."""
    parameters, speed = stack.parameters, stack.per_parameter(learning_rate)
    rows = list(zip(stack.rows(parameters), stack.rows(direction), stack.rows(speed), strict=True))

    def move(factor: float) -> None:
        parameters.addcmul_(direction, speed, value=-factor)

    def move_at_most(factor: float) -> None:
        own = rows[0][2][:, 0]  # a member's step size is the same for all its parameters
        lengths = torch.stack([torch.linalg.vector_norm(change, dim=1) for _, change, _ in rows])
        length = torch.linalg.vector_norm(lengths, dim=0).mul_(own).mul_(factor)
        # The quotient of equal numbers is exactly 1; a length that overflows gives no step rather than a wrong one.
        share = (limit / torch.maximum(length, limit)).mul_(own)[:, None]
        for parameter, change, _ in rows:
            parameter.addcmul_(change, share, value=-factor)

    return move if limit is None else move_at_most, speed


_ENGINES = {"manual": _ManualEngine, "vmap": VmapEngine}


def _check_choices(
    optimizer: object, method: object, chunk: object, loss: object, smooth_rate: object, evaluate: object
) -> None:
    """Raise unless the options are known and fit together."""
    _checks.choice(optimizer, "optimizer", ("adam", "sgd"))
    _checks.choice(method, "method", tuple(_ENGINES))
    if chunk is not None:
        _checks.integer(chunk, "chunk", low=1)
        if method == "vmap":
            raise ValueError(
                f"chunk must not be given with method='vmap', which trains all members at once, got {chunk}"
            )
    for name, function in (("loss", loss), ("evaluate", evaluate)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be None or a function, got {_checks.describe(function)}")
    if loss is not None and (isinstance(smooth_rate, torch.Tensor) or smooth_rate != 0):
        got = _checks.describe(smooth_rate)
        raise ValueError(f"smooth_rate must not be given with a loss of your own, which would not see it, got {got}")


def _checked_data(features: object, labels: object, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [n, d] without gradient and int64 labels [B, n] beside them."""
    features, labels = _checks.floating(features, "features").detach(), _checks.tensor(labels, "labels")
    if features.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"features must be float32 or float64, got {features.dtype}")
    shapes_fit = features.ndim == labels.ndim == 2 and labels.shape[1] == len(features)
    if not (shapes_fit and labels.numel() and features.numel()):
        got = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"features must have shape [n, d] and labels [B, n], none of them empty, got {got}")
    if not bool(features.isfinite().all()):
        raise ValueError(f"features must be finite, got {int((~features.isfinite()).sum())} values that are not")
    labels = _checks.integer_labels(labels.cpu(), "labels", num_classes)  # values are checked on the CPU only
    return features.contiguous(), labels.to(features.device)


def _per_member(
    value: float | torch.Tensor | None, name: str, num_members: int, like: torch.Tensor
) -> torch.Tensor | None:
    """Return [B] values from one number or one for each member, all finite and in range; no limit stays None."""
    low, high = RANGES[name]
    if value is None and name == "max_update_norm":
        return None
    if isinstance(value, torch.Tensor) and value.ndim:
        if value.shape != (num_members,):
            raise ValueError(f"{name} must be one number or have shape ({num_members},), got {tuple(value.shape)}")
        numbers = [_checks.number(item, name, low=low, high=high) for item in value.tolist()]
    else:
        numbers = [_checks.number(value, name, low=low, high=high)] * num_members
    largest = max(numbers, key=abs)
    if abs(largest) > torch.finfo(like.dtype).max:
        raise ValueError(f"{name} must be finite in {like.dtype}, got {largest:g}")
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)
