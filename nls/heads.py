r"""Is it the representation that a loss changes, or only the last layer? Stages of training, and heads trained alone.

From the end of one warm-up, :func:`head_run` trains a stage for each of several losses twice: the whole network, and
its last layer alone on features that stay as they are, which is a linear model. What the second does to the outputs is
what needs no change of the representation.
"""

from __future__ import annotations

import copy
import functools
import math

import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import nn
from torch.nn import functional

from nls import _checks
from nls.activations import activations
from nls.co_teaching import co_teach
from nls.each import fit_each
from nls.layer_runs import _builder, _loss, _rescued, _row, _Split, _Watch, linear_cka
from nls.models import predict_logits
from nls.probes import CONTROLS, power_of, untrained
from nls.stats import Interval, mean_interval

MEASURES = ("accuracy", "nll", "confidence", "margin")
"""What :func:`outputs` measures."""

METHODS = "r=0 r=0.4 r=-0.8 r=-4 elr gce"
"""The stages of a run unless others are named; -4 is the exact rate where four fifths of the labels are drawn anew."""

_OTHER_SEED = 2**31


def outputs(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    r"""Return what a change of the loss can do to outputs: four means over the examples.

    .. math:: [\arg\max z = y], \quad -\log p_y, \quad \max_k p_k, \quad z_{(1)} - z_{(2)}, \qquad
        p = \operatorname{softmax}(z).

    Args:
        logits: z [n, K], K at least 2.
        labels: Clean classes [n].

    Returns:
        ``accuracy``, ``nll`` (in nats), ``confidence`` and ``margin``, the gap of the two largest logits.

    Examples:
        >>> found = outputs(torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 0]))
        >>> found["accuracy"], found["margin"]
        (0.5, 1.0)
    """
    logits = logits.double()
    top = logits.topk(2, dim=1).values
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "nll": float(functional.cross_entropy(logits, labels)),
        "confidence": float(logits.softmax(1).amax(1).mean()),
        "margin": float((top[:, 0] - top[:, 1]).mean()),
    }


def share_interval(part: ArrayLike, whole: ArrayLike, *, level: float = 0.95, test_ratio: float = 0.0) -> Interval:
    r"""Return which share of a mean effect a part of it has, with Fieller's interval.

    The interval holds all shares s for which the t interval of the mean of :math:`a_i - s\, b_i` contains zero. It has
    no ends where the interval of the whole contains zero, as a share of nothing can be anything.

    Args:
        part: Effects a of the part [n], one for each seed.
        whole: Effects b of the whole [n], of the same seeds.
        level: As for :func:`nls.mean_interval`.
        test_ratio: As for :func:`nls.mean_interval`.

    Returns:
        The share of the means and its ends, which are infinite if the whole may be zero, and not a number for n = 1.

    Raises:
        ValueError: If the lengths differ, or a value is not finite.

    Examples:
        >>> print(share_interval([1.0, 2.0, 1.5], [2.0, 4.0, 3.0]))
        +0.500 [+0.500, +0.500] (n=3)

    References:
        Fieller, 1954, Some problems in interval estimation, doi 10.1111/j.2517-6161.1954.tb00159.x.
    """
    a, b = (torch.as_tensor(values, dtype=torch.float64).flatten() for values in (part, whole))
    if len(a) != len(b):
        raise ValueError(f"whole must have {len(a)} values as part, got {len(b)}")
    first, second = (mean_interval(values, level=level, test_ratio=test_ratio) for values in (a, b))
    n, share = first.n, first.mean / second.mean if second.mean else math.nan
    if n == 1:
        return Interval(share, math.nan, math.nan, 1, level)
    if not (second.above_zero or second.below_zero):
        return Interval(share, -math.inf, math.inf, n, level)
    factor = float(stats.t.ppf((1 + level) / 2, n - 1)) ** 2 * (1 / n + test_ratio)
    (var_a, cov), (_, var_b) = torch.stack([a, b]).cov().tolist()
    squared = second.mean**2 - factor * var_b
    middle = first.mean * second.mean - factor * cov
    root = math.sqrt(max(0.0, middle**2 - squared * (first.mean**2 - factor * var_a)))
    return Interval(share, (middle - root) / squared, (middle + root) / squared, n, level)


