r"""Grids of experiments: a product of factors, as cells with stable ids."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nls import _checks
from nls.models import NETWORKS
from nls.noise import (
    cifar10_asymmetric_transition,
    cifar10_pair_transition,
    pair_transition,
    symmetric_transition,
)
from nls.training import SCHEDULES, TINY

ENGINE_VERSION = 2
"""Part of every cell's id; raised when the same factors would give other results."""

TRANSITIONS = {
    "symmetric": symmetric_transition,
    "pair": pair_transition,
    "cifar10_asymmetric": lambda _, noise_rate: cifar10_asymmetric_transition(noise_rate),
    "cifar10_pair": lambda _, noise_rate: cifar10_pair_transition(noise_rate),
}
"""The transition matrix of each kind of noise, as a function of the number of classes and the noise rate."""

HUMAN_NOISE = {
    "cifar10n_aggregate": ("cifar10n", "aggregate"),
    "cifar10n_random1": ("cifar10n", "random1"),
    "cifar10n_random2": ("cifar10n", "random2"),
    "cifar10n_random3": ("cifar10n", "random3"),
    "cifar10n_worst": ("cifar10n", "worst"),
    "cifar100n_fine": ("cifar100n", "fine"),
}
"""The labels and the label set of :mod:`nls.human` that each noise made by people stands for."""

CORRECTIONS = ("backward", "forward")
"""The losses that need a transition matrix."""

LOSSES = (
    "gls", *CORRECTIONS, "peer", "unhinged", "complementary", "nlnl", "gce", "sce", "normalized_ce", "active_passive",
    "bootstrap_soft", "bootstrap_hard", "elr", "confidence_penalty", "floored",
)  # fmt: skip
"""The losses of a cell, generalised label smoothing and its rivals, see :mod:`nls.loss_table`."""

WARMUP_PICKS = ("last", "noisy_validation", "clean_test")
"""Which epoch of the warm-up the loss may take over from; the last of these is what released code does."""


