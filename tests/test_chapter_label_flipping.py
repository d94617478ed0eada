"""Flips and smoothing: the statements against oracles of their own, the claims of the page under mutations."""

import numpy as np
import pandas as pd
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected

import nls
from nls import flipping

STEM = "21_label_flipping"
SMALL = {"num_seeds": 3, "num_draws": 400}
UNTESTED = {"mnist"}
ARMS = flipping.run_arms
FLIP = flipping.flip_labels


# The statements


@pytest.mark.parametrize(("num_classes", "rate"), [(2, 0.4), (5, 0.2), (10, 0.7)])
def test_the_gradient_spreads_by_the_covariance_of_the_target(num_classes, rate):
    """Autograd on drawn labels: the mean is the gradient of smoothing, the covariance diag(q) - q q', at any logits."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(num_classes, generator=generator, dtype=torch.float64)
    labels = FLIP(torch.zeros(40_000, dtype=torch.long), num_classes, rate, generator)
    rows = logits.expand(len(labels), -1).clone().requires_grad_()
    (gradients,) = torch.autograd.grad(nls.gls_loss(rows, labels, 0.0, reduction="sum"), rows)
    one = logits.clone().requires_grad_()
    (smooth,) = torch.autograd.grad(nls.gls_loss(one[None], torch.tensor([0]), rate), one)
    target = nls.gls_targets(torch.tensor([0]), num_classes, rate).double()[0]
    covariance = target.diag() - torch.outer(target, target)
    error = (covariance.diag() / len(labels)).sqrt()
    assert ((gradients.mean(0) - smooth).abs() < 4.5 * error + 1e-9).all()
    assert torch.allclose(gradients.T.cov(), covariance, atol=0.01)
    assert float(covariance.trace()) == pytest.approx(flipping.flip_spread(rate, num_classes), abs=1e-7)


@pytest.mark.parametrize("draws", [1, 5])
def test_the_linear_walk_settles_at_the_variance_of_the_page(draws):
    """Iterate the covariance of linearised steps until it stays: h / (2 - h lambda) / m along each direction."""
    step, target = 0.3, 0.7 * np.eye(4)[1] + 0.3 / 4
    hessian = np.diag(target) - np.outer(target, target)
    shrink, walk = np.eye(4) - step * hessian, np.zeros((4, 4))
    for _ in range(4000):
        walk = shrink @ walk @ shrink.T + step**2 * hessian / draws
    values, directions = np.linalg.eigh(hessian)
    for value, direction in zip(values[1:], directions.T[1:], strict=True):
        assert direction @ walk @ direction == pytest.approx(step / (2 - step * value) / draws)
    assert values[0] == pytest.approx(0, abs=1e-12)


# The page


def true_class_excluded(patch):
    """Draw a flipped label from the other classes only, as a noise rate is meant elsewhere."""

    def flip(labels, num_classes, rate, generator):
        flips = torch.rand(labels.shape, generator=generator) < rate
        step = torch.randint(1, num_classes, labels.shape, generator=generator)
        return torch.where(flips, (labels + step) % num_classes, labels)

    patch.setattr(flipping, "flip_labels", flip)


def flips_for_all_alike(patch):
    """Flip the labels of a repetition once, not each on its own."""

    def flip(labels, num_classes, rate, generator):
        return FLIP(labels[..., :1], num_classes, rate, generator).expand(labels.shape)

    patch.setattr(flipping, "flip_labels", flip)


def nothing_learnt(patch):
    """Follow a network that does not move."""
    fit = nls.fit_stack
    patch.setattr(nls, "fit_stack", lambda *data, **rest: fit(*data, **rest | {"learning_rate": 1e-9}))


def draws_ignored(patch):
    """Flip once whatever the number of flips."""
    known = flipping.run_arms
    patch.setattr(flipping, "run_arms", lambda *what, num_draws=1, **rest: known(*what, **rest))


def change_live(change):
    """Change what the networks of the page are reported to have done."""

    def mutate(patch):
        known = flipping.run_arms
        patch.setattr(flipping, "run_arms", lambda *what, **rest: change(known(*what, **rest)))

    return mutate


def change_stored(change):
    """Change the stored rows."""

    def mutate(patch):
        known = nls.load_results
        patch.setattr(nls, "load_results", lambda study: change(known(study)))

    return mutate


def swapped(first, second):
    """Return a change that calls two arms by each other's names, where there are both and no adversary."""

    def change(table):
        if "arm" not in table or not {first, second} <= set(table["arm"]):
            return table
        names = table["arm"].replace({first: second, second: first})
        return table.assign(arm=table["arm"].where(table["share"] > 0, names))

    return change


