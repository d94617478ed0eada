"""Calibration on images: the statement of the chapter against an oracle of its own, its claims under mutations."""

import numpy as np
import pytest
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import nls
import nls.confidence
import nls.linear
import nls.studies

STEM = "16_confidence"
SMALL = {"num_seeds": 2}
FAST = settings(max_examples=10, deadline=None, derandomize=True)


# The statement


def minimiser(targets, rate):
    """Return the minimum of the risk over free logits for one row of label probabilities, by scipy."""
    k = len(targets)
    weights = (1 - rate) * targets + rate / k

    def risk(z):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        return -weights @ np.log(p), p - weights

    z = minimize(risk, np.zeros(k), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6), share=st.floats(0.05, 0.8), part=st.floats(0.1, 0.9))
def test_one_scale_one_order(seed, k, share, part):
    """The gap to chance is s times that of the clean posterior, so right and wrong share a factor, in one order."""
    rng = np.random.default_rng(seed)
    clean = 0.9 * rng.dirichlet(np.ones(k), size=6) + 0.1 / k
    noisy = (1 - share) * clean + share / k
    lowest = -k * noisy.min() / (1 - k * noisy.min())  # below it a class gets a negative weight
    found = {}
    for rate in (0.6, 0.0, part * lowest):
        model = np.stack([minimiser(row, rate) for row in noisy])
        scale = (1 - rate) * (1 - share)
        assert model.max(1) - 1 / k == pytest.approx(scale * (clean.max(1) - 1 / k), abs=1e-5)
        accuracy, sure = clean.max(1).mean(), model.max(1).mean()  # with labels from the clean posterior
        assert accuracy - sure == pytest.approx((1 - scale) * (accuracy - 1 / k), abs=1e-5)
        right, over = clean.max(1), model.max(1) - 1 / k
        ratio = ((right * over).sum() / right.sum()) / (((1 - right) * over).sum() / (1 - right).sum())
        found[rate] = ratio, model.max(1)
    ratios, tops = zip(*found.values(), strict=True)
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-3)
    first = np.argsort(tops[0])
    assert all((np.diff(top[first]) > -1e-5).all() for top in tops)


def test_the_sign_of_the_shortfall_changes_at_the_exact_rate():
    clean = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    share = 3 * 0.2 / 2
    exact = nls.optimal_smooth_rate(0.2, 3)
    noisy = (1 - share) * clean + share / 3
    shortfall = {
        rate: clean.max(1).mean() - np.mean([minimiser(row, rate).max() for row in noisy])
        for rate in (exact + 0.2, exact, exact - 0.1)
    }
    above, at, below = shortfall.values()
    assert above > 0.01
    assert at == pytest.approx(0, abs=1e-6)
    assert below < -0.005


# The page


def sign_lost(patch):
    """Take |r|, below 1, in the networks and in the linear fits."""
    fit, linear = nls.fit_each, nls.linear.fit_linear
    patch.setattr(nls, "fit_each", lambda x, y, rate, **rest: fit(x, y, min(abs(rate), 0.9), **rest))
    patch.setattr(
        nls.linear, "fit_linear", lambda x, y, k, rate=0.0, **rest: linear(x, y, k, min(abs(rate), 0.9), **rest)
    )


def matrix_ignored(patch):
    """Fit every temperature as if the labels were clean, and turn the order of the predictions round."""
    fit, risk = nls.confidence.fit_temperature, nls.confidence.risk_coverage
    patch.setattr(nls.confidence, "fit_temperature", lambda z, y, matrix=None: fit(z, y))
    patch.setattr(nls.confidence, "risk_coverage", lambda confidence, right: risk(confidence, ~right))


def noisy_labels_clean(patch):
    """Validate on clean labels and call them noisy."""
    draw = nls.draw_noisy_labels
    patch.setattr(
        nls, "draw_noisy_labels", lambda y, matrix, generator: draw(y, matrix, generator) if len(y) > 400 else y
    )


def change_stored(patch, change):
    """Pass the stored rows and curves through a function."""
    rows, curves = nls.studies.load_study, nls.studies.load_curves
    patch.setattr(nls.studies, "load_study", lambda name: change(rows(name)))
    patch.setattr(nls.studies, "load_curves", lambda name: change(curves(name)))


def sides_swapped(patch):
    """Take the confidence on wrong predictions for that on right ones."""

    def swap(table):
        return table.rename(
            columns=lambda name: name.replace("right", "?").replace("wrong", "right").replace("?", "wrong")
        )

    change_stored(patch, swap)


