r"""How good is the advice? Noise that is known, estimated without being told, and networks at the rate that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nls import _checks
from nls.advise import Advice, suggest_smooth_rate
from nls.data import Dataset, load_dataset
from nls.grid import TRANSITIONS
from nls.human import load_human_labels
from nls.noise import draw_instance_noise, draw_noisy_labels
from nls.rates import frobenius_rate, scalar_share
from nls.training import fit_stack, seeded_generator

NOISES = ("symmetric", "pair", "instance")
"""Kinds of noise of a run."""

RATES = (-8.0, -4.0, -2.0, -1.0, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)
"""Rates that the advised one is compared with."""


def classifiers(seed: int = 0) -> dict[str, BaseEstimator]:
    """Return the classifiers that may be cross-fitted, by name.

    Args:
        seed: Of the forest.

    Returns:
        New classifiers.

    Examples:
        >>> sorted(classifiers())
        ['bayes', 'forest', 'logistic']
    """
    return {
        "bayes": GaussianNB(),
        "forest": RandomForestClassifier(60, min_samples_leaf=3, random_state=seed, n_jobs=1),
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
    }


def noisy_split(
    data: Dataset, noise: str, noise_rate: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the features, clean and noisy labels of training and validation set together, and their true matrix.

    Args:
        data: A data set with plain features.
        noise: One of ``NOISES``.
        noise_rate: Share of wrong labels, in expectation.
        seed: Draws the noise.

    Returns:
        Features [n, d], clean labels [n], noisy labels [n], and the transition matrix [K, K]: the one drawn from, or,
        for noise that depends on the instance, the counted one.

    Raises:
        ValueError: If the noise is unknown.

    Examples:
        >>> x, clean, noisy, matrix = noisy_split(load_dataset("wine"), "pair", 0.2, 0)
        >>> len(x) == len(clean) == len(noisy), matrix[0].tolist()
        (True, [0.8, 0.2, 0.0])
    """
    _checks.choice(noise, "noise", NOISES)
    features = torch.cat([data.train_features, data.validation_features])
    clean = torch.cat([data.train_labels, data.validation_labels])
    generator = seeded_generator(seed, "advised noise")
    if noise != "instance":
        matrix = TRANSITIONS[noise](data.num_classes, noise_rate)
        return features, clean, draw_noisy_labels(clean, matrix, generator), matrix
    noisy = draw_instance_noise(features, clean, noise_rate, generator, num_classes=data.num_classes)
    counts = torch.bincount(clean * data.num_classes + noisy, minlength=data.num_classes**2).double()
    counts = counts.view(data.num_classes, -1)
    return features, clean, noisy, counts / counts.sum(1, keepdim=True)


