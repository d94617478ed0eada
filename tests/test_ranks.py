"""Ranks and tests over data sets, each against an oracle of its own: naive loops, scipy, all signs, Demsar's tables."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from nls import ranks

# Demsar 2006, table 6: AUC of C4.5 and three variants on fourteen sets, in the order of the table. It ranks cf ahead of
# m+cf on the thirteenth set, where both are printed as .975.
DEMSAR = pd.DataFrame(
    {
        "c45": [.763, .599, .954, .628, .882, .936, .661, .583, .775, 1, .940, .619, .972, .957],
        "m": [.768, .591, .971, .661, .888, .931, .668, .583, .838, 1, .962, .666, .981, .978],
        "cf": [.771, .590, .968, .654, .886, .916, .609, .563, .866, 1, .965, .614, .9751, .946],
        "m+cf": [.798, .569, .967, .657, .898, .931, .685, .625, .875, 1, .962, .669, .975, .970],
    }
)  # fmt: skip


def draw(n, k, seed=0, digits=3):
    """Return a table of methods by sets; with few digits it has ties."""
    values = np.random.default_rng(seed).normal(0.8, 0.05, (n, k)) + 0.02 * np.arange(k)
    return pd.DataFrame(np.round(values, digits), columns=[f"m{j}" for j in range(k)])


def all_signs(differences):
    """Return W and its two-sided p value by going through every pattern of signs."""
    values = np.array([d for d in differences if d != 0])
    sizes = stats.rankdata(np.abs(values))
    observed = sizes[values > 0].sum()
    sums = [sizes[list(signs)].sum() for signs in itertools.product([False, True], repeat=len(values))]
    below, above = (np.mean([test(s, observed) for s in sums]) for test in (np.less_equal, np.greater_equal))
    return observed, min(1.0, 2 * min(below, above))


def test_published_example():
    """Sections 3.1.3 and 3.2.2 of Demsar 2006: mean ranks, the statistics for four methods on 14 sets, and the CD."""
    found = ranks.mean_ranks(DEMSAR)
    assert found.round(3).tolist() == [3.143, 2.000, 2.893, 1.964]
    untied = 12 * 14 / (4 * 5) * float(((found - 2.5) ** 2).sum())  # the paper's formula has no correction for ties
    assert untied == pytest.approx(9.28, abs=0.005)
    assert 13 * untied / (14 * 3 - untied) == pytest.approx(3.69, abs=0.005)
    assert ranks.friedman_test(DEMSAR).chi2 == pytest.approx(10.2283464566929)
    assert ranks.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert ranks.critical_difference(4, 14, level=0.9) == pytest.approx(1.12, abs=0.005)


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_ranks_count_who_is_better_and_share_ties(digits):
    table = draw(12, 5, digits=digits)
    expected = np.zeros(5)
    for row in table.to_numpy():
        for j in range(5):
            expected[j] += 1 + sum(other > row[j] for other in row) + (sum(other == row[j] for other in row) - 1) / 2
    assert ranks.mean_ranks(table).to_numpy() == pytest.approx(expected / 12)
    assert ranks.mean_ranks(table).sum() == pytest.approx(15)
    assert ranks.mean_ranks(-table, higher_is_better=False).to_numpy() == pytest.approx(expected / 12)


def test_rounding_breaks_no_tie():
    table = pd.DataFrame({"a": [0.5, 0.4], "b": [0.5 + 1e-7, 0.4 + 2e-7], "c": [0.1, 0.2]})
    one = table.iloc[:1]
    assert ranks.mean_ranks(one).tolist() == [2, 1, 3]
    assert ranks.mean_ranks(one, tolerance=1e-6).tolist() == [1.5, 1.5, 3]
    assert ranks.signed_rank_test([1e-7, 0.2, -0.1], tolerance=1e-6).n == 2
    tied = ranks.signed_rank_test([0.2 + 1e-7, -0.2, 0.3], tolerance=1e-6)
    assert tied.statistic == 4.5
    compared = ranks.compare_to_control(table, "a", tolerance=1e-6)
    assert compared.loc["b", ["wins", "losses", "p"]].tolist() == [0, 0, 1]
    assert ranks.compare_to_control(table, "a").loc["b", ["wins", "losses", "p"]].tolist() == [2, 0, 0.5]
    rising = pd.DataFrame({"a": [0.5] * 4, "b": [0.5 + 1e-7] * 4, "c": [0.1, 0.2, 0.6, 0.1]})
    assert ranks.friedman_test(rising).chi2 != pytest.approx(ranks.friedman_test(rising, tolerance=1e-6).chi2)


@pytest.mark.parametrize(("n", "k", "digits"), [(4, 3, 6), (10, 11, 6), (10, 11, 2), (30, 5, 1)])
def test_friedman_agrees_with_scipy(n, k, digits):
    table = draw(n, k, seed=n + k, digits=digits)
    found, expected = ranks.friedman_test(table), stats.friedmanchisquare(*table.to_numpy().T)
    assert (found.chi2, found.chi2_p) == pytest.approx((expected.statistic, expected.pvalue))
    # Iman and Davenport's statistic is that of a two-way analysis of variance of the ranks.
    rank = np.apply_along_axis(stats.rankdata, 1, -table.to_numpy())
    between = n * ((rank.mean(0) - (k + 1) / 2) ** 2).sum()
    left = ((rank - rank.mean(0)) ** 2).sum()
    f = between / (k - 1) / (left / ((n - 1) * (k - 1)))
    assert found.f == pytest.approx(f)
    assert found.f_p == pytest.approx(1 - stats.f.cdf(f, k - 1, (n - 1) * (k - 1)))


def test_sets_that_agree_leave_nothing_to_chance():
    table = pd.DataFrame(np.arange(12.0).reshape(4, 3))
    found = ranks.friedman_test(table)
    assert (found.chi2, found.f, found.f_p) == (8.0, math.inf, 0.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("digits", [1, 2, 5])
def test_signed_ranks_by_all_signs(seed, digits):
    differences = np.round(np.random.default_rng(seed).normal(0.3, 1, 9), digits)
    statistic, p = all_signs(differences)
    found = ranks.signed_rank_test(differences)
    assert (found.statistic, found.p) == pytest.approx((statistic, p))
    assert found.n == np.count_nonzero(differences)
    assert ranks.signed_rank_test(-differences).p == pytest.approx(p)


@pytest.mark.parametrize("n", [3, 10, 25, 50])
def test_signed_ranks_agree_with_scipy_where_there_are_no_ties(n):
    differences = np.random.default_rng(n).normal(0.2, 1, n)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert ranks.signed_rank_test(differences).p == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 5, 10, 60])
def test_no_p_value_is_smaller_than_that_of_sets_that_all_agree(n):
    found = ranks.signed_rank_test(np.arange(1.0, n + 1))
    assert found.p == pytest.approx(min(1.0, 2 / 2**n), rel=1e-9)
    assert found.statistic == n * (n + 1) / 2


def test_no_difference_is_no_evidence():
    assert ranks.signed_rank_test([0.0, 0.0]) == (0.0, 1.0, 0)


@pytest.mark.parametrize("n", [6, 9, 10, 15])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_holds_what_the_test_does_not_reject(n, level):
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    found = ranks.hodges_lehmann(differences, level=level)
    for end in (found.low, found.high):
        inside = end + 1e-7 * (found.mean - end)
        outside = end - 1e-7 * (found.mean - end)
        assert ranks.signed_rank_test(differences - inside, tolerance=1e-12).p > 1 - level
        assert ranks.signed_rank_test(differences - outside, tolerance=1e-12).p <= 1 - level
    pairs = [(differences[i] + differences[j]) / 2 for i in range(n) for j in range(i, n)]
    assert found.mean == pytest.approx(np.median(pairs))
    assert found.n == n
    assert found.level >= level


def test_the_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(5).standard_t(3, (3000, 7)) + 0.7
    intervals = [ranks.hodges_lehmann(row, level=0.9) for row in draws]
    covered = np.mean([interval.low <= 0.7 <= interval.high for interval in intervals])
    level = intervals[0].level
    assert level == pytest.approx(1 - 2 * 5 / 2**7)  # of the 128 patterns five have a sum of at most 3, seven one of 4
    assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / 3000)


def test_too_few_sets_have_an_interval_without_ends():
    found = ranks.hodges_lehmann([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (found.mean, found.low, found.high, found.n) == (pytest.approx(0.3), -math.inf, math.inf, 5)
    assert not found.above_zero
    assert ranks.hodges_lehmann([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).above_zero


def test_holm_rejects_as_the_step_down_procedure_does():
    rng = np.random.default_rng(7)
    for m in (1, 2, 5, 10):
        p = np.round(rng.uniform(0, 0.2, m), 2)  # with ties
        corrected = ranks.holm(p)
        for alpha in (0.01, 0.05, 0.1, 0.3, 0.9):
            rejected, order = set(), sorted(range(m), key=lambda i: p[i])
            for step, i in enumerate(order):
                if p[i] * (m - step) > alpha:
                    break
                rejected.add(i)
            assert {i for i in range(m) if corrected[i] <= alpha} == rejected
        assert (corrected >= p).all()
        assert (corrected <= 1).all()


def test_a_comparison_with_the_control_puts_its_parts_together():
    table = draw(10, 4, seed=3)
    found = ranks.compare_to_control(table, "m1")
    assert list(found.index) == ["m0", "m2", "m3"]
    raw = [stats.wilcoxon(table[name] - table["m1"], method="exact").pvalue for name in found.index]
    assert found["p"].tolist() == pytest.approx(raw)
    assert found["p_holm"].tolist() == pytest.approx(ranks.holm(raw).tolist())
    for name, row in found.iterrows():
        gap = (table[name] - table["m1"]).to_numpy()
        assert (row["wins"], row["losses"]) == ((gap > 0).sum(), (gap < 0).sum())
        assert row["difference"] == ranks.hodges_lehmann(gap)
    assert ranks.compare_to_control(table, "m1", level=0.5)["difference"].iloc[0].level < 0.6


def test_the_critical_difference_is_that_of_the_largest_gap_among_equal_methods():
    """Simulate ranks of many sets under the hypothesis: the largest gap exceeds the difference in 5 % of studies."""
    rng, n, k, studies = np.random.default_rng(11), 100, 5, 2000
    drawn = rng.permuted(np.tile(np.arange(1, k + 1), (studies, n, 1)), axis=2).mean(1)
    exceeded = np.mean(np.ptp(drawn, axis=1) > ranks.critical_difference(k, n))
    assert abs(exceeded - 0.05) < 4 * math.sqrt(0.05 * 0.95 / studies)


def test_groups_are_the_largest_whose_ends_are_near():
    rng = np.random.default_rng(13)
    for width in (0.0, 0.4, 1.0, 5.0):
        found = pd.Series(np.round(rng.uniform(1, 4, 7), 1), index=list("abcdefg"))
        names = found.sort_values(kind="stable").index
        near = {
            frozenset(names[i:j])
            for i in range(7)
            for j in range(i + 2, 8)
            if found[names[j - 1]] - found[names[i]] <= width + 1e-9
        }
        largest = {group for group in near if not any(group < other for other in near)}
        groups = ranks.tied_groups(found, width)
        assert {frozenset(group) for group in groups} == largest
        assert all(group == [name for name in names if name in group] for group in groups)


@pytest.mark.parametrize(("effect", "n", "size"), [(0.0, 8, 0.05), (0.6, 10, 0.05), (1.2, 10, 0.005)])
def test_power_is_the_share_of_rejections(effect, n, size):
    generator = torch.Generator().manual_seed(1)
    found = ranks.signed_rank_power(effect, n, size=size, num_draws=20000, generator=generator)
    draws = np.random.default_rng(17).normal(effect, 1, (2000, n))
    expected = np.mean([stats.wilcoxon(row, method="exact").pvalue <= size for row in draws])
    assert abs(found.mean - expected) < 4.5 * math.sqrt(max(expected * (1 - expected), 0.01) / 2000)
    assert found.n == 20000


def test_power_without_an_effect_is_the_exact_size():
    """With ten sets p <= 0.05 is W' <= 8, 25 of the 1,024 patterns on each side."""
    generator = torch.Generator().manual_seed(2)
    found = ranks.signed_rank_power(0.0, 10, num_draws=100000, generator=generator)
    count = sum(sum(s) <= 8 for size in range(5) for s in itertools.combinations(range(1, 11), size))
    assert count == 25
    assert abs(found.mean - 2 * count / 1024) < 4 * math.sqrt(0.05 * 0.95 / 100000)


