r"""What each layer of a network knows while it learns noisy labels, and what a few clean ones buy: one run, all rows.

:func:`layer_run` trains one warm-up with cross entropy, then a stage for each of several losses from its end. At some
epochs it fits linear probes to a few clean labels, layer by layer; at the end of each stage it spends the same labels
in other ways. It is a function of plain parameters, so that :func:`nls.runs.run_all` keeps and resumes it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import nn

from nls import _checks
from nls.activations import activations
from nls.data import Dataset, load_dataset
from nls.each import fit_each
from nls.easy import WAYS, mark_images, mixed_labels
from nls.grid import TRANSITIONS
from nls.loss_table import LOSSES
from nls.models import NETWORKS, predict_logits
from nls.noise import draw_noisy_labels
from nls.probes import CONTROLS, power_of, predictive_power, untrained
from nls.training import seeded_generator

NOISES = (*TRANSITIONS, *(f"picture_{way}" for way in WAYS))
"""Noises of a run, which are those of one matrix, or the class of the picture where a pixel tells the target."""

_WIDTH = 256
_HELD_OUT = 0.1


def image_mlp(num_classes: int, shape: tuple[int, ...], width: int = _WIDTH) -> nn.Sequential:
    """Return three hidden layers of ReLUs on the pixels of an image.

    Args:
        num_classes: K.
        shape: Of one image, (C, H, W).
        width: Units of a hidden layer.

    Returns:
        The network, initialised from torch's global generator.

    Examples:
        >>> image_mlp(10, (1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    sizes = (torch.Size(shape).numel(), width, width, width)
    # An image in channels_last order is flattened as it lies, which is the same order for every image.
    hidden = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, num_classes))


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    r"""Return how alike two representations of the same examples are, up to rotation and scale.

    .. math:: \frac{\lVert Y^\top X \rVert_F^2}{\lVert X^\top X \rVert_F \, \lVert Y^\top Y \rVert_F},
        \qquad \text{columns centred.}

    Args:
        first: X [n, D].
        second: Y [n, E].

    Returns:
        A number from 0 to 1, which is 1 for a rotation and a multiple of the same.

    Raises:
        ValueError: If the numbers of rows differ.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(linear_cka(x, -2 * x.flip(1)), 6)
        1.0

    References:
        Kornblith et al., 2019, arXiv:1905.00414.
    """
    if len(first) != len(second):
        raise ValueError(f"second must have {len(first)} rows as first, got {len(second)}")
    x, y = (values.double() - values.double().mean(0) for values in (first, second))
    return float((y.mT @ x).square().sum() / ((x.mT @ x).norm() * (y.mT @ y).norm()))


