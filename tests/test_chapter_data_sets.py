"""From sets to a verdict: numbers of the chapter against naive oracles on the stored files, and its claims mutated."""

import csv
import itertools
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from chapters import run_chapter, run_solution, unexpected
from scipy import stats

import nls
import nls.engine
from nls import ranks
from nls.store import results_root

STEM = "12_data_sets"
SMALL = {"live_seeds": 2, "num_draws": 1000}
TRAINED = {}  # grid -> table, for runs that do not mutate the training
RULES = ("last", "noisy_validation", "clean_test")


def remember(grid):
    """Train a grid once in this process."""
    key = tuple(cell.id for cell in grid)
    if key not in TRAINED:
        TRAINED[key] = nls.engine.run_grid(grid, workers=1)
    return TRAINED[key].copy()


@pytest.fixture(scope="module")
def page():
    """The names that the chapter leaves, from its smallest scale."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nls, "run_grid", remember)
        return run_chapter(STEM, patch, **SMALL)


@pytest.fixture(scope="module")
def rows():
    """The stored runs, read without pandas."""
    found = []
    for path in sorted((results_root() / "uci").glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            found += list(csv.DictReader(file))
    return found


def gap_by_set(rows, rule, noise, rate, other=0.0):
    """Return by set the mean accuracy at a rate minus that at another."""
    total = defaultdict(float)
    for row in rows:
        if float(row["noise_rate"]) == noise and float(row["smooth_rate"]) in (rate, other):
            sign = 1 if float(row["smooth_rate"]) == rate else -1
            total[row["dataset"]] += sign * float(row[f"accuracy_{rule}"]) / 20
    return total


def p_by_all_signs(differences):
    """Return Wilcoxon's two-sided p value by going through every pattern of signs."""
    values = [d for d in differences if abs(d) > 1e-6]
    sizes = np.array([sum(abs(v) < abs(d) for v in values) + 1 for d in values])  # no ties here
    assert len(set(sizes)) == len(sizes)
    observed = sum(size for size, d in zip(sizes, values, strict=True) if d > 0)
    sums = np.array([sizes[list(s)].sum() for s in itertools.product([False, True], repeat=len(values))])
    return min(1.0, 2 * min((sums <= observed).mean(), (sums >= observed).mean()))


@pytest.mark.parametrize("rule", RULES)
def test_shift_by_all_signs(page, rows, rule):
    gaps = {noise: gap_by_set(rows, rule, noise, -8.0) for noise in (0.0, 0.4)}
    moves = [100 * (gaps[0.4][name] - gaps[0.0][name]) for name in gaps[0.0]]
    assert len(moves) == 10
    assert page["p_shift"][rule] == pytest.approx(p_by_all_signs(moves))
    walsh = sorted((a + b) / 2 for i, a in enumerate(moves) for b in moves[i:])
    found = page["shift"][rule]
    assert (found.mean, found.low, found.high) == pytest.approx((np.median(walsh), walsh[8], walsh[-9]))
    rates = sorted({float(row["smooth_rate"]) for row in rows})
    extra = []
    for name in gaps[0.0]:
        drop = {r: gap_by_set(rows, rule, 0.0, r, 1)[name] - gap_by_set(rows, rule, 0.4, r, 1)[name] for r in rates}
        by_sign = [np.mean([drop[r] for r in rates if r * sign > 0]) for sign in (1, -1)]
        extra.append(by_sign[0] - by_sign[1])
    assert page["p_worse"][rule] == pytest.approx(p_by_all_signs(extra))


@pytest.mark.parametrize("rule", RULES[:2])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_menus_by_naive_loops(page, rows, rule, noise):
    menus = {"any rate": lambda r: True, "negative rates": lambda r: r < 0, "positive rates": lambda r: r > 0,
             "no negative rate": lambda r: r >= 0}  # fmt: skip
    for menu, holds in menus.items():
        best = {}
        for row in rows:
            rate = float(row["smooth_rate"])
            if float(row["noise_rate"]) == noise and holds(rate):
                score = (float(row[f"validation_accuracy_{rule}"]), -abs(rate), rate)
                key = row["dataset"], row["seed"]
                best[key] = max(best.get(key, ((-1.0, 0.0, 0.0), 0.0)), (score, float(row[f"accuracy_{rule}"])))
        expected = defaultdict(float)
        for (name, _), (_, accuracy) in best.items():
            expected[name] += accuracy / 20
        assert page["picked"][menu, rule, noise].to_dict() == pytest.approx(expected)
        if menu in page["menus"]:
            ce = gap_by_set(rows, rule, noise, 0.0, other=1)
            p = p_by_all_signs([expected[name] - ce[name] for name in ce])
            assert page["worth"][rule, noise].loc[menu, "p"] == pytest.approx(p)