def fit_head(network: nn.Module, features: torch.Tensor, labels: torch.Tensor, **settings: object) -> nn.Linear:
    """Return the last linear layer of a network, trained on from where it is, while all before it stays as it is.

    Args:
        network: With an ``nn.Linear`` whose outputs are its logits.
        features: What the network reads [n, ...].
        labels: [n].
        settings: Passed to :func:`nls.fit_each`, such as ``smooth_rate``, ``num_classes`` and ``learning_rate``.

    Returns:
        The trained layer, for the activations of the layer ``"penultimate"``; the network is left as it was.

    Raises:
        ValueError: If the network has no linear layer.

    Examples:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> head = fit_head(network, torch.randn(9, 2), torch.arange(9) % 2, num_classes=2, epochs=1)
        >>> head
        Linear(in_features=3, out_features=2, bias=True)
    """
    values = activations(network, features, ["penultimate"])["penultimate"]
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    return fit_each(values, labels, network=lambda: copy.deepcopy(last), **settings).network


def head_run(
    *,
    noise: str = "symmetric",
    noise_rate: float = 0.72,
    methods: str = METHODS,
    seed: int = 0,
    dataset: str = "digits_images",
    root: str | None = None,
    network: str = "cnn",
    num_examples: int = 0,
    warmup_epochs: int = 15,
    epochs: int = 5,
    learning_rate: float = 0.05,
    stage_learning_rate: float = 0.01,
    per_class: str = "10",
    draws: int = 3,
    co_teaching: bool = True,
    twin: bool = False,
    rescue: str = "",
) -> list[dict]:
    """Train one warm-up, stages of several losses from its end, and for each loss the last layer alone.

    Splits, labels, networks and probes are those of :func:`nls.layer_runs.layer_run` with the same arguments.

    Args:
        noise: As for :func:`nls.layer_runs.layer_run`, one with a matrix.
        noise_rate: Likewise.
        methods: Likewise; ``"r=-4:0.2"`` is a rate whose loss is multiplied by 0.2. The first one should be ``r=0``.
        seed: Likewise.
        dataset: Likewise.
        root: Likewise.
        network: Likewise.
        num_examples: Likewise.
        warmup_epochs: Epochs of cross entropy before the stages, at least 1.
        epochs: Of a stage.
        learning_rate: Of the warm-up and of co-teaching.
        stage_learning_rate: Of a stage, and of the last layer alone.
        per_class: Clean examples of each class, numbers apart by spaces.
        draws: Draws of the clean examples, whose mean is reported.
        co_teaching: Whether to train two networks by co-teaching, for as many epochs as all others have, told the
            share of wrong labels.
        twin: Whether to train a second warm-up from another initialisation, in another order.
        rescue: Other ways to spend the clean examples after the first stage, as for ``layer_run``.

    Returns:
        The rows of ``layer_run``, with ``method`` ``"co-teaching"`` too. ``what`` is also ``"full"`` and ``"head"``,
        the outputs after a stage of the whole network and of its last layer, with the columns of ``MEASURES``; rows
        ``"alike"`` are there for an ``"untrained"`` network and the ``"twin"`` as well; ``"purity"`` is the share of
        right labels among what the first of the two networks was taught on in the last epoch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name is unknown or a number is out of range.

    Examples:
        >>> rows = head_run(num_examples=100, warmup_epochs=1, epochs=1, methods="r=0", co_teaching=False)
        >>> [row["what"] for row in rows if row["layer"] in ("output", "2.2")]
        ['network', 'probe', 'network', 'probe', 'random', 'alike', 'alike', 'full', 'head']
    """
    warmup_epochs = _checks.integer(warmup_epochs, "warmup_epochs", low=1)
    data = _Split(dataset, root, noise, noise_rate, seed, num_examples, 0)
    counts, last = [int(count) for count in per_class.split()], warmup_epochs + epochs
    power = functools.partial(
        power_of, labels=data.pool_labels, test_labels=data.test_labels, per_class=counts, draws=draws,
        num_classes=data.classes, seed=seed,
    )  # fmt: skip
    common = {"num_classes": data.classes, "weight_decay": 1e-4, "seed": seed}
    stage = common | {"epochs": epochs, "learning_rate": stage_learning_rate}
    warmup = {"warmup_epochs": warmup_epochs, "warmup_learning_rate": learning_rate, "shared_warmup": {}}
    rows, start, body = [], {}, []
    for method in methods.split():
        watch = _Watch(data, method, warmup_epochs, {warmup_epochs, last}, power, rows, start)
        fit = fit_each(
            data.features, data.labels, network=_builder(network, data), evaluate=_Keep(watch, body), **warmup, **stage,
            **_rule(method, data, seed),
        )  # fmt: skip
        if method == methods.split()[0]:
            _first(watch, fit.network, data, rescue.split(), counts, seed, last)
        watch.compare(fit.network)
        head = fit_head(body[0], data.features, data.labels, **stage, **_rule(method, data, seed))
        values = activations(body[0], data.test, ["penultimate"])["penultimate"]
        for what, logits in (("full", predict_logits(fit.network, data.test)), ("head", predict_logits(head, values))):
            found = outputs(logits, data.test_labels)
            rows.append(_row(method, last, what, "output", 0, 0, found["accuracy"]) | _rounded(found))
    if co_teaching:
        options = common | {"learning_rate": learning_rate, "epochs": last, "network": _builder(network, data)}
        rows += _taught(data, options, power)
    if twin:
        options = common | {"learning_rate": learning_rate, "epochs": warmup_epochs, "seed": _OTHER_SEED + seed}
        other = fit_each(data.features, data.labels, network=_builder(network, data), **options).network
        rows += _alike("twin", start, other, data, warmup_epochs)
    return rows