def layer_run(
    *,
    dataset: str = "digits_images",
    root: str | None = None,
    noise: str = "symmetric",
    noise_rate: float = 0.4,
    network: str = "cnn",
    methods: str = "r=0",
    seed: int = 0,
    num_examples: int = 0,
    num_test: int = 0,
    warmup_epochs: int = 0,
    epochs: int = 10,
    learning_rate: float = 0.05,
    stage_learning_rate: float = 0.0,
    augment: str | None = None,
    measured: str = "",
    per_class: str = "10",
    draws: int = 3,
    rescue: str = "",
    rescue_per_class: str = "",
    tuned_draws: int = 1,
) -> list[dict]:
    """Train one network with several losses on noisy labels, and probe its layers.

    The split's validation images are the pool of clean examples; a tenth of the training images validates, with noisy
    labels. No two parts share an image.

    Args:
        dataset: A set of images of :func:`nls.load_dataset`.
        root: Its folder, or None.
        noise: One of ``NOISES``.
        noise_rate: Share of wrong labels; for the pictures, the share of labels that are those of the picture.
        network: One of ``nls.models.NETWORKS``, or ``"mlp"``, see :func:`image_mlp`.
        methods: Losses of the stage, apart by spaces: ``"r=-0.8"``, or names of ``nls.loss_table.LOSSES``.
        seed: Draws split, noise, initialisation, order and the clean examples.
        num_examples: Training images, with those that validate; 0 for all.
        num_test: Test images; 0 for all.
        warmup_epochs: Epochs of cross entropy before the stage, once for all methods.
        epochs: Epochs of the stage.
        learning_rate: Of the warm-up, and of the stage if ``stage_learning_rate`` is 0; momentum is .9.
        stage_learning_rate: Of the stage.
        augment: As for :func:`nls.fit_each`.
        measured: Epochs at which layers are probed, apart by spaces; the last one always is.
        per_class: Clean examples of each class, numbers apart by spaces.
        draws: Draws of the clean examples, whose mean is reported.
        rescue: Other ways to spend them at the end, apart by spaces, see ``nls.probes.CONTROLS``.
        rescue_per_class: Clean examples of each class for these; as ``per_class`` if empty.
        tuned_draws: Draws for these.

    Returns:
        Rows with ``method`` (``"warm-up"`` until its end), ``epoch`` from 1, ``what``, ``layer``, ``depth`` (from 1;
        0 for the input, and for all that is no layer), ``per_class`` and ``accuracy`` on clean test labels. ``what``
        is ``"network"`` (after every epoch, with ``validation``, accuracy on noisy labels held out, and
        ``memorised``, the share of wrong training labels that it predicts), ``"probe"``, ``"input"`` and ``"random"``
        (of a network before training), one of ``rescue``, or ``"alike"``, whose number is no accuracy but
        :func:`linear_cka` of a layer at the end of the warm-up and of the stage.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name is unknown or a number is out of range.

    Examples:
        >>> rows = layer_run(network="mlp", num_examples=100, epochs=1, draws=1)
        >>> [(row["what"], row["layer"]) for row in rows][:3]
        [('network', 'output'), ('probe', '2'), ('probe', '4')]
    """
    data = _Split(dataset, root, noise, noise_rate, seed, num_examples, num_test)
    counts, spent = ([int(count) for count in text.split()] for text in (per_class, rescue_per_class or per_class))
    epochs_measured = {int(epoch) for epoch in measured.split()} | {warmup_epochs + epochs}
    controls = [_checks.choice(name, "rescue", CONTROLS) for name in rescue.split()]
    options = {
        "network": _builder(network, data), "num_classes": data.classes, "epochs": epochs, "augment": augment,
        "learning_rate": stage_learning_rate or learning_rate, "warmup_epochs": warmup_epochs, "weight_decay": 1e-4,
        "warmup_learning_rate": learning_rate if warmup_epochs else None, "seed": seed,
    }  # fmt: skip
    power = functools.partial(
        power_of, labels=data.pool_labels, test_labels=data.test_labels, per_class=counts, draws=draws,
        num_classes=data.classes, seed=seed,
    )  # fmt: skip
    rows, shared, start = [], {}, {}
    for method in methods.split():
        watch = _Watch(data, method, warmup_epochs, epochs_measured, power, rows, start)
        fit = fit_each(
            data.features, data.labels, shared_warmup=shared if warmup_epochs else None, evaluate=watch, **options,
            **_loss(method, data, seed),
        )  # fmt: skip
        if method == methods.split()[0]:
            watch.probe("input", "", 0, fit.network, ["input"])
            watch.probe("random", "", 0, untrained(fit.network, seed))
        else:
            controls = [name for name in controls if name != "scratch"]  # the same for every method
        if warmup_epochs:
            watch.compare(fit.network)
        if controls:
            last = warmup_epochs + epochs
            rows += _rescued(fit.network, data, controls, spent, tuned_draws, seed, method=method, epoch=last)
    return rows


