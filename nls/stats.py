"""Means with intervals: the one way in which this book reports an effect."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from nls import _checks


@dataclass(frozen=True)
class Interval:
    """A mean with its t interval.

    Attributes:
        mean: The sample mean.
        low: Lower end.
        high: Upper end.
        n: Number of values; with n = 1 the ends are not a number and no verdict is given.
        level: Confidence level.
        missing: Runs left out because they had no value, such as diverged ones.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95
    missing: int = 0

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero; False for n = 1."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below zero; False for n = 1."""
        return self.high < 0

    def __str__(self) -> str:
        missing = f", {self.missing} missing" if self.missing else ""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] (n={self.n}{missing})"


def mean_interval(values: ArrayLike, *, level: float = 0.95, test_ratio: float = 0.0) -> Interval:
    r"""Return the mean of ``values`` with its t interval.

    :math:`\bar v \pm t_{n-1}\, s \sqrt{1/n + \rho}`, with s the sample standard deviation. :math:`\rho = 0` is the
    usual interval for independent runs, such as fresh samples of a generator. Repeated splits of one data set overlap
    and are not independent: for them pass ``test_ratio`` = test size / training size (1/3 for 60/20/20), the correction
    of Nadeau and Bengio.

    Args:
        values: [n], finite, n at least 1; for a paired comparison the differences.
        level: In (0, 1).
        test_ratio: :math:`\rho`, at least 0.

    Returns:
        The mean and the ends of the interval; the ends are not a number for n = 1.

    Raises:
        TypeError: If ``level`` or ``test_ratio`` is not a number.
        ValueError: If ``values`` is empty or not finite, or a number is out of range.

    Examples:
        >>> print(mean_interval([1.0, 2.0, 3.0]))
        +2.000 [-0.484, +4.484] (n=3)

    References:
        Nadeau and Bengio 2003, Inference for the generalization error, doi 10.1023/A:1024068626366.
    """
    array = np.asarray(values.detach() if hasattr(values, "detach") else values, dtype=float).ravel()
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(
            f"values must hold at least one number, all finite, got {len(array)} values, "
            f"{int((~np.isfinite(array)).sum())} of them not finite"
        )
    level = _checks.number(level, "level", low=1e-9, high=1 - 1e-9)
    test_ratio = _checks.number(test_ratio, "test_ratio", low=0.0)
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1, level)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * array.std(ddof=1) * math.sqrt(1 / n + test_ratio))
    return Interval(mean, mean - half, mean + half, n, level)


def paired_interval(
    table: pd.DataFrame,
    value: str,
    factor: str,
    first: object,
    second: object,
    *,
    level: float = 0.95,
    test_ratio: float = 0.0,
) -> Interval:
    """Return the interval of ``value`` at ``first`` minus ``value`` at ``second``, paired by seed.

    Args:
        table: Rows of :func:`nls.run_grid`, in which ``factor`` and ``seed`` together name a row.
        value: The column to compare, such as ``"accuracy_last"``.
        factor: The column that tells the two apart, such as ``"smooth_rate"``.
        first: Its level on the left of the minus sign.
        second: Its level on the right.
        level: See :func:`mean_interval`.
        test_ratio: See :func:`mean_interval`.

    Returns:
        The interval of the mean difference over the seeds that have both; ``missing`` counts the others.

    Raises:
        ValueError: If a column is missing, a seed has several rows at one level, or no seed has both levels.

    Examples:
        >>> table = pd.DataFrame({"seed": [0, 0, 1, 1], "rate": [0.0, -1.0] * 2, "accuracy": [0.7, 0.8, 0.6, 0.8]})
        >>> round(paired_interval(table, "accuracy", "rate", -1.0, 0.0).mean, 3)
        0.15
    """
    sides = []
    _need_columns(table, value, factor, "seed")
    for side in (first, second):
        rows = table[table[factor] == side].set_index("seed")[value]
        if rows.index.has_duplicates:
            raise ValueError(
                f"table must have one row for each seed at {factor}={side!r}; filter it by the other factors"
            )
        sides.append(rows)
    difference = (sides[0] - sides[1]).dropna()
    if difference.empty:
        raise ValueError(f"table must have a seed with both {factor}={first!r} and {factor}={second!r}, got none")
    found = mean_interval(difference, level=level, test_ratio=test_ratio)
    return replace(found, missing=len(sides[0].index.union(sides[1].index)) - found.n)


def tied_levels(
    table: pd.DataFrame, value: str, factor: str, *, level: float = 0.95, test_ratio: float = 0.0
) -> tuple[float, list[float]]:
    """Return the level of ``factor`` with the best mean, and all levels that the runs cannot tell from it.

    A level is tied with the best one if the interval of their paired difference contains zero.

    Args:
        table: Rows in which ``factor`` and ``seed`` together name a row.
        value: The column to maximise.
        factor: A column of numbers, such as ``"smooth_rate"``.
        level: See :func:`mean_interval`.
        test_ratio: See :func:`mean_interval`.

    Returns:
        The best level, and the sorted tied levels, the best one among them. With a single seed all are tied.

    Raises:
        ValueError: If a column or a value is missing: a level whose bad runs diverged would look better than it is.

    Examples:
        >>> table = pd.DataFrame({"seed": [0, 1, 0, 1], "rate": [0, 0, -1, -1], "accuracy": [0.7, 0.7, 0.8, 0.9]})
        >>> tied_levels(table, "accuracy", "rate")
        (-1.0, [-1.0, 0.0])
    """
    _need_columns(table, value, factor, "seed")
    means = table.groupby(factor)[value].mean()
    if table[value].isna().any():
        raise ValueError(f"{value} must have a value in every row, got {int(table[value].isna().sum())} without one")
    best = float(means.idxmax())
    gaps = {
        other: paired_interval(table, value, factor, best, other, level=level, test_ratio=test_ratio)
        for other in means.index
    }
    return best, sorted(float(other) for other, gap in gaps.items() if not gap.low > 0)


def select_by_validation(table: pd.DataFrame, rule: str = "noisy_validation") -> pd.DataFrame:
    """Return, for each seed, the row with the best noisy validation accuracy: how one tunes without clean labels.

    Args:
        table: Rows of :func:`nls.run_grid` that differ in what is tuned; of equal rows the first is taken.
        rule: Which epoch's validation accuracy counts: ``"noisy_validation"``, or ``"last"``.

    Returns:
        One row for each seed.

    Raises:
        ValueError: If a column is missing, or ``rule`` is unknown.

    Examples:
        >>> table = pd.DataFrame({"seed": [0, 0], "validation_accuracy_noisy_validation": [0.6, 0.7], "rate": [0, -1]})
        >>> select_by_validation(table)["rate"].tolist()
        [-1]
    """
    column = f"validation_accuracy_{_checks.choice(rule, 'rule', ('noisy_validation', 'last'))}"
    _need_columns(table, "seed", column)
    table = table.reset_index(drop=True)
    accuracy = table[column]
    return table.loc[accuracy.groupby(table["seed"]).idxmax()]


def _need_columns(table: pd.DataFrame, *names: str) -> None:
    """Raise unless ``table`` is a table with these columns."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a pandas DataFrame, got {type(table).__name__}")
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"table must have the columns {', '.join(map(repr, missing))}, got {', '.join(table.columns)}")
