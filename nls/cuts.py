r"""Where to cut a network that learned noisy labels: what each place knows, and which one a few clean labels choose.

:func:`cut_run` trains one network and probes it at many places, draw by draw, with two readings of a convolution and
the leave-one-out error of every probe, which chooses a place without another label, see :func:`choose_cut`. It is a
function of plain parameters, so that :func:`nls.runs.run_all` keeps and resumes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn

from nls import _checks
from nls.activations import activations
from nls.clean_sets import draw_clean
from nls.each import fit_each
from nls.layer_runs import _accuracy, _builder, _Split
from nls.probes import probe
from nls.rescue import untrained
from nls.stats import Interval, mean_interval
from nls.training import seeded_generator

MODULES = {
    "resnet9": ("0", "1", "2.0", "2", "3", "4", "5.0", "5"),
    "cnn": ("0", "1", "2"),
    "mlp": ("2", "4", "6"),
}
"""Modules after which a network can be cut, its convolutions, residual blocks or hidden layers, in order."""

PLACES = {network: tuple(f"layer {i}" for i in range(1, len(names) + 1)) for network, names in MODULES.items()}
"""What their places are called, by network."""

POOLINGS = {"resnet9": ("mean", "flatten"), "cnn": ("mean", "flatten"), "mlp": ("flatten",)}
"""How a place is read, the mean of each channel over the image, or all values as they are."""

RULES = ("leave-one-out", "other seeds", "test")
"""What chooses a cut, the clean examples that are there anyway, other networks' test sets, or the test set itself."""

_CNN, _MLP = {"epochs": 20, "learning_rate": 0.05}, {"epochs": 40, "learning_rate": 0.1}


def cut_run(
    *,
    dataset: str = "digits_images",
    noise: str = "symmetric",
    noise_rate: float = 0.8,
    network: str = "resnet9",
    seed: int = 0,
    num_examples: int = 0,
    epochs: int = 15,
    learning_rate: float = 0.05,
    measured: str = "0",
    per_class: int = 10,
    draws: int = 3,
) -> list[dict]:
    """Train one network on noisy labels, and probe all places where it can be cut.

    Parts of the data, noise, training and clean examples are those of :func:`nls.layer_runs.layer_run`.

    Args:
        dataset: A set of images of :func:`nls.load_dataset`.
        noise: One of ``nls.layer_runs.NOISES``.
        noise_rate: Share of wrong labels; for the pictures, the share of labels that are those of the picture.
        network: A key of ``PLACES``.
        seed: Draws split, noise, initialisation, order and the clean examples.
        num_examples: Training images, with the tenth of them that is held out; 0 for all.
        epochs: At least 1.
        learning_rate: Of SGD with momentum .9.
        measured: Epochs at which the network is looked at, apart by spaces; 0 is before training, and the last one
            always is among them.
        per_class: Clean examples of each class.
        draws: Draws of these.

    Returns:
        Rows with ``epoch``, ``place``, ``depth`` (from 1; 0 for the raw ``"input"``), ``pooling``, ``draw``,
        ``accuracy`` on clean test labels, and ``error``, the squared error by leave-one-out on the clean examples.
        ``"logits"`` come after the places; ``"output"`` is the network as it is, with no error, but ``memorised``, the
        share of its wrong training labels that it predicts.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name is unknown or a number is out of range.

    Examples:
        >>> rows = cut_run(network="mlp", num_examples=100, epochs=1, draws=1)
        >>> [(row["epoch"], row["place"]) for row in rows if row["place"] in ("input", "layer 1", "output")]
        [(0, 'input'), (0, 'layer 1'), (1, 'output'), (1, 'layer 1')]
    """
    places = (*MODULES[_checks.choice(network, "network", tuple(MODULES))], "logits")
    data = _Split(dataset, None, noise, noise_rate, seed, num_examples, 0)
    wrong, times = data.labels != data.clean, {int(text) for text in measured.split()} | {epochs}
    makers = (seeded_generator(seed, f"clean {i}") for i in range(_checks.integer(draws, "draws", low=1)))
    drawn = torch.stack([draw_clean(data.pool_labels, per_class, maker, num_classes=data.classes) for maker in makers])
    rows: list[dict] = []

    def look(net: nn.Module) -> dict[str, float]:
        if net.epoch in times:
            known = _accuracy(net, data.features[wrong], data.labels[wrong]) if wrong.any() else None
            own = _accuracy(net, data.test, data.test_labels)
            rows.append(_row(net.epoch, "output", len(places), "flatten", 0, own) | {"memorised": known})
            rows.extend(_looked(net, data, drawn, net.epoch, places, POOLINGS[network]))
        return {}

    fit = fit_each(
        data.features, data.labels, network=_builder(network, data), num_classes=data.classes, epochs=epochs,
        learning_rate=learning_rate, weight_decay=1e-4, seed=seed, evaluate=look,
    )  # fmt: skip
    first = _looked(fit.network, data, drawn, 0, ("input",), ("flatten",))
    if 0 in times:
        first += _looked(untrained(fit.network, seed), data, drawn, 0, places, POOLINGS[network])
    return first + rows