def test_no_p_value_is_below_the_smallest():
    rng = np.random.default_rng(0)
    for n in range(1, 9):
        sizes = np.round(rng.uniform(1, 3, n), 1)  # with ties
        p = [ranks.signed_rank_test(sizes * signs).p for signs in itertools.product([1, -1], repeat=n)]
        assert min(p) == pytest.approx(min(1.0, 2 / 2**n))
        survives = ranks.holm([2 / 2**n] * 10).min() <= 0.05
        assert not survives
    assert ranks.holm([2 / 2**9] * 10).min() <= 0.05
    assert 2 / 2**5 > 0.05 >= 2 / 2**6


def test_power_of_ten_sets(page):
    draws = np.random.default_rng(1).normal(page["effect_size"], 1, (2000, 10))
    expected = np.mean([stats.wilcoxon(row, method="exact").pvalue <= 0.05 for row in draws])
    assert abs(page["chance"]["one comparison"].mean - expected) < 4 * np.sqrt(0.25 * (1 / 2000 + 1 / 1000))


def test_false_alarms_by_loops(page, rows):
    runs = defaultdict(lambda: defaultdict(float))
    for row in rows:
        if float(row["noise_rate"]) == 0.4 and float(row["smooth_rate"]) in (0.0, -8.0):
            sign = -1 if float(row["smooth_rate"]) == 0 else 1
            runs[row["dataset"]][row["seed"]] += sign * float(row["accuracy_last"])
    by_set = [list(seeds.values()) for seeds in runs.values()]
    alarms = 0
    for signs in itertools.product([1, -1], repeat=10):
        pooled = np.array([sign * value for sign, values in zip(signs, by_set, strict=True) for value in values])
        t = pooled.mean() / (pooled.std(ddof=1) / np.sqrt(len(pooled)))
        alarms += 2 * stats.t.sf(abs(t), len(pooled) - 1) <= 0.05
    assert page["alarm"] == pytest.approx(alarms / 1024)


def test_one_source_counts_once(page):
    stored = set(page["uci"]["dataset"])
    assert len(stored) == 10
    assert set(page["same_source"].values()) <= stored
    assert not stored & set(page["new_source"])
    assert sorted(page["joined"]["last"].index) == sorted([*stored, *page["new_source"]])


# Claims


def of_results(change):
    """Change the stored study."""
    original = nls.load_results

    def mutate(patch):
        patch.setattr(nls, "load_results", lambda study: change(original(study)))

    return mutate


def shuffle_rates(table):
    """Put the results under other rates, seed by seed."""
    rng = np.random.default_rng(0)
    groups = table.groupby(["dataset", "noise_rate", "seed"])["smooth_rate"]
    return table.assign(smooth_rate=groups.transform(lambda rates: rng.permutation(rates.to_numpy())))


def reverse_rates(table):
    """Exchange the highest rate with the lowest, and so on."""
    rates = sorted(table["smooth_rate"].unique())
    return table.assign(smooth_rate=table["smooth_rate"].map(dict(zip(rates, rates[::-1], strict=True))))


def reverse_noise(table):
    """Exchange clean labels with the noisiest, and so on."""
    return table.assign(noise_rate=(0.4 - table["noise_rate"]).round(1))


def lift(rate, noise, gain):
    """Give a rate at a noise rate so much more accuracy on every set."""

    def change(table):
        rows = (table["smooth_rate"] == rate) & (table["noise_rate"] == noise)
        return table.assign(**{f"accuracy_{rule}": table[f"accuracy_{rule}"] + gain * rows for rule in RULES})

    return change


def shuffle_validation(table):
    """Make the validation sets know nothing."""
    rng = np.random.default_rng(0)
    names = [f"validation_accuracy_{rule}" for rule in RULES]
    groups = table.groupby(["dataset", "noise_rate", "seed"])
    return table.assign(
        **{name: groups[name].transform(lambda values: rng.permutation(values.to_numpy())) for name in names}
    )


