r"""What a representation knows: linear probes on frozen layers, fitted to a few clean labels, and their controls.

The predictive power of a layer h is the test performance of a linear model of h(x) that is fitted to a small set of
clean labels. Every number comes with the examples that it cost, and with what the same labels would have bought
elsewhere: a probe of a network that was never trained, of the raw input, a network trained on them alone, or the
network fine-tuned on them.

References:
    Li et al., 2021, arXiv:2012.12896.
    Alain and Bengio, 2016, arXiv:1610.01644.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from nls import _checks
from nls.activations import ACTIVATIONS, Network, activations, flat_features, plain_features, unwrapped
from nls.clean_sets import check_disjoint, draw_clean, fingerprints
from nls.models import predict_logits
from nls.rescue import fine_tune, gold_map, untrained
from nls.stack import StackedMLP
from nls.stats import Interval, mean_interval
from nls.training import seeded_generator

__all__ = [
    "ACTIVATIONS", "CONTROLS", "INVERSE_STRENGTHS", "STRENGTHS", "Probe", "activations", "check_disjoint", "draw_clean",
    "fine_tune", "fingerprints", "gold_map", "power_intervals", "power_of", "predictive_power", "probe", "untrained",
]  # fmt: skip

STRENGTHS = tuple(10.0 ** (i / 2) for i in range(-8, 5))
"""Strengths of the ridge that leave-one-out chooses from, relative to the mean eigenvalue of a layer's features."""

INVERSE_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Values of scikit-learn's C that cross-validation chooses from."""

CONTROLS = ("random", "map", "scratch", "fine-tune")
"""What else :func:`predictive_power` can do with the same clean labels."""

_TINY = 1e-10

Part = tuple[torch.Tensor, torch.Tensor]


# The probe


