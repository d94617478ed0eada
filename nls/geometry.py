r"""The layer before the logits: how tight the classes lie there, seen on the plane through three templates.

The logits of a network are products of its last activations with one template for each class. What a smooth rate does
to a network can be seen there, in numbers and in a picture. :func:`clean_run` and :func:`clean_image_run` measure it
beside accuracy and calibration, on clean labels.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn

from nls import _checks
from nls.confidence import fit_temperature
from nls.data import Dataset, load_dataset
from nls.each import fit_each
from nls.generators import RECIPES
from nls.measure import Measure, selected
from nls.models import predict_logits
from nls.posterior import expected_calibration_error
from nls.runs import run_all
from nls.training import StackHistory, fit_stack

RATES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, -0.1, -0.4, -0.8)
"""Smooth rates of :func:`clean_run`, the plain one first."""

DECAYS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Weight decays that :func:`clean_run` tunes, beside none at all."""

SETTINGS = (
    ("digits", 0), ("wine", 0), ("breast_cancer", 0), ("twonorm", 200), ("twonorm", 0), ("ringnorm", 200),
    ("ringnorm", 0), ("waveform", 200), ("waveform", 0),
)  # fmt: skip
"""Data sets and training sizes of the stored study of :func:`clean_run`, with ``tuned`` and seeds 0 to 9."""

IMAGE_RATES = {30: (0.0, 0.1, 0.4)}
"""Smooth rates of :func:`clean_images`, by the number of epochs."""

_GENERATED = 3000
_SCATTERS = ("scatter", "train_scatter", "span_scatter", "train_span_scatter")

Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]


