r"""The study of rescues: one network on noisy labels, a few clean ones, and every simple way to use them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import nn

from nls import _checks
from nls.data import Dataset, load_dataset
from nls.each import fit_each
from nls.grid import TRANSITIONS
from nls.models import predict_logits
from nls.noise import draw_noisy_labels
from nls.probes import predictive_power
from nls.runs import run_all
from nls.stack import StackedMLP
from nls.training import fit_stack, seeded_generator

SETS = {
    "digits_images": {"epochs": 20, "heavy": 0.8, "most": 30},
    "waveform": {"epochs": 40, "heavy": 0.6, "most": 50},
    "spirals": {"epochs": 60, "heavy": 0.6, "most": 50},
}
"""The sets of the study and what differs between them; the heavy symmetric noise replaces 0.9 of the labels in each."""

STAGES = ("early", "late")
"""When a network is looked at, which is where noisy validation is best, and at the end of a long training."""

_LAYERS = ("penultimate", "logits")
_TUNING = {"steps": 50, "learning_rate": 3e-3}


def noisy_splits(data: Dataset, noise: str, noise_rate: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy labels of the training and of the validation split.

    Args:
        data: With clean labels.
        noise: A name in ``nls.grid.TRANSITIONS``.
        noise_rate: In [0, 1].
        seed: Draws them, at least 0.

    Returns:
        Labels [n] and [m].

    Examples:
        >>> data = load_dataset("wine")
        >>> [int((y != clean).sum()) for y, clean in zip(
        ...     noisy_splits(data, "pair", 1.0, 0), (data.train_labels, data.validation_labels))]
        [107, 35]
    """
    matrix = TRANSITIONS[_checks.choice(noise, "noise", tuple(TRANSITIONS))](data.num_classes, noise_rate)
    return tuple(
        draw_noisy_labels(labels, matrix, seeded_generator(seed, f"{split} flips"))
        for split, labels in (("train", data.train_labels), ("validation", data.validation_labels))
    )


def train_stages(
    data: Dataset,
    noisy: tuple[torch.Tensor, torch.Tensor],
    network: str | Callable[[], nn.Module],
    *,
    seed: int,
    epochs: int,
    **settings: object,
) -> dict[str, nn.Module]:
    """Train one network on noisy labels, and return it as it was at its best and as it is at the end.

    Args:
        data: Features of all splits.
        noisy: Noisy labels of the training and of the validation split; no clean label is used.
        network: As for :func:`nls.fit_each`.
        seed: Initialisation and order, at least 0.
        epochs: At least 1.
        settings: Further arguments of :func:`nls.fit_each`.

    Returns:
        ``"early"``: the network after the epoch with the best accuracy on the noisy validation labels, of equal ones
        the first; ``"late"``: after the last one, with ``memorised``, its accuracy on its noisy training labels.

    Examples:
        >>> data = load_dataset("digits_images")
        >>> stages = train_stages(data, (data.train_labels, data.validation_labels), "cnn", seed=0, epochs=1)
        >>> list(stages)
        ['early', 'late']
    """
    best: dict[str, object] = {"accuracy": -1.0}

    def keep(net: nn.Module) -> dict[str, float]:
        accuracy = _accuracy(net, data.validation_features, noisy[1])
        if accuracy > best["accuracy"]:
            best.update(accuracy=accuracy, network=copy.deepcopy(net))
        return {"noisy_validation": accuracy}

    options = {"num_classes": data.num_classes, "network": network, "seed": seed, "epochs": epochs, "evaluate": keep}
    late = fit_each(data.train_features, noisy[0], **options, **settings).network
    for net in (stages := {"early": best["network"], "late": late}).values():
        net.memorised = _accuracy(net, data.train_features, noisy[0])
    return stages