@dataclass(frozen=True)
class Probe:
    """A linear model of features, or a batch of them.

    Attributes:
        weight: [..., D, K], float64; for features as they come, not standardised.
        bias: [..., 1, K].
        outputs: On the test features [..., m, K]: scores of the classes, or predictions.
        strength: What was chosen [...]: of ``STRENGTHS``, or of ``INVERSE_STRENGTHS``.
        error: Its squared error by leave-one-out, or its log loss by cross-validation [...].
    """

    weight: torch.Tensor
    bias: torch.Tensor
    outputs: torch.Tensor
    strength: torch.Tensor
    error: torch.Tensor

    @property
    def predicted(self) -> torch.Tensor:
        """The classes with the largest scores [..., m]."""
        return self.outputs.argmax(-1)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the outputs for features [..., m, D]."""
        return features.double() @ self.weight + self.bias


def probe(
    features_train: torch.Tensor,
    labels: torch.Tensor,
    features_test: torch.Tensor,
    *,
    kind: str = "ridge",
    num_classes: int | None = None,
    strengths: Sequence[float] | None = None,
) -> Probe:
    r"""Fit a linear model of the features to a few labels, for any number of layers or draws at once.

    With features standardised by the examples that it is fitted to (of n rows, D columns), and targets that are
    one-hot or real, the ridge minimises

    .. math:: \sum_i \|W^\top x_i + b - t_i\|^2 + \lambda \bar s \|W\|^2, \qquad \bar s = \frac{\|X\|^2}{\min(n, D)},

    and takes the :math:`\lambda` with the least error by leave-one-out, which is exact and costs no second fit:
    :math:`e_i / (1 - h_{ii})` with the residual e and the diagonal of the hat matrix h. The logistic model has the
    cross entropy instead, and its strength from stratified cross-validation.

    Args:
        features_train: [..., n, D], n at least 2.
        labels: Class indices [..., n], or real targets [..., n] or [..., n, M] (of the type of floats); the leading
            axes are broadcast.
        features_test: [..., m, D].
        kind: ``"ridge"``, or ``"logistic"``, for classes, which is slower.
        num_classes: K; by default one more than the largest label.
        strengths: Values of :math:`\lambda` (of C for the logistic kind) to choose from.

    Returns:
        The fitted models and their outputs on the test features.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, a value is not finite, or ``kind`` is unknown.

    Examples:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> probe(x, torch.tensor([0, 0, 1, 1]), torch.tensor([[-3.0], [3.0]])).predicted
        tensor([0, 1])

    References:
        Hastie et al., 2009, The Elements of Statistical Learning, section 7.10.
    """
    _checks.choice(kind, "kind", ("ridge", "logistic"))
    train, test = _matrix(features_train, "features_train", 2), _matrix(features_test, "features_test", 1)
    if test.shape[-1] != train.shape[-1]:
        raise ValueError(f"features_test must have {train.shape[-1]} columns as features_train, got {test.shape[-1]}")
    if kind == "logistic" and _checks.tensor(labels, "labels").is_floating_point():
        raise TypeError(f"labels must be class indices for kind='logistic', got {_checks.describe(labels)}")
    mean, scale = train.mean(-2, keepdim=True), train.std(-2, correction=0, keepdim=True)
    scale = torch.where(scale > _TINY * mean.abs().clamp(min=_TINY), scale, torch.inf)  # constant: no weight
    fit = _ridge if kind == "ridge" else _logistic
    chosen = (STRENGTHS if kind == "ridge" else INVERSE_STRENGTHS) if strengths is None else strengths
    if not len(chosen) or not all(_checks.number(value, "strengths", low=_TINY) for value in chosen):
        raise ValueError("strengths must hold at least one number above 0, got none")
    weight, bias, strength, error = fit((train - mean) / scale, _targets(labels, train, num_classes), list(chosen))
    weight = weight / scale.mT
    bias = bias - mean @ weight
    return Probe(weight, bias, test @ weight + bias, strength, error)


def _matrix(values: torch.Tensor, name: str, least: int) -> torch.Tensor:
    """Return features [..., n, D] as float64."""
    values = _checks.tensor(values, name)
    if values.ndim < 2 or values.shape[-2] < least or not values.shape[-1]:
        raise ValueError(f"{name} must have shape [..., n, D] with n >= {least}, got {tuple(values.shape)}")
    values = values.detach().double()
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {int((~values.isfinite()).sum())} values that are not")
    return values


def _targets(labels: torch.Tensor, train: torch.Tensor, num_classes: int | None) -> torch.Tensor:
    """Return targets [..., n, K]."""
    if not _checks.tensor(labels, "labels").is_floating_point():
        classes = int(labels.max()) + 1 if num_classes is None else num_classes
        labels = functional.one_hot(_checks.integer_labels(labels, "labels", classes), classes)
    elif labels.shape[-1] == train.shape[-2] and (labels.ndim == 1 or labels.shape[-2] != train.shape[-2]):
        labels = labels.unsqueeze(-1)
    if labels.ndim < 2 or labels.shape[-2] != train.shape[-2]:
        got = tuple(labels.shape)
        raise ValueError(f"labels must have one entry for each of {train.shape[-2]} rows of features_train, got {got}")
    return labels.double()


def _ridge(x: torch.Tensor, targets: torch.Tensor, strengths: list[float]) -> tuple[torch.Tensor, ...]:
    """Return weight, bias, strength and leave-one-out error of ridge regressions on centred x [..., n, D]."""
    n, d = x.shape[-2:]
    bias = targets.mean(-2, keepdim=True)
    dual = n <= d
    # One batch of eigendecompositions of the smaller side gives every strength and every left-out example.
    values, vectors = torch.linalg.eigh(x @ x.mT if dual else x.mT @ x)
    values = values.clamp(min=0).unsqueeze(-2)
    right = vectors if dual else x @ vectors
    left = vectors * values if dual else right
    inner = right.mT @ (targets - bias)
    unit = (values.sum(-1, keepdim=True) / min(n, d)).clamp(min=_TINY)
    best = None
    for strength in strengths:
        shrunk = 1 / (values + strength * unit)
        hat = (left * right * shrunk).sum(-1, keepdim=True) + 1 / n
        residual = targets - bias - (left * shrunk) @ inner
        error = (residual / (1 - hat).clamp(min=_TINY)).square().mean((-2, -1))
        coefficients = shrunk.mT * inner
        if best is None:
            best = [error, torch.full_like(error, strength), coefficients]
            continue
        better = error < best[0]
        best[0], best[1] = torch.where(better, error, best[0]), best[1].masked_fill(better, strength)
        best[2] = torch.where(better[..., None, None], coefficients, best[2])
    weight = (x.mT @ vectors if dual else vectors) @ best[2]
    return weight, bias, best[1], best[0]


def _logistic(x: torch.Tensor, targets: torch.Tensor, strengths: list[float]) -> tuple[torch.Tensor, ...]:
    """Return the same of logistic regressions by scikit-learn, one after the other."""
    lead = torch.broadcast_shapes(x.shape[:-2], targets.shape[:-2])
    count, classes = math.prod(lead), targets.shape[-1]
    rows = x.expand(*lead, *x.shape[-2:]).reshape(count, *x.shape[-2:])
    labels = targets.expand(*lead, *targets.shape[-2:]).reshape(count, *targets.shape[-2:]).argmax(-1)
    parts = [_one_logistic(*pair, classes, strengths) for pair in zip(rows.numpy(), labels.numpy(), strict=True)]
    weight, bias, strength, error = (torch.stack(values) for values in zip(*parts, strict=True))
    return weight.view(*lead, -1, classes), bias.view(*lead, 1, classes), strength.view(lead), error.view(lead)


def _one_logistic(x: np.ndarray, labels: np.ndarray, classes: int, strengths: list[float]) -> tuple[torch.Tensor, ...]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    present, sizes = np.unique(labels, return_counts=True)
    if len(present) < 2:
        raise ValueError(f"labels must hold at least 2 classes for kind='logistic', got {present.tolist()} only")
    models = [LogisticRegression(C=strength, max_iter=5000) for strength in strengths]
    best, error = len(models) // 2, math.nan
    if len(models) > 1 and sizes.min() > 1:  # one example of a class leaves nothing to validate on
        folds = StratifiedKFold(min(5, sizes.min()))
        scores = [cross_val_score(m, x, labels, cv=folds, scoring="neg_log_loss").mean() for m in models]
        best = int(np.argmax(scores))
        error = -scores[best]
    model = models[best].fit(x, labels)
    weight, bias = torch.zeros(x.shape[1], classes).double(), torch.full((1, classes), -math.inf).double()
    two = len(present) == 2
    weight[:, present] = torch.from_numpy(np.stack([-model.coef_[0], model.coef_[0]]) / 2 if two else model.coef_).T
    bias[0, present] = torch.from_numpy(np.r_[-model.intercept_, model.intercept_] / 2 if two else model.intercept_)
    return weight, bias, *torch.tensor([strengths[best], error], dtype=torch.float64)


# Predictive power


def power_of(
    representations: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    labels: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    per_class: int | Sequence[int] = 10,
    draws: int = 5,
    kind: str = "ridge",
    num_classes: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Probe representations that you have with several draws of clean examples.

    They are such as :func:`nls.activations.activations` returns. Layers of one width are fitted in one batch, with all
    draws. Classes are scored by accuracy; real targets by the mean absolute percentage error
    :math:`\frac{100}{m} \sum_j |\hat y_j - y_j| / |y_j|`.
    Nothing is checked here about what pool and test share: see :func:`nls.clean_sets.check_disjoint`.

    Args:
        representations: Layer to its values on the pool and on the test set, [N, D] and [m, D], or [B, N, D] and
            [B, m, D] for B networks.
        labels: Clean labels of the pool [N], or real targets.
        test_labels: Those of the test set [m].
        per_class: Clean examples of each class (of real targets, in all), at least 1 and 2 together; one or several
            numbers, of which a draw's smaller ones are parts of its larger ones.
        draws: How many times to draw them, at least 1.
        kind: As for :func:`probe`.
        num_classes: K; by default one more than the largest label of the pool.
        seed: Draw i is made from ``seed`` and i, and is the same for every layer and network.

    Returns:
        One row for each layer, number, draw and network: ``layer``, ``per_class``, ``draw``, ``member`` (only for
        several networks), ``strength`` and ``accuracy`` or ``mape``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a range is wrong, or a class has too few examples.

    Examples:
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
        >>> table = power_of({"input": (x[:30], x[30:])}, y[:30], y[30:], per_class=[1, 5], draws=2)
        >>> table[["layer", "per_class", "draw"]].values.tolist()
        [['input', 1, 0], ['input', 1, 1], ['input', 5, 0], ['input', 5, 1]]
    """
    groups: dict[tuple, list[str]] = {}
    for name, (values, _) in representations.items():
        groups.setdefault(tuple(values.shape), []).append(name)
    tables = []
    for count, places in _draws(labels, per_class, draws, seed, num_classes):
        for names in groups.values():
            values, test = (torch.stack(parts) for parts in zip(*(representations[n] for n in names), strict=True))
            fitted = probe(
                values[..., places, :], labels[places], test.unsqueeze(-3), kind=kind, num_classes=num_classes
            )
            scores = _score(fitted.outputs, test_labels)
            strength = fitted.strength.expand(scores.shape)
            for i, name in enumerate(names):
                extra = {"layer": name, "per_class": count, "strength": strength[i]}
                tables.append(_tidy(scores[i], test_labels, extra))
    return pd.concat(tables, ignore_index=True)