def penultimate(network: nn.Sequential | Layers, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return the activations before the last layer and that layer's templates, with the bias as one more place.

    .. math:: z_k(x) = w_k^\top h(x), \qquad h(x) = (a(x), 1), \quad w_k = (\mathrm{weight}_k, \mathrm{bias}_k)

    Args:
        network: A sequence of modules that ends with a linear layer, such as what :func:`nls.fit_each` trains; or the
            layers of a perceptron, pairs of weight [in, out] and bias [out], as ``StackedMLP.member`` returns them.
        features: Inputs of the network, N of them.

    Returns:
        Activations [N, d + 1], the last of them 1, and templates [K, d + 1].

    Raises:
        TypeError: If ``network`` is neither, or does not end with a linear layer.

    Examples:
        >>> layers = [(torch.eye(2), torch.zeros(2)), (torch.eye(2), torch.tensor([0.5, 0.0]))]
        >>> activations, templates = penultimate(layers, torch.tensor([[3.0, -1.0]]))
        >>> activations.tolist(), (activations @ templates.T).tolist()
        ([[3.0, 0.0, 1.0]], [[3.5, 0.0]])

    References:
        Mueller et al., 2019, arXiv:1906.02629, section 2.
    """
    if isinstance(network, nn.Sequential):
        if not len(network) or not isinstance(network[-1], nn.Linear):
            raise TypeError(f"network must end with a linear layer, got {network}")
        body, last = network[:-1], network[-1]
        body.training = network.training  # the mode that predict_logits leaves behind
        options = {name: getattr(network, f"pixel_{name}", None) for name in ("mean", "std")}
        hidden = predict_logits(body, features, device=last.weight.device, **options)
        weight, bias = last.weight.detach(), last.bias.detach()
    elif isinstance(network, (list, tuple)) and network:
        hidden = _checks.floating(features, "features")
        for matrix, shift in network[:-1]:
            hidden = (hidden @ matrix + shift).relu()
        weight, bias = network[-1][0].T, network[-1][1]
    else:
        raise TypeError(f"network must be an nn.Sequential or a list of layers, got {type(network).__name__}")
    return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1), torch.cat([weight, bias[:, None]], 1)


def scatter_ratio(activations: torch.Tensor, labels: torch.Tensor) -> float:
    r"""Return the scatter within the classes over that between them: small where clusters are tight and far apart.

    With the mean :math:`\mu_k` of the :math:`n_k` activations of class k and the mean :math:`\mu` of all,

    .. math:: \frac{\sum_i \lVert h_i - \mu_{y_i} \rVert^2}{\sum_k n_k \lVert \mu_k - \mu \rVert^2}

    Neither a rotation, a shift nor a common factor of the activations changes it.

    Args:
        activations: Finite, shape [N, d].
        labels: Class indices, shape [N], at least two classes among them.

    Returns:
        The ratio, at least 0; infinite where the classes have one mean.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, a value is not finite, or there is one class only.

    Examples:
        >>> activations = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> scatter_ratio(activations, torch.tensor([0, 0, 1, 1]))  # 1 within, 25 between
        0.04

    References:
        The ratio of traces that Fisher's criterion compares; Papyan et al., 2020, arXiv:2008.08186, watch its like.
    """
    exact, labels = _checked(activations, labels)
    classes, place = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels must hold at least two classes, got {classes.tolist()}")
    count = torch.zeros(len(classes), dtype=exact.dtype).index_add(0, place, exact.new_ones(len(exact)))
    means = exact.new_zeros(len(classes), exact.shape[1]).index_add(0, place, exact) / count[:, None]
    within = (exact - means[place]).square().sum()
    between = (count[:, None] * (means - exact.mean(0)).square()).sum()
    return float(within / between)


def project_on_templates(
    activations: torch.Tensor, templates: torch.Tensor, classes: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return activations and templates in coordinates of the flat that runs through the templates of some classes.

    For the classes a, b, c the flat is a plane, and :math:`e_1 \propto w_b - w_a`, with :math:`e_2` in the plane, at a
    right angle, on the side of :math:`w_c`:

    .. math:: h \mapsto (e_1^\top h,\; e_2^\top h)

    Each further class adds one axis in the same way. The axes for all K classes span all that the differences of
    logits depend on.

    Args:
        activations: Shape [N, d]; as a rule those of examples of the classes.
        templates: Shape [K, d], as :func:`penultimate` returns them.
        classes: C different ones, at least 2; all of them by default.

    Returns:
        Points [N, C - 1] and corners [C, C - 1], float64.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit, the classes are too few or not different, or their templates lie on a
            flat of fewer dimensions, such as three on a line.

    Examples:
        >>> templates = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
        >>> points, corners = project_on_templates(torch.tensor([[3.0, 4.0, 5.0]]), templates, (0, 1, 2))
        >>> points.tolist(), corners.tolist()
        ([[3.0, 4.0]], [[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])

    References:
        Mueller et al., 2019, arXiv:1906.02629, section 2, for three classes.
    """
    exact, rows = (
        _checks.floating(value, name).detach().double()
        for value, name in ((activations, "activations"), (templates, "templates"))
    )
    if exact.ndim != 2 or rows.ndim != 2 or exact.shape[1] != rows.shape[1]:
        got = f"{tuple(exact.shape)} and {tuple(rows.shape)}"
        raise ValueError(f"activations must have shape [N, d] and templates [K, d], got {got}")
    chosen = range(len(rows)) if classes is None else classes
    chosen = [_checks.integer(k, "classes", high=len(rows) - 1) for k in chosen]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise ValueError(f"classes must be two or more different ones, got {chosen}")
    corners = rows[chosen]
    sides = corners[1:] - corners[0]
    if int(torch.linalg.matrix_rank(sides)) < len(sides):
        raise ValueError(f"templates of {len(chosen)} classes must span {len(sides)} dimensions, got fewer")
    basis, upper = torch.linalg.qr(sides.T)
    basis = basis * upper.diagonal().sign()
    return exact @ basis, corners @ basis


def clean_run(
    dataset: str, train_size: int, seed: int, tuned: bool = False, epochs: int = 30, min_steps: int = 400
) -> list[dict]:
    """Train small networks on clean labels, one for each rate, and measure them at three epochs.

    One hidden layer of 64, Adam with step .003, batches of 64: enough to learn every training label by heart. All
    start from one initialisation and see the batches in one order. The test set is the whole one at any
    ``train_size``; a third as many examples as train validate.

    Args:
        dataset: A name that :func:`nls.load_dataset` knows, with plain features; 3,000 examples of a generated set.
        train_size: How many of the training examples to train on, at most; 0 for all.
        seed: Varies split or sample, initialisation and order.
        tuned: Whether each rate of at least 0 is also trained with each of ``DECAYS``.
        epochs: Passes over the data, at least 1.
        min_steps: More epochs are trained, if needed, to take at least this many steps.

    Returns:
        A row for each network: ``smooth_rate``, ``weight_decay``, ``num_train`` and ``num_test``; the columns of
        :func:`nls.run_grid` for each rule, where the labels of ``noisy_validation`` are clean ones here; and at the
        last epoch ``temperature``, fitted on the validation set, ``nll_scaled`` and ``ece_scaled`` with it, ``scatter``
        and ``train_scatter`` (:func:`scatter_ratio` of test and training examples), and ``train_confidence``, the mean
        largest probability there; these are None if the network diverged.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the data set is unknown or a number is out of range.

    Examples:
        >>> rows = clean_run("wine", 60, 0, epochs=1, min_steps=1)
        >>> len(rows), rows[0]["smooth_rate"], rows[0]["num_train"]
        (10, 0.0, 60)
    """
    size = _GENERATED if dataset in RECIPES else None
    data = _first(load_dataset(dataset, seed=seed, num_examples=size), _checks.integer(train_size, "train_size"))
    settings = [(rate, 0.0) for rate in RATES]
    if tuned:
        settings += itertools.product([rate for rate in RATES if rate >= 0], DECAYS)
    rates, decays = torch.tensor(settings, dtype=torch.float32).T
    members = [SimpleNamespace(loss="gls", smooth_rate=rate, noise="symmetric", noise_rate=0.0) for rate, _ in settings]
    held_out, count = data.validation_labels.expand(len(members), -1), len(data.train_labels)
    measure = Measure(members, data, held_out, [None] * len(members), torch.device("cpu"))
    parts = data.validation_features, data.test_features
    fit = fit_stack(
        data.train_features, data.train_labels.expand(len(members), -1), rates, weight_decay=decays, hidden=(64,),
        learning_rate=0.003, epochs=max(epochs, math.ceil(min_steps / math.ceil(count / 64))), seed=seed,
        num_classes=data.num_classes,
        evaluate=lambda stack, which: measure(*(stack.forward(x, classes_last=False) for x in parts), which),
    )  # fmt: skip
    sizes = {"num_train": count, "num_test": len(data.test_labels)}
    return [
        {"smooth_rate": rate, "weight_decay": decay} | sizes | _selected(fit, i) | _of_member(fit, i, data)
        for i, (rate, decay) in enumerate(settings)
    ]


def clean_image_run(
    root: str,
    dataset: str,
    num_examples: int,
    network: str,
    smooth_rate: float,
    seed: int,
    epochs: int,
    batch_size: int,
) -> list[dict]:
    """Train a network on images with clean labels, and measure it at its last epoch and at the best on validation.

    SGD with momentum .9, step .05 falling by a cosine, weight decay 5e-4, no augmentation: a small network can then
    learn its training images by heart. A tenth of the examples validates and fits the temperature.

    Args:
        root: Folder of the data set, or an empty text for a bundled one.
        dataset: A name that :func:`nls.load_dataset` knows, of images.
        num_examples: Images that train and validate.
        network: One of ``nls.models.NETWORKS`` that ends with a linear layer.
        smooth_rate: r, at most 1.
        seed: Varies subset, split, initialisation and order.
        epochs: Passes over the training images.
        batch_size: Examples in a step.

    Returns:
        A row for each ``rule``, ``"last"`` and ``"validation"``: ``epoch``; on the test images ``accuracy``, ``nll``,
        ``ece``, ``confidence`` (the mean largest probability) and ``scatter`` (:func:`scatter_ratio`); ``temperature``,
        and with it ``nll_scaled`` and ``ece_scaled``; of the training images ``train_accuracy``, ``train_confidence``
        and ``train_scatter``; and ``span_scatter`` and ``train_span_scatter``, of the activations between the templates
        of all classes.

    Raises:
        ValueError: As :func:`nls.load_dataset` and :func:`nls.fit_each`.

    Examples:
        >>> rows = clean_image_run("", "digits_images", 300, "cnn", 0.1, 0, 1, 64)
        >>> [row["rule"] for row in rows], rows[0]["epoch"]
        (['last', 'validation'], 1)
    """
    data = load_dataset(dataset, root or None, seed, num_examples=num_examples)
    best: dict = {"accuracy": -1.0}

    def watch(model: nn.Module) -> dict[str, float]:
        hits = predict_logits(model, data.validation_features).argmax(1) == data.validation_labels
        accuracy = float(hits.double().mean())
        if accuracy > best["accuracy"]:
            best.update(accuracy=accuracy, epoch=model.epoch, state=copy.deepcopy(model.state_dict()))
        return {"validation_accuracy": accuracy}

    options = {"batch_size": batch_size, "learning_rate": 0.05, "schedule": "cosine", "weight_decay": 5e-4}
    fit = fit_each(
        data.train_features, data.train_labels, smooth_rate, network=network, num_classes=data.num_classes,
        epochs=epochs, seed=seed, evaluate=watch, **options,
    )  # fmt: skip
    rows = [{"rule": "last", "epoch": epochs} | _measured(fit.network, data)]
    if best["epoch"] == epochs:
        return [*rows, rows[0] | {"rule": "validation"}]
    fit.network.load_state_dict(best["state"])
    return [*rows, {"rule": "validation", "epoch": best["epoch"]} | _measured(fit.network, data)]


def clean_images(
    root: str | os.PathLike[str],
    store: str | os.PathLike[str] | None = None,
    seeds: int = 3,
    *,
    rates: Mapping[int, Sequence[float]] = IMAGE_RATES,
    dataset: str = "cifar10",
    num_examples: int = 2200,
    **options: object,
) -> pd.DataFrame:
    """Train what is missing of the stored study of smooth rates on 1,980 CIFAR-10 images with clean labels.

    Args:
        root: Folder that holds ``cifar10.npz``.
        store: Folder of finished runs, see :func:`nls.runs.run_all`.
        seeds: Number of seeds, from 0 on.
        rates: Smooth rates by the number of epochs.
        dataset: Another set of images.
        num_examples: Images that train and validate.
        options: Of :func:`nls.runs.run_all`.

    Returns:
        The rows of :func:`clean_image_run`, with its parameters but ``root``.
    """
    common = {"root": str(root), "dataset": dataset, "num_examples": num_examples, "network": "cnn", "batch_size": 32}
    runs = [
        common | {"epochs": epochs, "smooth_rate": rate, "seed": seed}
        for epochs, some in rates.items()
        for seed in range(seeds)
        for rate in some
    ]
    return run_all(clean_image_run, runs, store=store, **options).drop(columns="root")


def _first(data: Dataset, train_size: int) -> Dataset:
    """Return a data set with fewer training examples, and a third as many to validate, so long as there are these."""
    if not train_size:
        return data
    kept = {"train": train_size, "validation": math.ceil(train_size / 3)}
    fields = ("features", "labels", "posterior", "indices")
    parts = {
        f"{split}_{field}": (size, getattr(data, f"{split}_{field}"))
        for split, size in kept.items()
        for field in fields
    }
    return replace(data, **{name: values[:size] for name, (size, values) in parts.items() if values is not None})


def _selected(fit: StackHistory, index: int) -> dict:
    """Return what three rules pick of a member's curves."""
    curves = {name: values[index].tolist() for name, values in fit.curves.items()}
    return selected(curves) | {"diverged_epoch": int(fit.diverged_epoch[index])}


def _of_member(fit: StackHistory, index: int, data: Dataset) -> dict[str, float | None]:
    """Return what :func:`clean_run` reports of the last epoch of a member beside its curves."""
    names = ("temperature", "nll_scaled", "ece_scaled", "train_confidence", *_SCATTERS)
    if int(fit.diverged_epoch[index]):
        return dict.fromkeys(names)
    found = _measured(fit.stack.member(index), data)
    return {name: found[name] for name in names}


def _measured(network: nn.Sequential | Layers, data: Dataset) -> dict[str, float]:
    """Return accuracy, calibration with and without a temperature, and scatter, of a network at one epoch."""
    activations, templates = penultimate(network, data.test_features)
    logits, labels = activations @ templates.T, data.test_labels
    held_out, trained = (penultimate(network, x)[0] for x in (data.validation_features, data.train_features))
    temperature = fit_temperature(held_out @ templates.T, data.validation_labels)
    probabilities, scaled = logits.softmax(1), (logits / temperature).softmax(1)
    fitted = trained @ templates.T
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "nll": float(nn.functional.cross_entropy(logits, labels)),
        "ece": expected_calibration_error(probabilities, labels),
        "confidence": float(probabilities.amax(1).double().mean()),
        "scatter": scatter_ratio(activations, labels),
        "temperature": temperature,
        "nll_scaled": float(nn.functional.cross_entropy(logits / temperature, labels)),
        "ece_scaled": expected_calibration_error(scaled, labels),
        "train_accuracy": float((fitted.argmax(1) == data.train_labels).double().mean()),
        "train_confidence": float(fitted.softmax(1).amax(1).double().mean()),
        "train_scatter": scatter_ratio(trained, data.train_labels),
        "span_scatter": scatter_ratio(project_on_templates(activations, templates)[0], labels),
        "train_span_scatter": scatter_ratio(project_on_templates(trained, templates)[0], data.train_labels),
    }


def _checked(activations: object, labels: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return activations [N, d] in float64 and labels [N] in int64."""
    exact = _checks.floating(activations, "activations").detach().double()
    if exact.ndim != 2 or not len(exact):
        raise ValueError(f"activations must have shape [N, d] with N >= 1, got {tuple(exact.shape)}")
    if not bool(exact.isfinite().all()):
        raise ValueError(f"activations must be finite, got {int((~exact.isfinite()).sum())} values that are not")
    labels = _checks.integer_labels(labels, "labels", 2**62)
    if labels.shape != exact.shape[:1]:
        raise ValueError(f"labels must have shape ({len(exact)},), one for each row, got {tuple(labels.shape)}")
    return exact, labels
