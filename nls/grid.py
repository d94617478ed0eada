r"""Grids of experiments: a product of factors, cells with stable ids, and one tidy table of results."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib
import pandas as pd
import torch

from nls import _checks
from nls.data import Dataset, load_dataset
from nls.noise import draw_noisy_labels, pair_transition, symmetric_transition
from nls.posterior import output_map
from nls.training import StackedMLP, fit_stack, seeded_generator

ENGINE_VERSION = 1
"""Part of every cell's id; raised when the same factors would give other results."""

RULES = ("last", "noisy_validation", "clean_test")
"""Rules for the epoch to report, which is the last, the best on noisy validation, or the best on the clean test set."""

_TRANSITIONS = {"symmetric": symmetric_transition, "pair": pair_transition}
_METRICS = ("accuracy", "validation_accuracy", "nll", "nll_mapped", "kl", "kl_mapped", "entropy")


@dataclass(frozen=True)
class Cell:
    """One experiment: everything that its result depends on, and nothing else.

    Attributes:
        dataset: A name that :func:`nls.load_dataset` knows.
        from_root: Whether the data set is your own file in the folder ``root`` of :func:`run_grid`, which may have the
            name of another set.
        num_examples: Size of a generated set; None elsewhere, or for its default.
        noise: ``"symmetric"`` or ``"pair"``.
        noise_rate: Probability that a training or validation label is wrong, in [0, 1].
        smooth_rate: r of the loss, at most 1.
        normalized: Whether the loss is divided by 1 - r, which needs r < 1.
        seed: Varies the split (or the sample), the noise draw, the initialisation and the order of the batches.
        hidden: Widths of the hidden layers, a tuple; ``()`` is a linear model.
        optimizer: ``"adam"`` or ``"sgd"`` (momentum .9).
        learning_rate: At least 0.
        weight_decay: At least 0.
        epochs: At least 1.
        min_steps: More epochs are trained, if needed, to take at least this many steps; small sets need it.
        batch_size: At least 1.

    Examples:
        >>> Cell("twonorm", noise_rate=0.4, smooth_rate=-4.0).id == Cell("twonorm", noise_rate=0.4, smooth_rate=-4).id
        True
    """

    dataset: str
    from_root: bool = False
    num_examples: int | None = None
    noise: str = "symmetric"
    noise_rate: float = 0.0
    smooth_rate: float = 0.0
    normalized: bool = False
    seed: int = 0
    hidden: tuple[int, ...] = (32,)
    optimizer: str = "adam"
    learning_rate: float = 7e-4
    weight_decay: float = 0.0
    epochs: int = 30
    min_steps: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str):
            raise TypeError(f"dataset must be a name, got {_checks.describe(self.dataset)}")
        if not isinstance(self.hidden, tuple):
            raise TypeError(f"hidden must be a tuple of widths, got {_checks.describe(self.hidden)}")
        for name in ("from_root", "normalized"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {_checks.describe(getattr(self, name))}")
        _checks.choice(self.noise, "noise", tuple(_TRANSITIONS))
        _checks.choice(self.optimizer, "optimizer", ("adam", "sgd"))
        fix = {
            "noise_rate": _checks.number(self.noise_rate, "noise_rate", low=0.0, high=1.0),
            "smooth_rate": _checks.number(self.smooth_rate, "smooth_rate", high=1.0),
            "learning_rate": _checks.number(self.learning_rate, "learning_rate", low=0.0),
            "weight_decay": _checks.number(self.weight_decay, "weight_decay", low=0.0),
        }
        fix |= {
            name: _checks.integer(getattr(self, name), name, low=low)
            for name, low in (("seed", 0), ("epochs", 1), ("min_steps", 0), ("batch_size", 1))
        }
        for name, value in fix.items():  # numbers of one value have one id, whatever their type was
            object.__setattr__(self, name, value + 0)  # and -0.0 is 0.0
        object.__setattr__(self, "hidden", tuple(_checks.integer(h, "hidden", low=1) for h in self.hidden))
        if self.num_examples is not None:
            object.__setattr__(self, "num_examples", _checks.integer(self.num_examples, "num_examples", low=1))
        if self.normalized and self.smooth_rate == 1:
            raise ValueError("normalized needs a smooth_rate below 1, got 1.0")

    @property
    def id(self) -> str:
        """Sixteen hex digits of the factors and the engine's version."""
        text = json.dumps({"engine": ENGINE_VERSION} | dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def stack_key(self) -> tuple:
        """The factors that cells must share to be trained in one stack."""
        return (
            self.dataset,
            self.from_root,
            self.num_examples,
            self.seed,
            self.hidden,
            self.optimizer,
            self.epochs,
            self.min_steps,
            self.batch_size,
        )


class Grid:
    """The product of factors, as cells in a fixed order.

    Args:
        **factors: A factor of :class:`Cell` each: one value, or its levels as a list or a range. A tuple is one value.

    Raises:
        TypeError: If a factor's value has the wrong type.
        ValueError: If a factor is unknown, has no levels, or a value is out of range.

    Examples:
        >>> grid = Grid(dataset="twonorm", noise_rate=[0.0, 0.4], smooth_rate=[0.2, 0.0, -4.0], seed=range(10))
        >>> len(grid)
        60
        >>> len(grid + Grid(dataset="twonorm", noise_rate=0.4, weight_decay=0.1))
        61
    """

    def __init__(self, **factors: object) -> None:
        known = [f.name for f in dataclasses.fields(Cell)]
        unknown = sorted(set(factors) - set(known))
        if unknown:
            raise ValueError(f"unknown factor {', '.join(map(repr, unknown))}; the factors are {', '.join(known)}")
        levels = {name: list(v) if isinstance(v, (list, range)) else [v] for name, v in factors.items()}
        for name, values in levels.items():
            if not values:
                raise ValueError(f"{name} must have at least one level, got an empty list")
        self.cells = _unique(
            Cell(**dict(zip(levels, values, strict=True))) for values in itertools.product(*levels.values())
        )

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __add__(self, other: Grid) -> Grid:
        """Return the cells of both grids, each once."""
        if not isinstance(other, Grid):
            return NotImplemented
        joined = object.__new__(Grid)
        joined.cells = _unique([*self.cells, *other.cells])
        return joined

    def __radd__(self, other: int) -> Grid:
        """Let ``sum`` start from 0."""
        return self if other == 0 else NotImplemented


def _unique(cells: Iterable[Cell]) -> list[Cell]:
    return list({cell.id: cell for cell in cells}.values())


def run_grid(grid: Grid, *, root: str | Path | None = None, workers: int | None = None) -> pd.DataFrame:
    r"""Train every cell of a grid and return one row for each, in the grid's order.

    Cells that share data, seed and schedule are trained together by :func:`nls.fit_stack`; the stacks are dealt out to
    processes with one thread each. Training and validation labels are noisy, test labels clean. A cell's labels,
    initialisation and batches depend on its own factors alone, and the flips at one seed are nested: a higher rate only
    adds some.

    Columns: the factors; ``id``; ``realised_noise_rate`` of the training labels; for each rule (``last``,
    ``noisy_validation``, ``clean_test``) the ``epoch`` and, on the clean test set, ``accuracy``, ``nll`` in nats,
    ``nll_mapped`` (after the output map that undoes rate and noise, :func:`nls.output_map`), ``kl`` = KL(true
    posterior || model) and ``kl_mapped`` where the posterior is known, ``entropy`` of the model's prediction;
    ``train_loss``; ``negative_loss_epoch``, the first epoch with a mean training loss below 0, which no probability
    vector can reach when the rate is feasible, or 0; ``diverged_epoch``, or 0; ``seconds``, its share of the stack's.

    Args:
        grid: The cells.
        root: Folder of your own data sets, see :func:`nls.load_dataset`; for the cells with ``from_root``.
        workers: Processes; all cores (or the environment variable ``NLS_WORKERS``) by default, 1 runs in this process.

    Returns:
        The table, one row for each cell.

    Raises:
        TypeError: If ``grid`` is not a :class:`Grid`.
        ValueError: If a data set cannot be loaded, ``workers`` is below 1, or ``root`` is given without cells that
            need it, or missing for cells that do.

    Examples:
        >>> table = run_grid(Grid(dataset="wine", smooth_rate=[0.0, -1.0], noise_rate=0.2, epochs=2), workers=1)
        >>> table[["smooth_rate", "diverged_epoch"]].values.tolist()
        [[0.0, 0.0], [-1.0, 0.0]]
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a Grid, got {type(grid).__name__}")
    workers = _count_workers() if workers is None else _checks.integer(workers, "workers", low=1)
    if any(cell.from_root for cell in grid) is not (root is not None):
        raise ValueError("root must be given for cells with from_root=True, and only for them")
    stacks: dict[tuple, list[Cell]] = {}
    for cell in grid:
        stacks.setdefault(cell.stack_key, []).append(cell)
    # Longest first, so that no worker is left with a long stack at the end.
    ordered = sorted(stacks.values(), key=lambda cells: -len(cells) * (cells[0].num_examples or 3000) * cells[0].epochs)
    run = joblib.Parallel(n_jobs=min(workers, len(ordered)))
    with warnings.catch_warnings():
        # joblib replaces a worker that has grown by a large data set, loses nothing by it, and warns.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor", UserWarning)
        stacks_of_rows = run(joblib.delayed(_run_stack)(cells, root) for cells in ordered)
    table = (
        pd.DataFrame([row for rows in stacks_of_rows for row in rows])
        .set_index("id", drop=False)
        .loc[[cell.id for cell in grid]]
    )
    return table.reset_index(drop=True)


def _count_workers() -> int:
    """Return the number that ``NLS_WORKERS`` names, or that of the cores."""
    named = os.environ.get("NLS_WORKERS", "")
    if named and not (named.isdecimal() and int(named)):
        raise ValueError(f"the environment variable NLS_WORKERS must be a number of at least 1, got {named!r}")
    return int(named or os.cpu_count() or 1)


def _noisy_labels(labels: torch.Tensor, cells: list[Cell], num_classes: int, purpose: str) -> torch.Tensor:
    """Return [B, n] labels; cells with the same noise share a draw, and all share the uniforms of the seed."""
    draws: dict[tuple, torch.Tensor] = {}
    for cell in cells:
        key = (cell.noise, cell.noise_rate)
        if key not in draws:
            transition = _TRANSITIONS[cell.noise](num_classes, cell.noise_rate)
            draws[key] = draw_noisy_labels(labels, transition, seeded_generator(cell.seed, purpose))
    return torch.stack([draws[cell.noise, cell.noise_rate] for cell in cells])


def _run_stack(cells: list[Cell], root: str | Path | None) -> list[dict]:
    """Train the cells of one stack on one thread and return their rows."""
    threads, start = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        first = cells[0]
        folder = root if first.from_root else None
        data = load_dataset(first.dataset, folder, first.seed, num_examples=first.num_examples)
        labels = _noisy_labels(data.train_labels, cells, data.num_classes, "train noise")
        validation = _noisy_labels(data.validation_labels, cells, data.num_classes, "validation noise")
        rate, decay, step = (
            torch.tensor([getattr(c, name) for c in cells], dtype=torch.float32)
            for name in ("smooth_rate", "weight_decay", "learning_rate")
        )
        scale = torch.tensor([1 / (1 - c.smooth_rate) if c.normalized else 1.0 for c in cells])
        # The map undoes symmetric noise; with two classes all noise of one rate is symmetric.
        mapped = torch.tensor([c.noise == "symmetric" or data.num_classes == 2 for c in cells])
        noise_rate = torch.tensor([c.noise_rate for c in cells])
        steps_per_epoch = math.ceil(len(data.train_labels) / first.batch_size)
        fit = fit_stack(
            data.train_features,
            labels,
            rate,
            num_classes=data.num_classes,
            hidden=first.hidden,
            epochs=max(first.epochs, math.ceil(first.min_steps / steps_per_epoch)),
            batch_size=first.batch_size,
            optimizer=first.optimizer,
            learning_rate=step,
            weight_decay=decay,
            loss_scale=scale,
            seed=first.seed,
            evaluate=lambda stack: _evaluate(stack, data, validation, rate, noise_rate, mapped),
        )
    finally:
        torch.set_num_threads(threads)
    realised = (labels != data.train_labels).double().mean(1).tolist()
    seconds = (time.perf_counter() - start) / len(cells)
    return [
        _row(cell, {name: curve[i] for name, curve in fit.curves.items()})
        | {"realised_noise_rate": realised[i], "diverged_epoch": int(fit.diverged_epoch[i]), "seconds": seconds}
        for i, cell in enumerate(cells)
    ]


def _evaluate(
    stack: StackedMLP,
    data: Dataset,
    validation: torch.Tensor,
    rate: torch.Tensor,
    noise_rate: torch.Tensor,
    mapped: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return every member's metrics after an epoch: accuracy on noisy validation, the rest on the clean test set."""
    hits = stack.forward(data.validation_features).argmax(-1) == validation
    logits = stack.forward(data.test_features)
    log_model = logits.log_softmax(-1)
    model = log_model.exp()
    log_mapped = output_map(model, rate[:, None], noise_rate[:, None]).log()
    log_mapped[~mapped] = torch.nan
    labels = data.test_labels
    chosen = labels[:, None].expand(*logits.shape[:2], 1)
    out = {
        "validation_accuracy": hits.float().mean(1),
        "accuracy": (logits.argmax(-1) == labels).float().mean(1),
        "nll": -log_model.gather(-1, chosen).mean((1, 2)),
        "nll_mapped": -log_mapped.gather(-1, chosen).mean((1, 2)),
        "entropy": -(model * log_model).sum(-1).mean(1),
    }
    if data.test_posterior is not None:
        true = data.test_posterior.to(log_model.dtype)
        negative_entropy = torch.xlogy(true, true).sum(-1)
        out["kl"] = (negative_entropy - (true * log_model).sum(-1)).mean(1)
        out["kl_mapped"] = (negative_entropy - (true * log_mapped).sum(-1)).mean(1)
    return out


def _row(cell: Cell, curves: dict[str, torch.Tensor]) -> dict:
    """Return a cell's factors and its metrics at the epochs that the three rules pick."""
    row = {"id": cell.id} | dataclasses.asdict(cell) | {"hidden": "x".join(map(str, cell.hidden)) or "linear"}
    best = {"last": len(curves["train_loss"]) - 1}
    for rule, name in (("noisy_validation", "validation_accuracy"), ("clean_test", "accuracy")):
        best[rule] = int(curves[name].nan_to_num(-1).argmax())  # the first epoch of several equal ones
    for rule, epoch in best.items():
        row[f"epoch_{rule}"] = epoch + 1
        row |= {f"{name}_{rule}": float(curves[name][epoch]) for name in _METRICS if name in curves}
    below = (curves["train_loss"] < 0).nonzero()
    return row | {
        "train_loss": float(curves["train_loss"][-1]),
        "negative_loss_epoch": int(below[0]) + 1 if len(below) else 0,
    }