def _draws(
    labels: torch.Tensor, per_class: int | Sequence[int], draws: int, seed: int, num_classes: int | None
) -> list[tuple[int, torch.Tensor]]:
    """Return, for each number of examples, the places [draws, n]."""
    numbers, places = range(_checks.integer(draws, "draws", low=1)), []
    for count in [per_class] if isinstance(per_class, int) else per_class:
        makers = (seeded_generator(seed, f"clean {i}") for i in numbers)
        drawn = [draw_clean(labels, count, maker, num_classes=num_classes) for maker in makers]
        places.append((count, torch.stack(drawn)))
    return places


def _score(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return accuracy, or mean absolute percentage error, of outputs [..., m, K]."""
    if not labels.is_floating_point():
        return (outputs.argmax(-1) == labels).double().mean(-1)
    labels = labels.double().view(len(labels), -1)
    if bool((labels == 0).any()):
        raise ValueError("test_labels must not hold 0 for a percentage error")
    return 100 * ((outputs.double() - labels) / labels).abs().mean((-2, -1))


def _tidy(scores: torch.Tensor, labels: torch.Tensor, extra: dict) -> pd.DataFrame:
    """Return scores [draws] or [B, draws] as rows."""
    members = scores.ndim == 2
    rows = scores.reshape(-1, scores.shape[-1])
    place = np.indices(rows.shape).reshape(2, -1)
    columns = {name: v.reshape(-1).numpy() if isinstance(v, torch.Tensor) else v for name, v in extra.items()}
    order = [name for name in ("method", "layer", "per_class") if name in columns]
    table = {name: columns.pop(name) for name in order} | {"draw": place[1]}
    table |= ({"member": place[0]} if members else {}) | columns
    return pd.DataFrame(table | {_measure(labels): rows.flatten().numpy()})


def _measure(labels: torch.Tensor) -> str:
    return "mape" if labels.is_floating_point() else "accuracy"


def predictive_power(
    network: Network,
    pool: Part | torch.Tensor,
    test: Part | torch.Tensor,
    *,
    data: Part | None = None,
    train: torch.Tensor | None = None,
    per_class: int | Sequence[int] = 10,
    draws: int = 5,
    layers: Sequence[str] | None = None,
    pooling: str = "mean",
    kind: str = "ridge",
    controls: Sequence[str] = (),
    tuning: Mapping[str, object] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Measure what a network's layers know: test performance of probes fitted to a few clean examples of a pool.

    .. math:: P(h) = \mathbb E_S\, \mathrm{acc}_{\mathrm{test}}\bigl(\arg\min_W R_S(W^\top h)\bigr), \qquad
        S \subset \mathrm{pool}.

    It refuses a pool that shares an example with the test set, or with the training set if that is given, by place or
    by content.

    Args:
        network: As for :func:`nls.activations.activations`.
        pool: Features [N, ...] and clean labels [N] that the clean examples are drawn from; or places [N] in ``data``.
        test: Features and clean labels of the test set; or places in ``data``.
        data: Features and labels of the one data set that places are of, or None.
        train: Features of the training set, or places in ``data``, to be kept apart from the pool too; or None.
        per_class: As for :func:`power_of`.
        draws: As for :func:`power_of`.
        layers: As for :func:`nls.activations.activations`.
        pooling: As for :func:`nls.activations.activations`.
        kind: As for :func:`probe`.
        controls: What else is done with the same clean examples, of ``CONTROLS``: ``"random"``, a probe of the same
            architecture as it is before training; ``"map"``, the network's outputs put right with
            :func:`nls.rescue.gold_map`; ``"scratch"``, a new network trained on them alone; ``"fine-tune"``, the
            network trained on with them.
        tuning: Arguments of :func:`nls.rescue.fine_tune` for the last two.
        num_classes: K; by default one more than the largest label of the pool.
        seed: As for :func:`power_of`; it also draws the untrained networks.

    Returns:
        The rows of :func:`power_of` with ``method`` in front: ``"probe"``, the controls, ``"input"``, a probe of the
        raw input, and ``"network"``, the network as it is, whose ``per_class`` is 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape or a range is wrong, a class has too few examples, or parts share an example.

    Examples:
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> table = predictive_power(network, torch.arange(30), torch.arange(30, 60), data=(x, y), draws=2)
        >>> sorted(table["method"].unique()), table["layer"].unique().tolist()
        (['input', 'network', 'probe'], ['1', 'input', 'output'])

    References:
        Li et al., 2021, arXiv:2012.12896.
    """
    for control in controls:
        _checks.choice(control, "controls", CONTROLS)
    (x, labels), (x_test, test_labels) = _apart(pool, test, data, train)
    read = {"layers": layers, "pooling": pooling}
    settings = {"per_class": per_class, "draws": draws, "num_classes": num_classes, "seed": seed}
    network = unwrapped(network)
    inputs = {"input": (flat_features(plain_features(network, x)), flat_features(plain_features(network, x_test)))}
    tables = {"probe": power_of(_paired(network, x, x_test, **read), labels, test_labels, kind=kind, **settings)}
    tables["input"] = power_of(inputs, labels, test_labels, kind=kind, **settings)
    own = _score(_outputs(network, x_test), test_labels)[..., None]
    tables["network"] = _tidy(own, test_labels, {"layer": "output", "per_class": 0})
    if "random" in controls:
        fresh = _paired(untrained(network, seed), x, x_test, **read)
        tables["random"] = power_of(fresh, labels, test_labels, kind=kind, **settings)
    for control in ("map", "scratch", "fine-tune"):
        if control in controls:
            parts = (x, labels, x_test, test_labels)
            tables[control] = _spend(control, network, parts, dict(tuning or {}), settings)
    return pd.concat([t.assign(method=name) for name, t in tables.items()], ignore_index=True).pipe(_method_first)


def _method_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["method", *(name for name in table if name != "method")]]


