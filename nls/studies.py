r"""The grids of the book's image experiments, by name: the same cells on a laptop, on Colab and on a large GPU.

A chapter reads the stored results of a study and trains a small one beside them; ``python book/study.py NAME`` trains
what is missing of one. Each function says its protocol. The data are CIFAR-10 in a folder of your own, and the human
labels of CIFAR-10N beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd

from nls import _checks
from nls.grid import HUMAN_NOISE, Cell, Grid
from nls.store import load_results

RATES = (0.6, 0.4, 0.0, -0.4, -0.8, -2.0, -6.0)
"""Smooth rates of the studies. They are label smoothing, cross entropy, the exact corrections of 40 and 60 % symmetric
noise (-.8 and -2), and the paper's best at 60 %."""

NOISES = (
    ("symmetric", 0.0), ("symmetric", 0.2), ("symmetric", 0.4), ("symmetric", 0.6), ("cifar10_asymmetric", 0.3),
    ("cifar10n_aggregate", 0.0), ("cifar10n_random1", 0.0), ("cifar10n_worst", 0.0),
)  # fmt: skip
"""Noises of the small study, with their rates; human labels have the rate that they have."""

HARD = (("symmetric", 0.4), ("symmetric", 0.6), ("cifar10n_worst", 0.0))
"""The three noises that every study has."""

RIVALS = ("forward", "backward", "peer", "gce", "sce", "elr", "active_passive", "confidence_penalty")
"""The other losses, each at its usual parameter; the corrections by the true matrix, forward also by an estimate."""

_CIFAR = {"dataset": "cifar10", "from_root": True}
_TAIL = {"batch_size": 128, "weight_decay": 1e-4}


def _over(noises: Iterable[tuple[str, float]], seeds: Iterable[int], **factors: object) -> Grid:
    seeds = list(seeds)
    return sum(Grid(noise=noise, noise_rate=rate, seed=seeds, **factors) for noise, rate in noises)


def small(seeds: int = 3, num_examples: int = 10_000, warmup_epochs: int = 15, epochs: int = 5) -> Grid:
    r"""Return the small study: 10,000 images, the small CNN, a shared warm-up, then each loss.

    Warm-up of 15 epochs of cross entropy, SGD with momentum .9, step .05, crops and flips; then 5 epochs of the loss
    with a fresh optimiser and step .001. All rates and losses of a noise and seed start from the same network, r = 0
    among them. Rates also in the form that is divided by 1 - r, which takes away that 1 - r multiplies the step.

    Args:
        seeds: Number of seeds.
        num_examples: Images that train and validate.
        warmup_epochs: Epochs of the warm-up.
        epochs: Epochs of the loss.

    Returns:
        The grid.

    Examples:
        >>> len(small()), len({cell.stack_key for cell in small()})
        (480, 24)
    """
    common = _CIFAR | _TAIL | {
        "num_examples": num_examples, "network": "cnn", "optimizer": "sgd", "augment": "crop_flip",
        "learning_rate": 0.001, "warmup_learning_rate": 0.05, "warmup_epochs": warmup_epochs, "epochs": epochs,
    }  # fmt: skip
    return (
        _over(NOISES, range(seeds), smooth_rate=list(RATES), **common)
        + _over(NOISES, range(seeds), smooth_rate=[0.4, -0.8, -2.0, -6.0], normalized=True, **common)
        + _over(NOISES, range(seeds), loss=list(RIVALS), **common)
        + _over(NOISES, range(seeds), loss="forward", transition="estimated", **common)
    )