def _looked(
    network: nn.Module,
    data: _Split,
    drawn: torch.Tensor,
    epoch: int,
    places: Sequence[str],
    poolings: Sequence[str],
) -> list[dict]:
    """Return what places know by every pooling and draw."""
    rows = []
    for pooling in poolings:
        names = [name for name in places if name != "logits" or pooling == "flatten"]
        pool, test = (activations(network, part, names, pooling=pooling) for part in (data.pool, data.test))
        for depth, name in enumerate(names, 0 if places[0] == "input" else 1):
            found = probe(pool[name][drawn], data.pool_labels[drawn], test[name], num_classes=data.classes)
            right = (found.predicted == data.test_labels).double().mean(-1)
            place = name if name in ("input", "logits") else f"layer {depth}"
            for draw, (accuracy, error) in enumerate(zip(right.tolist(), found.error.tolist(), strict=True)):
                rows.append(_row(epoch, place, depth, pooling, draw, accuracy) | {"error": round(error, 6)})
    return rows


def _row(epoch: int, place: str, depth: int, pooling: str, draw: int, accuracy: float) -> dict[str, object]:
    found = {"epoch": epoch, "place": place, "depth": depth, "pooling": pooling, "draw": draw}
    return found | {"accuracy": round(accuracy, 6)}


def by_seed(table: pd.DataFrame) -> pd.Series:
    """Return the accuracy of each place by seed, the mean over draws of the clean examples.

    Args:
        table: Rows of :func:`cut_run` with its parameters.

    Returns:
        Accuracies by ``network``, ``noise``, ``noise_rate``, ``epoch``, ``place``, ``pooling`` and ``seed``.

    Examples:
        >>> run = {"network": "mlp", "num_examples": 100, "epochs": 1, "seed": 3, "noise_rate": 0.2}
        >>> table = pd.DataFrame(cut_run(**run)).assign(**run, noise="symmetric")
        >>> by_seed(table).loc["mlp", "symmetric", 0.2, 1, "layer 3", "flatten"].index.tolist()
        [3]
    """
    return table.groupby(["network", "noise", "noise_rate", "epoch", "place", "pooling", "seed"])["accuracy"].mean()


def choose_cut(table: pd.DataFrame, rule: str = "leave-one-out") -> pd.DataFrame:
    """Return the cut that a rule chooses, a place and a reading of it, for each seed and draw.

    Args:
        table: Rows of :func:`cut_run` with ``seed``, all of one network, noise and epoch; rows without a place in
            ``PLACES`` are no candidates.
        rule: ``"leave-one-out"``, the least ``error`` on the clean examples of the draw; ``"other seeds"``, the best
            mean accuracy over all other seeds; or ``"test"``, the best accuracy on the draw's own test set, which no
            one has who needs to choose.

    Returns:
        The rows chosen, one for each seed and draw.

    Raises:
        ValueError: If the rule is unknown, a cut occurs twice, or other seeds are asked for and there is one.

    Examples:
        >>> rows = [{"place": p, "pooling": "mean", "seed": 0, "draw": 0, "accuracy": a, "error": e}
        ...     for p, a, e in (("layer 1", 0.7, 0.02), ("layer 2", 0.8, 0.03))]
        >>> [choose_cut(pd.DataFrame(rows), rule)["place"].item() for rule in ("leave-one-out", "test")]
        ['layer 1', 'layer 2']
    """
    _checks.choice(rule, "rule", RULES)
    hidden = {place for places in PLACES.values() for place in places}
    keys = ["place", "pooling"]
    rows = table[table["place"].isin(hidden)].reset_index(drop=True)
    if rows.duplicated(["seed", "draw", *keys]).any():
        raise ValueError("table must hold each cut once for a seed and draw; choose a network, a noise and an epoch")
    if rule == "other seeds":
        means = rows.groupby([*keys, "seed"])["accuracy"].mean().unstack("seed")
        if means.shape[1] < 2:
            raise ValueError(f"table must hold two seeds or more for rule='other seeds', got {means.shape[1]}")
        best = {seed: means.drop(columns=seed).mean(axis=1).idxmax() for seed in means}
        return rows[[best[seed] == (place, pooling) for seed, place, pooling in rows[["seed", *keys]].to_numpy()]]
    groups = rows.groupby(["seed", "draw"])
    return rows.loc[groups["error"].idxmin() if rule == "leave-one-out" else groups["accuracy"].idxmax()]