@dataclass(frozen=True)
class Cell:
    """One experiment: everything that its result depends on, and nothing else.

    The content of a file of your own is not part of the id; a record keeps its digest, see
    :class:`nls.records.RecordStore`.

    Attributes:
        dataset: A name that :func:`nls.load_dataset` knows.
        from_root: Whether the data set is your own file in the folder ``root`` of :func:`nls.run_grid`, which may have
            the name of another set.
        num_examples: Size of a generated set, or of a part of an image set; None elsewhere, or for its default.
        noise: ``"symmetric"``, ``"pair"``, ``"cifar10_asymmetric"``, ``"cifar10_pair"``; ``"instance"``, which
            depends on the features; or a set of human labels, one of ``HUMAN_NOISE``.
        noise_rate: Probability that a training or validation label is wrong, in [0, 1]; the mean one for instances;
            left at 0 for human labels, which have the rate that they have.
        loss: ``"gls"`` or one of the other ``LOSSES``.
        loss_parameter: The one parameter of a loss that has one; None for its usual value.
        transition: Matrix of the ``CORRECTIONS``: the ``"true"`` one, which for human labels is the share of noisy
            labels in each class; or ``"estimated"`` from what the network predicts after its warm-up.
        smooth_rate: r of the loss ``"gls"``, at most 1.
        normalized: Whether the loss is divided by 1 - r, which needs r < 1.
        seed: Varies the split (or the sample), the noise draw, the initialisation and the order of the batches.
        network: ``"mlp"``, trained in stacks; an image network, ``"cnn"``, ``"resnet9"`` or ``"resnet34"``; or
            ``"embedding"`` for token ids.
        hidden: Widths of an MLP's hidden layers, a tuple; ``()`` is a linear model.
        optimizer: ``"adam"``, ``"sgd"``, or for networks other than MLPs ``"nesterov"``.
        learning_rate: At least 1e-12.
        momentum: In [0, 1), of the optimisers other than Adam.
        weight_decay: At least 0.
        schedule: One of ``nls.training.SCHEDULES``, see :func:`nls.training.schedule_factor`.
        max_update_norm: Longer steps are shortened to this norm; None for no limit.
        warmup_epochs: Epochs of plain cross entropy before the loss takes over, with a fresh optimiser.
        warmup_learning_rate: Step size of these; None for ``learning_rate``.
        warmup_schedule: Their schedule, for networks other than MLPs.
        warmup_pick: The epoch of the warm-up that the loss takes over from: the ``"last"``, or the one with the best
            accuracy by ``"noisy_validation"`` or ``"clean_test"``; for networks other than MLPs.
        epochs: Epochs of the loss itself, at least 1.
        min_steps: More epochs are trained, if needed, to take at least this many steps; small sets need it.
        batch_size: At least 1.
        augment: None, or ``"crop_flip"`` for image networks.

    Examples:
        >>> Cell("twonorm", noise_rate=0.4, smooth_rate=-4.0).id == Cell("twonorm", noise_rate=0.4, smooth_rate=-4).id
        True
    """

    dataset: str
    from_root: bool = False
    num_examples: int | None = None
    noise: str = "symmetric"
    noise_rate: float = 0.0
    loss: str = "gls"
    loss_parameter: float | None = None
    transition: str = "true"
    smooth_rate: float = 0.0
    normalized: bool = False
    seed: int = 0
    network: str = "mlp"
    hidden: tuple[int, ...] = (32,)
    optimizer: str = "adam"
    learning_rate: float = 7e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    max_update_norm: float | None = None
    warmup_epochs: int = 0
    warmup_learning_rate: float | None = None
    warmup_schedule: str = "constant"
    warmup_pick: str = "last"
    epochs: int = 30
    min_steps: int = 0
    batch_size: int = 64
    augment: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str):
            raise TypeError(f"dataset must be a name, got {_checks.describe(self.dataset)}")
        if not isinstance(self.hidden, tuple):
            raise TypeError(f"hidden must be a tuple of widths, got {_checks.describe(self.hidden)}")
        for name in ("from_root", "normalized"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {_checks.describe(getattr(self, name))}")
        for name, options in _CHOICES.items():
            if not (name == "augment" and self.augment is None):
                _checks.choice(getattr(self, name), name, options)
        for name, limits in _RANGES.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                check = _checks.integer if name in _INTEGERS else _checks.number
                # Numbers of one value have one id, whatever their type was, and -0.0 is 0.0.
                object.__setattr__(self, name, check(getattr(self, name), name, **limits) + 0)
        object.__setattr__(self, "hidden", tuple(_checks.integer(h, "hidden", low=1) for h in self.hidden))
        self._check_together()

    def _check_together(self) -> None:
        """Refuse a factor that another one would leave without effect."""
        single = self.network != "mlp"
        warmed = single and self.warmup_epochs > 0
        default = {f.name: f.default for f in dataclasses.fields(self)}
        for name, value, used, by in (
            ("smooth_rate", self.smooth_rate, self.loss == "gls", "loss='gls'"),
            ("normalized", self.normalized, self.loss == "gls", "loss='gls'"),
            ("loss_parameter", self.loss_parameter, self.loss not in ("gls", *CORRECTIONS), "a loss that has one"),
            ("transition", self.transition, self.loss in CORRECTIONS, "loss='backward' and 'forward'"),
            ("noise_rate", self.noise_rate, self.noise not in HUMAN_NOISE, "noise that is drawn"),
            ("hidden", self.hidden, not single, "network='mlp'"),
            ("augment", self.augment, single, "an image network"),
            ("momentum", self.momentum, self.optimizer != "adam", "another optimizer than 'adam'"),
            ("warmup_learning_rate", self.warmup_learning_rate, self.warmup_epochs > 0, "warmup_epochs above 0"),
            ("warmup_schedule", self.warmup_schedule, warmed, "a network with a warm-up, no MLP"),
            ("warmup_pick", self.warmup_pick, warmed, "a network with a warm-up, no MLP"),
        ):
            if not used and value != default[name]:
                raise ValueError(f"{name} is used by {by} only, got {value!r}; leave it at {default[name]!r}")
        if self.optimizer == "nesterov" and not single:
            raise ValueError("optimizer must be 'adam' or 'sgd' for network='mlp', got 'nesterov'")
        if self.optimizer == "nesterov" and self.momentum == 0:
            raise ValueError("optimizer='nesterov' needs a momentum above 0, got 0.0")
        if self.normalized and self.smooth_rate == 1:
            raise ValueError("normalized needs a smooth_rate below 1, got 1.0")
        if self.noise == "instance" and self.loss in CORRECTIONS and self.transition == "true":
            raise ValueError(f"loss={self.loss!r} needs noise of one transition matrix, got noise='instance'")
        if self.transition == "estimated" and not warmed:
            raise ValueError("transition='estimated' needs a network with a warm-up, no MLP, to estimate from")
        if self.loss == "elr" and not single:
            raise ValueError("loss='elr' remembers single examples, which a stack of MLPs does not; got network='mlp'")

    @property
    def id(self) -> str:
        """Sixteen hex digits of the engine's version and the factors that are not at their default."""
        # Defaults are left out, so that a factor that is added later leaves the older ids as they are.
        factors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed = {f.name: factors[f.name] for f in dataclasses.fields(self) if factors[f.name] != f.default}
        text = json.dumps({"engine": ENGINE_VERSION} | changed, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def stack_key(self) -> tuple:
        """The factors that cells must share to be trained together.

        MLPs that share them are trained in one stack. Other networks are trained one after the other, and share a
        warm-up where there is one.
        """
        if self.network == "mlp":
            return tuple(getattr(self, name) for name in _STACKED)
        step = self.warmup_learning_rate or self.learning_rate
        return (*(getattr(self, name) for name in _WARMED), *((step,) if self.warmup_epochs else (self.id,)))


_CHOICES = {
    "noise": (*TRANSITIONS, "instance", *HUMAN_NOISE),
    "loss": LOSSES,
    "transition": ("true", "estimated"),
    "network": ("mlp", *NETWORKS, "embedding"),
    "optimizer": ("adam", "sgd", "nesterov"),
    "schedule": SCHEDULES,
    "warmup_schedule": SCHEDULES,
    "warmup_pick": WARMUP_PICKS,
    "augment": ("crop_flip",),
}
_RANGES = {
    "num_examples": {"low": 1},
    "noise_rate": {"low": 0.0, "high": 1.0},
    "loss_parameter": {},
    "smooth_rate": {"high": 1.0},
    "seed": {},
    "learning_rate": {"low": TINY},
    "momentum": {"low": 0.0, "high": 1.0, "open_high": True},
    "weight_decay": {"low": 0.0},
    "max_update_norm": {"low": TINY},
    "warmup_epochs": {},
    "warmup_learning_rate": {"low": TINY},
    "epochs": {"low": 1},
    "min_steps": {},
    "batch_size": {"low": 1},
}
_OPTIONAL = ("num_examples", "loss_parameter", "max_update_norm", "warmup_learning_rate")
_INTEGERS = ("num_examples", "seed", "warmup_epochs", "epochs", "min_steps", "batch_size")
_STACKED = (
    "dataset", "from_root", "num_examples", "loss", "loss_parameter", "seed", "network", "hidden", "optimizer",
    "momentum", "schedule", "max_update_norm", "warmup_epochs", "warmup_learning_rate", "epochs",
    "min_steps", "batch_size",
)  # fmt: skip
_WARMED = (
    "dataset", "from_root", "num_examples", "noise", "noise_rate", "seed", "network", "optimizer", "momentum",
    "weight_decay", "max_update_norm", "warmup_epochs", "warmup_schedule", "warmup_pick", "batch_size", "augment",
)  # fmt: skip


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

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Grid:
        """Return the grid of these cells, each once."""
        cells = list(cells)
        for cell in cells:
            if not isinstance(cell, Cell):
                raise TypeError(f"cells must be of class Cell, got {_checks.describe(cell)}")
        grid = object.__new__(cls)
        grid.cells = _unique(cells)
        return grid

    def __add__(self, other: Grid) -> Grid:
        """Return the cells of both grids, each once."""
        if not isinstance(other, Grid):
            return NotImplemented
        return Grid.of([*self.cells, *other.cells])

    def __radd__(self, other: int) -> Grid:
        """Let ``sum`` start from 0."""
        return self if other == 0 else NotImplemented


def _unique(cells: Iterable[Cell]) -> list[Cell]:
    return list({cell.id: cell for cell in cells}.values())