class _Keep:
    """Called after every epoch: watches, and keeps a copy of the network at the end of the warm-up."""

    def __init__(self, watch: _Watch, body: list[nn.Module]) -> None:
        self.watch, self.body = watch, body

    def __call__(self, network: nn.Module) -> dict[str, float]:
        if network.epoch == self.watch.warmup:
            self.body.append(copy.deepcopy(network))
        return self.watch(network)


def _first(
    watch: _Watch, network: nn.Module, data: _Split, controls: list[str], counts: list[int], seed: int, epoch: int
) -> None:
    """Append what the same clean examples buy without the network, or with it in other ways, and how alike none is."""
    fresh = untrained(network, seed)
    watch.probe("input", "", 0, network, ["input"])
    watch.probe("random", "", 0, fresh)
    watch.rows += _alike("untrained", watch.start, fresh, data, watch.warmup)
    if controls:
        for name in controls:
            _checks.choice(name, "rescue", CONTROLS)
        watch.rows += _rescued(network, data, controls, counts, 1, seed, method=watch.method, epoch=epoch)


def _taught(data: _Split, options: dict, power: functools.partial) -> list[dict]:
    """Return the rows of co-teaching, of the first of its networks."""
    rows, last = [], options["epochs"]
    watch = _Watch(data, "co-teaching", 0, {last}, power, rows, {})
    share = float((data.labels != data.clean).double().mean())
    taught = co_teach(data.features, data.labels, forget_rate=share, evaluate=watch, clean_labels=data.clean, **options)
    found = outputs(predict_logits(taught.networks[0], data.test), data.test_labels)
    rows.append(_row("co-teaching", last, "full", "output", 0, 0, found["accuracy"]) | _rounded(found))
    rows.append(_row("co-teaching", last, "purity", "", 0, 0, taught.curves["purity"][-1]))
    return rows


def _alike(method: str, start: dict[str, torch.Tensor], network: nn.Module, data: _Split, epoch: int) -> list[dict]:
    return [
        _row(method, epoch, "alike", layer, depth, 0, linear_cka(start[layer], values))
        for depth, (layer, values) in enumerate(activations(network, data.test).items(), 1)
    ]


def _rule(method: str, data: _Split, seed: int) -> dict[str, object]:
    """Return the arguments of fit_each for a method, whose loss may be multiplied."""
    name, _, scale = method.partition(":")
    return _loss(name, data, seed) | {"loss_scale": float(scale or 1)}


def _rounded(found: dict[str, float]) -> dict[str, float]:
    return {name: round(found[name], 6) for name in MEASURES}