def _accuracy(network: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> float:
    return float((predict_logits(network, features).argmax(1) == labels).double().mean())


def stack_stages(
    data: Dataset,
    noises: Sequence[tuple[str, float]],
    *,
    seed: int,
    epochs: int,
    hidden: tuple[int, ...] = (128, 64),
    learning_rate: float = 3e-3,
    keep: Sequence[int] = (),
) -> dict[str | int, StackedMLP]:
    """Train one MLP for each noise side by side, and return all of them as they were at several times.

    Args:
        data: With plain features.
        noises: Pairs of a name in ``nls.grid.TRANSITIONS`` and a noise rate, one for each member.
        seed: Noise, initialisation and order, at least 0.
        epochs: At least 1.
        hidden: Widths of the hidden layers.
        learning_rate: Of Adam, above 0.
        keep: Epochs after which to keep all members, counted from 1.

    Returns:
        The stacks ``"early"``, each member after the epoch with its best accuracy on its noisy validation labels, and
        ``"late"``, after the last one, besides those of ``keep``. They have ``memorised`` [B], the accuracy on the
        noisy training labels.

    Examples:
        >>> stages = stack_stages(load_dataset("wine"), [("symmetric", 0.4)], seed=0, epochs=3, keep=[1])
        >>> sorted(map(str, stages))
        ['1', 'early', 'late']
    """
    pairs = [noisy_splits(data, noise, rate, seed) for noise, rate in noises]
    train, validation = (torch.stack(labels) for labels in zip(*pairs, strict=True))
    stages: dict[str | int, StackedMLP] = {}
    best, epoch = torch.full((len(noises),), -1.0).double(), itertools.count(1)

    def watch(stack: StackedMLP, _: slice) -> dict[str, torch.Tensor]:
        accuracy = _stack_accuracy(stack, data.validation_features, validation)
        early = stages.setdefault("early", stack.part(slice(None)))
        for i in (accuracy > best).nonzero().flatten().tolist():
            early.put(slice(i, i + 1), stack.part(slice(i, i + 1)))
        torch.maximum(best, accuracy, out=best)
        if (now := next(epoch)) in keep:
            stages[now] = stack.part(slice(None))
        return {}

    options = {"num_classes": data.num_classes, "hidden": hidden, "epochs": epochs, "batch_size": 128, "seed": seed}
    options |= {"learning_rate": learning_rate, "chunk": len(noises), "evaluate": watch}
    stages["late"] = fit_stack(data.train_features, train, **options).stack
    for stack in stages.values():
        stack.memorised = _stack_accuracy(stack, data.train_features, train)
    return stages


def _stack_accuracy(stack: StackedMLP, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (stack.forward(features).argmax(2) == labels).double().mean(1)


def stack_rescue(
    dataset: str,
    noises: Mapping[str, tuple[str, float]],
    *,
    seed: int,
    epochs: int,
    close: int,
    looks: Sequence[int] = (),
    per_class: Sequence[int] = (1, 5, 10, 30),
    tuned: int = 10,
    draws: int = 5,
    hidden: tuple[int, ...] = (128, 64),
) -> pd.DataFrame:
    """Train MLPs with :func:`stack_stages`, and spend the same clean labels on each of them in every way.

    Args:
        dataset: A set of plain features.
        noises: What to call it, to a name in ``nls.grid.TRANSITIONS`` and a noise rate.
        seed: Varies split, noise, initialisation, order and draws, at least 0.
        epochs: Of training, at least 1.
        close: How many of the noises, the first ones, are looked at with all numbers of ``per_class`` and have networks
            trained on the clean examples too; the others are with ``tuned`` examples, and probed.
        looks: Epochs on the way after which the hidden layers are probed with ``tuned`` examples.
        per_class: Clean examples of each class.
        tuned: The number at which all noises are compared, one of ``per_class``.
        draws: At least 1; networks are trained on the first three.
        hidden: Widths of the hidden layers, two or more.

    Returns:
        One row for each stage, noise, way, number and draw: ``stage`` (an epoch, ``"early"`` or ``"late"``),
        ``noise``, ``seed``, ``way``, ``per_class``, ``draw``, ``accuracy``, and ``memorised``. A way is a layer that
        is probed, ``"random"`` and ``"random_hidden1"`` for an untrained network, or a method of
        :func:`nls.probes.predictive_power`; probes of the raw input have one row for all noises, with ``noise`` empty.

    Examples:
        >>> noises = {"a": ("pair", 0.4), "b": ("symmetric", 0.2)}
        >>> table = stack_rescue("wine", noises, seed=0, epochs=2, close=1, per_class=[2], tuned=2, draws=2)
        >>> table[(table["stage"] == "late") & (table["way"] == "fine-tune")]["noise"].tolist()
        ['a', 'a']
    """
    data = load_dataset(dataset, seed=seed)
    stages = stack_stages(data, list(noises.values()), seed=seed, epochs=epochs, hidden=hidden, keep=looks)
    layers, rest, tables = ["hidden1", "penultimate", "logits"], [n for n in per_class if n != tuned], []
    for stage, stack in stages.items():
        options = {"per_class": tuned, "draws": min(draws, 3), "layers": layers[:2]}
        found = [_power(stack, data, seed, **options)]
        if stage in STAGES:
            options |= {"draws": draws, "layers": layers}
            found = [_power(stack, data, seed, **options, controls=("map", "random"))]
            part = stack.part(slice(0, close))
            if rest:
                more = _power(part, data, seed, **options | {"per_class": rest, "controls": ("map",)})
                found.append(more[more["method"] != "network"])
            options |= {"draws": min(draws, 3), "controls": ("fine-tune", "scratch"), "tuning": _TUNING}
            trained = _power(part, data, seed, **options)
            found.append(trained[trained["method"].isin(options["controls"])])
        table = pd.concat(found, ignore_index=True).assign(stage=str(stage), seed=seed)
        known = dict(enumerate(stack.memorised.tolist()))
        tables.append(
            table.assign(memorised=table["member"].map(known), noise=table["member"].map(dict(enumerate(noises))))
        )
    return _ways(pd.concat(tables, ignore_index=True))


def _ways(table: pd.DataFrame) -> pd.DataFrame:
    """Name what was done in one column."""
    probed, fresh = table["method"] == "probe", table["method"] == "random"
    way = table["method"].mask(probed, table["layer"]).mask(fresh & (table["layer"] == "hidden1"), "random_hidden1")
    table = table.assign(way=way, noise=table["noise"].fillna(""))[~(fresh & (table["layer"] == "logits"))]
    return table[["stage", "noise", "seed", "way", "per_class", "draw", "accuracy", "memorised"]]


def rescue_rows(
    dataset: str,
    seed: int,
    *,
    epochs: int = 40,
    width: int = 128,
    draws: int = 5,
    most: int = 30,
    tuned: int = 10,
    heavy: float = 0.8,
) -> list[dict]:
    """Train a network for each noise, and spend the same clean labels on it in every way.

    Args:
        dataset: ``"digits_images"``, for which the network is the small CNN, or a set of plain features, for which it
            is an MLP with two hidden layers.
        seed: Varies split, noise, initialisation, order and draws, at least 0.
        epochs: Of training, enough to learn most noisy labels by heart.
        width: Of the first hidden layer of an MLP; the second has half of it.
        draws: Draws of the clean examples, at least 1; training networks on them is done for the first three.
        most: The largest number of clean examples per class; 1, 5 and 10 come before it.
        tuned: The number for which networks are trained on the clean examples too.
        heavy: The larger of the rates of symmetric noise, which are 0 and 0.4 besides; pair noise has 0.4 and 0.8.

    Returns:
        One row for each noise, stage and number: ``noise``, ``noise_rate``, ``stage``, ``per_class``; test accuracies,
        the mean over draws, of the ``network`` as it is, of probes of its ``penultimate`` layer and of its ``logits``,
        of the ``map``, and of what does not know the noisy labels, probes of the ``input`` and of a ``random``
        network; ``spread``, the deviation of the first over draws; ``memorised``; and for ``tuned`` examples
        ``fine_tune`` and ``scratch``, else not there.

    Examples:
        >>> rows = rescue_rows("wine", 0, epochs=2, most=5, tuned=5, draws=2)
        >>> [(row["stage"], row["per_class"]) for row in rows[:4]]
        [('early', 1), ('early', 5), ('late', 1), ('late', 5)]
    """
    data, rows = load_dataset(dataset, seed=seed), []
    images = data.train_features.ndim == 4
    network = "cnn" if images else lambda: _mlp(data.num_features, width, data.num_classes)
    settings = {"learning_rate": 0.05} if images else {"optimizer": "adam", "learning_rate": 3e-3}
    counts = [count for count in (1, 5, 10) if count < most] + [most]
    scratch = None
    for noise, rate in (*(("symmetric", rate) for rate in (0.0, 0.4, heavy)), ("pair", 0.4), ("pair", 0.8)):
        noisy = noisy_splits(data, noise, rate, seed)
        stages = train_stages(data, noisy, network, seed=seed, epochs=epochs, **settings)
        for stage, net in stages.items():
            found = _power(net, data, seed, per_class=counts, draws=draws, controls=("map", "random"))
            wanted = ("fine-tune",) if scratch else ("fine-tune", "scratch")
            options = {"per_class": tuned, "draws": min(draws, 3), "controls": wanted, "tuning": _TUNING}
            trained = _power(net, data, seed, **options).groupby("method")["accuracy"].mean()
            scratch = scratch or float(trained["scratch"])
            key = {"noise": noise, "noise_rate": rate, "stage": stage, "memorised": net.memorised}
            for count in counts:
                row = key | {"per_class": count} | _row(found, count)
                if count == tuned:
                    row |= {"fine_tune": float(trained["fine-tune"]), "scratch": scratch}
                rows.append(row)
    return rows


def _mlp(num_features: int, width: int, num_classes: int) -> nn.Sequential:
    sizes = (num_features, width, width // 2)
    hidden = [part for i in range(2) for part in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], num_classes))


def _power(net: nn.Module | StackedMLP, data: Dataset, seed: int, **options: object) -> pd.DataFrame:
    pool = (data.validation_features, data.validation_labels)
    test = (data.test_features, data.test_labels)
    options = {"layers": _LAYERS, "num_classes": data.num_classes, "seed": seed} | options
    return predictive_power(net, pool, test, train=data.train_features, **options)


def _row(found: pd.DataFrame, count: int) -> dict[str, float]:
    """Return the means over draws for one number of examples."""
    at = found[found["per_class"] == count]
    mean, spread = (at.groupby(["method", "layer"])["accuracy"].agg(how) for how in ("mean", "std"))
    named = {layer: ("probe", layer) for layer in _LAYERS} | {"input": ("input", "input"), "map": ("map", "output")}
    row = {name: float(mean[place]) for name, place in (named | {"random": ("random", "penultimate")}).items()}
    own = found.loc[found["method"] == "network", "accuracy"].item()
    return {"network": own, **row, "spread": float(spread["probe", "penultimate"])}


def run_study(
    num_seeds: int = 10, *, sets: Mapping[str, Mapping[str, object]] = SETS, store: str | None = None
) -> pd.DataFrame:
    """Run :func:`rescue_rows` on several sets and seeds.

    Args:
        num_seeds: Seeds 0, 1, ... of each set, at least 1.
        sets: Name to arguments.
        store: Folder of finished runs, as for :func:`nls.runs.run_all`.

    Returns:
        The rows with ``dataset``, ``seed`` and the arguments in front, and ``seconds`` of a run.

    Examples:
        >>> tiny = {"wine": {"epochs": 1, "most": 2, "tuned": 2, "draws": 2}}
        >>> run_study(1, sets=tiny)["noise"].unique().tolist()
        ['symmetric', 'pair']
    """
    seeds = range(_checks.integer(num_seeds, "num_seeds", low=1))
    runs = [{"dataset": name, "seed": seed, **values} for name, values in sets.items() for seed in seeds]
    return run_all(rescue_rows, runs, store=store)
