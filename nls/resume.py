"""What lets a run go on: from a checkpoint on disk, or from the end of a warm-up that other runs share."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import torch
from torch import nn

from nls import _checks
from nls.callbacks import Evaluate, Loss, own_losses
from nls.checkpoint import digest, read_checkpoint, write_checkpoint
from nls.models import seeded_state

# The settings of a run that do not touch its warm-up.
_AFTER_WARMUP = {"smooth_rate", "loss_scale", "learning_rate", "schedule", "epochs"}


class Run(Protocol):
    """A training run that can be left and gone on with, as :func:`nls.fit_each` makes them."""

    settings: SimpleNamespace
    network: nn.Module
    labels: torch.Tensor
    loss: Loss | None
    precision: torch.dtype
    device: torch.device
    epoch: int
    total_epochs: int
    diverged_epoch: int

    def state_dict(self) -> dict:
        """Return all that the rest of the run depends on."""

    def load_state_dict(self, state: dict) -> None:
        """Go on from such a state."""


class SharedWarmup:
    """The end of a warm-up, kept by the caller for runs that differ only in what comes after it."""

    def __init__(self, kept: object, training: Run, features: torch.Tensor) -> None:
        if not isinstance(kept, dict):
            raise TypeError(f"shared_warmup must be a dictionary, got {_checks.describe(kept)}")
        self.kept, self.key = kept, _fingerprint(training, features, warmup=True)

    def load(self, training: Run) -> None:
        """Go on from the kept end, unless the run is beyond it."""
        if training.epoch < training.settings.warmup_epochs and self.key in self.kept:
            training.load_state_dict(self.kept[self.key])

    def save(self, training: Run) -> None:
        """Keep where the warm-up ended; one that diverged is not kept."""
        if not training.diverged_epoch:
            self.kept[self.key] = copy.deepcopy(training.state_dict() | {"loss": None})


class Checkpoint:
    """Goes on from a checkpoint if there is one, writes more, and leaves none behind unless it is to be kept."""

    def __init__(self, path: Path, every: int, pause: float, keep: bool, training: Run, features: torch.Tensor) -> None:
        self.path, self.every, self.pause, self.keep, self.training = path, every, pause, keep, training
        self.fingerprint, self.written = _fingerprint(training, features), time.monotonic()

    def run(self, evaluate: Evaluate | None, start: SharedWarmup | None) -> None:
        """Train to the end, from where the checkpoint or the shared warm-up leaves off."""
        state = read_checkpoint(self.path, self.fingerprint)
        if state is not None:
            self.training.load_state_dict(state)
        self.training.run(evaluate, start, self._save)
        if not self.keep:
            self.path.unlink(missing_ok=True)

    def _save(self) -> None:
        run = self.training
        due = run.epoch % self.every == 0 and time.monotonic() - self.written >= self.pause
        if (self.keep if run.epoch == run.total_epochs else due) and not run.diverged_epoch:
            write_checkpoint(self.path, self.fingerprint, run.state_dict())
            self.written = time.monotonic()


def _fingerprint(training: Run, features: torch.Tensor, warmup: bool = False) -> bytes:
    """Return a digest of everything that the course of a run, or its warm-up alone, depends on."""
    modules = [type(module).__qualname__ for module in training.network.modules()]
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    tensors = training.network.state_dict() | {"features": features, "labels": training.labels}
    settings = vars(training.settings)
    if warmup:
        settings = {name: value for name, value in settings.items() if name not in _AFTER_WARMUP}
    elif training.loss is not None:
        tensors |= {"loss": _probe(training.loss, training.labels, training.settings.num_classes, dtype)}
    words = (sorted(settings.items()), str(training.precision), training.device.type, modules)
    return digest((*words, torch.__version__), tensors)


def _probe(loss: Loss, labels: torch.Tensor, num_classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Return what a loss makes of fixed logits: it tells two functions apart that have one name."""
    labels, device = labels[:8], labels.device
    index = torch.arange(len(labels), device=device)
    logits = torch.linspace(-2, 2, len(labels) * num_classes, device=device, dtype=dtype).sin().view(-1, num_classes)
    if saves := hasattr(loss, "state_dict"):
        loss = copy.deepcopy(loss)

    def ask(given: torch.Tensor) -> torch.Tensor:
        with seeded_state(0, "probe", device):  # a loss may draw, now and in training
            return own_losses(loss, given.clone().requires_grad_(), labels, index).detach()

    first = ask(logits)
    again = first if saves else (ask(logits.flip(1)), ask(logits))[1]
    if not torch.equal(again, first):
        raise ValueError(
            "loss must have state_dict and load_state_dict to be used with a checkpoint, "
            "as it gives other values for the same logits when asked again"
        )
    return first