def paired(first: pd.Series, second: pd.Series, *, test_ratio: float = 0.0) -> Interval:
    """Return the mean difference of two series over the seeds that both have, or n = 0 if there is none.

    Args:
        first: Accuracies by seed.
        second: Those to be taken off.
        test_ratio: See :func:`nls.mean_interval`.

    Returns:
        The interval; its ends are not a number for n < 2, and it is neither above nor below zero.

    Examples:
        >>> print(paired(pd.Series([0.5, 0.7]), pd.Series([0.4], index=[1])))
        +0.300 [+nan, +nan] (n=1)
        >>> paired(pd.Series(dtype=float), pd.Series([0.4])).n
        0
    """
    differences = (first - second).dropna().to_numpy(dtype=float)
    if not len(differences):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    return mean_interval(differences, test_ratio=test_ratio)


def short(interval: Interval) -> str:
    """Return an interval as text, a single seed without ends, and none as not run.

    Args:
        interval: As :func:`paired` returns.

    Examples:
        >>> short(paired(pd.Series([0.5]), pd.Series([0.4]))), short(paired(pd.Series([0.5]), pd.Series(dtype=float)))
        ('+0.100 (n=1)', 'not run yet')
    """
    if not interval.n:
        return "not run yet"
    return str(interval) if interval.n > 1 else f"{interval.mean:+.3f} (n=1)"


def live_runs(
    seeds: Sequence[int], *, cnn_epochs: int = 20, mlp_epochs: int = 40, num_examples: int = 0, draws: int = 3
) -> list[dict]:
    """Return the runs of the small CNN and the MLP on digits whose labels are clean, random or the next class.

    Args:
        seeds: Whole numbers of at least 0.
        cnn_epochs: Epochs of the CNN.
        mlp_epochs: Epochs of the MLP.
        num_examples: As for :func:`cut_run`.
        draws: As for :func:`cut_run`.

    Returns:
        Parameters of :func:`cut_run`; looks at the untrained networks are among those of random labels.

    Examples:
        >>> len(live_runs([0]))
        6
    """
    looks = {("symmetric", 0.8): "0 1 2 5 10", ("pair", 0.8): "1 2 5 10", ("symmetric", 0.0): "1"}
    networks = {"cnn": _CNN | {"epochs": cnn_epochs}, "mlp": _MLP | {"epochs": mlp_epochs}}
    return [
        {"network": network, "noise": noise, "noise_rate": rate, "seed": seed, "measured": measured}
        | more | {"num_examples": num_examples, "draws": draws}
        for seed in seeds
        for network, more in networks.items()
        for (noise, rate), measured in looks.items()
    ]  # fmt: skip


def cut_study(num_seeds: int = 5, easy_seeds: int = 10) -> list[dict]:
    """Return the runs of the stored study of cuts, the first seed of all first.

    ResNet-9 on digits whose labels are clean, or at 80 % the next class or random; then the small CNN and the MLP on
    digits of which the place of a white pixel tells the class, where none, two or four in five labels are the digit;
    for how few examples the two need, on a hundred of these with clean labels; and :func:`live_runs`.

    Args:
        num_seeds: Seeds of ResNet-9 and of the live runs.
        easy_seeds: Seeds of the marked digits.

    Returns:
        Parameters of :func:`cut_run`.

    Examples:
        >>> len(cut_study(num_seeds=1, easy_seeds=1))
        17
    """
    noises = (("symmetric", 0.8), ("pair", 0.8), ("symmetric", 0.0))
    runs = [
        {"network": "resnet9", "noise": noise, "noise_rate": rate, "seed": seed, "measured": "0 1 3 6 10", "epochs": 15}
        for seed in range(_checks.integer(num_seeds, "num_seeds", low=1))
        for noise, rate in noises
    ]
    easy = [
        {"network": name, "noise": "picture_place", "noise_rate": rate, "seed": seed, "measured": "0"} | more
        for seed in range(_checks.integer(easy_seeds, "easy_seeds", low=1))
        for name, more in (("cnn", _CNN), ("mlp", _MLP))
        for rate in (0.0, 0.4, 0.8)
    ]
    suits = [run | {"num_examples": 112, "epochs": 100, "measured": ""} for run in easy if not run["noise_rate"]]
    return runs + easy + suits + live_runs(range(num_seeds))