def head_study(seeds: int = 10) -> list[dict]:
    """Return the runs of the stored study of heads on the digits, the first seed of all first.

    Four fifths of the labels drawn anew (72 % wrong), and 80 % of the labels of five classes flipped to another one, as
    in :func:`nls.layer_runs.layer_study`. The warm-up ends when the CNN has learnt its labels by heart, or ten epochs
    earlier. Besides the usual stages there are two of controls: cross entropy with a step five times as long, and the
    rate -4 with its loss divided by five.

    Args:
        seeds: Number of seeds.

    Returns:
        Parameters of :func:`head_run`.

    Examples:
        >>> len(head_study(seeds=1))
        4
    """
    cases = [("symmetric", 0.72), ("cifar10_asymmetric", 0.8)]
    late = {"warmup_epochs": 15, "twin": True, "rescue": "map fine-tune scratch", "per_class": "10 30"}
    early = {"warmup_epochs": 5, "co_teaching": False}
    return [
        {"noise": noise, "noise_rate": rate, "seed": seed, "methods": f"{METHODS} r=0:5 r=-4:0.2"} | more
        for seed in range(seeds)
        for noise, rate in cases
        for more in (late, early)
    ]


def stage_ends(table: pd.DataFrame, per_class: int = 10) -> pd.DataFrame:
    """Return what each method comes to at the end of its stage, one row for each run and method.

    Args:
        table: Rows of :func:`head_run` or of :func:`nls.layer_runs.layer_run`, with the parameters of their runs as
            :func:`nls.runs.run_all` gives them.
        per_class: Clean examples of each class of the probes.

    Returns:
        A table indexed by ``network``, ``noise``, ``noise_rate``, ``warmup_epochs``, ``method`` and ``seed``, as far as
        these are columns: ``own``, accuracy at the last epoch; ``chosen``, that at the epoch with the best accuracy on
        noisy validation labels, of the warm-up or the stage, of equal ones the first; ``probe`` and ``alike``, of the
        last hidden layer; ``alike_1``, ...; ``full_nll``, ``head_nll`` and so on for each of ``MEASURES``. What was
        not measured is missing.

    Examples:
        >>> rows = head_run(num_examples=100, warmup_epochs=1, epochs=1, methods="r=0", co_teaching=False)
        >>> ends = stage_ends(pd.DataFrame(rows).assign(seed=0))
        >>> ends.index.tolist(), list(ends)[:3]
        ([('r=0', 0), ('untrained', 0)], ['own', 'chosen', 'probe'])
    """
    runs = [name for name in ("network", "noise", "noise_rate", "warmup_epochs") if name in table]
    keys = [*runs, "method", "seed"]
    by_run = [*runs, "seed"]
    curves = table[table["what"] == "network"]
    warm = curves[curves["method"] == "warm-up"].drop(columns="method")
    methods = curves.loc[curves["method"] != "warm-up", keys].drop_duplicates()
    # Co-teaching has no warm-up: its own epochs are all it has.
    started = warm.merge(methods[methods["method"] != "co-teaching"], on=by_run)
    paths = pd.concat([started, curves[curves["method"] != "warm-up"]]).sort_values([*keys, "epoch"])
    paths = paths.reset_index(drop=True)
    groups = paths.groupby(keys, sort=False)
    ends = {"own": groups["accuracy"].last()}
    ends["chosen"] = paths.loc[groups["validation"].idxmax()].set_index(keys)["accuracy"]
    last = table["epoch"] == table.groupby(by_run)["epoch"].transform("max")
    probes = table[(table["what"] == "probe") & (table["clean_per_class"] == per_class) & last]
    ends["probe"] = probes[probes["depth"] == probes["depth"].max()].set_index(keys)["accuracy"]
    for depth, rows in table[table["what"] == "alike"].groupby("depth"):
        ends[f"alike_{depth}"] = ends["alike"] = rows.set_index(keys)["accuracy"]
    for what, rows in table[table["what"].isin(["full", "head"])].groupby("what"):
        ends |= {f"{what}_{name}": rows.set_index(keys)[name] for name in MEASURES[1:]}
        ends[f"{what}_accuracy"] = rows.set_index(keys)["accuracy"]
    return pd.DataFrame(ends)