def renamed_under_attack(table):
    """Call fresh flips at 0.5 smooth targets, and the other way round."""
    names = {"fresh 0.5": "smooth 0.5", "smooth 0.5": "fresh 0.5"}
    return table.replace({"arm": names}) if "arm" in table else table


def gains_reversed(table):
    """Turn the sign of all differences in accuracy to cross entropy."""
    if "arm" not in table:
        return table
    keys = ["dataset", "attack", "share", "seed"]
    plain = table[table["arm"] == "CE"].set_index(keys)
    table = table.set_index(keys)
    for rule in ("accuracy_last", "accuracy_picked"):
        table[rule] = 2 * plain[rule].reindex(table.index) - table[rule]
    return table.reset_index()


def picked_is_last(table):
    return table.assign(accuracy_picked=table["accuracy_last"]) if "arm" in table else table


def every_set_is_digits(table):
    """Report each data set with the numbers of digits."""
    if "arm" not in table:
        return table
    digits = table[table["dataset"] == "digits"]
    return pd.concat([digits.assign(dataset=name) for name in table["dataset"].unique()])


def baseline_untrained(table):
    """Report networks of plain cross entropy as if they guessed."""
    return table.assign(error=table["error"].where(table["kind"] != "plain", 90.0)) if "kind" in table else table


def kinds_swapped(table):
    """Call smooth targets fresh flips, and the other way round."""
    return table.replace({"kind": {"smooth": "fresh", "fresh": "smooth"}}) if "kind" in table else table


# Parts of the page that do not touch each other are mutated in one run.
MUTATIONS = {
    "true class excluded; gains reversed; baseline untrained": (
        [true_class_excluded, change_stored(gains_reversed), change_stored(baseline_untrained)],
        {"same-mean", "spread-closed-form", "beneficial-fresh", "beneficial-fixed", "surest-breaks-it",
         "fresh-lowers-error", "adds-to-dropout"}),
    "flips for all alike; smooth <-> fresh, stored": (
        [flips_for_all_alike, change_stored(renamed_under_attack), change_stored(kinds_swapped)],
        {"spread-closed-form", "walk", "spread-defends", "spread-takes-it-back"}),
    "nothing learnt; picked -> last": (
        [nothing_learnt, change_stored(picked_is_last)], {"flips-stay", "stopping-does-it"}),
    "draws ignored; every set is digits": (
        [draws_ignored, change_stored(every_set_is_digits)], {"draws-interpolate", "smoothing-robust"}),
    "fresh <-> fixed": ([change_live(swapped("fresh", "fixed"))], {"fixed-is-noise"}),
    "fresh <-> CE": ([change_live(swapped("fresh", "CE"))], {"no-benefit-clean"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    """Tables that were trained before, by what they depend on."""
    return {}


def remember(patch, trained):
    """Train no arm twice."""

    def remembered(dataset, arms, attacks, **rest):
        key = (dataset, tuple(arms), tuple(attacks), tuple(sorted(rest.items())))
        if key not in trained:
            trained[key] = ARMS(dataset, arms, attacks, **rest)
        return trained[key].copy()

    patch.setattr(flipping, "run_arms", remembered)


@pytest.fixture(scope="module")
def page(trained):
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, trained)
        yield run_chapter(STEM, patch, **SMALL)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    assert {claim.name for claim in page["claims"] if claim.verdict == "not tested"} == UNTESTED
    fallen = set().union(*(names for _, names in MUTATIONS.values()))
    assert {claim.name for claim in page["claims"]} - fallen == UNTESTED, "a claim is seen to fail nowhere"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_fall_under_a_mutation(mutation, monkeypatch, trained):
    mutations, expected = MUTATIONS[mutation]
    remember(monkeypatch, trained)
    for mutate in mutations:
        mutate(monkeypatch)
    assert expected - unexpected(run_chapter(STEM, monkeypatch, **SMALL)) == set()


WRONG = {
    "solution-share": ("wanted * classes / (classes - 1)", "wanted"),
    "solution-back": ("(1 - alpha) * (1 - lost)", "(1 + alpha) * (1 - lost)"),
    "solution-step": ("0.4 / 4, 1", "0.4, 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