def _rescued(
    network: nn.Module, data: _Split, controls: list[str], counts: list[int], draws: int, seed: int, **named: object
) -> list[dict]:
    """Return what the clean examples buy in other ways than by probes."""
    table = predictive_power(
        network, (data.pool, data.pool_labels), (data.test, data.test_labels), train=data.features, per_class=counts,
        draws=draws, layers=["penultimate"], controls=controls, num_classes=data.classes, seed=seed,
    )  # fmt: skip
    means = table[table["method"].isin(controls)].groupby(["method", "per_class"])["accuracy"].mean()
    return [
        _row(**named, what=what, layer="", depth=0, per_class=n, accuracy=mean) for (what, n), mean in means.items()
    ]


class _Split:
    """The parts of a data set in one run: noisy labels to train and validate on, a clean pool, a clean test set."""

    def __init__(
        self, name: str, root: str | None, noise: str, noise_rate: float, seed: int, num_examples: int, num_test: int
    ) -> None:
        _checks.choice(noise, "noise", NOISES)
        data: Dataset = load_dataset(name, root, seed)
        size = num_examples or len(data.train_labels)
        if not 10 <= size <= len(data.train_labels):
            raise ValueError(f"num_examples must be from 10 to {len(data.train_labels)}, or 0 for all, got {size}")
        self.classes = data.num_classes
        parts = {
            "train": (data.train_features[:size], data.train_labels[:size]),
            "pool": (data.validation_features, data.validation_labels),
            "test": (data.test_features[: num_test or None], data.test_labels[: num_test or None]),
        }
        way = noise.removeprefix("picture_")
        drawn, pictured = seeded_generator(seed, "train noise"), parts["train"][1]
        self.transition = TRANSITIONS[noise](self.classes, noise_rate) if noise in TRANSITIONS else None
        if self.transition is None:
            parts = {
                name: self._marked(*part, way, seeded_generator(seed, f"{name} pixels")) for name, part in parts.items()
            }
        features, clean = parts["train"]
        if self.transition is None:
            noisy, _ = mixed_labels(clean, pictured, noise_rate, drawn)
        else:
            noisy = draw_noisy_labels(clean, self.transition, drawn)
        held_out = int(_HELD_OUT * size)
        self.features, self.labels, self.clean = features[held_out:], noisy[held_out:], clean[held_out:]
        self.validation, self.validation_labels = features[:held_out], noisy[:held_out]
        self.pool, self.pool_labels = parts["pool"]
        self.test, self.test_labels = parts["test"]

    def _marked(self, images: torch.Tensor, labels: torch.Tensor, way: str, generator: torch.Generator) -> tuple:
        """Return images with a pixel that tells a class drawn anew, and that class."""
        told = torch.randint(self.classes, labels.shape, generator=generator)
        return mark_images(images, told, self.classes, way), told


