"""When wrong labels are learned: the statements of the page against oracles, and its claims under mutations."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

import nls
import nls.stack
import nls.studies
from nls.losses import gls_parts
from nls.measure import fitted

STEM = "17_dynamics"
SMALL = {"live_seeds": 5, "flow_seeds": 2}
FAST = settings(max_examples=30, deadline=None, derandomize=True)
RATES = (0.4, -0.2, -0.8, -4.0)

# The theory of the page


def small_network(seed, zero_output=False, n=12, d=3, width=5, k=4):
    """Return inputs, labels, the flat parameters of a network with tanh units, and its logits as a function of them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64)
    y = torch.randint(k, (n,), generator=draw)
    sizes = [d * width, width, width * k, k]
    theta = torch.randn(sum(sizes), generator=draw, dtype=torch.float64)
    if zero_output:
        theta[d * width + width :] = 0

    def logits(theta):
        first, bias, second, out = theta.split(sizes)
        return torch.tanh(x @ first.view(d, width) + bias) @ second.view(width, k) + out

    return y, theta, logits


def parted(y, theta, logits, rate, step, rescaled, num_steps=1):
    """Return the distance of a rate from rate 0 over the way that rate 0 has gone, by descent."""
    ends = []
    for r in (rate, 0.0):
        at = theta.clone()
        for _ in range(num_steps):
            at.requires_grad_()
            (slope,) = torch.autograd.grad(nls.gls_loss(logits(at), y, r), at)
            at = at.detach() - (step / (1 - r) if rescaled else step) * slope
        ends.append(logits(at))
    return float((ends[0] - ends[1]).norm() / (ends[1] - logits(theta)).norm())


@pytest.mark.parametrize("seed", range(3))
def test_rates_part_in_proportion_to_one_number(seed):
    y, theta, logits = small_network(seed)
    jacobian = torch.autograd.functional.jacobian(lambda at: logits(at).flatten(), theta)
    part = lambda i: torch.autograd.functional.jacobian(lambda at: gls_parts(logits(at), y)[i].mean(), theta)  # noqa: E731
    a, g = part(0), part(1)
    way = (jacobian @ (g - a)).norm()
    kappa, pull = float((jacobian @ a).norm() / way), float((jacobian @ g).norm() / way)
    assert kappa > 0.1
    for rate in RATES:
        shrink = abs(1 / (1 - rate) - 1)
        assert parted(y, theta, logits, rate, 1e-6, rescaled=True) == pytest.approx(shrink * kappa, rel=1e-3)
        assert parted(y, theta, logits, rate, 1e-6, rescaled=False) == pytest.approx(abs(rate) * pull, rel=1e-3)


@pytest.mark.parametrize("seed", range(2))
def test_rates_agree_from_a_start_that_predicts_nothing(seed):
    y, theta, logits = small_network(seed, zero_output=True)
    for rate in RATES:
        assert parted(y, theta, logits, rate, 1e-3, rescaled=True) < 1e-12
        assert parted(y, theta, logits, rate, 1e-3, rescaled=False) == pytest.approx(abs(rate), rel=1e-2)
        short, twice = (parted(y, theta, logits, rate, 1e-5, rescaled=True, num_steps=n) for n in (20, 40))
        assert twice / short == pytest.approx(39 / 19, rel=1e-3)  # first order in time; the first step adds nothing


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 10), share=st.floats(0, 0.9))
def test_noisy_accuracy_is_a_line_in_clean_accuracy(seed, k, share):
    """By enumeration: each noisy label has its probability, whatever was predicted."""
    rng = np.random.default_rng(seed)
    clean, predicted = torch.from_numpy(rng.integers(k, size=(2, 50)))
    transition = nls.symmetric_transition(k, share * (k - 1) / k)
    noisy = float(transition[clean, predicted].mean())
    accuracy = float((clean == predicted).double().mean())
    assert noisy == pytest.approx((1 - share) * accuracy + share / k, abs=1e-12)


@pytest.mark.parametrize("accuracy", [0.3, 0.8])
def test_a_network_that_ignores_wrong_labels_memorises_by_chance(accuracy):
    draw, n, k = torch.Generator().manual_seed(0), 40_000, 10
    clean = torch.randint(k, (n,), generator=draw)
    noisy = nls.draw_noisy_labels(clean, nls.symmetric_transition(k, 0.6), draw)
    other = (clean + torch.randint(1, k, (n,), generator=draw)) % k
    predicted = torch.where(torch.rand(n, generator=draw) < accuracy, clean, other)
    found = fitted(one_hot(predicted, k).float(), noisy, clean)
    for name, expected in (("recovered", accuracy), ("memorised", (1 - accuracy) / (k - 1))):
        error = (expected * (1 - expected) / (0.6 * n)) ** 0.5
        assert abs(found[name] - expected) < 4 * error