def released(seeds: int = 3, num_examples: int = 10_000, warmup_epochs: int = 15, epochs: int = 10) -> Grid:
    r"""Return the released recipe, shortened, with the controls that it lacks: r = 0 and r > 0 from the same start.

    Warm-up by plain SGD, step .1, .01 and .001 for a third each; the loss takes over from the epoch that is best on
    the clean test set, at a constant step of 1e-6. Small CNN, as :func:`small`. The original takes 35,200 steps of
    1e-6, and ten epochs here take 710: so the stage is there a second time, of half the length at step 1e-4, where
    steps times step size are what they are in the original. The stage at 1e-6 also starts from the best epoch on noisy
    validation.

    Args:
        seeds: Number of seeds.
        num_examples: Images that train and validate.
        warmup_epochs: Epochs of the warm-up, 120 in the original.
        epochs: Epochs of the loss at step 1e-6, 100 in the original.

    Returns:
        The grid.

    Examples:
        >>> sorted({(cell.warmup_pick, cell.learning_rate) for cell in released()}), len(released())
        ([('clean_test', 1e-06), ('clean_test', 0.0001), ('noisy_validation', 1e-06)], 153)
    """
    common = _CIFAR | _TAIL | {
        "warmup_schedule": "thirds", "warmup_learning_rate": 0.1, "momentum": 0.0, "num_examples": num_examples,
        "network": "cnn", "optimizer": "sgd", "augment": "crop_flip", "warmup_epochs": warmup_epochs,
    }  # fmt: skip
    rates = [0.4, 0.0, -0.4, -0.8, -2.0, -6.0]
    literal = {"learning_rate": 1e-6, "epochs": epochs, "warmup_pick": ["clean_test", "noisy_validation"]}
    as_far = {"learning_rate": 1e-4, "epochs": -(-epochs // 2), "warmup_pick": "clean_test"}
    return _over(HARD, range(seeds), smooth_rate=rates, **common, **literal) + _over(
        HARD, range(seeds), smooth_rate=[rate for rate in rates if rate != -0.4], **common, **as_far
    )


def memorising(seeds: int = 3, num_examples: int = 10_000, epochs: int = 50) -> Grid:
    r"""Return the long runs: ResNet-9 on 10,000 images without augmentation, every loss from the start.

    The released direct recipe, shortened: Nesterov momentum .9, step .1, a tenth of it from half of the epochs and a
    hundredth from three quarters on. Without crops and flips the network can learn every wrong label by heart.

    Args:
        seeds: Number of seeds.
        num_examples: Images that train and validate.
        epochs: Epochs, 200 in the original.

    Returns:
        The grid.

    Examples:
        >>> len(memorising())
        63
    """
    common = _CIFAR | _TAIL | {
        "num_examples": num_examples, "network": "resnet9", "optimizer": "nesterov", "learning_rate": 0.1,
        "schedule": "step", "epochs": epochs,
    }  # fmt: skip
    rates = _over(HARD, range(seeds), smooth_rate=[0.4, 0.0, -0.4, -0.8, -2.0], **common)
    return rates + _over(HARD, range(seeds), loss=["gce", "elr"], **common)


def large(seeds: int = 3, warmup_epochs: int = 40, epochs: int = 20) -> Grid:
    r"""Return the large study: ResNet-9 on all 45,000 training images, 60 epochs, a shared warm-up.

    Warm-up of 40 epochs of cross entropy, Nesterov momentum .9, step .1, .01 and .001 for a third each, crops and
    flips; then 20 epochs of the loss at step .001.

    Args:
        seeds: Number of seeds.
        warmup_epochs: Epochs of the warm-up.
        epochs: Epochs of the loss.

    Returns:
        The grid, in the order in which a short lease should train it.

    Examples:
        >>> len(large()), len({cell.stack_key for cell in large()})
        (72, 12)
    """
    common = _CIFAR | _TAIL | {
        "network": "resnet9", "optimizer": "nesterov", "augment": "crop_flip", "learning_rate": 0.001,
        "warmup_learning_rate": 0.1, "warmup_schedule": "thirds", "warmup_epochs": warmup_epochs, "epochs": epochs,
    }  # fmt: skip
    noises = (("symmetric", 0.6), ("cifar10n_worst", 0.0), ("cifar10_asymmetric", 0.3), ("symmetric", 0.4))
    rates = [0.4, 0.0, -0.8, -2.0, -6.0]
    return sum(
        _over(noises, [seed], smooth_rate=rates, **common) + _over(noises, [seed], loss="forward", **common)
        for seed in range(seeds)
    )


def paper(seeds: int = 3) -> Grid:
    r"""Return the released recipes at full length: ResNet-34 on all images, 200 epochs, or 120 and then 100.

    Direct: batches of 128, Nesterov momentum .9, step .1, .01 and .001 for 100, 50 and 50 epochs. Warm-up: plain SGD,
    step .1, .01 and .001 for 40 epochs each, then the best epoch on the clean test set and 100 epochs at step 1e-6.

    Args:
        seeds: Number of seeds.

    Returns:
        The grid.

    Examples:
        >>> len(paper(1))
        16
    """
    common = _CIFAR | _TAIL | {"network": "resnet34", "augment": "crop_flip"}
    noises, rates = (("symmetric", 0.6), ("cifar10n_worst", 0.0)), [0.4, 0.0, -4.0, -6.0]
    direct = {"optimizer": "nesterov", "learning_rate": 0.1, "schedule": "step", "epochs": 200}
    warmed = {
        "optimizer": "sgd", "momentum": 0.0, "learning_rate": 1e-6, "epochs": 100, "warmup_learning_rate": 0.1,
        "warmup_schedule": "thirds", "warmup_epochs": 120, "warmup_pick": "clean_test",
    }  # fmt: skip
    return _over(noises, range(seeds), smooth_rate=rates, **common, **direct) + _over(
        noises, range(seeds), smooth_rate=rates, **common, **warmed
    )


STUDIES: dict[str, Callable[..., Grid]] = {
    "cifar10_small": small,
    "cifar10_released": released,
    "cifar10_memorising": memorising,
    "cifar10_large": large,
    "cifar10_paper": paper,
}
"""Every study by the name of its folder in ``book/results``."""


def study(name: str, **changes: int) -> Grid:
    """Return the grid of a study, as stored or with other sizes.

    Args:
        name: One of ``STUDIES``.
        changes: Arguments of its function.

    Returns:
        The grid.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> len(study("cifar10_small", seeds=1))
        160
    """
    return STUDIES[_checks.choice(name, "name", tuple(STUDIES))](**changes)


def load_study(name: str, **changes: int) -> pd.DataFrame:
    """Return the stored results of a study, one row for each cell of its grid, trained or not.

    Args:
        name: One of ``STUDIES``.
        changes: Arguments of its function, if other sizes are stored.

    Returns:
        The columns of :func:`nls.run_grid`, with ``state`` (``"done"``, ``"diverged"`` or ``"missing"``),
        ``noise_name`` (see :func:`noise_name`) and ``method`` (see :func:`method_name`); of a missing cell the factors
        only.

    Raises:
        ValueError: If the name is unknown, nothing is stored, or a stored row belongs to no cell of the grid.

    Examples:
        >>> table = load_study("cifar10_large")
        >>> len(table), sorted(table["state"].unique())
        (72, ['done', 'missing'])
    """
    grid, stored = study(name, **changes), load_results(name).drop(columns="file")
    factors = pd.DataFrame(
        {
            "id": cell.id, "noise_name": noise_name(cell), "method": method_name(cell), "smooth_rate": cell.smooth_rate,
            "seed": cell.seed, "noise": cell.noise, "noise_rate": cell.noise_rate, "loss": cell.loss,
            "normalized": cell.normalized, "learning_rate": cell.learning_rate, "warmup_pick": cell.warmup_pick,
        }
        for cell in grid
    )  # fmt: skip
    foreign = set(stored["id"]) - set(factors["id"])
    if foreign:
        raise ValueError(f"{name} must hold cells of its grid only, got {len(foreign)} others, such as {min(foreign)}")
    added = stored.columns.difference(factors.columns).tolist()
    table = factors.merge(stored[["id", *added]], on="id", how="left")
    return table.assign(state=table["state"].fillna("missing"))


def load_curves(name: str) -> pd.DataFrame:
    """Return the stored curves of a study: what was measured after each epoch, with the columns that name the cell.

    Args:
        name: One of ``STUDIES``.

    Returns:
        Columns ``id``, ``epoch`` from 1 (the warm-up counts), each metric, and ``noise_name``, ``method``,
        ``smooth_rate``, ``seed``, ``learning_rate`` and ``warmup_pick``.

    Raises:
        ValueError: As :func:`load_study`.

    Examples:
        >>> load_curves("cifar10_large").groupby("seed")["epoch"].max().tolist()
        [60, 60, 60]
    """
    names = ["id", "method", "smooth_rate", "seed", "learning_rate", "warmup_pick"]
    return load_results(f"{name}_curves").drop(columns="file").merge(load_study(name)[names], on="id")


def noise_name(cell: Cell) -> str:
    """Return how the noise of a cell is called in files and tables: its kind, and its rate where that is drawn.

    Args:
        cell: A cell.

    Returns:
        Such as ``"symmetric_0.4"`` or ``"cifar10n_worst"``.

    Examples:
        >>> noise_name(Cell("cifar10", noise_rate=0.4)), noise_name(Cell("cifar10", noise="cifar10n_worst"))
        ('symmetric_0.4', 'cifar10n_worst')
    """
    return cell.noise if cell.noise in HUMAN_NOISE else f"{cell.noise}_{cell.noise_rate:g}"


def method_name(cell: Cell) -> str:
    """Return how a method is called in the tables of the studies: its loss and rate.

    Args:
        cell: A cell.

    Returns:
        Such as ``"r = -0.8"``, ``"r = -0.8, normalised"``, ``"forward, estimated"`` or ``"gce"``.

    Examples:
        >>> method_name(Cell("cifar10", from_root=True, smooth_rate=-0.8))
        'r = -0.8'
    """
    if cell.loss == "gls":
        return f"r = {cell.smooth_rate:g}" + ", normalised" * cell.normalized
    return cell.loss + ", estimated" * (cell.transition == "estimated")
