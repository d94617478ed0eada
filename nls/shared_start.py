r"""Compare smooth rates on labels that come noisy: one warm-up with cross entropy, then a stage for each rate.

For data whose noise nobody drew, such as Clothing1M or your own: nothing here asks for a noise rate or a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import nn

from nls import _checks
from nls.data import Dataset
from nls.each import fit_each
from nls.grid import Cell
from nls.measure import Measure
from nls.models import predict_logits


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


def pick_epochs(curves: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Return one row for each rate: the last epoch of its stage, or the best by a column, of equal ones the first.

    Args:
        curves: As :func:`train_from_shared_start` returns them; of the warm-up, nothing is picked.
        rule: ``"last"``, or one of ``"noisy_validation"``, ``"clean_validation"``, ``"clean_test"``.

    Returns:
        The rows, by rate.

    Raises:
        ValueError: If the rule is unknown, or names a column that is not there.
    """
    _checks.choice(rule, "rule", ("last", *(name for name in curves if name.endswith(("_validation", "_test")))))
    stages = curves[curves["smooth_rate"].notna()].groupby("smooth_rate")
    places = stages["epoch"].idxmax() if rule == "last" else stages[rule].idxmax()
    return curves.loc[places].set_index("smooth_rate")


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
