"""What smoothing erases: the statement of the chapter against an oracle of its own, its claims under mutations."""

import hashlib
import math

import numpy as np
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import nls
import nls.distillation
import nls.linear
from nls.stack import StackedMLP

STEM = "23_distillation"
SMALL = {"num_seeds": 4, "world_seeds": 4, "world_draws": 8}
FAST = settings(max_examples=8, deadline=None, derandomize=True)


# The statement


def minimiser(weights):
    """Return softmax logits that minimise the cross entropy to fixed weights, by scipy."""

    def risk(z):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        return -weights @ np.log(p), p - weights

    return minimize(risk, np.zeros(len(weights)), jac=True, method="BFGS", options={"gtol": 1e-10}).x


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(3, 6), rate=st.floats(0.05, 0.9))
def test_erased_on_the_sample_and_kept_in_the_population(seed, k, rate):
    """The posterior comes back from the minimiser; on one label an input only the label does."""
    rng = np.random.default_rng(seed)
    truth = 0.9 * rng.dirichlet(np.ones(k)) + 0.1 / k
    lowest = -k * truth.min() / (1 - k * truth.min())
    for r in (rate, 0.5 * lowest):
        z = minimiser((1 - r) * truth + r / k)
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        assert (p - r / k) / (1 - r) == pytest.approx(truth, abs=1e-5)
        assert p[0] - p[1] == pytest.approx((1 - r) * (truth[0] - truth[1]), abs=1e-5)
    z = minimiser((1 - rate) * np.eye(k)[0] + rate / k)
    assert z[1:] - z[1] == pytest.approx(0, abs=1e-4)
    lead = math.log((1 - rate + rate / k) / (rate / k))
    assert z[0] - z[1] == pytest.approx(lead, abs=1e-3)
    pair = torch.tensor([lead, lead, -lead, -lead], dtype=torch.float64)
    assert nls.distillation.mixture_information(pair, 0.01 * lead) == pytest.approx(math.log(2), abs=1e-9)


def test_without_smoothing_wrong_classes_are_free():
    """At rate 0 the loss vanishes along a lead that grows, whatever the wrong classes do among themselves."""
    for pattern in ([0.0, 0.0, 0.0], [0.0, 5.0, -3.0]):
        z = torch.tensor([[60.0, *pattern]], dtype=torch.float64)
        assert float(nls.gls_loss(z, torch.tensor([0]), 0.0)) < 1e-20
    assert float(nls.gls_loss(z, torch.tensor([0]), 0.1)) > 1


# The page. Everything is trained once: a mutation of what a rate is called hands out networks that are there.


