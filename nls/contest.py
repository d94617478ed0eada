r"""A contest of losses: small networks that differ in their loss alone, trained side by side in one stack.

:func:`nls.run_grid` trains the networks of one loss together; here all losses share a stack, which is several times as
fast for a few networks of many losses, and early-learning regularisation, with its memory of examples, is among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn

from nls import _checks
from nls.data import Dataset, load_dataset
from nls.estimate import METHODS, estimate_transition
from nls.grid import TRANSITIONS
from nls.loss_table import LOSSES
from nls.measure import Measure, selected
from nls.noise import draw_noisy_labels
from nls.training import fit_stack, seeded_generator

__all__ = ["Entry", "run_contest"]

_NEIGHBOURS = 30


@dataclass(frozen=True)
class Entry:
    """A loss that takes part.

    Attributes:
        label: What the table calls it.
        loss: Its name in :data:`nls.loss_table.LOSSES`.
        parameter: Its parameter, None for the default.
        matrix: What a loss that needs the transition matrix is told: the ``"true"`` one, or one estimated from the
            noisy labels by a method of :func:`nls.estimate.estimate_transition`, ``"anchor"`` or ``"confident"``.

    Raises:
        ValueError: If the loss is unknown, or ``matrix`` is another word.

    Examples:
        >>> Entry("NLS", "gls", -0.4).matrix
        'true'
    """

    label: str
    loss: str = "gls"
    parameter: float | None = None
    matrix: str = "true"

    def __post_init__(self) -> None:
        _checks.choice(self.loss, "loss", tuple(LOSSES))
        _checks.choice(self.matrix, "matrix", ("true", *METHODS))


def run_contest(
    dataset: str,
    entries: Sequence[Entry],
    noises: Sequence[tuple[str, float]],
    *,
    seed: int = 0,
    hidden: tuple[int, ...] = (64,),
    epochs: int = 30,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
) -> pd.DataFrame:
    r"""Train one small network for each loss and noise, and return what came of each under three rules.

    Network e, j minimises :math:`\frac1n \sum_i \ell_e(z(x_i), \tilde y_{ij})` by Adam. All start from one
    initialisation, see the same batches and, for one kind of noise, the same labels, drawn as :func:`nls.run_grid`
    draws them. Validation labels are noisy, test labels clean. A matrix is estimated from the shares of labels among
    nearest neighbours in other folds of the training set.

    Args:
        dataset: A name that :func:`nls.load_dataset` knows, with plain features.
        entries: The losses, at least one, with different labels.
        noises: Pairs of a name in ``nls.grid.TRANSITIONS`` and a noise rate, at least one.
        seed: Varies the split (or the sample), the noise, the initialisation and the order of the batches.
        hidden: Widths of the hidden layers.
        epochs: Passes over the data, at least 1.
        batch_size: Examples in a step, at least 1.
        learning_rate: Step size above 0, the same for all.

    Returns:
        One row for each entry and noise: ``entry``, ``noise``, ``noise_rate``, ``seed``, ``diverged_epoch``,
        ``matrix_error`` (of the matrix that was told less the true one, the mean over rows of the sum of absolute
        entries), and the columns of :func:`nls.run_grid` for each rule.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name is unknown, a label appears twice, or a value is out of range.

    Examples:
        >>> table = run_contest("wine", [Entry("CE"), Entry("GCE", "gce")], [("symmetric", 0.4)], epochs=2)
        >>> table[["entry", "noise"]].values.tolist()
        [['CE', 'symmetric'], ['GCE', 'symmetric']]
    """
    entries, noises = _checked(list(entries), list(noises))
    data = load_dataset(dataset, seed=seed)
    count, classes = len(data.train_labels), data.num_classes
    truth = [TRANSITIONS[noise](classes, rate) for noise, rate in noises]
    labels, validation = (_draw(data, split, truth, seed) for split in ("train", "validation"))
    told = {"true": truth} | _estimates(data.train_features, labels, classes, seed, {e.matrix for e in entries})
    calls = [call for entry in entries for call in _calls(entry, told[entry.matrix], count, classes, seed)]
    members = [_member(entry, *noise) for entry in entries for noise in noises]
    measure = Measure(members, data, validation.repeat(len(entries), 1), truth * len(entries), torch.device("cpu"))
    held_out, test = data.validation_features, data.test_features
    sizes = {"num_classes": classes, "hidden": hidden, "chunk": len(members)}
    schedule = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    fit = fit_stack(
        data.train_features,
        labels.repeat(len(entries), 1),
        loss=_together(calls, _positions(count, batch_size, seed), labels),
        evaluate=lambda stack, which: measure(
            stack.forward(held_out, classes_last=False), stack.forward(test, classes_last=False), which
        ),
        **sizes,
        **schedule,
    )
    rows = []
    for i, (entry, (j, (noise, rate))) in enumerate(itertools.product(entries, enumerate(noises))):
        error = float((told[entry.matrix][j] - truth[j]).abs().sum(1).mean())
        names = {"entry": entry.label, "noise": noise, "noise_rate": rate, "seed": seed, "matrix_error": error}
        curves = {name: values[i].tolist() for name, values in fit.curves.items()}
        rows.append(names | {"diverged_epoch": int(fit.diverged_epoch[i])} | selected(curves))
    return pd.DataFrame(rows)


def _draw(data: Dataset, split: str, matrices: list[torch.Tensor], seed: int) -> torch.Tensor:
    """Return noisy labels [B, n] of a split; all matrices share the uniforms of the seed."""
    clean = getattr(data, f"{split}_labels")
    return torch.stack([draw_noisy_labels(clean, m, seeded_generator(seed, f"{split} noise")) for m in matrices])


Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _calls(entry: Entry, told: list[torch.Tensor], count: int, classes: int, seed: int) -> list[tuple[int, Call]]:
    """Return functions of logits [b, n, K], labels [b, n] and positions [n], each with the number b of its members."""
    rival = LOSSES[entry.loss]
    made = [rival.make(count, classes, entry.parameter, matrix, seed) for matrix in told]
    if rival.needs_transition or isinstance(made[0], nn.Module):  # each with a matrix or a state of its own
        return [(1, lambda z, y, where, loss=loss: loss(z[0], y[0], where)[None]) for loss in made]
    return [(len(told), lambda z, y, where: made[0](z.mT, y, where))]


def _together(calls: list[tuple[int, Call]], positions: Iterator[torch.Tensor], labels: torch.Tensor) -> Callable:
    """Return the loss of the whole stack."""
    sizes = [size for size, _ in calls]

    def loss(logits: torch.Tensor, batch: torch.Tensor, members: slice) -> torch.Tensor:
        where = next(positions)
        if not torch.equal(labels[:, where], batch[: len(labels)]):
            raise RuntimeError("the batches of the stack are not in the order that was drawn for its memories")
        parts = zip(calls, logits.split(sizes), batch.split(sizes), strict=True)
        return torch.cat([call(z, y, where) for (_, call), z, y in parts])

    return loss


def _positions(count: int, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield which examples each step of a stack sees; the order is drawn again from its own seed."""
    order = seeded_generator(seed, "order")
    while True:
        yield from torch.randperm(count, generator=order).split(batch_size)


