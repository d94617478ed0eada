r"""Train the cells of a grid that belong together, and measure them after every epoch."""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from nls.data import Dataset, load_dataset
from nls.each import fit_each
from nls.grid import ENGINE_VERSION, TRANSITIONS, Cell
from nls.losses import backward_corrected_loss, forward_corrected_loss
from nls.models import predict_logits
from nls.noise import draw_instance_noise, draw_noisy_labels
from nls.posterior import FLOOR
from nls.training import fit_stack, seeded_generator

RULES = ("last", "noisy_validation", "clean_test")
"""Rules for the epoch to report, which is the last, the best on noisy validation, or the best on the clean test set."""

_METRICS = ("accuracy", "validation_accuracy", "nll", "nll_mapped", "kl", "kl_mapped", "entropy")
_CORRECTIONS = {"backward": backward_corrected_loss, "forward": forward_corrected_loss}


def train_chunk(
    cells: list[Cell],
    root: str | Path | None = None,
    device: str | None = None,
    checkpoints: Path | None = None,
    files: dict[str, str] | None = None,
) -> list[dict]:
    """Train cells of one ``stack_key`` and return their records.

    Args:
        cells: At least one; all MLPs of one stack, or one image network.
        root: Folder of your own data sets, for cells with ``from_root``.
        device: Such as ``"cuda:0"``; None is the CPU for an MLP, and a GPU where there is one for an image network.
        checkpoints: Folder in which an image network keeps its state, to go on after an interruption; the state stays
            there until the record is written.
        files: Digests of your own files by data set, for the records.

    Returns:
        The records that :class:`nls.records.RecordStore` writes.
    """
    start, first = time.perf_counter(), cells[0]
    folder = root if first.from_root else None
    data = load_dataset(first.dataset, folder, first.seed, num_examples=first.num_examples)
    labels = _noisy_labels(data, cells, "train")
    validation = _noisy_labels(data, cells, "validation")
    if first.network == "mlp":
        curves, diverged, used = _train_stack(cells, data, labels, validation, device)
    else:
        curves, diverged, used = _train_image_network(first, data, labels[0], validation, device, checkpoints)
    realised = (labels != data.train_labels).double().mean(1).tolist()
    seconds = (time.perf_counter() - start) / len(cells)
    common = {
        "file": (files or {}).get(first.dataset) if first.from_root else None,
        "engine": ENGINE_VERSION, "chunk": [cell.id for cell in cells], "device": used, "seconds": seconds,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"), "commit": code_commit(), "versions": _versions(),
    }  # fmt: skip
    records = []
    for i, cell in enumerate(cells):
        curve = {name: values[i].tolist() for name, values in curves.items()}
        results = _results(curve) | {
            "realised_noise_rate": realised[i], "diverged_epoch": int(diverged[i]), "seconds": seconds
        }  # fmt: skip
        factors = {name: getattr(cell, name) for name in Cell.__dataclass_fields__}
        records.append({"id": cell.id, "factors": factors, "results": results, "curves": curve} | common)
    return records


def _noisy_labels(data: Dataset, cells: list[Cell], split: str) -> torch.Tensor:
    """Return [B, n] labels; cells with the same noise share a draw, and all share the uniforms of the seed."""
    labels, features = getattr(data, f"{split}_labels"), getattr(data, f"{split}_features")
    draws: dict[tuple, torch.Tensor] = {}
    for cell in cells:
        key = (cell.noise, cell.noise_rate)
        if key in draws:
            continue
        generator = seeded_generator(cell.seed, f"{split} noise")
        if cell.noise == "instance":
            draws[key] = draw_instance_noise(features, labels, cell.noise_rate, generator, num_classes=data.num_classes)
        else:
            draws[key] = draw_noisy_labels(labels, _transition(cell, data), generator)
    return torch.stack([draws[cell.noise, cell.noise_rate] for cell in cells])


def _transition(cell: Cell, data: Dataset) -> torch.Tensor:
    matrix = TRANSITIONS[cell.noise](data.num_classes, cell.noise_rate)
    if len(matrix) != data.num_classes:
        wanted = f"noise={cell.noise!r} is for {len(matrix)} classes"
        raise ValueError(f"{wanted}, data set {data.name!r} has {data.num_classes}")
    return matrix