def _apart(pool: object, test: object, data: Part | None, train: torch.Tensor | None) -> tuple[Part, Part]:
    """Return pool and test set as features and labels, or refuse what they share."""
    if data is not None:
        parts = {"pool": pool, "test": test} | ({} if train is None else {"train": train})
        check_disjoint(parts, data[0])
        return tuple((data[0][part], data[1][part]) for part in (pool, test))
    for part, name in ((pool, "pool"), (test, "test")):
        if isinstance(part, torch.Tensor) or len(part) != 2 or len(part[0]) != len(part[1]):
            raise ValueError(
                f"{name} must be features and labels of one length, or places with data=, got another form"
            )
    check_disjoint({"pool": pool[0], "test": test[0]} | ({} if train is None else {"train": train}))
    return pool, test


def _paired(network: object, x: torch.Tensor, x_test: torch.Tensor, **read: object) -> dict:
    """Return layer to activations on the pool and on the test set."""
    return {
        name: (values, other)
        for (name, values), other in zip(
            activations(network, x, **read).items(), activations(network, x_test, **read).values(), strict=True
        )
    }


def _outputs(network: nn.Module | StackedMLP, x: torch.Tensor) -> torch.Tensor:
    return network.forward(x) if isinstance(network, StackedMLP) else predict_logits(network, x)