def validate_on_test(table):
    """Choose by the test set."""
    return table.assign(**{f"validation_accuracy_{rule}": table[f"accuracy_{rule}"] for rule in RULES})


def one_sided(patch):
    """Halve the p value of the signed-rank test."""
    original = ranks.signed_rank_test
    patch.setattr(ranks, "signed_rank_test", lambda *a, **k: (f := original(*a, **k))._replace(p=f.p / 2))


def forget_the_root(patch):
    """Use the quantile of the studentised range without dividing it by the root of two, twice over."""
    original = ranks.critical_difference
    patch.setattr(ranks, "critical_difference", lambda *a, **k: original(*a, **k) / 2)


def train_as_torch_would(patch):
    """Give a negative rate the networks of cross entropy, as torch's own label_smoothing does without a word."""

    def run(grid):
        table = remember(grid)
        key = ["dataset", "noise_rate", "seed"]
        plain = table[table["smooth_rate"] == 0].set_index(key).loc[pd.MultiIndex.from_frame(table[key])]
        for rule in RULES:
            name = f"accuracy_{rule}"
            table[name] = table[name].where(table["smooth_rate"] >= 0, plain[name].to_numpy())
        return table

    patch.setattr(nls, "run_grid", run)


MUTATIONS = {
    "stored rates shuffled": (
        of_results(shuffle_rates),
        ["more-competitive", "larger-degradation", "low-noise", "more-beneficial", "clean-loss", "nemenyi-blind",
         "rates-differ", "rank-is-no-size"]),
    "stored rates reversed": (
        of_results(reverse_rates), ["ls-vanishes", "low-noise", "more-beneficial", "more-competitive", "clean-loss"]),
    "stored noise rates reversed": (
        of_results(reverse_noise), ["more-competitive", "ls-vanishes", "low-noise", "new-sources"]),
    "r = -8 ten points better at 0.4": (
        of_results(lift(-8.0, 0.4, 0.1)), ["no-fixed-win", "power", "rank-is-no-size", "still-open"]),
    "r = -2 as good as cross entropy on clean labels": (
        of_results(lift(-2.0, 0.0, 0.03)), ["clean-loss", "nemenyi-blind"]),
    "validation shuffled": (of_results(shuffle_validation), ["menu-last", "ls-vanishes", "more-beneficial"]),
    "validation by test": (of_results(validate_on_test), ["menu-validated"]),
    "one seed": (of_results(lambda table: table[table["seed"] == 0]), ["seeds-are-no-sets"]),
    "one-sided": (one_sided, ["smallest-p", "seeds-are-no-sets", "no-fixed-win", "menu-validated"]),
    "wrong critical difference": (forget_the_root, ["nemenyi-blind"]),
    "negative rate -> 0 in the training, as torch does": (train_as_torch_would, ["new-sources", "known-sources"]),
}  # fmt: skip


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    names = {claim.name for claim in page["claims"]}
    # Every claim of the page is seen to fail somewhere.
    assert {name for _, expected in MUTATIONS.values() for name in expected} == names


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_fail_under_mutations(mutation, monkeypatch):
    monkeypatch.setattr(nls, "run_grid", remember)
    mutate, expected = MUTATIONS[mutation]
    mutate(monkeypatch)
    assert set(expected) - unexpected(run_chapter(STEM, monkeypatch, **SMALL)) == set()


@pytest.mark.parametrize("solution", ["solution-seeds", "solution-names", "solution-pool"])
def test_solutions_hold(page, solution):
    run_solution(STEM, solution, page)


@pytest.mark.parametrize(
    ("solution", "change"),
    [
        # Seeds taken as independent: exchange the names seed by seed, not set by set.
        ("solution-seeds", ("worlds[:, :, None] * per_seed",
                            "np.random.default_rng(0).choice([1, -1], (1024, *per_seed.shape)) * per_seed")),
        # Copies taken as harmless: they change nothing.
        ("solution-names", ('twice = pd.concat([gap, gap.set_axis(gap.index + " again")])', "twice = gap")),
        # The pair judged as it stands among eleven.
        ("solution-pool", ("(rates, [-8.0, 0.8])", "(rates, rates)")),
    ],
)  # fmt: skip
def test_wrong_answers_are_refused(page, solution, change):
    with pytest.raises(AssertionError):
        run_solution(STEM, solution, page, change)
