"""Comparing methods over data sets: ranks, tests that count each set once, and what so few sets can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import stats

from nls import _checks
from nls.stats import Interval, mean_interval

TOLERANCE = 1e-9
"""Values no further apart than this count as equal, since a sum in another order must not break a tie."""


class Friedman(NamedTuple):
    """What :func:`friedman_test` found: two statistics for one hypothesis, each with its p value."""

    chi2: float
    chi2_p: float
    f: float
    f_p: float


class SignedRank(NamedTuple):
    """What :func:`signed_rank_test` found: the sum of the ranks of positive differences, its p value, their number."""

    statistic: float
    p: float
    n: int


def mean_ranks(table: pd.DataFrame, *, higher_is_better: bool = True, tolerance: float = TOLERANCE) -> pd.Series:
    r"""Return the mean over data sets of each method's rank; the best method of a set has rank 1, ties share a mean.

    .. math:: \bar R_j = \frac1n \sum_{i=1}^n R_{ij}

    Args:
        table: One row for each of n data sets, one column for each of k methods, all finite: one number for each pair,
            such as the mean over seeds. Runs of one set are no further sets.
        higher_is_better: Whether the largest value has rank 1.
        tolerance: Values of a set that are no further apart count as equal. Give more than the rounding of stored
            numbers.

    Returns:
        The mean ranks, from 1 to k, in the order of the columns; they sum to k (k + 1) / 2.

    Raises:
        TypeError: If ``table`` is no table.
        ValueError: If it has fewer than two methods, a set or method twice, or a value that is not finite.

    Examples:
        >>> table = pd.DataFrame({"ce": [0.9, 0.8, 0.7], "ls": [0.9, 0.7, 0.6]}, index=["a", "b", "c"])
        >>> mean_ranks(table).round(3).to_dict()
        {'ce': 1.167, 'ls': 1.833}

    References:
        Demsar 2006, Statistical comparisons of classifiers over multiple data sets, JMLR 7.
    """
    return pd.Series(_ranks(_sets(table), higher_is_better, tolerance).mean(0), index=table.columns)


def friedman_test(table: pd.DataFrame, *, tolerance: float = TOLERANCE) -> Friedman:
    r"""Test whether all methods have the same mean rank, by Friedman's statistic and by that of Iman and Davenport.

    .. math::
        \chi^2_F = \frac{n^2 (k-1) \sum_j (\bar R_j - m)^2}{\sum_{ij} (R_{ij} - m)^2}, \quad m = \frac{k+1}2,
        \qquad F = \frac{(n-1)\,\chi^2_F}{n(k-1) - \chi^2_F}

    Without ties the first is :math:`\frac{12 n}{k(k+1)} \sum_j (\bar R_j - m)^2`. It is compared with chi squared of
    k - 1 degrees of freedom, which is conservative for few sets; the second with F of k - 1 and (k - 1)(n - 1).

    Args:
        table: See :func:`mean_ranks`; at least two sets.
        tolerance: See :func:`mean_ranks`.

    Returns:
        Both statistics and their p values; F is infinite where all sets rank the methods alike.

    Raises:
        TypeError: As :func:`mean_ranks`.
        ValueError: As :func:`mean_ranks`, or if there is one set, or all methods are tied on every set.

    Examples:
        >>> table = pd.DataFrame({"a": [0.9, 0.8, 0.9, 0.7], "b": [0.8, 0.7, 0.8, 0.8], "c": [0.7, 0.6, 0.7, 0.6]})
        >>> [round(value, 4) for value in friedman_test(table)]
        [6.5, 0.0388, 13.0, 0.0066]

    References:
        Friedman 1937, The use of ranks to avoid the assumption of normality, JASA 32; Iman and Davenport 1980,
        Approximations of the critical region of the Friedman statistic, Communications in Statistics A9.
    """
    ranks = _ranks(_sets(table, fewest=2), True, tolerance)
    (n, k), middle = ranks.shape, (ranks.shape[1] + 1) / 2
    spread = float(((ranks - middle) ** 2).sum())
    if spread == 0:
        raise ValueError(f"table must have a set on which methods differ, got {n} sets on which all {k} are tied")
    chi2 = n * n * (k - 1) * float(((ranks.mean(0) - middle) ** 2).sum()) / spread
    left = n * (k - 1) - chi2
    f = (n - 1) * chi2 / left if left > 1e-9 * n * k else math.inf
    f_p = float(stats.f.sf(f, k - 1, (k - 1) * (n - 1)))
    return Friedman(chi2, float(stats.chi2.sf(chi2, k - 1)), f, f_p)


def signed_rank_test(differences: ArrayLike, *, tolerance: float = TOLERANCE) -> SignedRank:
    r"""Test whether paired differences are symmetric about zero, by the exact distribution of Wilcoxon's statistic.

    .. math:: W = \sum_{i : d_i > 0} \operatorname{rank} |d_i|, \qquad p = 2 \min\{P(W' \le W),\, P(W' \ge W)\}

    Zero differences are left out, as Wilcoxon did, and ties share their mean rank. Under the hypothesis each of the
    :math:`2^n` patterns of signs is as likely as any other, which gives the distribution of W' exactly, with ties too.
    So with n differences no p value is below :math:`2 / 2^n`.

    Args:
        differences: [n], finite, one for each data set.
        tolerance: Differences no larger are zero, and sizes no further apart are tied.

    Returns:
        W, the two-sided p value, and the number of differences that are not zero; p is 1 where there are none.

    Raises:
        ValueError: If there is no difference, or one is not finite.

    Examples:
        >>> signed_rank_test([0.02, 0.01, 0.05, 0.04, -0.03])
        SignedRank(statistic=12.0, p=0.3125, n=5)

    References:
        Wilcoxon 1945, Individual comparisons by ranking methods, Biometrics Bulletin 1.
    """
    values = _vector(differences, "differences")
    values = values[np.abs(values) > tolerance]
    if not len(values):
        return SignedRank(0.0, 1.0, 0)
    ranks = stats.rankdata(_merge(np.abs(values), tolerance))
    statistic, lower = float(ranks[values > 0].sum()), _null(ranks)
    smaller = min(round(2 * statistic), len(lower) - 1 - round(2 * statistic))  # W' is symmetric about its mean
    return SignedRank(statistic, min(1.0, 2 * float(lower[smaller])), len(values))


def hodges_lehmann(differences: ArrayLike, *, level: float = 0.95) -> Interval:
    r"""Return the Hodges-Lehmann estimate of the centre of paired differences, with its exact interval.

    The estimate is the median of the M = n (n + 1) / 2 means of two differences,
    :math:`w_{ij} = (d_i + d_j) / 2` with :math:`i \le j`. With these sorted, the interval is

    .. math:: [w_{(c+1)},\, w_{(M-c)}], \qquad c = \max\{c : P(W' \le c) \le (1 - \mathrm{level}) / 2\}

    where W' is Wilcoxon's statistic under symmetry. It holds the centres that :func:`signed_rank_test` does not
    reject at one minus the level.

    Args:
        differences: [n], finite, one for each data set.
        level: Confidence level in (0, 1), which the interval attains or exceeds.

    Returns:
        An interval whose ``mean`` is the estimate, and whose ``level`` is the level attained. Where n is too small for
        the level its ends are infinite.

    Raises:
        TypeError: If ``level`` is not a number.
        ValueError: If there is no difference, one is not finite, or ``level`` is out of range.

    Examples:
        >>> print(hodges_lehmann([0.02, 0.01, 0.05, 0.04, -0.03, 0.06]))
        +0.030 [-0.030, +0.060] (n=6)
        >>> hodges_lehmann([0.02, 0.01, 0.05]).low
        -inf

    References:
        Hodges and Lehmann 1963, Estimates of location based on rank tests, Annals of Mathematical Statistics 34.
    """
    values = _vector(differences, "differences")
    level, n = _checks.number(level, "level", low=1e-9, high=1 - 1e-9), len(values)
    walsh = np.sort(((values[:, None] + values[None, :]) / 2)[np.triu_indices(n)])
    lower = _null(np.arange(1, n + 1))[::2]  # whole ranks, so every second entry
    count = int((lower <= (1 - level) / 2 * (1 + 1e-12)).sum())  # c + 1
    centre = float(np.median(walsh))
    if not count:
        return Interval(centre, -math.inf, math.inf, n, 1.0)
    attained = 1 - 2 * float(lower[count - 1])
    return Interval(centre, float(walsh[count - 1]), float(walsh[-count]), n, attained)


def holm(p_values: ArrayLike) -> np.ndarray:
    r"""Return p values corrected for their number, so that a family has one false rejection with probability alpha.

    .. math:: \tilde p_{(i)} = \min\Bigl\{1,\, \max_{j \le i} (m - j + 1)\, p_{(j)}\Bigr\}

    Args:
        p_values: [m], in [0, 1], those of one family.

    Returns:
        [m], in the order given.

    Raises:
        ValueError: If there is none, or one is outside of [0, 1].

    Examples:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]

    References:
        Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    p = _vector(p_values, "p_values")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p_values must lie in [0, 1], got {p.min():g} to {p.max():g}")
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def compare_to_control(
    table: pd.DataFrame, control: object, *, level: float = 0.95, tolerance: float = TOLERANCE
) -> pd.DataFrame:
    """Compare every other method with one, over data sets: Wilcoxon's test with Holm's correction, and effect sizes.

    Args:
        table: See :func:`mean_ranks`.
        control: The column to compare with.
        level: Of the intervals, each by itself.
        tolerance: See :func:`signed_rank_test`.

    Returns:
        One row for each other method, in the order of the columns: ``difference``, the :func:`hodges_lehmann` interval
        of method minus control; ``wins`` and ``losses``, numbers of sets; ``p``, and ``p_holm`` corrected for the
        number of rows.

    Raises:
        TypeError: As :func:`mean_ranks`.
        ValueError: As :func:`mean_ranks`, or if ``control`` is not a column.

    Examples:
        >>> table = pd.DataFrame({"ce": [0.9, 0.8, 0.7, 0.8], "ls": [0.8, 0.7, 0.6, 0.9], "nls": [0.7, 0.6, 0.5, 0.6]})
        >>> compare_to_control(table, "ce")[["wins", "losses", "p", "p_holm"]]
             wins  losses      p  p_holm
        ls      1       3  0.625   0.625
        nls     0       4  0.125   0.250

    References:
        Demsar 2006, JMLR 7; Benavoli, Corani and Mangili 2016, Should we really use post-hoc tests based on
        mean-ranks?, JMLR 17, for Wilcoxon's test in the place of one on mean ranks.
    """
    _sets(table)
    if control not in table.columns:
        raise ValueError(f"control must be a column of table, got {control!r}; columns: {', '.join(map(str, table))}")
    gaps = {name: (table[name] - table[control]).to_numpy(float) for name in table.columns if name != control}
    p = {name: signed_rank_test(gap, tolerance=tolerance).p for name, gap in gaps.items()}
    return pd.DataFrame(
        {
            "difference": {name: hodges_lehmann(gap, level=level) for name, gap in gaps.items()},
            "wins": {name: int((gap > tolerance).sum()) for name, gap in gaps.items()},
            "losses": {name: int((gap < -tolerance).sum()) for name, gap in gaps.items()},
            "p": p,
            "p_holm": dict(zip(p, holm(list(p.values())), strict=True)),
        }
    )


def critical_difference(num_methods: int, num_sets: int, *, level: float = 0.95) -> float:
    r"""Return how far apart two mean ranks must be for Nemenyi's test to tell them apart.

    .. math:: \mathrm{CD} = \frac{q}{\sqrt2} \sqrt{\frac{k(k+1)}{6n}}

    with q the quantile of the studentised range of k means and infinite degrees of freedom. The verdict on two methods
    also depends on which others are compared: see Benavoli et al.

    Args:
        num_methods: k, at least 2.
        num_sets: n, at least 1.
        level: One minus the probability of any false rejection, in (0, 1).

    Returns:
        The critical difference, in ranks.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If an argument is out of range.

    Examples:
        >>> round(critical_difference(4, 14), 2)
        1.25

    References:
        Nemenyi 1963, Distribution-free multiple comparisons, PhD thesis, Princeton; Demsar 2006, JMLR 7; Benavoli,
        Corani and Mangili 2016, JMLR 17.
    """
    k = _checks.integer(num_methods, "num_methods", low=2)
    n = _checks.integer(num_sets, "num_sets", low=1)
    level = _checks.number(level, "level", low=1e-9, high=1 - 1e-9)
    return float(stats.studentized_range.ppf(level, k, np.inf)) * math.sqrt(k * (k + 1) / (12 * n))


def tied_groups(ranks: pd.Series, difference: float) -> list[list]:
    """Return the largest groups of methods whose mean ranks are no further apart than a critical difference.

    Args:
        ranks: Mean rank by method.
        difference: At least 0.

    Returns:
        Groups of two or more methods, each from the best to the worst, none inside another.

    Raises:
        TypeError: If ``difference`` is not a number.
        ValueError: If it is negative.

    Examples:
        >>> tied_groups(pd.Series({"a": 1.0, "b": 2.0, "c": 2.5, "d": 4.0}), 1.5)
        [['a', 'b', 'c'], ['c', 'd']]
    """
    difference = _checks.number(difference, "difference", low=0.0)
    ranks, groups, last = ranks.sort_values(kind="stable"), [], 0
    for first, rank in enumerate(ranks):
        end = int((ranks <= rank + difference + TOLERANCE).sum())
        if end > max(last, first + 1):
            groups.append(ranks.index[first:end].tolist())
        last = max(last, end)
    return groups


def signed_rank_power(
    effect: float, num_sets: int, *, size: float = 0.05, num_draws: int = 20000, generator: torch.Generator
) -> Interval:
    r"""Return how often Wilcoxon's exact test rejects when differences are normal with a given mean, by simulation.

    .. math:: d_i \sim N(\delta, 1), \quad i = 1, \dots, n; \qquad \text{power} = P(p \le \alpha)

    Args:
        effect: :math:`\delta`, the mean difference in standard deviations of the differences between sets.
        num_sets: n, at least 1.
        size: :math:`\alpha`, in (0, 1); that over m for the first step of :func:`holm` with m comparisons.
        num_draws: Simulated studies, at least 2.
        generator: Source of the draws.

    Returns:
        The share of studies that reject, with its 95 % interval.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If an argument is out of range.

    Examples:
        >>> print(signed_rank_power(0.0, 5, generator=torch.Generator()))  # 5 sets can never reject
        +0.000 [+0.000, +0.000] (n=20000)
    """
    effect = _checks.number(effect, "effect")
    n = _checks.integer(num_sets, "num_sets", low=1)
    size = _checks.number(size, "size", low=1e-12, high=1 - 1e-9)
    draws = torch.randn(_checks.integer(num_draws, "num_draws", low=2), n, generator=generator, dtype=torch.float64)
    draws += effect
    ranks = draws.abs().argsort(1).argsort(1) + 1  # no ties, the draws are continuous
    lower = _null(np.arange(1, n + 1))[::2]
    statistic = (ranks * (draws > 0)).sum(1).numpy()
    smaller = np.minimum(statistic, n * (n + 1) // 2 - statistic)
    return mean_interval((2 * lower[smaller] <= size * (1 + 1e-12)).astype(float))


def _null(ranks: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return P(W' <= w / 2), w = 0, 1, ..., for the sum W' of the ranks, half or whole, whose signs come up positive.

    Adding a rank to the sum or not, with probability one half each, is a step of a random walk.
    """
    doubled = np.rint(2 * np.asarray(ranks)).astype(int)
    chance = np.zeros(doubled.sum() + 1)
    chance[0] = 1.0
    for step in doubled:
        chance[step:] += chance[:-step]
        chance /= 2
    return chance.cumsum()


def _merge(values: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the place of each value among the different ones, where a gap of at most ``tolerance`` is none."""
    order = np.argsort(values, kind="stable")
    places = np.empty(len(values), dtype=int)
    places[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) > tolerance)])
    return places


def _ranks(values: np.ndarray, higher_is_better: bool, tolerance: float) -> np.ndarray:
    """Return the rank of each method on each set."""
    sign = -1 if higher_is_better else 1
    return np.stack([stats.rankdata(_merge(sign * row, tolerance)) for row in values])


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    """Return ``values`` as floats [n], all finite, at least one."""
    array = np.asarray(values, dtype=float).ravel()
    if not len(array) or not np.isfinite(array).all():
        wrong = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"{name} must hold at least one number, all finite, got {len(array)}, {wrong} of them not finite"
        )
    return array


def _sets(table: pd.DataFrame, fewest: int = 1) -> np.ndarray:
    """Return the numbers of a table of methods by data sets, or say what is wrong with it."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a pandas DataFrame of sets by methods, got {type(table).__name__}")
    if table.shape[0] < fewest or table.shape[1] < 2:
        raise ValueError(
            f"table must have at least {fewest} sets (rows) and 2 methods (columns), got shape {table.shape}"
        )
    for what, names in (("data set", table.index), ("method", table.columns)):
        if names.has_duplicates:
            raise ValueError(f"table must have each {what} once, got {names[names.duplicated()][0]!r} twice")
    values = table.to_numpy(dtype=float)
    if not np.isfinite(values).all():
        name = table.columns[~np.isfinite(values).all(0)][0]
        raise ValueError(f"table must be finite: leave out a set that a method has no value on, got {name!r} without")
    return values