def _estimates(
    features: torch.Tensor, labels: torch.Tensor, classes: int, seed: int, wanted: set[str]
) -> dict[str, list[torch.Tensor]]:
    """Return, for each method that is wanted, a matrix for each row of labels [B, n]."""
    methods = [method for method in METHODS if method in wanted]
    if not methods:
        return {}
    from sklearn.neighbors import KNeighborsClassifier

    from nls.crossfit import crossfit_posterior

    posteriors = [
        crossfit_posterior(features, row, classes, KNeighborsClassifier(_NEIGHBOURS), seed=seed) for row in labels
    ]
    return {
        method: [estimate_transition(p, row, method=method) for p, row in zip(posteriors, labels, strict=True)]
        for method in methods
    }


def _member(entry: Entry, noise: str, noise_rate: float) -> SimpleNamespace:
    """Return what the measurements read of a cell."""
    rate = (entry.parameter or 0.0) if entry.loss == "gls" else 0.0
    return SimpleNamespace(loss=entry.loss, smooth_rate=rate, noise=noise, noise_rate=noise_rate)


def _checked(entries: list[Entry], noises: list[tuple[str, float]]) -> tuple[list[Entry], list[tuple[str, float]]]:
    """Return both if there is something to train, with names of its own."""
    for name, values in {"entries": entries, "noises": noises}.items():
        if not values:
            raise ValueError(f"{name} must hold at least one, got none")
    labels = [entry.label for entry in entries]
    if len(set(labels)) < len(labels):
        twice = ", ".join(sorted({label for label in labels if labels.count(label) > 1}))
        raise ValueError(f"entries must have different labels, got {twice} more than once")
    for noise, _ in noises:
        _checks.choice(noise, "noises", tuple(TRANSITIONS))
    return entries, noises