def advice_run(
    *,
    dataset: str,
    noise: str = "symmetric",
    noise_rate: float = 0.2,
    classifier: str = "forest",
    seed: int = 0,
    num_examples: int = 0,
    networks: bool = True,
    epochs: int = 30,
    resamples: int = 200,
) -> list[dict]:
    """Ask for advice on labels whose noise is known, and train networks at the rate and at others.

    The networks, of one hidden layer of 64, see the training labels; the epoch is the one with the best accuracy on
    noisy validation labels. Their accuracy and log loss are on clean test labels.

    Args:
        dataset: A name that :func:`nls.load_dataset` knows, with plain features.
        noise: One of ``NOISES``.
        noise_rate: Share of wrong labels.
        classifier: A name of :func:`classifiers`, cross-fitted for the probabilities.
        seed: Draws split, noise, folds, resamples, initialisation and order.
        num_examples: Training and validation examples for the advice; 0 for all.
        networks: Whether to train any.
        epochs: Of the networks.
        resamples: As for :func:`nls.suggest_smooth_rate`.

    Returns:
        Rows: ``what`` is ``"estimate"``, with ``method`` (``"advice"``, or one of its ``estimates``), ``estimate`` and
        ``truth`` of the noise rate, ``low`` and ``high``, ``smooth_rate``, ``smooth_low`` and ``smooth_high``,
        ``true_rate``, ``residual`` and ``true_residual``, ``feasible``, ``depends_on_example``, ``use``; or
        ``"network"``, with ``method`` (``"grid"`` or ``"advice"``), ``smooth_rate``, ``epoch``, ``accuracy`` and
        ``nll``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name is unknown or a number is out of range.

    Examples:
        >>> rows = advice_run(dataset="wine", classifier="bayes", epochs=1, resamples=20)
        >>> [row["method"] for row in rows if row["what"] == "network"].count("grid")
        11
    """
    _checks.choice(classifier, "classifier", tuple(classifiers()))
    data = load_dataset(dataset, seed=seed)
    features, clean, noisy, matrix = noisy_split(data, noise, noise_rate, seed)
    # Training set before validation set: a part for the advice is a shuffled one.
    part = torch.randperm(len(clean), generator=seeded_generator(seed, "advised part"))[: num_examples or None]
    advice = suggest_smooth_rate(
        noisy[part], features=features[part], model=classifiers(seed)[classifier], num_classes=data.num_classes,
        resamples=resamples, seed=seed,
    )  # fmt: skip
    prior = torch.bincount(clean, minlength=data.num_classes).double() / len(clean)
    truth = {
        "truth": 1 - float(prior @ matrix.diagonal()),
        "true_rate": frobenius_rate(matrix, prior)[0] + 0.0,
        "true_residual": scalar_share(matrix, prior),
    }
    rows = [truth | row for row in _estimates(advice)]
    if networks:
        rows += _networks(data, noisy, advice.smooth_rate, seed, epochs)
    return rows


def _estimates(advice: Advice) -> list[dict]:
    """Return a row for the advice and one for each of its other estimates."""
    low, high = advice.noise_rate_interval
    ends = advice.smooth_rate_interval or (None, None)
    row = {
        "what": "estimate", "method": "advice", "estimate": advice.noise_rate, "low": low, "high": high,
        "smooth_rate": advice.smooth_rate, "smooth_low": ends[0], "smooth_high": ends[1],
        "residual": advice.symmetry_residual, "feasible": advice.feasible,
        "depends_on_example": advice.depends_on_example, "use": advice.use, "share": advice.share,
    }  # fmt: skip
    row |= {key: None for key in ("smooth_low", "smooth_high") if row[key] is not None and not math.isfinite(row[key])}
    others = [
        {"what": "estimate", "method": name, "estimate": found["noise_rate"], "smooth_rate": found["smooth_rate"],
         "residual": found["residual"]}
        for name, found in advice.estimates.items()
    ]  # fmt: skip
    return [row, *others]


def _networks(data: Dataset, noisy: torch.Tensor, advised: float | None, seed: int, epochs: int) -> list[dict]:
    """Return a row for a network at each rate."""
    rates: Sequence[float] = [*RATES, *([] if advised is None else [advised])]
    train, validation = noisy[: len(data.train_labels)], noisy[len(data.train_labels) :]

    def measure(stack: torch.nn.Module, which: slice) -> dict[str, torch.Tensor]:
        held, test = stack.forward(data.validation_features), stack.forward(data.test_features).log_softmax(-1)
        labels = data.test_labels.expand(len(test), -1)
        return {
            "validation": (held.argmax(-1) == validation).float().mean(1),
            "accuracy": (test.argmax(-1) == labels).float().mean(1),
            "nll": -test.gather(2, labels[..., None]).mean((1, 2)),
        }

    fit = fit_stack(
        data.train_features, train.expand(len(rates), -1), torch.tensor(rates), num_classes=data.num_classes,
        hidden=(64,), epochs=epochs, batch_size=128, learning_rate=2e-3, seed=seed, evaluate=measure,
    )  # fmt: skip
    best = fit.curves["validation"].nan_to_num(-1.0).argmax(1)
    return [
        {
            "what": "network", "method": "grid" if i < len(RATES) else "advice", "smooth_rate": rate,
            "epoch": int(best[i]) + 1, "accuracy": float(fit.curves["accuracy"][i, best[i]]),
            "nll": float(fit.curves["nll"][i, best[i]]),
        }
        for i, rate in enumerate(rates)
    ]  # fmt: skip