def _train_stack(
    cells: list[Cell], data: Dataset, labels: torch.Tensor, validation: torch.Tensor, device: str | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor, str]:
    """Return curves [B, epochs], divergence epochs [B] and the device of a stack."""
    first, device = cells[0], torch.device(device or "cpu")
    rate, decay, step = (
        torch.tensor([getattr(c, name) for c in cells], dtype=torch.float32)
        for name in ("smooth_rate", "weight_decay", "learning_rate")
    )
    measure = Measure(cells, data, validation, device)
    validation_features, test_features = data.validation_features.to(device), data.test_features.to(device)
    fit = fit_stack(
        data.train_features.to(device),
        labels.to(device),
        rate if first.loss == "gls" else 0.0,
        num_classes=data.num_classes,
        hidden=first.hidden,
        optimizer=first.optimizer,
        learning_rate=step,
        weight_decay=decay,
        loss_scale=torch.tensor([_loss_scale(c) for c in cells]),
        loss=_stack_loss(cells, data) if first.loss != "gls" else None,
        evaluate=lambda stack, members: measure(
            stack.forward(validation_features, classes_last=False),
            stack.forward(test_features, classes_last=False),
            members,
        ),
        **_schedule(first, len(data.train_labels)),
    )
    return fit.curves, fit.diverged_epoch, _describe_device(device)


def _train_image_network(
    cell: Cell,
    data: Dataset,
    labels: torch.Tensor,
    validation: torch.Tensor,
    device: str | None,
    checkpoints: Path | None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor, str]:
    """Return curves [1, epochs], divergence epochs [1] and the device of an image network."""
    if data.train_features.dtype != torch.uint8 or data.train_features.ndim != 4:
        raise ValueError(f"network={cell.network!r} needs a data set of images, {data.name!r} has plain features")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    measure = Measure([cell], data, validation, torch.device("cpu"))

    def evaluate(network: torch.nn.Module) -> dict[str, float]:
        parts = (data.validation_features, data.test_features)
        held_out, test = (predict_logits(network, part, device=device).float().cpu().T[None] for part in parts)
        return {name: float(values) for name, values in measure(held_out, test, slice(0, 1)).items()}

    fit = fit_each(
        data.train_features,
        labels,
        cell.smooth_rate if cell.loss == "gls" else 0.0,
        network=cell.network,
        num_classes=data.num_classes,
        optimizer=cell.optimizer.replace("nesterov", "sgd"),
        nesterov=cell.optimizer == "nesterov",
        learning_rate=cell.learning_rate,
        weight_decay=cell.weight_decay,
        loss_scale=_loss_scale(cell),
        loss=None if cell.loss == "gls" else _network_loss(cell, data),
        augment=cell.augment,
        device=device,
        checkpoint=checkpoints and checkpoints / f"{cell.id}.checkpoint",
        keep_checkpoint=True,
        evaluate=evaluate,
        **_schedule(cell, len(data.train_labels)),
    )
    curves = {name: torch.as_tensor(curve)[None] for name, curve in fit.curves.items()}
    return curves, torch.tensor([fit.diverged_epoch]), _describe_device(device)


def _schedule(cell: Cell, num_examples: int) -> dict:
    """Return the arguments that both engines take from a cell."""
    names = ("batch_size", "momentum", "schedule", "warmup_epochs", "warmup_learning_rate", "max_update_norm", "seed")
    epochs = max(cell.epochs, math.ceil(cell.min_steps / math.ceil(num_examples / cell.batch_size)))
    return {name: getattr(cell, name) for name in names} | {"epochs": epochs}


def _loss_scale(cell: Cell) -> float:
    return 1 / (1 - cell.smooth_rate) if cell.normalized else 1.0


def _stack_loss(cells: list[Cell], data: Dataset) -> Callable:
    """Return the corrected loss of a stack, each member with its own matrix."""
    correct, matrices = _CORRECTIONS[cells[0].loss], [_transition(cell, data) for cell in cells]

    def loss(logits: torch.Tensor, labels: torch.Tensor, members: slice) -> torch.Tensor:
        parts = zip(logits, labels, matrices[members], strict=True)
        return torch.stack([correct(z, y, matrix, reduction="none") for z, y, matrix in parts])

    return loss