def test_dividing_the_step_is_dividing_the_loss_under_sgd():
    data = nls.load_dataset("digits", seed=0)
    rates = torch.tensor([0.4, -0.8])
    labels, factors = data.train_labels.expand(2, -1), 1 / (1 - rates)
    common = {"num_classes": 10, "hidden": (16,), "epochs": 2, "optimizer": "sgd"}
    step = nls.fit_stack(data.train_features, labels, rates, learning_rate=0.05 * factors, **common)
    loss = nls.fit_stack(data.train_features, labels, rates, learning_rate=0.05, loss_scale=factors, **common)
    torch.testing.assert_close(step.stack.parameters, loss.stack.parameters, rtol=1e-3, atol=1e-5)


def test_the_stored_studies_hold_what_the_page_says_of_them():
    states = {name: nls.studies.load_study(name) for name in ("cifar10_large", "cifar10_memorising", "cifar10_small")}
    counts = {name: table["state"].value_counts().to_dict() for name, table in states.items()}
    assert counts["cifar10_large"] == {"missing": 69, "done": 3}
    assert counts["cifar10_memorising"] == {"missing": 48, "done": 13, "diverged": 2}
    rates = states["cifar10_small"][states["cifar10_small"]["loss"] == "gls"]
    assert (len(rates), set(rates["state"])) == (264, {"done"})
    trained = states["cifar10_large"][states["cifar10_large"]["state"] == "done"]
    assert set(trained["method"]) == {"r = 0.4"}
    assert len(nls.studies.load_curves("cifar10_large")) == 180


# The page

TRAINED = {}


def trained_once(patch):
    """Do not train again what the mutation does not touch."""
    fit = nls.fit_stack

    def remember(*data, seed, **rest):
        if seed not in TRAINED:
            TRAINED[seed] = fit(*data, seed=seed, **rest)
        return TRAINED[seed]

    patch.setattr(nls, "fit_stack", remember)


def stored_become(change):
    """Read other curves than those that are stored."""

    def mutate(patch):
        load = nls.studies.load_curves
        patch.setattr(nls.studies, "load_curves", lambda name: change(load(name).copy(), name))

    return mutate


def time_backwards(curves, name):
    """Read each run from its end to its beginning."""
    return curves.assign(epoch=curves.groupby("id")["epoch"].transform("max") + 1 - curves["epoch"])


def validation_shuffled(curves, name):
    """Validate on labels that have nothing to do with the images."""
    rng = np.random.default_rng(0)
    runs = curves.groupby("id")["validation_accuracy"]
    return curves.assign(validation_accuracy=runs.transform(lambda values: rng.permutation(values.to_numpy())))


def stopped_at_the_best(curves, name):
    """Keep reporting the best test epoch from the moment it is there."""
    best = curves.loc[curves.groupby("id")["accuracy"].idxmax()].set_index("id")
    late = curves["epoch"] > curves["id"].map(best["epoch"])
    values = ["accuracy", "validation_accuracy", "memorised", "recovered"]
    return curves.assign(**{v: curves[v].where(~late, curves["id"].map(best[v])) for v in values})


def rates_permuted(curves, name):
    """Store each rate's curves under the next one, and the divided ones under the plain."""
    if name == "cifar10_small":
        plain = curves["method"].str.replace(", normalised", "")
        swapped = plain.where(curves["method"].str.endswith("normalised"), plain + ", normalised")
        both = curves["smooth_rate"].isin([0.4, -0.8, -2.0, -6.0]) & curves["method"].str.startswith("r =")
        return curves.assign(method=curves["method"].where(~both, swapped))
    if name == "cifar10_memorising":
        order = {0.4: 0.0, 0.0: -2.0, -0.4: 0.4, -0.8: -0.4, -2.0: -0.8}
        return curves.assign(smooth_rate=curves["smooth_rate"].map(order))
    return curves


