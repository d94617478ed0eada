"""Tables of what the advice found: rows to be stored, what following it gains, and how labels fare by sureness."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from nls import _checks
from nls.anchors import _places, _predictions, label_dependence

CASE = ["dataset", "noise", "noise_rate"]
"""Columns that name a case of :func:`nls.advice_study.advice_study`."""

_SAME = ["num_examples", "networks", "epochs", "resamples", "root", "folds", "learning_rate", "seconds"]


def advice_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a study as they are stored: without what is the same in all, yes and no as 1 and 0.

    Args:
        rows: Of :func:`nls.runs.run_all`, with the function ``advice_run`` or ``human_run`` of
            :mod:`nls.advice_study`.

    Returns:
        Rows for :func:`nls.save_results`; a column ``label_set`` becomes ``dataset``.

    Examples:
        >>> rows = pd.DataFrame({"label_set": ["worst"], "use": [False], "seconds": [1.0]})
        >>> advice_table(rows).to_dict("records")
        [{'dataset': 'worst', 'use': 0.0}]
    """
    table = rows.drop(columns=[name for name in _SAME if name in rows]).rename(columns={"label_set": "dataset"})
    answers = [name for name in ("use", "feasible", "depends_on_example") if name in table]
    return table.assign(**{name: table[name].astype(float) for name in answers})


def follow_advice(study: pd.DataFrame) -> pd.DataFrame:
    """Return what networks reach at rate 0, at the advised rate, by following the advice, and at the best rate.

    To follow is to take the advised rate where the advice says so, and rate 0 where it does not. The best rate of a
    case is that of the grid with the best mean over its seeds, on clean test labels: nobody without them knows it.

    Args:
        study: Rows of :func:`nls.advice_study.advice_run`, with their parameters.

    Returns:
        One row for each case and seed: ``use``, ``smooth_rate``, and for ``accuracy`` and ``nll`` the values
        ``_zero``, ``_advised`` (that of rate 0 where the advice finds no rate), ``_follow`` and ``_best``, and the rate
        ``_rate`` that is best.

    Raises:
        ValueError: If a network has no log loss or a case no network at rate 0.

    Examples:
        >>> from nls.advice_study import advice_run
        >>> run = {"dataset": "wine", "noise": "symmetric", "noise_rate": 0.2, "classifier": "bayes", "seed": 0}
        >>> rows = pd.DataFrame([run | row for row in advice_run(**run, epochs=1, resamples=20)])
        >>> found = follow_advice(rows)
        >>> bool(found["nll_best"][0] <= found["nll_zero"][0])
        True
    """
    key = [*CASE, "seed"]
    networks = study[study["what"] == "network"].set_index(key)
    grid = networks[networks["method"] == "grid"].set_index("smooth_rate", append=True)[["accuracy", "nll"]].unstack()
    if grid.isna().any(axis=None) or ("nll", 0.0) not in grid:
        raise ValueError("study must have accuracy and nll of each network, and one at rate 0, got other rows")
    asked = study[(study["what"] == "estimate") & (study["method"] == "advice")].set_index(key).loc[grid.index]
    at_rate = networks[networks["method"] == "advice"][["accuracy", "nll"]].reindex(grid.index)
    found = asked[["use", "smooth_rate"]].astype(float)
    for value in ("accuracy", "nll"):
        means = grid[value].groupby(level=CASE).mean()
        best = means.idxmax(axis=1) if value == "accuracy" else means.idxmin(axis=1)
        zero = grid[value, 0.0]
        found[f"{value}_zero"] = zero
        found[f"{value}_advised"] = at_rate[value].fillna(zero)
        found[f"{value}_follow"] = found[f"{value}_advised"].where(found["use"] == 1, zero)
        found[f"{value}_rate"] = [best.loc[case[:-1]] for case in grid.index]
        found[f"{value}_best"] = [
            grid.loc[case, (value, rate)] for case, rate in zip(grid.index, found[f"{value}_rate"], strict=True)
        ]
    return found.reset_index()


def surest_disagreement(
    probabilities: torch.Tensor, noisy_labels: torch.Tensor, shares: Sequence[float]
) -> list[tuple[float, int]]:
    r"""Return how often label and prediction disagree among the surest examples of each predicted class.

    Args:
        probabilities: Out of sample [n, K].
        noisy_labels: [n].
        shares: Each in (0, 1].

    Returns:
        For each share the rate of disagreement, not a number without examples, and the number of examples.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit or a value is out of range.

    Examples:
        >>> surest_disagreement(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]), [0.5, 1.0])
        [(0.0, 1), (0.5, 2)]
    """
    model, labels = _predictions(probabilities, noisy_labels)
    predicted, place = _places(model)
    wrong = labels != predicted
    inside = [wrong[place <= _checks.number(share, "shares", low=0.0, high=1.0)].double() for share in shares]
    return [(float(part.mean()), len(part)) for part in inside]


def surest_dependence(probabilities: torch.Tensor, noisy_labels: torch.Tensor, shares: Sequence[float]) -> list[float]:
    r"""Return :func:`nls.anchors.label_dependence` among the surest examples of each predicted class.

    Args:
        probabilities: Out of sample [n, K].
        noisy_labels: [n].
        shares: Each in (0, 1], large enough for two examples.

    Returns:
        z for each share.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a shape does not fit or a value is out of range.

    Examples:
        >>> probabilities = torch.tensor([[0.8, 0.2, 0.0], [0.8, 0.0, 0.2], [0.6, 0.3, 0.1], [0.6, 0.1, 0.3]])
        >>> [round(z, 2) for z in surest_dependence(probabilities, torch.tensor([1, 2, 1, 2]), [0.5, 1.0])]
        [1.0, 1.64]
    """
    model, labels = _predictions(probabilities, noisy_labels)
    _, place = _places(model)
    inside = [place <= _checks.number(share, "shares", low=0.0, high=1.0) for share in shares]
    return [label_dependence(model[rows], labels[rows]) for rows in inside]