class Memory:
    """Networks by what they were trained on."""

    def __init__(self):
        self.stacks, self.students = {}, {}
        self.fit_stack, self.fit_students = nls.training.fit_stack, nls.distillation.fit_students

    def stack(self, features, labels, rate=0.0, **options):
        """Train a stack once."""
        if "loss" in options:
            return self.fit_stack(features, labels, **options)
        key = (digest(features, labels, torch.as_tensor(rate)), tuple(sorted(options.items())))
        if key not in self.stacks:
            self.stacks[key] = self.fit_stack(features, labels, rate, **options)
        return self.stacks[key]

    def taught(self, features, labels, said, temperature=1.0, weight=1.0, **options):
        """Train each student once; a student depends on no other one."""
        heat = torch.as_tensor(temperature, dtype=said.dtype).expand(len(said))
        shared = (digest(features), weight, tuple(sorted(options.items())))
        keys = [(digest(row), float(h), *shared) for row, h in zip(said, heat, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self.students]
        if new:
            fit = self.fit_students(features, labels, said[new], heat[new], weight, **options)
            for j, i in enumerate(new):
                self.students[keys[i]] = fit.stack.part(slice(j, j + 1))
        return joined([self.students[key] for key in keys])


def digest(*tensors):
    """Return a name for the values of tensors."""
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def joined(members):
    """Return what holds a stack of these networks."""
    stack = StackedMLP(members[0].sizes, len(members), torch.Generator(), members[0].parameters.dtype)
    for i, member in enumerate(members):
        stack.put(slice(i, i + 1), member)
    return type("Fit", (), {"stack": stack})


@pytest.fixture(scope="module")
def memory():
    return Memory()


def remember(patch, memory):
    """Train nothing twice."""
    patch.setattr(nls, "fit_stack", memory.stack)
    patch.setattr(nls.distillation, "fit_stack", memory.stack)
    patch.setattr(nls.distillation, "fit_students", memory.taught)


def teachers_become(change):
    """Hand out, for each rate of a teacher, the one that was trained at another rate of the page."""

    def mutate(patch, memory):
        def fit(features, labels, rate, **options):
            stack, rates = memory.stack(features, labels, rate, **options).stack, rate.tolist()
            found = [rates.index(change(rates, i)) for i in range(len(rates))]
            return joined([stack.part(slice(i, i + 1)) for i in found])

        patch.setattr(nls, "fit_stack", fit)

    return mutate


def reversed_rates(rates, i):
    return rates[len(rates) - 1 - i]


def rate_ignored(rates, i):
    return rates[rates.index(0.0)] if 0.0 in rates else rates[i]


def zero_barely_trained(patch, memory):
    """Stop the teachers at rate 0, and only those, after one pass."""

    def fit(features, labels, rate, **options):
        full = memory.stack(features, labels, rate, **options)
        short = memory.stack(features, labels, rate, **options | {"epochs": 1})
        rates = rate.tolist()
        kept = [(short if value == 0 else full).stack.part(slice(i, i + 1)) for i, value in enumerate(rates)]
        return joined(kept)

    patch.setattr(nls, "fit_stack", fit)


def never_stopped(patch, memory):
    """Train every teacher to the end."""
    patch.setattr(nls, "fit_stack", lambda *data, **options: memory.stack(*data, **options | {"epochs": 60}))


def untaught(patch, memory):
    """Leave the students of teachers as they start."""

    def fit(*data, **options):
        return memory.fit_students(*data, **options | {"learning_rate": 1e-12, "epochs": 1})

    patch.setattr(nls.distillation, "fit_students", fit)


def confidence_for_error(patch, memory):
    """Call the mean confidence a calibration error."""
    patch.setattr(nls.distillation, "expected_calibration_error", lambda p, labels, bins: float(p.amax(1).mean()))


def same_draws_scored(patch, memory):
    """Score the draws that the Gaussians were fitted to, whatever is held out."""
    estimate = nls.distillation.gaussian_information
    patch.setattr(nls.distillation, "gaussian_information", lambda draws, held=None: estimate(draws))


def deviation_forgotten(patch, memory):
    """Let the estimate depend on the size of the draws, as if their deviation were 2."""

    def estimate(draws, held=None):
        scored = (draws if held is None else held).double()
        score = -(scored[..., :, None, :] - draws.double().mean(-1)[..., None, :, None]).square() / 8
        own = score.diagonal(dim1=-3, dim2=-2).mT
        return math.log(draws.shape[-2]) + (own - score.logsumexp(-2)).mean((-2, -1))

    patch.setattr(nls.distillation, "gaussian_information", estimate)


def other_minimum(patch, memory):
    """Minimise at a rate that is a little too large."""
    fit = nls.linear.fit_linear
    patch.setattr(nls.linear, "fit_linear", lambda x, y, k, rate, **rest: fit(x, y, k, rate + 0.05, **rest))


# Some are planted together: what they touch is apart.
MUTATIONS = {
    "rates reversed": (
        [teachers_become(reversed_rates)],
        {
            "wrong-classes-even", "variation-across-classes", "variation-across-examples", "information-falls",
            "towards-the-label", "erasure-explains", "smoothed-teacher-with-noise", "negative-teacher-with-noise",
        },
    ),
    "rate ignored": (
        [teachers_become(rate_ignored)],
        {"hurts-distillation", "resemblance-fades", "no-heat-for-smoothed", "erased-at-the-end", "erasure-explains"},
    ),
    "never stopped": ([never_stopped], {"towards-the-label", "erased-at-the-end", "stopping-helps-more"}),
    "untaught, confidence for error": (
        [untaught, confidence_for_error],
        {"teacher-beats-labels", "unshown-class", "no-heat-for-smoothed", "calibrated-teachers"},
    ),
    "zero barely trained, deviation forgotten": (
        [zero_barely_trained, deviation_forgotten],
        {"better-teachers", "information-from-nothing"},
    ),
    "same draws, another minimum": ([same_draws_scored, other_minimum], {"ceiling-and-bound", "kept-in-population"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def page(memory):
    """The names that the page leaves, in a small run."""
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, memory)
        yield run_chapter(STEM, patch, **SMALL)


def test_claims_are_as_the_page_says(page):
    assert unexpected(page) == set()
    fallen = set().union(*(names for _, names in MUTATIONS.values()))
    assert {claim.name for claim in page["claims"]} == fallen, "a claim is seen to fail nowhere"


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_fall_under_a_mutation(name, monkeypatch, memory, page):
    mutations, falls = MUTATIONS[name]
    remember(monkeypatch, memory)
    for mutate in mutations:
        mutate(monkeypatch, memory)
    assert falls - unexpected(run_chapter(STEM, monkeypatch, **SMALL)) == set()


WRONG = {
    "solution-patience": ('("many", 150)', '("many", 25)'),
    "solution-index": ("for extra in (0.0, tags[:, None])", "for extra in (tags[:, None], 0.0)"),
    "solution-zero": ("* 2 * size - 1", "* size - 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_hold_and_a_wrong_one_is_refused(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