def rates_negated(curves, name):
    """Store r = 0 under 0.4 and 0.4 under 0, and r = 0 of the small study under the lowest rate."""
    if name == "cifar10_small":
        order = {0.0: -6.0, -6.0: 0.0}
        plain = curves["method"].isin(["r = 0", "r = -6"])
        return curves.assign(smooth_rate=curves["smooth_rate"].where(~plain, curves["smooth_rate"].replace(order)))
    if name == "cifar10_memorising":
        return curves.assign(smooth_rate=curves["smooth_rate"].replace({0.0: 0.4, 0.4: 0.0}))
    return curves


def negative_wins(curves, name):
    """Store cross entropy under the rates -0.4, -0.8 and -2, a little better, and -0.4 under cross entropy."""
    if name != "cifar10_memorising":
        return curves
    ce, low = (curves[curves["smooth_rate"] == rate] for rate in (0.0, -0.4))
    better = {"accuracy": ce["accuracy"] + 0.01, "train_loss": -1.0}
    copies = [ce.assign(smooth_rate=rate, **better) for rate in (-0.4, -0.8, -2.0)]
    return pd.concat([curves[curves["smooth_rate"] == 0.4], low.assign(smooth_rate=0.0), *copies])


def sign_lost(patch):
    """Train at |r|, live and in the descents."""
    target, loss = nls.stack.target_values, nls.gls_loss
    patch.setattr(nls.stack, "target_values", lambda rate, k: target(rate.abs(), k))
    patch.setattr(nls, "gls_loss", lambda logits, labels, rate, **rest: loss(logits, labels, abs(rate), **rest))


def controls_lost(patch):
    """Neither divide a step nor decay a weight."""
    fit = nls.fit_stack
    lost = {"learning_rate": 0.05, "weight_decay": 0.0}
    patch.setattr(nls, "fit_stack", lambda *data, **rest: fit(*data, **(rest | lost)))


def counts_mixed_up(patch):
    """Count as memorised what is recovered, and the other way round."""
    trained_once(patch)
    fit = nls.fit_stack

    def mixed(*data, **rest):
        found = fit(*data, **rest)
        counts = {"memorised": found.curves["recovered"], "recovered": found.curves["memorised"]}
        return dataclasses.replace(found, curves=found.curves | counts)

    patch.setattr(nls, "fit_stack", mixed)


STORED = {
    time_backwards: {"early-learning", "smoothing-memorises", "second-rise"},
    validation_shuffled: {"noisy-finds", "noisy-line"},
    stopped_at_the_best: {"early-learning", "stop-lifts", "noisy-finds"},
    rates_permuted: {"smoothing-memorises", "negative-runs-off", "step-costs", "step-explodes"},
    rates_negated: {
        "smoothing-sooner", "smoothing-accurate", "smoothing-posterior", "second-rise", "loss-costs",
    },
    negative_wins: {"paper-direct", "negative-runs-off"},
}  # fmt: skip
LIVE = {
    sign_lost: {"exact-runs-off", "rates-part", "zero-start-agrees"},
    controls_lost: {"delay-is-the-step", "gain-is-the-step", "no-rate-needed"},
    counts_mixed_up: {"live-memorises", "exact-runs-off"},
}


@pytest.fixture(scope="module")
def page():
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        trained_once(patch)
        return run_chapter(STEM, patch, **SMALL)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = {name for names in (STORED | LIVE).values() for name in names}
    assert {claim.name for claim in page["claims"]} - fallen == set()


@pytest.mark.parametrize("change", STORED)
def test_claims_fall_under_a_mutation_of_the_stored_curves(change, page, monkeypatch):
    trained_once(monkeypatch)
    stored_become(change)(monkeypatch)
    assert STORED[change] - unexpected(run_chapter(STEM, monkeypatch, **(SMALL | {"flow_seeds": 1}))) == set()


@pytest.mark.parametrize("mutate", LIVE)
def test_claims_fall_under_a_mutation_of_the_training(mutate, page, monkeypatch):
    mutate(monkeypatch)
    assert LIVE[mutate] - unexpected(run_chapter(STEM, monkeypatch, **SMALL)) == set()


def test_the_row_of_the_paper_is_not_reproduced(page):
    (verdict,) = [claim.verdict for claim in page["claims"] if claim.kind == "reproduction"]
    assert verdict == "not reproduced"


WRONG = {
    "solution-noisy": ('criterion = "validation_accuracy"', 'criterion = "train_accuracy"'),  # noisy as well
    "solution-smooth": ("matched = round(0.6 * epoch)", "matched = epoch"),
    "solution-resist": ('- 0.4 * tail["memorised"]) / 0.6', ")"),  # all labels instead of the right ones
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
