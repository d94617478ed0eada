"""Methods together with a probe: the claims of the chapter under planted mutations, and its exercises."""

import numpy as np
import pytest
from chapters import run_chapter, run_solution, unexpected

import nls
from nls import heads

STEM = "33_together"
SMALL = {"num_seeds": 1, "num_examples": 400}
UNTESTED = {"state-of-the-art", "dividemix-uniform", "dividemix-flipped"}


def change_ends(patch, change):
    """Pass each table of ends of stages through a function of the table of one run."""
    ends = heads.stage_ends
    levels = ["network", "noise", "noise_rate", "warmup_epochs", "seed"]

    def changed(*args):
        table = ends(*args)
        keys = [name for name in levels if name in table.index.names]
        return table.groupby(level=keys, group_keys=False, sort=False).apply(change)

    patch.setattr(heads, "stage_ends", changed)


def change_stored(patch, change):
    """Pass each stored table through a function."""
    load = nls.load_results
    patch.setattr(nls, "load_results", lambda name: change(load(name)))


def rates_positive(patch):
    """Train with 0.8 where -0.8 is said."""
    rule = heads._rule
    patch.setattr(heads, "_rule", lambda method, *rest: rule(method.replace("r=-0.8", "r=0.8"), *rest))


def accuracies_swapped(patch):
    """Take the probe for the network, and the other way round."""
    change_ends(patch, lambda run: run.assign(own=run["probe"], probe=run["own"]))


def heads_swapped(patch):
    """Take the head alone for the whole network, and the other way round."""
    names = {f"{a}_{name}": f"{b}_{name}" for name in heads.MEASURES for a, b in (("full", "head"), ("head", "full"))}
    change_ends(patch, lambda run: run.rename(columns=names))


def differences_turned(patch):
    """Turn each difference to r = 0 round."""

    def turn(run):
        base = run.xs("r=0", level="method").iloc[0]
        return 2 * base - run

    change_ends(patch, turn)


def no_differences(patch):
    """Show cross entropy under the name of each method."""

    def same(run):
        base = run.xs("r=0", level="method").iloc[0]
        shown = run.copy()
        shown.loc[:] = np.where(run.notna(), base, np.nan)
        return shown

    change_ends(patch, same)


def noises_swapped(patch):
    """Take labels drawn anew for flips, and the other way round."""
    names = {"symmetric": "cifar10_asymmetric", "cifar10_asymmetric": "symmetric"}
    change_stored(patch, lambda table: table.assign(noise=table["noise"].replace(names)))


def set_rivals(patch, accuracy):
    """Give the other ways to spend the clean labels one accuracy."""
    others = ["scratch", "fine-tune", "map"]
    change_stored(
        patch, lambda table: table.assign(accuracy=table["accuracy"].mask(table["what"].isin(others), accuracy))
    )


def rivals_worthless(patch):
    """Let a new network, the fine-tuned one and outputs put right know nothing."""
    set_rivals(patch, 0.1)


def rivals_perfect(patch):
    """Let them know all."""
    set_rivals(patch, 1.0)


def start_forgotten(patch):
    """Let probes of the warm-up know nothing."""

    def forget(table):
        return table.assign(
            accuracy=table["accuracy"].mask((table["what"] == "probe") & (table["method"] == "warm-up"), 0.1)
        )

    change_stored(patch, forget)


MUTATIONS = {
    rates_positive: {"live-runs-agree"},
    accuracies_swapped: {
        "no-help-to-a-probe",
        "opposite-directions",
        "probe-adds-to-each-method",
        "combined-with-another-method",
        "more-under-flips",
        "probe-beats-other-methods",
        "cifar-probe-adds",
    },
    heads_swapped: {"not-only-the-head", "head-alone-corrects-flips", "live-runs-agree"},
    differences_turned: {
        "rate-moves-representation",
        "no-help-to-a-probe",
        "opposite-directions",
        "exact-rate-forgets",
        "rate-not-step",
        "cifar-moves",
        "cifar-no-help",
    },
    no_differences: {
        "rate-moves-representation",
        "not-only-the-head",
        "head-alone-costs-as-much",
        "rate-not-step",
        "combined-with-another-method",
    },
    noises_swapped: {
        "worth-more-than-the-labels",
        "labels-alone-win",
        "nothing-on-top-under-flips",
        "more-under-flips",
    },
    rivals_worthless: {"labels-alone-win", "probe-beats-clean-label-methods", "cifar-map-beats-the-probe"},
    rivals_perfect: {
        "worth-more-than-the-labels",
        "cifar-worth-more-than-the-labels",
        "cifar-probe-beats-fine-tuning",
    },
    start_forgotten: {"early-losses-lose-slower"},
}


@pytest.fixture(scope="module")
def known():
    """What was trained before, by what it depends on."""
    return {}


def remember(patch, known):
    """Train nothing twice."""
    run = heads.head_run

    def remembered(**parameters):
        key = repr(sorted(parameters.items()))
        if key not in known:
            known[key] = run(**parameters)
        return known[key]

    patch.setattr(heads, "head_run", remembered)


@pytest.fixture(scope="module")
def page(known):
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, known)
        return run_chapter(STEM, patch, **SMALL)


def single(names):
    """Return the claims that rest on one seed of CIFAR-10 so far, and so have no verdict."""
    return {claim.name for claim in names["claims"] if claim.name.startswith("cifar") and names["few"] < 2}


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == single(page)
    fallen = {name for names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} - fallen == UNTESTED
    assert {claim.name for claim in page["claims"] if claim.verdict == "not tested"} == UNTESTED


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_claims_fall_under_a_mutation(mutate, monkeypatch, known):
    if mutate is not rates_positive:
        remember(monkeypatch, known)
    mutate(monkeypatch)
    assert MUTATIONS[mutate] - unexpected(run_chapter(STEM, monkeypatch, **SMALL)) == set()


WRONG = {
    "solution-head": ("max(gain, key=gain.get)", "min(gain, key=gain.get)"),
    "solution-alike": (" / sizes[kept]", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])


def test_the_chapter_says_what_was_stored(page):
    assert page["study"].groupby(["noise", "warmup_epochs"])["seed"].nunique().tolist() == [10] * 4
    wide = nls.load_results("layers")
    wide = wide[(wide["network"] == "cnn") & (wide["noise_rate"] > 0)]
    for noise, title in page["titles"].items():
        seeds = wide[wide["noise"] == noise]["seed"].nunique()
        assert f"{seeds} of 3 seeds with {title}" in page["scale"]