def power_intervals(
    table: pd.DataFrame,
    by: Sequence[str] = ("method", "layer", "per_class"),
    *,
    over: str = "draw",
    test_ratio: float = 0.0,
) -> dict[tuple, Interval]:
    """Return the mean and its 95 % interval over draws of the clean examples, or over seeds.

    Whatever else varies is averaged first, so that n counts what ``over`` names and nothing more. Draws share one
    network, one pool and one test set: their interval says how much the choice of the examples matters, no more.

    Args:
        table: Of :func:`power_of` or :func:`predictive_power`, or several of them joined.
        by: Columns that tell cells apart; those that the table lacks are left out.
        over: The column whose levels are the sample, such as ``"draw"``, ``"member"`` or ``"seed"``.
        test_ratio: See :func:`nls.mean_interval`.

    Returns:
        Levels of ``by`` to interval.

    Raises:
        ValueError: If the table lacks ``over``, or a score.

    Examples:
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
        >>> table = power_of({"input": (x[:30], x[30:])}, y[:30], y[30:], per_class=5, draws=4)
        >>> power_intervals(table)["input", 5].n
        4
    """
    value = next((name for name in ("accuracy", "mape") if name in table), None)
    if value is None or over not in table:
        raise ValueError(f"table must have {over!r} and 'accuracy' or 'mape', got {', '.join(table.columns)}")
    by = [name for name in by if name in table and name != over]
    means = table.groupby([*by, over])[value].mean()
    return {key: mean_interval(group.to_numpy(), test_ratio=test_ratio) for key, group in means.groupby(level=by)}