def advice_study(seeds: int = 10) -> list[dict]:
    """Return the runs of the stored study, the first seed of all first.

    Args:
        seeds: Number of seeds.

    Returns:
        Parameters of :func:`advice_run`: six data sets, symmetric and pair noise at two rates each, and noise that
        depends on the instance.

    Examples:
        >>> len(advice_study(seeds=1))
        24
    """
    sets = {
        "digits": "forest", "twonorm": "bayes", "ringnorm": "bayes", "waveform": "logistic",
        "breast_cancer": "logistic", "wine": "logistic",
    }  # fmt: skip
    noises = [("symmetric", 0.2), ("symmetric", 0.4), ("pair", 0.2), ("pair", 0.4), ("instance", 0.3)]
    return [
        {"dataset": name, "classifier": classifier, "noise": noise, "noise_rate": rate, "seed": seed}
        for seed in range(seeds)
        for name, classifier in sets.items()
        for noise, rate in noises
        if noise != "pair" or name in ("digits", "waveform", "wine")  # of two classes pair noise is symmetric
    ]


def human_run(
    *,
    label_set: str,
    root: str,
    seed: int = 0,
    num_examples: int = 10_000,
    folds: int = 3,
    epochs: int = 8,
    learning_rate: float = 0.02,
    resamples: int = 200,
) -> list[dict]:
    """Ask for advice on the labels that people gave to CIFAR-10, whose truth is known.

    Args:
        label_set: Of CIFAR-10N: ``"aggregate"``, ``"random1"``, ``"random2"``, ``"random3"`` or ``"worst"``.
        root: Folder with ``cifar10.npz`` and ``CIFAR-10_human.pt``.
        seed: Draws the images, folds, networks and resamples.
        num_examples: Training images that are asked about.
        folds: Of the cross-fit of the small CNN.
        epochs: Of each network; early enough that it has not learnt labels by heart.
        learning_rate: Its step size; momentum is .9.
        resamples: As for :func:`nls.suggest_smooth_rate`.

    Returns:
        The rows ``"estimate"`` of :func:`advice_run`.

    Raises:
        ValueError: If a file is missing or a name is unknown.
    """
    data, human = load_dataset("cifar10", root, seed), load_human_labels("cifar10n", root)
    _checks.choice(label_set, "label_set", tuple(human.label_sets))
    places = data.train_indices[:num_examples]
    noisy, clean = human.label_sets[label_set][places], data.train_labels[:num_examples]
    matrix = human.transition(label_set)
    advice = suggest_smooth_rate(
        noisy, features=data.train_features[:num_examples], model="cnn", num_classes=data.num_classes, folds=folds,
        training={"epochs": epochs, "learning_rate": learning_rate, "schedule": "cosine"}, resamples=resamples,
        seed=seed,
    )  # fmt: skip
    truth = {
        "truth": float((noisy != clean).double().mean()),
        "true_rate": frobenius_rate(matrix)[0],
        "true_residual": scalar_share(matrix),
    }
    return [truth | row for row in _estimates(advice)]


def human_study(root: str, seeds: int = 3) -> list[dict]:
    """Return the runs of the stored study of people's labels.

    Args:
        root: As for :func:`human_run`.
        seeds: Number of seeds.

    Returns:
        Parameters of :func:`human_run`: the five label sets of CIFAR-10N.

    Examples:
        >>> len(human_study("data", seeds=1))
        5
    """
    names = ("aggregate", "random1", "random2", "random3", "worst")
    return [{"label_set": name, "root": root, "seed": seed} for seed in range(seeds) for name in names]