class _Watch:
    """Called after every epoch of one method: measures the network, and at some epochs its layers."""

    def __init__(
        self,
        data: _Split,
        method: str,
        warmup: int,
        epochs: set[int],
        power: Callable,
        rows: list[dict],
        start: dict[str, torch.Tensor],
    ) -> None:
        self.data, self.method, self.warmup, self.epochs = data, method, warmup, epochs
        self.power, self.rows, self.start = power, rows, start

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Append rows, and return the accuracy on noisy labels, by which nothing is chosen here."""
        data, epoch = self.data, network.epoch
        method = "warm-up" if epoch <= self.warmup else self.method
        wrong = data.labels != data.clean
        accuracy = _accuracy(network, data.test, data.test_labels)
        extra = {
            "validation": _accuracy(network, data.validation, data.validation_labels),
            "memorised": _accuracy(network, data.features[wrong], data.labels[wrong]) if wrong.any() else None,
        }
        self.rows.append(_row(method, epoch, "network", "output", 0, 0, accuracy) | extra)
        if epoch in self.epochs:
            self.probe("probe", method, epoch, network)
        if epoch == self.warmup:
            self.start |= activations(network, data.test)
        return {"validation": extra["validation"]}

    def compare(self, network: nn.Module) -> None:
        """Append how alike the layers of the trained network and of the end of the warm-up are on test images."""
        for depth, (layer, values) in enumerate(activations(network, self.data.test).items(), 1):
            alike = linear_cka(self.start[layer], values)
            self.rows.append(_row(self.method, network.epoch, "alike", layer, depth, 0, alike))

    def probe(self, what: str, method: str, epoch: int, network: nn.Module, layers: list[str] | None = None) -> None:
        """Append the predictive power of layers."""
        pool, test = (activations(network, part, layers) for part in (self.data.pool, self.data.test))
        depth = {name: place for place, name in enumerate(pool, 0 if what == "input" else 1)}
        table = self.power({name: (pool[name], test[name]) for name in pool})
        for (layer, count), part in table.groupby(["layer", "per_class"], sort=False):
            self.rows.append(_row(method, epoch, what, layer, depth[layer], count, part["accuracy"].mean()))


def _row(
    method: str, epoch: int, what: str, layer: str, depth: int, per_class: int, accuracy: float
) -> dict[str, object]:
    found = {"method": method, "epoch": epoch, "what": what, "layer": layer, "depth": depth}
    return found | {"clean_per_class": int(per_class), "accuracy": round(float(accuracy), 6)}


def _accuracy(network: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> float:
    return float((predict_logits(network, features).argmax(1) == labels).double().mean())


def _builder(name: str, data: _Split) -> str | Callable[[], nn.Module]:
    if name == "mlp":
        return functools.partial(image_mlp, data.classes, tuple(data.features.shape[1:]))
    return _checks.choice(name, "network", ("mlp", *NETWORKS))


def _loss(method: str, data: _Split, seed: int) -> dict[str, object]:
    """Return the arguments of fit_each for a method."""
    if method.startswith("r="):
        return {"smooth_rate": float(method[2:])}
    rival = LOSSES[_checks.choice(method, "methods", tuple(LOSSES))]
    return {"loss": rival.make(len(data.labels), data.classes, None, data.transition, seed)}


def layer_study(root: str, seeds: int = 3, num_examples: int = 10_000) -> list[dict]:
    """Return the runs of the stored study of layers, the first seed of all first.

    The small CNN and an MLP on CIFAR-10 with four fifths of the labels drawn anew (72 % wrong), and with 80 % of the
    labels of five classes flipped to a class like them; on clean labels; and images whose pixel tells the class, where
    four fifths of the labels are those of the picture. A warm-up of 15 epochs of cross entropy, then five of each
    method.

    Args:
        root: Folder of ``cifar10.npz``.
        seeds: Number of seeds.
        num_examples: Training images, with those that validate.

    Returns:
        Parameters of :func:`layer_run`.

    Examples:
        >>> len(layer_study("data", seeds=1))
        7
    """
    common = {
        "dataset": "cifar10", "root": root, "num_examples": num_examples, "num_test": 5000, "warmup_epochs": 15,
        "epochs": 5, "learning_rate": 0.05, "stage_learning_rate": 0.005, "measured": "1 3 6 10 15",
        "per_class": "10 50 100", "draws": 3,
    }  # fmt: skip
    several = {"methods": "r=0 r=0.4 r=-0.8 elr gce", "rescue": "map fine-tune scratch", "rescue_per_class": "10 50"}
    cases = [
        ("cnn", "symmetric", 0.72, several), ("cnn", "cifar10_asymmetric", 0.8, several),
        ("mlp", "symmetric", 0.72, {}), ("mlp", "cifar10_asymmetric", 0.8, {}),
        ("cnn", "symmetric", 0.0, {}), ("cnn", "picture_colour", 0.8, {}), ("mlp", "picture_colour", 0.8, {}),
    ]  # fmt: skip
    return [
        common | {"network": network, "noise": noise, "noise_rate": rate, "seed": seed} | more
        for seed in range(seeds)
        for network, noise, rate, more in cases
    ]
