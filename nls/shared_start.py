r"""Compare smooth rates on labels that come noisy: one warm-up with cross entropy, then a stage for each rate.

For data whose noise nobody drew, such as Clothing1M or your own: nothing here asks for a noise rate or a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from nls import _checks
from nls.clothing import NUM_CLASSES
from nls.data import Dataset, load_dataset
from nls.each import fit_each
from nls.grid import Cell
from nls.measure import Measure
from nls.models import predict_logits

RULES = ("noisy_validation", "clean_validation", "clean_test")
"""Labels by which an epoch can be picked."""


def train_from_shared_start(
    data: Dataset,
    rates: Sequence[float],
    *,
    seed: int,
    clean: tuple[torch.Tensor, torch.Tensor] | None = None,
    **settings: object,
) -> pd.DataFrame:
    r"""Train one stage for each rate r from the end of one warm-up with cross entropy, and measure every epoch.

    A stage minimises :math:`\ell_r / (1 - r)`, so that a step at any rate pulls on the label as hard as one of
    cross entropy does; without the division a stage at r = -4 takes steps five times as long.

    Args:
        data: Training and validation labels may be noisy; test labels are taken for clean.
        rates: Smooth rates below 1, all different.
        seed: Draws initialisation and order, at least 0; shared by all rates.
        clean: Features and labels of a small set that was checked by hand, to be validated on as well, or None.
        settings: Passed to :func:`nls.fit_each`, such as ``network``, ``warmup_epochs`` (at least 1), ``epochs``,
            ``learning_rate`` and ``device``.

    Returns:
        A table with a row for each epoch: ``smooth_rate`` and ``epoch`` (not a number and 1, 2, ... for the warm-up,
        which is there once; counted from 1 again in a stage), ``train_loss``, ``noisy_validation``, ``clean_test``
        and, with ``clean``, ``clean_validation`` (accuracies), and on the test split ``nll``, ``ece``,
        ``confidence_right`` and ``confidence_wrong``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a rate is 1 or more, comes twice, or a setting is out of range.
    """
    if not rates or len(set(rates)) < len(rates):
        raise ValueError(f"rates must hold different numbers, at least one, got {list(rates)}")
    numbers = [_checks.number(rate, "rates", high=1.0, open_high=True) for rate in rates]
    warmup = _checks.integer(settings.get("warmup_epochs", 0), "warmup_epochs", low=1)
    rows, shared = [], {}
    for rate in numbers:
        fit = fit_each(
            data.train_features,
            data.train_labels,
            rate,
            num_classes=data.num_classes,
            loss_scale=1 / (1 - rate),
            seed=seed,
            shared_warmup=shared,
            evaluate=_evaluation(data, clean),
            **settings,
        )
        curves = pd.DataFrame({name: values.numpy() for name, values in fit.curves.items()})
        curves.insert(0, "epoch", [*range(1, warmup + 1), *range(1, len(curves) - warmup + 1)])
        curves.insert(0, "smooth_rate", [float("nan")] * warmup + [rate] * (len(curves) - warmup))
        rows.append(curves[warmup if rows else 0 :])
    return pd.concat(rows, ignore_index=True)


def pick_epochs(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the epoch that each rule picks, of the warm-up and of each stage.

    Args:
        curves: As :func:`train_from_shared_start` returns them, or several of these with a column ``seed``.

    Returns:
        A table with a row for each rule, seed, stage and rate: ``rule`` (``"last"``, or the column by which the epoch
        is the best, of equal ones the first: ``"noisy_validation"``, ``"clean_test"`` and, where it is there,
        ``"clean_validation"``), ``stage`` (``"warm-up"``, whose rate is 0, or ``"rate"``), and what was measured at
        the end of that epoch. Where numbers stopped being finite, an earlier epoch is picked.

    Examples:
        >>> nan = float("nan")
        >>> curves = pd.DataFrame({"smooth_rate": [nan, 0.4, 0.4], "epoch": [1, 1, 2], "clean_test": [1, 3, 2]})
        >>> pick_epochs(curves).query("stage == 'rate'")[["rule", "epoch", "clean_test"]].values.tolist()
        [['last', 2, 2], ['clean_test', 1, 3]]
    """
    stage = curves["smooth_rate"].isna().map({True: "warm-up", False: "rate"})
    table = curves.assign(stage=stage, smooth_rate=curves["smooth_rate"].fillna(0.0)).reset_index(drop=True)
    keys = [name for name in ("seed", "stage", "smooth_rate") if name in table]
    picked = []
    for rule in ("last", *RULES):
        if rule == "last" or rule in table:
            score = table["epoch"] if rule == "last" else table[rule].fillna(-1.0)
            places = score.groupby([table[key] for key in keys]).idxmax()
            picked.append(table.loc[places].assign(rule=rule))
    return pd.concat(picked, ignore_index=True)


def clothing_curves(
    roots: Mapping[int, str | Path],
    rates: Sequence[float],
    *,
    num_examples: int | None,
    image_size: int,
    **settings: object,
) -> pd.DataFrame:
    """Train from shared starts on Clothing1M, or on sets in its layout.

    Args:
        roots: Seed to the folder of its set, which may be the same for all; the seed draws the images taken, the
            held-out tenth, the initialisation and the order.
        rates: As for :func:`train_from_shared_start`.
        num_examples: Images with noisy labels to take for each seed; all if None.
        image_size: Height and width.
        settings: As for :func:`train_from_shared_start`.

    Returns:
        The curves with a column ``seed``. Images of ``clean_val`` are the small clean set.
    """
    tables = []
    for seed, root in roots.items():
        data = load_dataset("clothing1m", root, seed, num_examples=num_examples, image_size=image_size)
        # Of its training images as few as can be: they are not needed.
        checked = load_dataset("clothing1m_clean", root, seed, num_examples=10 * NUM_CLASSES, image_size=image_size)
        clean = checked.validation_features, checked.validation_labels
        tables.append(train_from_shared_start(data, rates, seed=seed, clean=clean, **settings).assign(seed=seed))
    return pd.concat(tables, ignore_index=True)


def _evaluation(data: Dataset, clean: tuple[torch.Tensor, torch.Tensor] | None) -> Callable[[nn.Module], dict]:
    """Return what measures a network after an epoch."""
    measure = Measure([Cell(data.name)], data, data.validation_labels[None], [None], torch.device("cpu"))
    names = {"validation_accuracy": "noisy_validation", "accuracy": "clean_test"}

    def evaluate(network: nn.Module) -> dict[str, float]:
        held_out, test = (
            predict_logits(network, part).cpu() for part in (data.validation_features, data.test_features)
        )
        measured = measure(held_out.T[None], test.T[None], slice(0, 1))
        kept = ("validation_accuracy", "accuracy", "nll", "ece", "confidence_right", "confidence_wrong")
        found = {names.get(name, name): float(measured[name]) for name in kept}
        if clean is not None:
            features, labels = clean
            hits = predict_logits(network, features).cpu().argmax(1) == labels.cpu()
            found["clean_validation"] = float(hits.double().mean())
        return found

    return evaluate
