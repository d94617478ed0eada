r"""Train the cells of a grid that belong together, and measure them after every epoch."""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from nls.data import Dataset, load_dataset
from nls.each import EachHistory, fit_each
from nls.grid import CORRECTIONS, ENGINE_VERSION, HUMAN_NOISE, TRANSITIONS, Cell
from nls.human import HumanLabels, load_human_labels
from nls.loss_table import LOSSES
from nls.losses import backward_corrected_loss, forward_corrected_loss
from nls.measure import RULES as RULES
from nls.measure import Measure, fitted, selected
from nls.models import embedding_classifier, predict_logits
from nls.noise import draw_instance_noise, draw_noisy_labels
from nls.stack import StackedMLP
from nls.training import fit_stack, seeded_generator

_CORRECTIONS = {"backward": backward_corrected_loss, "forward": forward_corrected_loss}
# Training examples on which a network is asked after every epoch what it has memorised.
_ASKED = 5000
_CHECKPOINT_SECONDS = 20.0


def train_chunk(
    cells: list[Cell],
    root: str | Path | None = None,
    device: str | None = None,
    checkpoints: Path | None = None,
    files: dict[str, str] | None = None,
    deadline: float = math.inf,
) -> list[dict]:
    """Train cells of one ``stack_key`` and return their records.

    Args:
        cells: At least one; all MLPs of one stack, or networks that share a warm-up.
        root: Folder of your own data sets, for cells with ``from_root``.
        device: Such as ``"cuda:0"``; None is the CPU for an MLP, and a GPU where there is one for an image network.
        checkpoints: Folder in which an image network keeps its state, to go on after an interruption; the state stays
            there until the record is written.
        files: Digests of your own files by data set, for the records.
        deadline: A value of ``time.time()``; a further network of the chunk is not started if it would end after that,
            judged by the fastest so far.

    Returns:
        The records that :class:`nls.records.RecordStore` writes, one for each cell that was trained.
    """
    start, first = time.perf_counter(), cells[0]
    data = load_dataset(first.dataset, root if first.from_root else None, first.seed, num_examples=first.num_examples)
    human = _human_labels(cells, data, root)
    labels, validation = (_noisy_labels(data, cells, split, human) for split in ("train", "validation"))
    transitions = [_transition(cell, data, human) for cell in cells]
    if first.network == "mlp":
        curves, diverged, used = _train_stack(cells, data, labels, validation, transitions, device)
        seconds = [(time.perf_counter() - start) / len(cells)] * len(cells)
    else:
        place, shared, seconds = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")), {}, []
        fits, pace = [], 0.0
        for i, cell in enumerate(cells):
            if fits and time.time() + pace * cell.epochs > deadline:
                break
            noisy = labels[i], validation[i : i + 1]
            fits.append(_train_network(cell, data, noisy, transitions[i], place, checkpoints, shared))
            seconds.append(time.perf_counter() - start - sum(seconds))
            # The first cell holds the warm-up that the others share.
            pace = seconds[-1] / (cell.epochs + (cell.warmup_epochs if i == 0 else 0))
        curves = {name: [fit.curves[name] for fit in fits] for name in fits[0].curves}
        diverged, used = [fit.diverged_epoch for fit in fits], _describe_device(place)
    return _records(cells[: len(seconds)], data, labels, curves, diverged, seconds, used, files or {})


def _records(
    cells: list[Cell],
    data: Dataset,
    labels: torch.Tensor,
    curves: dict,
    diverged: list[int],
    seconds: list[float],
    device: str,
    files: dict[str, str],
) -> list[dict]:
    """Return one record for each cell."""
    first, realised = cells[0], (labels != data.train_labels).double().mean(1).tolist()
    common = {
        "file": files.get(first.dataset) if first.from_root else None,
        "engine": ENGINE_VERSION, "device": device,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"), "commit": code_commit(), "versions": _versions(),
    }  # fmt: skip
    records = []
    for i, cell in enumerate(cells):
        curve = {name: values[i].tolist() for name, values in curves.items()}
        results = selected(curve) | {
            "realised_noise_rate": realised[i], "diverged_epoch": int(diverged[i]), "seconds": seconds[i]
        }  # fmt: skip
        # A network does not depend on its neighbours; a member of a stack does, in its last bits.
        together = [other.id for other in cells] if cell.network == "mlp" else [cell.id]
        own = {
            "id": cell.id,
            "chunk": together,
            "factors": {name: getattr(cell, name) for name in Cell.__dataclass_fields__},
        }
        records.append(own | {"results": results, "curves": curve, "seconds": seconds[i]} | common)
    return records


