r"""What the chapters on images read or train: the tables of a study, and several methods from one warm-up.

:func:`study_tables` returns the stored results of a study, or trains a study of your size. :func:`train_methods`
compares rates and other losses under a transition matrix of your own, which a grid of :mod:`nls.grid` has no name for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn

from nls import _checks
from nls.data import Dataset
from nls.each import fit_each
from nls.engine import run_grid
from nls.grid import Grid
from nls.measure import Measure, fitted, selected
from nls.models import predict_logits
from nls.noise import draw_noisy_labels
from nls.records import RecordStore
from nls.stats import Interval
from nls.studies import load_curves, load_study, method_name, noise_name, study
from nls.training import seeded_generator

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def study_tables(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    device: str | None = None,
    noises: Collection[str] = (),
    **changes: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the cells and the curves of a study of images: stored, or trained if ``root`` is given.

    Args:
        name: One of ``nls.studies.STUDIES``.
        root: Folder with ``cifar10.npz``, and ``CIFAR-10_human.pt`` beside it where noises are of people; None reads
            what is stored.
        store: Folder that keeps what is trained, so that a later call goes on; None keeps it for this call only.
        device: Where to train; by default a GPU where there is one.
        noises: Names of :func:`nls.studies.noise_name` to keep; all if empty.
        changes: Arguments of the study's function, such as ``seeds``; only for what is trained.

    Returns:
        One row for each cell as :func:`nls.studies.load_study`, and one for each epoch as
        :func:`nls.studies.load_curves`.

    Raises:
        ValueError: If the study or a noise is unknown, data are missing, or sizes are given without ``root``.

    Examples:
        >>> table, curves = study_tables("cifar10_small", noises=["symmetric_0.4"])
        >>> len(table), curves["noise_name"].unique().tolist()
        (60, ['symmetric_0.4'])
    """
    grid = study(name, **changes)
    known = sorted({noise_name(cell) for cell in grid})
    wanted = [_checks.choice(noise, "noises", tuple(known)) for noise in noises] or known
    if root is None:
        if changes:
            raise ValueError(f"root must be given for a study of other sizes, got none with {', '.join(changes)}")
        tables = load_study(name), load_curves(name)
        return tuple(table[table["noise_name"].isin(wanted)].reset_index(drop=True) for table in tables)
    grid = Grid.of(cell for cell in grid if noise_name(cell) in wanted)
    with tempfile.TemporaryDirectory() as fleeting:
        records = RecordStore(store or fleeting)
        run_grid(grid, root=root, store=records, device=device)
        table, curves = records.table(grid), records.curves(grid)
    names = pd.DataFrame({"id": c.id, "noise_name": noise_name(c), "method": method_name(c)} for c in grid)
    table = table.merge(names, on="id")
    columns = ["id", "noise_name", "method", "smooth_rate", "seed", "learning_rate", "warmup_pick"]
    return table, curves.merge(table[columns], on="id")


def train_methods(
    data: Dataset,
    transition: torch.Tensor,
    methods: Mapping[str, float | Loss],
    *,
    seed: int,
    **settings: object,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Train one network for each method from one warm-up with cross entropy, on labels drawn by one matrix.

    Training and validation labels are drawn by :math:`P(\tilde y = j \mid y = i) = T_{ij}`, as :func:`nls.run_grid`
    draws them; test labels are clean.

    Args:
        data: The images.
        transition: T [K, K], rows sum to 1.
        methods: Name to a smooth rate of at most 1, or to a loss of logits [b, K] and labels [b] that returns [b].
        seed: Draws labels, initialisation and order, at least 0; shared by all methods.
        settings: Passed to :func:`nls.fit_each`, such as ``network``, ``warmup_epochs`` and ``learning_rate``.

    Returns:
        One row for each method with ``method``, ``seed``, ``diverged_epoch`` and the columns of :func:`nls.run_grid`
        for each rule (``nll_mapped`` of the rates only); and one for each method and epoch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no method, or a number is out of range.

    Examples:
        >>> from nls import load_dataset, symmetric_transition
        >>> data, noise = load_dataset("digits_images"), symmetric_transition(10, 0.4)
        >>> table, _ = train_methods(data, noise, {"CE": 0.0, "NLS": -0.8}, seed=0, warmup_epochs=1, epochs=1)
        >>> table["method"].tolist()
        ['CE', 'NLS']
    """
    if not methods:
        raise ValueError("methods must hold at least one method, got none")
    labels, validation = (
        draw_noisy_labels(clean, transition, seeded_generator(seed, f"{split} noise"))
        for split, clean in (("train", data.train_labels), ("validation", data.validation_labels))
    )
    rows, curves, shared = [], [], {}
    for name, method in methods.items():
        is_loss = callable(method)
        kind, rate = ("own", 0.0) if is_loss else ("gls", method)
        own = {"loss" if is_loss else "smooth_rate": method}
        member = SimpleNamespace(loss=kind, noise="own", noise_rate=0.0, smooth_rate=rate)
        evaluate = _Evaluation(member, data, labels, validation, transition)
        fit = fit_each(
            data.train_features, labels, num_classes=data.num_classes, seed=seed, evaluate=evaluate,
            shared_warmup=shared if settings.get("warmup_epochs") else None, **own, **settings,
        )  # fmt: skip
        curve = {metric: values.tolist() for metric, values in fit.curves.items()}
        named = {"method": name, "seed": seed}
        rows.append(named | {"diverged_epoch": fit.diverged_epoch} | selected(curve))
        curves.append(pd.DataFrame(curve).assign(epoch=range(1, len(curve["train_loss"]) + 1), **named))
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True)


def describe(effect: Interval, digits: int = 1) -> str:
    """Return an effect as a short text: its mean, its interval where it has one, and n.

    Args:
        effect: The effect.
        digits: Digits after the point, at least 0.

    Returns:
        The text.

    Examples:
        >>> describe(Interval(1.234, 0.5, 2.0, 3)), describe(Interval(-0.5, float("nan"), float("nan"), 1))
        ('+1.2 [+0.5, +2.0], n = 3', '-0.5, n = 1')
    """
    digits = _checks.integer(digits, "digits")
    ends = f" [{effect.low:+.{digits}f}, {effect.high:+.{digits}f}]" if effect.n > 1 else ""
    return f"{effect.mean:+.{digits}f}{ends}, n = {effect.n}"


class _Evaluation:
    """What is measured of a network after every epoch."""

    def __init__(
        self,
        member: SimpleNamespace,
        data: Dataset,
        labels: torch.Tensor,
        validation: torch.Tensor,
        transition: torch.Tensor,
    ) -> None:
        self.data, self.labels = data, labels
        self.measure = Measure([member], data, validation[None], [transition], torch.device("cpu"))

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return the metrics of a network."""
        parts = (getattr(self.data, f"{split}_features") for split in ("train", "validation", "test"))
        train, held_out, test = (predict_logits(network, part).cpu() for part in parts)
        measured = self.measure(held_out.T[None], test.T[None], slice(0, 1))
        found = {name: float(values) for name, values in measured.items()}
        return found | fitted(train, self.labels, self.data.train_labels)