def scored_on_noisy_labels(patch):
    """Compare the confidence with the accuracy on labels that are as noisy as those of the training set."""

    def score(table):
        lost = 10 * table["noise_rate"] / 9 if "noise_rate" in table else 0.0
        return (
            table.assign(accuracy_last=(1 - lost) * table["accuracy_last"] + lost / 10) if "state" in table else table
        )

    change_stored(patch, score)


def rates_reversed(patch):
    """Call a rate by the name of its opposite in the order of the rates: r = -6 has the results of r = .6."""

    def reverse(table):
        levels = [f"r = {rate:g}" for rate in nls.studies.RATES]
        names = dict(zip(levels, reversed(levels), strict=True))
        rates = dict(zip(nls.studies.RATES, reversed(nls.studies.RATES), strict=True))
        plain = table["method"].isin(levels)
        values = table["smooth_rate"].map(rates).where(plain, table["smooth_rate"])
        return table.assign(method=table["method"].replace(names), smooth_rate=values)

    change_stored(patch, reverse)


def methods_shuffled(patch):
    """Give each method the numbers of another one, seed by seed."""

    def shuffle(table):
        if "epoch" in table:
            return table
        measured = [
            name
            for name in table.columns[table.columns.get_loc("method") + 1 :]
            if name.endswith("_last") and "mapped" not in name
        ]
        table = table.copy()
        for i, (_, rows) in enumerate(table[table["state"] == "done"].groupby(["noise_name", "seed"])):
            order = np.random.default_rng(i).permutation(len(rows))
            table.loc[rows.index, measured] = rows[measured].to_numpy()[order]
        return table

    change_stored(patch, shuffle)


def epochs_backwards(patch):
    """Read the curves from the last epoch to the first."""
    curves = nls.studies.load_curves
    patch.setattr(
        nls.studies, "load_curves", lambda name: (t := curves(name)).assign(epoch=t["epoch"].max() + 1 - t["epoch"])
    )


MUTATIONS = {
    sign_lost: {"one-scale-one-order", "live-calibrated-below", "noisy-temperature", "order-stays"},
    matrix_ignored: {"temperature-through-noise", "calibrated-in-disorder"},
    noisy_labels_clean: {"noisy-temperature"},
    sides_swapped: {"no-loss-separates", "people-frobenius"},
    scored_on_noisy_labels: {"under-confident", "calibrated-below", "people-cost-less"},
    rates_reversed: {"surer-when-right", "unsure-when-wrong", "surer-when-wrong", "memorising-turns-it", "map-hurts"},
    methods_shuffled: {"one-factor", "no-loss-separates", "lower-error-worse-model", "people-frobenius"},
    epochs_backwards: {"still-moving"},
}


@pytest.fixture(scope="module")
def trained():
    """Networks that were trained before, by what they depend on; a mutation of something else need not train again."""
    return {}


def kept(trained, read, study):
    """Return a copy of a study that is read once."""
    if (read, study) not in trained:
        trained[read, study] = read(study)
    return trained[read, study].copy()


def remember(patch, trained):
    """Train no network twice, and read no study twice."""
    fit = nls.fit_each
    for name in ("load_study", "load_curves"):
        read = getattr(nls.studies, name)
        patch.setattr(nls.studies, name, lambda study, read=read: kept(trained, read, study))

    def remembered(x, y, rate, **rest):
        warmup = rest.pop("shared_warmup", None)
        key = (x.numpy().tobytes(), y.numpy().tobytes(), rate, tuple(sorted(rest.items())))
        if key not in trained:
            trained[key] = fit(x, y, rate, shared_warmup=warmup, **rest)
        return trained[key]

    patch.setattr(nls, "fit_each", remembered)


@pytest.fixture(scope="module")
def page(trained):
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, trained)
        return run_chapter(STEM, patch, **SMALL)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = {name for names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} - fallen == set()


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_claims_fall_under_a_mutation(mutate, monkeypatch, trained):
    remember(monkeypatch, trained)
    mutate(monkeypatch)
    assert MUTATIONS[mutate] - unexpected(run_chapter(STEM, monkeypatch, **SMALL)) == set()


WRONG = {
    "solution-lower": ("shares.expand", "torch.eye(num_classes, dtype=torch.float64)[0].expand"),
    "solution-noisy": ("lost = num_classes * noise_rate / (num_classes - 1)", "lost = 0.0"),
    "solution-long": ('{"epochs": 10}', '{"epochs": 2}'),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