def _human_labels(cells: list[Cell], data: Dataset, root: str | Path | None) -> HumanLabels | None:
    """Return the human labels that the cells are trained on, checked against the data, or None where there are none."""
    sources = {HUMAN_NOISE[cell.noise][0] for cell in cells if cell.noise in HUMAN_NOISE}
    if not sources:
        return None
    if data.train_indices is None:
        raise ValueError(f"noise={cells[0].noise!r} needs the images that people saw, {data.name!r} has no such images")
    (name,) = sources  # cells of one data set; another set would not match its labels
    human = load_human_labels(name, root)
    indices = torch.cat([data.train_indices, data.validation_indices])
    if int(indices.max()) >= len(human.clean_labels):
        raise ValueError(f"{data.name!r} must have at most the {len(human.clean_labels)} training images of {name!r}")
    given = torch.cat([data.train_labels, data.validation_labels])
    if wrong := int((human.clean_labels[indices] != given).sum()):
        raise ValueError(
            f"{data.name!r} must hold the images of {name!r} in their order: {wrong} of {len(given)} labels differ"
        )
    return human


def _noisy_labels(data: Dataset, cells: list[Cell], split: str, human: HumanLabels | None) -> torch.Tensor:
    """Return [B, n] labels; cells with the same noise share a draw, and all share the uniforms of the seed."""
    labels, features = getattr(data, f"{split}_labels"), getattr(data, f"{split}_features")
    draws: dict[tuple, torch.Tensor] = {}
    for cell in cells:
        key = (cell.noise, cell.noise_rate)
        if key in draws:
            continue
        generator = seeded_generator(cell.seed, f"{split} noise")
        if cell.noise in HUMAN_NOISE:
            draws[key] = human.label_sets[HUMAN_NOISE[cell.noise][1]][getattr(data, f"{split}_indices")]
        elif cell.noise == "instance":
            draws[key] = draw_instance_noise(features, labels, cell.noise_rate, generator, num_classes=data.num_classes)
        else:
            draws[key] = draw_noisy_labels(labels, _transition(cell, data, human), generator)
    return torch.stack([draws[cell.noise, cell.noise_rate] for cell in cells])


def _transition(cell: Cell, data: Dataset, human: HumanLabels | None) -> torch.Tensor | None:
    """Return the matrix of a cell's noise; that of people is counted, and noise of instances has none."""
    if cell.noise == "instance":
        return None
    if cell.noise in HUMAN_NOISE:
        return human.transition(HUMAN_NOISE[cell.noise][1])
    matrix = TRANSITIONS[cell.noise](data.num_classes, cell.noise_rate)
    if len(matrix) != data.num_classes:
        wanted = f"noise={cell.noise!r} is for {len(matrix)} classes"
        raise ValueError(f"{wanted}, data set {data.name!r} has {data.num_classes}")
    return matrix


def _train_stack(
    cells: list[Cell],
    data: Dataset,
    labels: torch.Tensor,
    validation: torch.Tensor,
    transitions: list[torch.Tensor | None],
    device: str | None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor, str]:
    """Return curves [B, epochs], divergence epochs [B] and the device of a stack."""
    first, device = cells[0], torch.device(device or "cpu")
    rate, decay, step = (
        torch.tensor([getattr(c, name) for c in cells], dtype=torch.float32)
        for name in ("smooth_rate", "weight_decay", "learning_rate")
    )
    warm, late = (Measure(cells, data, validation, transitions, device, warm=warm) for warm in (True, False))
    calls = Counter()
    validation_features, test_features = data.validation_features.to(device), data.test_features.to(device)

    def evaluate(stack: StackedMLP, members: slice) -> dict[str, torch.Tensor]:
        calls[members.start] += 1  # once an epoch
        measure = warm if calls[members.start] <= first.warmup_epochs else late
        logits = (stack.forward(part, classes_last=False) for part in (validation_features, test_features))
        return measure(*logits, members)

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
        loss=_stack_loss(cells, data, transitions) if first.loss != "gls" else None,
        evaluate=evaluate,
        **_schedule(first, len(data.train_labels)),
    )
    return fit.curves, fit.diverged_epoch, _describe_device(device)


def _train_network(
    cell: Cell,
    data: Dataset,
    noisy: tuple[torch.Tensor, torch.Tensor],
    transition: torch.Tensor | None,
    device: torch.device,
    checkpoints: Path | None,
    shared: dict,
) -> EachHistory:
    """Train one network on noisy labels of both splits; it starts from a shared warm-up where there is one."""
    _check_features(cell, data)
    labels, validation = noisy
    warm, late = (
        Measure([cell], data, validation, [transition], torch.device("cpu"), warm=warm) for warm in (True, False)
    )
    asked, clean = labels[:_ASKED], data.train_labels[:_ASKED]
    held_out, test, train = (
        part.to(device) for part in (data.validation_features, data.test_features, data.train_features[:_ASKED])
    )

    def evaluate(network: torch.nn.Module) -> dict[str, float]:
        logits = [predict_logits(network, part, device=device).float().cpu() for part in (held_out, test, train)]
        measure = warm if network.epoch <= cell.warmup_epochs else late
        measured = measure(logits[0].T[None], logits[1].T[None], slice(0, 1))
        return {name: float(value) for name, value in measured.items()} | fitted(logits[2], asked, clean)

    return fit_each(
        data.train_features,
        labels,
        cell.smooth_rate if cell.loss == "gls" else 0.0,
        network=_embedding(data) if cell.network == "embedding" else cell.network,
        num_classes=data.num_classes,
        loss=None if cell.loss == "gls" else _network_loss(cell, data, labels, transition, device),
        shared_warmup=shared if cell.warmup_epochs else None,
        device=device,
        checkpoint=checkpoints and checkpoints / f"{cell.id}.checkpoint",
        checkpoint_seconds=_CHECKPOINT_SECONDS,
        keep_checkpoint=True,
        evaluate=evaluate,
        **_single(cell),
        **_schedule(cell, len(data.train_labels)),
    )