GOOD = pd.DataFrame({"a": [0.1, 0.2, 0.3], "b": [0.2, 0.1, 0.4]})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ranks.mean_ranks([[1, 2]]), TypeError, "table must be a pandas DataFrame .* got list"),
        (lambda: ranks.mean_ranks(GOOD[["a"]]), ValueError, r"2 methods \(columns\), got shape \(3, 1\)"),
        (lambda: ranks.mean_ranks(GOOD.iloc[:0]), ValueError, r"at least 1 sets \(rows\).* got shape \(0, 2\)"),
        (lambda: ranks.friedman_test(GOOD.iloc[:1]), ValueError, r"at least 2 sets \(rows\).* got shape \(1, 2\)"),
        (lambda: ranks.mean_ranks(GOOD.set_axis(["x", "x", "y"])), ValueError, "each data set once, got 'x' twice"),
        (lambda: ranks.mean_ranks(GOOD.set_axis(["a", "a"], axis=1)), ValueError, "each method once, got 'a' twice"),
        (lambda: ranks.mean_ranks(GOOD.replace(0.4, np.nan)), ValueError, "must be finite: .* got 'b' without"),
        (lambda: ranks.friedman_test(GOOD * 0), ValueError, "got 3 sets on which all 2 are tied"),
        (lambda: ranks.compare_to_control(GOOD, "c"), ValueError, "must be a column of table, got 'c'; columns: a, b"),
        (lambda: ranks.signed_rank_test([]), ValueError, "differences must hold at least one number, .* got 0"),
        (lambda: ranks.hodges_lehmann([1.0, np.inf]), ValueError, "all finite, got 2, 1 of them not finite"),
        (lambda: ranks.hodges_lehmann([1.0], level=1.0), ValueError, "level must be a finite number in"),
        (lambda: ranks.holm([0.1, 1.5]), ValueError, r"p_values must lie in \[0, 1\], got 0.1 to 1.5"),
        (lambda: ranks.critical_difference(1, 5), ValueError, "num_methods must be at least 2, got 1"),
        (lambda: ranks.critical_difference(3, 0), ValueError, "num_sets must be at least 1, got 0"),
        (lambda: ranks.critical_difference(3.0, 5), TypeError, "num_methods must be an integer"),
        (lambda: ranks.tied_groups(pd.Series({"a": 1.0}), -1.0), ValueError, "difference must be a finite number in"),
        (lambda: ranks.signed_rank_power(0.0, 0, generator=None), ValueError, "num_sets must be at least 1, got 0"),
        (lambda: ranks.signed_rank_power("x", 5, generator=None), TypeError, "effect must be a real number"),
        (lambda: ranks.signed_rank_power(0, 5, size=0, generator=None), ValueError, "size must be a finite number"),
        (lambda: ranks.signed_rank_power(0, 5, num_draws=1, generator=None), ValueError, "num_draws must be at least"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()