def _network_loss(cell: Cell, data: Dataset) -> Callable:
    correct, matrix = _CORRECTIONS[cell.loss], _transition(cell, data)
    return lambda logits, labels, _: correct(logits, labels, matrix.to(logits.device), reduction="none")


class Measure:
    """What is measured after an epoch: accuracy on noisy validation labels, and the rest on the clean test set.

    Logits come as [B, K, n]: over a middle axis of classes a softmax takes a tenth of the time.
    """

    def __init__(self, cells: list[Cell], data: Dataset, validation: torch.Tensor, device: torch.device) -> None:
        self.validation, self.labels = validation.to(device), data.test_labels.to(device)
        num_classes = data.num_classes
        # The output map undoes symmetric noise; with two classes all noise of one matrix and rate is symmetric.
        symmetric = {"symmetric", "pair"} if num_classes == 2 else {"symmetric"}
        scales = [
            (1 - c.smooth_rate) * (1 - num_classes * c.noise_rate / (num_classes - 1))
            if c.loss == "gls" and c.noise in symmetric
            else 0.0
            for c in cells
        ]
        scale = torch.tensor(scales, device=device)[:, None, None]
        self.scale = scale.masked_fill(scale <= 0, torch.nan)
        self.posterior, self.negative_entropy = None, 0.0
        if data.test_posterior is not None:
            self.posterior = data.test_posterior.T.float().contiguous().to(device)
            self.negative_entropy = torch.xlogy(self.posterior, self.posterior).sum(0).mean()

    def __call__(
        self, validation_logits: torch.Tensor, test_logits: torch.Tensor, members: slice
    ) -> dict[str, torch.Tensor]:
        """Return every member's metrics [B] of logits [B, K, n]."""
        count, num_classes, n = test_logits.shape
        chosen = self.labels.expand(count, 1, n)
        log_model = test_logits.log_softmax(1)
        model = log_model.exp()
        out = {
            # Not argmax, which is slow over a middle axis; both take the first of equal values.
            "validation_accuracy": self._share(validation_logits.max(1).indices == self.validation[members]),
            "accuracy": self._share(test_logits.max(1).indices == self.labels),
            "nll": -log_model.gather(1, chosen).mean((1, 2)),
            "entropy": -(model * log_model).sum(1).mean(1),
        }
        scale = self.scale[members]
        mapped = model.sub_((1 - scale) / num_classes).div_(scale).clamp_(min=FLOOR)
        log_total = mapped.sum(1).log().mean(1)
        out["nll_mapped"] = log_total - mapped.gather(1, chosen).log_().mean((1, 2))
        if self.posterior is not None:
            out["kl"] = self.negative_entropy - (self.posterior * log_model).sum(1).mean(1)
            out["kl_mapped"] = self.negative_entropy + log_total - (self.posterior * mapped.log_()).sum(1).mean(1)
        return out

    @staticmethod
    def _share(hits: torch.Tensor) -> torch.Tensor:
        return hits.float().mean(1)


def _results(curves: dict[str, list[float]]) -> dict:
    """Return a cell's metrics at the epochs that the three rules pick."""
    best = {"last": len(curves["train_loss"]) - 1}
    for rule, name in (("noisy_validation", "validation_accuracy"), ("clean_test", "accuracy")):
        values = [-1.0 if math.isnan(value) else value for value in curves[name]]
        best[rule] = values.index(max(values))  # the first epoch of several equal ones
    out = {f"epoch_{rule}": epoch + 1 for rule, epoch in best.items()}
    out |= {
        f"{name}_{rule}": curves[name][epoch] for rule, epoch in best.items() for name in _METRICS if name in curves
    }
    below = [epoch for epoch, loss in enumerate(curves["train_loss"], 1) if loss < 0]
    return out | {"train_loss": curves["train_loss"][-1], "negative_loss_epoch": below[0] if below else 0}


@functools.cache
def code_commit() -> str:
    """Return the commit of the checkout that ``nls`` is imported from, with "+" if files differ from it.

    That is the environment variable ``NLS_COMMIT``, else what git says, else ``"unknown"``.
    """
    if named := os.environ.get("NLS_COMMIT"):
        return named
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # installed: a repository further up would not be this one
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return told.stdout.strip() or "unknown"


@functools.cache
def _versions() -> dict[str, str]:
    import nls

    return {"nls": nls.__version__, "torch": torch.__version__, "python": platform.python_version()}


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu"