def _spend(control: str, network: nn.Module | StackedMLP, parts: tuple, tuning: dict, settings: dict) -> pd.DataFrame:
    """Return the rows of a control that ends in outputs of a network."""
    x, labels, x_test, test_labels = parts
    kwargs = {name: settings[name] for name in ("per_class", "draws", "seed", "num_classes")}
    classes = int(labels.max()) + 1 if settings["num_classes"] is None else settings["num_classes"]
    tables = []
    for count, places in _draws(labels, **kwargs):
        if control == "map":
            model, test_model = (_outputs(network, values).double().softmax(-1) for values in (x, x_test))
            outputs = gold_map(model[..., places, :], labels[places], test_model.unsqueeze(-3), classes)
        else:
            outputs = _tuned_outputs(control, network, x[places], labels[places], x_test, tuning, settings["seed"])
        tables.append(_tidy(_score(outputs, test_labels), test_labels, {"layer": "output", "per_class": count}))
    return pd.concat(tables, ignore_index=True)


def _tuned_outputs(
    control: str,
    network: nn.Module | StackedMLP,
    x: torch.Tensor,
    labels: torch.Tensor,
    x_test: torch.Tensor,
    tuning: dict,
    seed: int,
) -> torch.Tensor:
    """Return outputs [..., draws, m, K] of networks trained on x [draws, n, ...]."""
    if control == "scratch":
        tuning = {"frozen_statistics": False} | tuning
        network = untrained(network, seed)
    if not isinstance(network, StackedMLP):
        return torch.stack(
            [_outputs(fine_tune(network, *pair, **tuning), x_test) for pair in zip(x, labels, strict=True)]
        )
    wide, count = object.__new__(StackedMLP), network.num_members
    wide._lay_out(network.sizes, count * len(x), network.parameters.dtype, network.parameters.device)
    for new, row in zip(wide.rows(wide.parameters), network.rows(network.parameters), strict=True):
        new.copy_(row.repeat_interleave(len(x), 0))
    tuned = fine_tune(wide, x.repeat(count, 1, 1), labels.repeat(count, 1), **tuning)
    return _outputs(tuned, x_test).unflatten(0, (count, len(x)))