def _single(cell: Cell) -> dict:
    """Return the arguments that only a network trained on its own takes from a cell as they are."""
    picks = {"last": None, "noisy_validation": "validation_accuracy", "clean_test": "accuracy"}
    names = ("learning_rate", "weight_decay", "augment", "warmup_schedule")
    return {name: getattr(cell, name) for name in names} | {
        "optimizer": cell.optimizer.replace("nesterov", "sgd"),
        "nesterov": cell.optimizer == "nesterov",
        "loss_scale": _loss_scale(cell),
        "warmup_pick": picks[cell.warmup_pick],
    }


def _check_features(cell: Cell, data: Dataset) -> None:
    """Refuse a network for data of another kind."""
    tokens = data.train_features.dtype == torch.int64
    images = data.train_features.dtype == torch.uint8 and data.train_features.ndim == 4
    if not (tokens if cell.network == "embedding" else images):
        wanted = "a data set of token ids" if cell.network == "embedding" else "a data set of images"
        raise ValueError(f"network={cell.network!r} needs {wanted}, {data.name!r} is another")


def _embedding(data: Dataset) -> Callable:
    """Return what makes an embedding classifier for all token ids of a data set."""
    splits = (data.train_features, data.validation_features, data.test_features)
    vocabulary = 1 + max(int(split.max()) for split in splits)
    return functools.partial(embedding_classifier, data.num_classes, vocabulary)


def _schedule(cell: Cell, num_examples: int) -> dict:
    """Return the arguments that both engines take from a cell."""
    names = ("batch_size", "momentum", "schedule", "warmup_epochs", "warmup_learning_rate", "max_update_norm", "seed")
    epochs = max(cell.epochs, math.ceil(cell.min_steps / math.ceil(num_examples / cell.batch_size)))
    return {name: getattr(cell, name) for name in names} | {"epochs": epochs}


def _loss_scale(cell: Cell) -> float:
    return 1 / (1 - cell.smooth_rate) if cell.normalized else 1.0


def _stack_loss(cells: list[Cell], data: Dataset, transitions: list[torch.Tensor | None]) -> Callable:
    """Return the loss of a stack, each member with its own matrix."""
    if cells[0].loss in CORRECTIONS:
        correct = _CORRECTIONS[cells[0].loss]
        parts = [functools.partial(correct, transition=matrix, reduction="none") for matrix in transitions]
    else:
        rival, sizes = LOSSES[cells[0].loss], (len(data.train_labels), data.num_classes)
        made = [rival.make(*sizes, c.loss_parameter, t, c.seed) for c, t in zip(cells, transitions, strict=True)]
        parts = [functools.partial(_without_positions, loss) for loss in made]

    def loss(logits: torch.Tensor, labels: torch.Tensor, members: slice) -> torch.Tensor:
        return torch.stack([part(z, y) for part, z, y in zip(parts[members], logits, labels, strict=True)])

    return loss


def _without_positions(loss: Callable, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return loss(logits, labels, torch.arange(len(labels), device=labels.device))


def _network_loss(
    cell: Cell, data: Dataset, labels: torch.Tensor, transition: torch.Tensor | None, device: torch.device
) -> torch.nn.Module | Callable:
    """Return the loss of a network, with a matrix of its own, an estimated one, or none."""
    if cell.loss not in CORRECTIONS:
        return LOSSES[cell.loss].make(
            len(data.train_labels), data.num_classes, cell.loss_parameter, transition, cell.seed
        )
    return _Corrected(cell, data, labels, transition, device)


class _Corrected(torch.nn.Module):
    """A correction by the true matrix, or by one that is estimated when the warm-up ends."""

    def __init__(
        self,
        cell: Cell,
        data: Dataset,
        labels: torch.Tensor,
        transition: torch.Tensor | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.estimates = cell.transition == "estimated"
        self.features, self.labels, self.device = data.train_features[:_ASKED].to(device), labels[:_ASKED], device
        self.correct = _CORRECTIONS[cell.loss]
        start = torch.eye(data.num_classes, dtype=torch.float64) if self.estimates else transition
        self.register_buffer("matrix", start)

    def prepare(self, network: torch.nn.Module) -> None:
        """Estimate the matrix, if it is to be estimated, from what the network predicts now."""
        if self.estimates:
            from nls.estimate import estimate_transition

            posterior = predict_logits(network, self.features, device=self.device).double().softmax(1).cpu()
            self.matrix.copy_(estimate_transition(posterior, self.labels, method="anchor"))

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.correct(logits, labels, self.matrix, reduction="none")


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
