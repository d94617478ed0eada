"""What a rate does to a boundary: the theory of the page against oracles, and its claims under mutations."""

import numpy as np
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st

import nls
import nls.linear
import nls.stack
import nls.training
from nls.linear import fit_linear
from nls.truth import truth_scores

STEM = "10_boundaries"
SMALL = {"plenty_seeds": 4, "few_seeds": 20, "long_seeds": 5, "line_seeds": 3, "num_test": 1000}
FAST = settings(max_examples=25, deadline=None, derandomize=True)


def posteriors(seed, k, n=30):
    return torch.tensor(np.random.default_rng(seed).dirichlet(np.ones(k), size=n))


FITS = {}  # arguments -> fit, for runs that do not mutate the training


def remember(*data, evaluate=None, **given):
    """Train a stack once in this process."""
    items = [*enumerate(data), *sorted(given.items()), ("evaluate", evaluate is not None)]
    key = tuple((name, v.numpy().tobytes() if isinstance(v, torch.Tensor) else repr(v)) for name, v in items)
    if key not in FITS:
        FITS[key] = nls.training.fit_stack(*data, evaluate=evaluate, **given)
    return FITS[key]


# The theory of the page


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6), noise=st.floats(0, 0.4), rate=st.floats(-4, 0.9))
def test_one_number_says_what_noise_and_rate_do(seed, k, noise, rate):
    eta = posteriors(seed, k)
    s = (1 - rate) * (1 - k * noise / (k - 1))
    p = nls.gls_posterior(nls.noisy_posterior(eta, nls.symmetric_transition(k, noise)), rate)
    torch.testing.assert_close(p, s * eta + (1 - s) / k, rtol=1e-9, atol=1e-9)
    assert torch.equal(p.argmax(1), eta.argmax(1))
    torch.testing.assert_close(p.amax(1) - 1 / k, s * (eta.amax(1) - 1 / k), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rate", [0.6, 0.0, -0.5])
def test_the_minimiser_of_the_noisy_risk_is_that_mixture(rate):
    """Logits that are free at each input, by L-BFGS."""
    eta, inputs = 0.3 + 0.1 * posteriors(0, 3, n=6), torch.eye(6, dtype=torch.float64)
    noisy = nls.noisy_posterior(eta, nls.symmetric_transition(3, 0.2))
    fit = fit_linear(inputs, noisy, 3, rate, intercept=False)
    s = (1 - rate) * 0.7
    assert fit.converged
    torch.testing.assert_close(fit(inputs).softmax(1), s * eta + (1 - s) / 3, rtol=0, atol=1e-6)


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6), s=st.floats(0.05, 1))
def test_minimisers_walk_along_the_ray(seed, k, s):
    eta = posteriors(seed, k)
    found, goal = truth_scores((s * eta + (1 - s) / k).log(), eta), truth_scores(eta.log(), eta)
    assert float(found["disagreement"]) == 0
    for key in ("confidence", "confidence_right", "confidence_wrong"):
        assert float(found[key]) - 1 / k == pytest.approx(s * (float(goal[key]) - 1 / k), abs=1e-12)


def test_an_entry_turns_negative_just_below_the_exact_rate_where_the_truth_comes_close_to_zero():
    for name in ("two_moons", "circles", "spirals", "checkerboard"):
        eta = nls.load_dataset(name, seed=0).train_posterior
        k = eta.shape[1]
        lowest = nls.feasible_rate(nls.noisy_posterior(eta, nls.symmetric_transition(k, 0.2)))
        assert lowest == pytest.approx(nls.optimal_smooth_rate(0.2, k), abs=1e-3), name


# The page


def sign_lost(patch):
    """Train at |r|, at most 1."""
    target = nls.stack.target_values
    patch.setattr(nls.stack, "target_values", lambda rate, k: target(rate.abs().clamp_max(1), k))


def rate_dropped(patch):
    """Train at 0 where the rate is negative, as torch's own loss does."""
    target = nls.stack.target_values
    patch.setattr(nls.stack, "target_values", lambda rate, k: target(rate.clamp_min(0), k))


def labels_shuffled(patch):
    """Train on labels that have nothing to do with the inputs."""
    draw = nls.draw_noisy_labels

    def shuffled(labels, transition, generator):
        return draw(labels, transition, generator)[torch.randperm(len(labels), generator=generator)]

    patch.setattr(nls, "draw_noisy_labels", shuffled)


def map_idle(patch):
    """Let the output map do nothing, and fit all lines at rate 0."""
    fit = nls.linear.fit_linear
    patch.setattr(nls, "fit_stack", remember)
    patch.setattr(nls, "output_map", lambda posterior, *_: posterior)
    patch.setattr(nls.linear, "fit_linear", lambda x, y, k, rate=0.0: fit(x, y, k))


FEW = {"plenty_seeds": 2, "few_seeds": 2, "long_seeds": 2, "line_seeds": 2}  # where only plenty of labels matter
MUTATIONS = {
    sign_lost: (FEW, {"boundary-flat", "confidence-line", "closer-to-truth", "surer-when-right", "unsure-when-wrong"}),
    rate_dropped: ({}, {
        "beyond-exact", "closer-to-truth", "surer-when-right", "unsure-when-wrong", "ratio-falls", "better-when-noisy",
        "set-decides", "gain-is-late", "certain-of-errors",
    }),
    labels_shuffled: (FEW, {"boundary-flat", "confidence-line", "map-instead"}),
    map_idle: ({}, {"map-instead", "line-turns"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nls, "fit_stack", remember)
        return run_chapter(STEM, patch, **SMALL)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = {name for _, names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in page["claims"]} - fallen == set()


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_claims_fall_under_a_mutation(mutate, monkeypatch):
    scale, names = MUTATIONS[mutate]
    mutate(monkeypatch)
    assert names - unexpected(run_chapter(STEM, monkeypatch, **(SMALL | scale))) == set()


def test_what_the_paper_says_gets_the_verdicts_of_the_page(page):
    verdicts = {claim.name: claim.verdict for claim in page["claims"] if claim.kind == "reproduction"}
    assert verdicts["surer-when-right"] == "reproduced"
    assert verdicts["unsure-when-wrong"] == "not reproduced"
    assert verdicts["better-when-noisy"].startswith("reproduced only under few labels")
    assert len(verdicts) == 3


WRONG = {
    "solution-order": ("expected = order[1.0]", "expected = order[1.0] + 0.05"),  # surer, so it knows better
    "solution-act": ("threshold = (1 - c) * 0.8 + c / 2", "threshold = 0.8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
