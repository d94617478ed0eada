r"""Train one bigger network: on a CPU or a GPU with the same code, and on from a checkpoint after an interruption."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from nls import _checks
from nls.batches import AUGMENTATIONS, TensorBatches, channel_statistics
from nls.callbacks import Evaluate, Loss, check_functions, evaluated, own_losses
from nls.checkpoint import checked_path
from nls.losses import gls_loss
from nls.models import (
    PRECISIONS,
    at_least_float32,
    autocast,
    build_network,
    resolve_precision,
    seeded_state,
)
from nls.resume import Checkpoint, SharedWarmup
from nls.training import RANGES, SCHEDULES, schedule_factor

_CHOICES = {
    "optimizer": ("adam", "sgd"), "schedule": SCHEDULES, "warmup_schedule": SCHEDULES, "augment": AUGMENTATIONS,
    "precision": PRECISIONS, "nesterov": (False, True), "compile": (False, True),
}  # fmt: skip
# The numbers and choices of a run: with data, network and loss they say all that a checkpoint must agree with.
_SETTINGS = {
    *RANGES, *_CHOICES, "num_classes", "epochs", "batch_size", "warmup_epochs", "warmup_pick", "momentum", "seed",
}  # fmt: skip


@dataclass(frozen=True)
class EachHistory:
    """What :func:`fit_each` returns.

    Attributes:
        curves: Name to float64 [warmup_epochs + epochs] on the CPU: ``train_loss`` (mean over the epoch's batches,
            before each step) and whatever ``evaluate`` returned. Not a number from the divergence on.
        diverged_epoch: The epoch, counted from 1, at whose end parameters or mean loss were not finite, and training
            stopped; 0 if they stayed finite.
        network: The trained network, in evaluation mode. If it was trained on uint8 images, it carries mean and
            deviation of their channels, which :func:`nls.models.predict_logits` reads.
    """

    curves: dict[str, torch.Tensor]
    diverged_epoch: int
    network: nn.Module


def fit_each(
    features: torch.Tensor,
    labels: torch.Tensor,
    smooth_rate: float = 0.0,
    *,
    network: str | Callable[[], nn.Module] = "cnn",
    num_classes: int,
    epochs: int = 30,
    batch_size: int = 128,
    optimizer: str = "sgd",
    learning_rate: float = 0.05,
    weight_decay: float = 0.0,
    loss_scale: float = 1.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    schedule: str = "constant",
    warmup_epochs: int = 0,
    warmup_learning_rate: float | None = None,
    warmup_schedule: str = "constant",
    warmup_pick: str | None = None,
    shared_warmup: dict | None = None,
    max_update_norm: float | None = None,
    loss: Loss | None = None,
    augment: str | None = None,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    device: torch.device | str | None = None,
    precision: str = "auto",
    compile: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    checkpoint_seconds: float = 0.0,
    keep_checkpoint: bool = False,
) -> EachHistory:
    r"""Train one network; the same arguments mean the same training as for a member of :func:`nls.fit_stack`.

    It minimises :math:`a \cdot \frac1n\sum_i \ell_r(z(x_i), \tilde y_i) + \frac{\gamma}{2}\lVert\theta\rVert^2`.
    Initialisation, order and augmentation are drawn from ``seed`` on the CPU, and so are the same on every device and
    for every rate and loss. The loss is summed on the device: a step never waits for it.

    With a ``checkpoint`` the state after an epoch is written to that file in one move, and a call that finds it there
    goes on from it: on the same machine with the same number of threads it ends with the same bits as a run that was
    never interrupted. A file that is damaged, or that was written for other data or arguments, is named in a warning
    and not used. The file is removed when the run ends.

    Args:
        features: uint8 images [n, C, H, W], normalised by their own mean and deviation per channel; floats [n, ...],
            used as they are, whose type the network takes on; or int64 token ids [n, L], used as they are.
        labels: [n] class indices in [0, num_classes).
        smooth_rate: r, at most 1.
        network: One of ``nls.models.NETWORKS``, or a function without arguments that returns a new network; it may
            draw from torch's global generator, which is seeded for it.
        num_classes: K, at least 2.
        epochs: Passes over the data after the warm-up, at least 1.
        batch_size: Examples in a step, at least 1; the last batch of an epoch may be smaller.
        optimizer: ``"sgd"`` (with ``momentum``) or ``"adam"`` (betas .9 and .999, eps 1e-8).
        learning_rate: Step size above 0.
        weight_decay: :math:`\gamma`, at least 0, added to the gradient under both optimisers.
        loss_scale: a, above 0; ``1 / (1 - r)`` gives the normalised loss.
        momentum: In [0, 1), used by ``"sgd"``.
        nesterov: Whether ``"sgd"`` takes Nesterov's step, with ``momentum`` above 0.
        schedule: What multiplies the step size, see :func:`nls.training.schedule_factor`; it covers ``epochs``.
        warmup_epochs: Passes that come before ``epochs``, with plain cross entropy (r = 0, a = 1, no ``loss``) and an
            optimiser of their own.
        warmup_learning_rate: Their step size, above 0; ``learning_rate`` by default.
        warmup_schedule: What multiplies it; it covers ``warmup_epochs``.
        warmup_pick: Name of what ``evaluate`` returns: training goes on from the epoch of the warm-up where it is
            largest, of equal ones the first. None goes on from the last.
        shared_warmup: A dictionary that the caller keeps between calls. Runs that differ only in what comes after the
            warm-up find its end there and do not train it again; the results are the same bits.
        max_update_norm: The longest step, above 0: the change of all parameters at once is shortened to it if its
            Euclidean norm is larger.
        loss: None for generalised label smoothing, or a function of logits [b, K] and labels [b] that returns losses
            [b]; ``smooth_rate`` is then not to be given. If it needs a third argument, it gets the positions [b] of
            the examples in ``features``, for a memory or for pairs. A memory that is to survive an interruption is
            saved through ``state_dict`` and ``load_state_dict``, as an ``nn.Module`` with a buffer has them; a module
            is moved to the device. If it has a method ``prepare``, that is called with the network when the loss
            takes over.
        augment: None or ``"crop_flip"``, see :class:`nls.batches.TensorBatches`.
        seed: Draws initialisation, order and augmentation, at least 0.
        evaluate: Called after every epoch with the network in evaluation mode, whose attribute ``epoch`` counts the
            epochs so far; returns name to one number.
        device: Where to train; that of ``features`` by default.
        precision: Type of the matrix products: ``"float32"``, ``"bfloat16"``, ``"float16"`` with a scaled loss, or
            ``"auto"``: float32 on a CPU; on a GPU bfloat16, or float16 before compute capability 8.
        compile: Whether to compile the network's training steps with :func:`torch.compile`.
        checkpoint: File for the state of the run, or None.
        checkpoint_every: Epochs between two writes, at least 1.
        checkpoint_seconds: Time between two writes, at least 0; the last epoch is written in any case.
        keep_checkpoint: Whether the file stays when the run ends, for a caller that has yet to store the result; a call
            that finds it returns the result without training.

    Returns:
        The curves, the divergence epoch and the trained network.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a range is wrong.

    Examples:
        >>> from nls.models import predict_logits
        >>> images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 1, 8, 8)
        >>> fit = fit_each(images, torch.arange(20) // 10, -0.4, num_classes=2, epochs=2, batch_size=10)
        >>> fit.curves["train_loss"].shape, fit.diverged_epoch, predict_logits(fit.network, images).shape
        (torch.Size([2]), 0, torch.Size([20, 2]))
    """
    settings = _checked_settings({name: value for name, value in locals().items() if name in _SETTINGS})
    features, labels = _checked_data(features, labels, settings.num_classes)
    check_functions(loss, evaluate, settings.smooth_rate)
    device = features.device if device is None else torch.device(device)
    training = _Training(_build(network, features, settings, device), features, labels, settings, loss, device)
    start = None if shared_warmup is None else SharedWarmup(shared_warmup, training, features)
    with seeded_state(settings.seed, "training", device):
        if checkpoint is None:
            training.run(evaluate, start)
        else:
            every = _checks.integer(checkpoint_every, "checkpoint_every", low=1)
            pause = _checks.number(checkpoint_seconds, "checkpoint_seconds", low=0.0)
            saver = Checkpoint(checked_path(checkpoint), every, pause, keep_checkpoint, training, features)
            saver.run(evaluate, start)
    return training.history()


def _checked_settings(values: dict) -> SimpleNamespace:
    """Return the settings in their own types, or raise."""
    if values["warmup_learning_rate"] is None:
        values["warmup_learning_rate"] = values["learning_rate"]
    pick = values["warmup_pick"]
    if pick is not None and not (isinstance(pick, str) and values["warmup_epochs"]):
        raise ValueError(f"warmup_pick must be a name that evaluate returns, with warmup_epochs above 0, got {pick!r}")
    for name, least in {"num_classes": 2, "epochs": 1, "batch_size": 1, "warmup_epochs": 0, "seed": 0}.items():
        values[name] = _checks.integer(values[name], name, low=least)
    for name, (low, high) in RANGES.items():
        if values[name] is not None or name != "max_update_norm":
            values[name] = _checks.number(values[name], name, low=low, high=high)
    values["momentum"] = _checks.number(values["momentum"], "momentum", low=0.0, high=1.0, open_high=True)
    for name, options in _CHOICES.items():
        _checks.choice(values[name], name, options)
    if values["nesterov"] and not (values["optimizer"] == "sgd" and values["momentum"]):
        got = f"{values['optimizer']!r} and {values['momentum']}"
        raise ValueError(f"nesterov=True needs optimizer='sgd' and a momentum above 0, got {got}")
    return SimpleNamespace(**values)


class _Training:
    """One run: what changes from epoch to epoch, and how."""

    def __init__(
        self,
        network: nn.Module,
        features: torch.Tensor,
        labels: torch.Tensor,
        settings: SimpleNamespace,
        loss: Loss | None,
        device: torch.device,
    ) -> None:
        self.network, self.settings, self.device = network, settings, device
        self.loss = loss.to(device) if isinstance(loss, nn.Module) else loss
        self.labels, self.precision = labels.to(device), resolve_precision(settings.precision, device)
        mean, std = channel_statistics(features) if features.dtype == torch.uint8 else (None, None)
        if mean is not None:
            # Not persistent: the state of the network stays that of its architecture.
            network.register_buffer("pixel_mean", mean.to(device), persistent=False)
            network.register_buffer("pixel_std", std.to(device), persistent=False)
        options = {"augment": settings.augment, "mean": mean, "std": std, "seed": settings.seed, "device": device}
        self.batches = TensorBatches(features, settings.batch_size, **options)
        self.forward = torch.compile(network) if settings.compile else network
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.total_epochs = settings.warmup_epochs + settings.epochs
        self.epoch = self.diverged_epoch = 0
        self.curves: dict[str, list[float]] = {}
        self.best: dict | None = None  # the state of the network at the epoch of the warm-up that is picked
        self.optimizer = self._fresh_optimizer()

    def run(
        self, evaluate: Evaluate | None, start: SharedWarmup | None, after_epoch: Callable[[], None] = lambda: None
    ) -> None:
        """Train to the end, or until parameters or loss are no longer finite."""
        if start is not None:
            start.load(self)
        while self.epoch < self.total_epochs and not self.diverged_epoch:
            mean_loss = self._train_epoch()
            self._record(mean_loss, evaluate)
            if self.epoch <= self.settings.warmup_epochs:
                self._pick()
                if start is not None and self.epoch == self.settings.warmup_epochs:
                    start.save(self)
            after_epoch()

    def history(self) -> EachHistory:
        """Return what came of the run, with curves of full length."""
        rest = [math.nan] * (self.total_epochs - self.epoch)
        curves = {name: torch.tensor(values + rest, dtype=torch.float64) for name, values in self.curves.items()}
        return EachHistory(curves, self.diverged_epoch, self.network.eval())

    def state_dict(self) -> dict:
        """Return all that the rest of the run depends on, besides its arguments."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "epoch": self.epoch, "curves": self.curves, "best": self.best, "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "batches": self.batches.state_dict(), "random": torch.get_rng_state(), "random_cuda": cuda,
            "loss": self.loss.state_dict() if hasattr(self.loss, "state_dict") else None,
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state that :meth:`state_dict` returned."""
        self.epoch, self.best = state["epoch"], state["best"]
        self.curves = {name: list(values) for name, values in state["curves"].items()}
        for part in ("network", "optimizer", "scaler", "batches"):
            getattr(self, part).load_state_dict(state[part])
        if state["loss"] is not None:
            self.loss.load_state_dict(state["loss"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        values, parameters = self.settings, self.network.parameters()
        options = {"lr": values.learning_rate, "weight_decay": values.weight_decay}
        if values.optimizer == "adam":
            return torch.optim.Adam(parameters, fused=True, **options)
        # When the scaler skips a first step that overflows, fused SGD is left with a momentum that nobody has written.
        options["foreach" if self.scaler.is_enabled() else "fused"] = True
        return torch.optim.SGD(parameters, momentum=values.momentum, nesterov=values.nesterov, **options)

    def _train_epoch(self) -> float:
        """Take the steps of an epoch and return the mean loss before each step."""
        values, num_steps = self.settings, len(self.batches)
        done = self.epoch - values.warmup_epochs
        if done == 0:
            self.optimizer = self._fresh_optimizer()
            self._end_warmup()
        schedule, rate, epochs = values.schedule, values.learning_rate, values.epochs
        if done < 0:
            schedule, rate, epochs = values.warmup_schedule, values.warmup_learning_rate, values.warmup_epochs
        first = (self.epoch if done < 0 else done) * num_steps
        self.network.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for step, (features, index) in enumerate(self.batches):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * schedule_factor(schedule, first + step, epochs * num_steps)
            total += self._step(features, index, warm=done < 0)
        self.epoch += 1
        return float(total) / len(self.labels)  # the only wait for the device in an epoch

    def _end_warmup(self) -> None:
        """Go back to the epoch that is picked, and let a loss that wants it see the network."""
        if self.best is not None:
            self.network.load_state_dict(self.best)
            self.best = None
        if hasattr(self.loss, "prepare"):
            self.loss.prepare(self.network)

    def _step(self, features: torch.Tensor, index: torch.Tensor, *, warm: bool) -> torch.Tensor:
        """Take one step and return the loss before it, summed over the batch."""
        self.optimizer.zero_grad()
        with autocast(self.device, self.precision):
            logits = self.forward(features)
        logits, labels = at_least_float32(logits), self.labels[index]
        if warm or self.loss is None:
            losses = gls_loss(logits, labels, 0.0 if warm else self.settings.smooth_rate, reduction="none")
        else:
            losses = own_losses(self.loss, logits, labels, index)
        scale = 1.0 if warm else self.settings.loss_scale
        self.scaler.scale(scale * losses.mean()).backward()
        self._move()
        return losses.detach().sum(dtype=torch.float64)

    def _move(self) -> None:
        """Take the optimiser's step, shortened where it is too long."""
        limit = self.settings.max_update_norm
        before = [] if limit is None else [value.detach().clone() for value in self.network.parameters()]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if limit is None:
            return
        with torch.no_grad():
            after = list(self.network.parameters())
            length = nn.utils.get_total_norm([new - old for new, old in zip(after, before, strict=True)])
            # A length that overflows has no direction left: the run counts as diverged.
            share = (limit / length).clamp(max=1).masked_fill(length.isinf(), math.nan)
            for new, old in zip(after, before, strict=True):
                new.copy_(torch.lerp(old, new, share.to(new.dtype)))

    def _pick(self) -> None:
        """Keep the network of the best epoch of the warm-up so far."""
        name = self.settings.warmup_pick
        if name is None or self.diverged_epoch:
            return
        if name not in self.curves:
            raise ValueError(f"warmup_pick must be one of what evaluate returns, {sorted(self.curves)}, got {name!r}")
        *earlier, now = self.curves[name]
        if now > max((value for value in earlier if not math.isnan(value)), default=-math.inf):
            self.best = copy.deepcopy(self.network.state_dict())

    def _record(self, mean_loss: float, evaluate: Evaluate | None) -> None:
        """Measure the network, and see whether all is still finite."""
        self.network.eval()
        self.network.epoch = self.epoch
        with torch.no_grad():
            measured = {"train_loss": mean_loss} | evaluated(evaluate, self.network)
            finite = torch.stack([value.isfinite().all() for value in self.network.parameters()]).all()
        if not (math.isfinite(mean_loss) and bool(finite)):
            self.diverged_epoch = self.epoch
            measured = dict.fromkeys(measured, math.nan)
        if self.curves and measured.keys() != self.curves.keys():
            raise ValueError(f"evaluate must return the same names every time, got {sorted(measured)}")
        for name, value in measured.items():
            self.curves.setdefault(name, []).append(value)


def _build(
    network: str | Callable[[], nn.Module], features: torch.Tensor, settings: SimpleNamespace, device: torch.device
) -> nn.Module:
    """Return the network to train, on its device and in the type and memory layout of its inputs."""
    if isinstance(network, str):
        if features.ndim != 4:
            got = tuple(features.shape)
            raise ValueError(f"features must be images [n, C, H, W] for network={network!r}, got shape {got}")
        built = build_network(network, settings.num_classes, features.shape[1], settings.seed)
    else:
        if isinstance(network, nn.Module) or not callable(network):
            got = _checks.describe(network)
            raise TypeError(f"network must be a name or a function that returns a new network, got {got}")
        with seeded_state(settings.seed, "init"):
            built = network()
        if not isinstance(built, nn.Module):
            raise TypeError(f"network must return a torch module, got {_checks.describe(built)}")
    if features.ndim == 4:
        built = built.to(memory_format=torch.channels_last)
    return built.to(device, features.dtype if features.is_floating_point() else None)


def _checked_data(features: object, labels: object, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [n, ...] without gradient and int64 labels [n]."""
    features, labels = _checks.tensor(features, "features").detach(), _checks.tensor(labels, "labels")
    if features.dtype not in (torch.uint8, torch.int64, torch.float32, torch.float64):
        raise ValueError(f"features must be uint8, int64, float32 or float64, got {features.dtype}")
    if features.ndim < 2 or not features.numel() or labels.shape != features.shape[:1]:
        got = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"features must have shape [n, ...] and labels [n], none of them empty, got {got}")
    if features.is_floating_point() and not bool(features.isfinite().all()):
        raise ValueError(f"features must be finite, got {int((~features.isfinite()).sum())} values that are not")
    return features, _checks.integer_labels(labels.cpu(), "labels", num_classes)
