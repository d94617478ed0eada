"""The statements of the chapter on asymmetric noise, each against an oracle, and its claims under mutations."""

import math

import pytest
import sympy
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

import nls
import nls.human
import nls.linear
import nls.rates
from nls import frobenius_rate, gls_loss, noisy_posterior, pair_transition, symmetric_transition
from nls.rates import crossover_pairs, per_label_rates, scalar_share

STEM = "08_beyond_symmetric"
# Enough seeds and points for the claims on training to hold; the others hold at any size.
FULL = {"num_worlds": 50, "num_seeds": 6, "num_examples": 2500, "num_test": 1500, "num_draws": 40}
SMALL = FULL | {"num_seeds": 2, "num_examples": 200, "num_test": 100}

quickly = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
rates = st.floats(-20, 1)
flip_rates = st.floats(0, 0.49)
sizes = st.integers(2, 8)


def random_transition(num_classes, seed, kept=0.5):
    """A matrix with random rows that keep at least a part of each class."""
    rows = torch.rand(num_classes, num_classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return kept * torch.eye(num_classes, dtype=torch.float64) + (1 - kept) * rows / rows.sum(1, keepdim=True)


def targets_of(rate):
    """Q(r) for a rate for each label, one row at a time."""
    identity = torch.eye(len(rate), dtype=torch.float64)
    return torch.stack([(1 - r) * identity[i] + r / len(rate) for i, r in enumerate(rate)])


def off(matrix):
    """|| M - I || / || I - u 1^T ||."""
    return float((matrix - torch.eye(len(matrix))).norm()) / math.sqrt(len(matrix) - 1)


# Two classes


@given(seeds, flip_rates, flip_rates, rates, rates)
@quickly
def test_the_leaks_and_both_identities_of_the_paper_hold_in_any_world(seed, first, second, rate, target):
    draw = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    # Four inputs with a probability for each class, and any two losses: no formula of cross entropy enters.
    total = sum(draw[0]) + sum(draw[1])
    worlds = [
        (a / total, b / total, 10 * c - 5, 10 * d - 5) for a, b, c, d in zip(*draw, reversed(draw[2]), strict=True)
    ]
    flips = (first, second)

    def smoothed(losses, label, r):
        return (1 - r / 2) * losses[label] + r / 2 * losses[1 - label]

    def risk(r, e):
        return sum(
            mass * ((1 - e[y]) * smoothed(losses, y, r) + e[y] * smoothed(losses, 1 - y, r))
            for *masses, l0, l1 in worlds
            for y, mass in enumerate(masses)
            for losses in [(l0, l1)]
        )

    def swap(y):
        return sum(masses[y] * (losses[1 - y] - losses[y]) for *masses, l0, l1 in worlds for losses in [(l0, l1)])

    clean, scale = (0.0, 0.0), 1 + abs(rate) + abs(target)
    leaks = [e + (1 - 2 * e) * rate / 2 for e in flips]
    assert abs(risk(rate, flips) - risk(0, clean) - leaks[0] * swap(0) - leaks[1] * swap(1)) < 1e-13 * 10 * scale
    gap, lc = second - first, 2 * first / (2 * first - 1)
    first_identity = risk(lc, flips) - gap / (1 - 2 * first) * swap(1)
    assert abs(first_identity - risk(0, clean)) < 1e-13 * 10 * (1 + abs(lc) * 2)
    to_all, to_one = first - target / 2 + (1 - 2 * first) * rate / 2, gap * (1 - rate)
    second_identity = risk(target, clean) + to_all * (swap(0) + swap(1)) + to_one * swap(1)
    assert abs(second_identity - risk(rate, flips)) < 1e-13 * 10 * scale


def test_the_leaks_are_the_only_way_to_write_the_noisy_risk():
    e, r, own, other = sympy.symbols("e r own other")
    smoothed = {"own": (1 - r / 2) * own + r / 2 * other, "other": (1 - r / 2) * other + r / 2 * own}
    noisy = (1 - e) * smoothed["own"] + e * smoothed["other"]
    leak = sympy.expand(noisy).coeff(other)
    assert sympy.simplify(leak - (e + (1 - 2 * e) * r / 2)) == 0
    assert sympy.simplify(noisy - own - leak * (other - own)) == 0
    assert sympy.solve(leak, r) == [2 * e / (2 * e - 1)]


def test_the_bias_does_not_vanish_with_the_smaller_flip_rate():
    e_0, e_1 = sympy.symbols("e_0 e_1", positive=True)
    coefficient = (e_1 - e_0) / (1 - 2 * e_0)
    assert sympy.limit(coefficient, e_0, 0) == e_1
    assert sympy.limit(coefficient, e_1, e_0) == 0

    # The counterexample: an input of class 1 with probability 0.7, and what minimises the risk on noisy labels at r_LC.
    def minimiser(first, second=0.4, posterior=0.7):
        noisy = noisy_posterior(
            torch.tensor([1 - posterior, posterior], dtype=torch.float64),
            torch.tensor([[1 - first, first], [second, 1 - second]], dtype=torch.float64),
        )

        def risk(logit):
            logits = torch.tensor([[0.0, logit]] * 2, dtype=torch.float64)
            rate = 2 * first / (2 * first - 1)
            return float(noisy @ gls_loss(logits, torch.tensor([0, 1]), rate, reduction="none"))

        return 1 / (1 + math.exp(-minimize_scalar(risk, bounds=(-20, 20), method="bounded").x))

    found = [minimiser(first) for first in (0.1, 0.01, 1e-4, 0.0)]
    assert found[-1] == pytest.approx(0.42, abs=1e-4)
    assert max(found[1:]) < 0.45  # far from 0.7, and on the wrong side of one half
    assert minimiser(0.4 - 1e-6) == pytest.approx(0.7, abs=1e-3)


@given(seeds, st.floats(0, 0.9), st.floats(0, 0.9))
@quickly
def test_a_rate_for_each_label_is_backward_correction_for_two_classes(seed, first, share):
    second = share * (0.95 - first)
    transition = torch.tensor([[1 - first, first], [second, 1 - second]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(20, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (20,), generator=generator)
    rate, residual = per_label_rates(transition)
    by_rates = gls_loss(logits, labels, rate[labels], reduction="none")
    by_inverse = nls.backward_corrected_loss(logits, labels, transition, reduction="none")
    assert (by_rates - by_inverse).abs().max() < 1e-10
    assert residual < 1e-10
    assert rate.tolist() == pytest.approx([-2 * e / (1 - first - second) for e in (first, second)], abs=1e-10)


@given(st.lists(st.floats(0, 0.9), min_size=2, max_size=6))
@quickly
def test_a_rate_for_each_label_is_exact_for_kept_or_replaced_labels_only(replaced):
    replaced = torch.tensor(replaced, dtype=torch.float64)
    kept = 1 - replaced
    transition = kept.diag() + torch.outer(replaced, kept / kept.sum())
    rate, residual = per_label_rates(transition)
    assert residual < 1e-9
    torch.testing.assert_close(rate, -replaced / kept, rtol=1e-8, atol=1e-8)
    # The other way round: the inverse of any rates below 1 is of this form, and no transition matrix if one is above 0.
    inverse = torch.linalg.inv(targets_of(rate + 0.05))
    g = 1 / (0.95 - rate)
    torch.testing.assert_close(inverse, g.diag() + torch.outer(1 - g, g / g.sum()), rtol=1e-8, atol=1e-10)
    lowest = float((inverse - inverse.diagonal().diag()).min())
    assert (lowest < -1e-12) == bool((rate + 0.05 > 1e-9).any())


def test_the_inverse_of_keep_or_replace_in_symbols():
    g = sympy.symbols("g1:4", positive=True)
    total = sum(g)
    transition = sympy.Matrix(3, 3, lambda i, j: (g[i] if i == j else 0) + (1 - g[i]) * g[j] / total)
    targets = sympy.Matrix(3, 3, lambda i, j: (1 / g[i] if i == j else 0) + (1 - 1 / g[i]) / 3)
    assert sympy.simplify(transition * targets) == sympy.eye(3)


@given(seeds, st.integers(3, 8))
@quickly
def test_other_noise_leaves_something_to_a_rate_for_each_label(seed, num_classes):
    transition = random_transition(num_classes, seed)
    left = per_label_rates(transition)[1]
    assert 1e-3 < left <= frobenius_rate(transition)[1] + 1e-12
    assert left == pytest.approx(off(transition @ targets_of(per_label_rates(transition)[0].tolist())), abs=1e-10)


# Any matrix


@given(seeds, sizes, st.floats(0.05, 0.95))
@quickly
def test_the_best_rate_minimises_the_squared_bias_of_the_risk(seed, num_classes, kept):
    transition = random_transition(num_classes, seed, kept)
    assume(float(transition.trace()) > 1.02)
    rate, residual = frobenius_rate(transition)
    # An orthonormal basis of logits: the squared biases of the risk add up to the squared distance of the targets.
    unit = torch.eye(num_classes, dtype=torch.float64).repeat_interleave(num_classes, 0)
    labels = torch.arange(num_classes).repeat(num_classes)
    clean = gls_loss(unit, labels, 0.0, reduction="none").view(num_classes, -1)
    leaf = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
    noisy = gls_loss(unit, labels, leaf, reduction="none").view(num_classes, -1)
    squared = (noisy @ transition.T - clean).square().sum()
    (slope,) = torch.autograd.grad(squared, leaf, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, leaf)
    assert abs(float(slope.detach())) < 1e-9 * (1 + float(curvature)) * (1 - rate)
    assert float(curvature) > 0
    assert math.sqrt(float(squared.detach()) / (num_classes - 1)) == pytest.approx(residual, abs=1e-9)


@given(seeds, sizes, st.floats(0.05, 0.95))
@quickly
def test_the_symmetric_rule_overshoots_by_the_residual(seed, num_classes, kept):
    transition = random_transition(num_classes, seed, kept)
    assume(float(transition.trace()) > 1.02)
    rate, residual = frobenius_rate(transition)
    rule = nls.optimal_smooth_rate(float(1 - transition.diagonal().mean()), num_classes)
    assert (1 - rate) / (1 - rule) == pytest.approx(1 - residual**2, abs=1e-9)
    assert rate >= rule - 1e-12
    # The residual is the sine of an angle between two matrices.
    a = transition - 1 / num_classes
    b = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    assert residual**2 + cosine**2 == pytest.approx(1, abs=1e-12)


@given(seeds, sizes)
@quickly
def test_the_best_rate_is_negative_if_the_trace_exceeds_the_squares(seed, num_classes):
    for kept in (0.1, 0.3, 0.5):
        transition = random_transition(num_classes, seed, kept)
        if float(transition.trace()) < 1.02:
            continue
        rate = frobenius_rate(transition)[0]
        assert (rate < 0) == (float(transition.trace()) > float(transition.square().sum()))
        if float(transition.diagonal().min()) >= 0.5:
            assert rate <= 0
    assert frobenius_rate(pair_transition(9, 0.55))[0] > 0.05


def test_the_rate_of_pair_flips_turns_at_three_tenths():
    eps, a = sympy.symbols("epsilon a", positive=True)
    kept = (a - eps) / (a - 2 * eps + 2 * eps**2)
    turning = a - sympy.sqrt(a * (a - sympy.Rational(1, 2)))
    assert sympy.simplify(sympy.diff(kept, eps).subs(eps, turning)) == 0
    assert kept.subs(eps, sympy.Rational(1, 2)) == 1
    assert turning.subs(a, sympy.Rational(9, 10)) == sympy.Rational(3, 10)
    for num_classes in (3, 10, 50):
        share = (num_classes - 1) / num_classes
        for noise_rate in (0.0, 0.1, 0.45):
            expected = 1 - float(kept.subs({a: share, eps: noise_rate}))
            assert frobenius_rate(pair_transition(num_classes, noise_rate))[0] == pytest.approx(expected, abs=1e-12)
    found = minimize_scalar(lambda e: frobenius_rate(pair_transition(10, e))[0], bounds=(0, 0.5), method="bounded")
    assert found.x == pytest.approx(0.3, abs=1e-4)
    assert found.fun == pytest.approx(-0.25, abs=1e-9)


@given(flip_rates, flip_rates)
@quickly
def test_the_angle_is_the_shift_of_the_threshold(first, second):
    transition = torch.tensor([[1 - first, first], [second, 1 - second]], dtype=torch.float64)
    tangent = math.tan(math.asin(frobenius_rate(transition)[1]))
    assert tangent == pytest.approx(abs(second - first) / (1 - first - second), abs=1e-7)

    def noisy(posterior):
        row = torch.tensor([1 - posterior, posterior], dtype=torch.float64)
        return float(noisy_posterior(row, transition)[1]) - 0.5

    expected = 0.5 + math.copysign(tangent, second - first) / 2
    if 0 < expected < 1:
        assert brentq(noisy, 0, 1) == pytest.approx(expected, abs=1e-7)


@given(seeds, sizes)
@quickly
def test_only_symmetric_noise_keeps_every_arg_max(seed, num_classes):
    transition = random_transition(num_classes, seed)
    identity = torch.eye(num_classes, dtype=torch.float64)
    ties = [(i, j, (identity[i] + identity[j]) / 2) for i in range(num_classes) for j in range(i)]
    ties += [(i, j, (identity[[i, j, k]]).mean(0)) for i, j, _ in ties for k in range(num_classes) if k not in (i, j)]
    gaps = [float((tie @ transition)[i] - (tie @ transition)[j]) for i, j, tie in ties]
    gap, (i, j, tie) = max(zip(gaps, ties, strict=True), key=lambda pair: abs(pair[0]))
    assert abs(gap) > 1e-3
    preferred, other = (i, j) if gap > 0 else (j, i)
    # A little more of the class that the noise does not prefer: it is the largest, and the noise hides that.
    witness = tie + abs(gap) / 8 * (identity[other] - identity[preferred])
    assert int(witness.argmax()) == other
    assert int(noisy_posterior(witness, transition).argmax()) != other
    for noise_rate in (0.1, 0.9 * (num_classes - 1) / num_classes):
        kept = noisy_posterior(witness, symmetric_transition(num_classes, noise_rate))
        assert int(kept.argmax()) == other
    for rate in (0.9, 0.0, -30.0):
        noisy = noisy_posterior(witness, transition)
        assert int(nls.gls_posterior(noisy, rate).argmax()) == int(noisy.argmax())


# People, and counted matrices


def human_transition(*where):
    counts = nls.human.human_counts(*where).double()
    return counts / counts.sum(1, keepdim=True)


def test_human_labels_are_far_from_symmetric():
    sets = [("cifar10n", name) for name in ("aggregate", "random1", "random2", "random3", "worst")]
    matrices = [human_transition(*where) for where in [*sets, ("cifar100n_coarse", "coarse"), ("cifar100n", "fine")]]
    shares = [scalar_share(matrix) for matrix in matrices]
    assert shares == pytest.approx([0.610, 0.493, 0.475, 0.484, 0.608, 0.685, 0.785], abs=5e-4)
    for matrix in matrices:
        rate, residual = frobenius_rate(matrix)
        assert rate < nls.feasible_rate(matrix) - 0.1
        assert residual > 0.07
        assert per_label_rates(matrix)[1] > residual / 2


def test_the_size_at_which_a_counted_matrix_wins_is_bracketed():
    generator = torch.Generator().manual_seed(0)
    for matrix in (pair_transition(10, 0.2), pair_transition(3, 0.3), human_transition("cifar10n", "worst")):
        size, residual = crossover_pairs(matrix), frobenius_rate(matrix)[1]
        medians = []
        for factor in (0.5, 2.0):
            num_labels, left = math.ceil(factor * size), []
            for _ in range(100):
                drawn = torch.multinomial(matrix, num_labels, replacement=True, generator=generator)
                counted = torch.nn.functional.one_hot(drawn, len(matrix)).double().mean(1)
                left.append(off(matrix @ torch.linalg.pinv(counted)))
            medians.append(float(torch.tensor(left).median()) / residual)
        assert medians[0] > 1.1 > 0.9 > medians[1]


# The chapter


def rate_becomes_its_absolute_value(patch):
    original = gls_loss
    patch.setattr(
        nls,
        "gls_loss",
        lambda logits, labels, rate, **options: original(
            logits, labels, torch.as_tensor(rate).abs().clamp(max=1), **options
        ),
    )


def noise_changes_nothing(patch):
    patch.setattr(nls, "noisy_posterior", lambda posterior, transition: posterior)


def people_are_nearly_symmetric(patch):
    def counts(name, label_set, original=nls.human.human_counts):
        found = original(name, label_set).double()
        size, right = len(found), float(found.diagonal().sum() / found.sum())
        return (found + symmetric_transition(size, 1 - right) * found.sum() / size) / 2

    patch.setattr(nls.human, "human_counts", counts)


def the_mean_row_says_what_is_bounded(patch):
    original = nls.feasible_rate
    patch.setattr(nls, "feasible_rate", lambda posterior: original(posterior.mean(0, keepdim=True)))


def each_label_gets_the_symmetric_rate(patch):
    def own(transition, prior=None):
        size = len(transition)
        found = torch.tensor([nls.optimal_smooth_rate(float(1 - t), size) for t in transition.diagonal()])
        return found.double(), off(transition @ targets_of(found.tolist()))

    patch.setattr(nls.rates, "per_label_rates", own)


def forward_correction_takes_the_transpose(patch):
    original = nls.forward_corrected_loss
    patch.setattr(
        nls,
        "forward_corrected_loss",
        lambda logits, labels, transition: original(logits, labels, transition.T / transition.sum(0)[:, None]),
    )


def negative_rates_count_as_zero(patch):
    original = nls.linear.fit_linear
    patch.setattr(
        nls.linear,
        "fit_linear",
        lambda features, labels, num_classes, rate=0.0, **options: original(
            features, labels, num_classes, max(rate, 0.0), **options
        ),
    )


def the_size_is_five_times_too_small(patch):
    original = nls.rates.crossover_pairs
    patch.setattr(nls.rates, "crossover_pairs", lambda transition: original(transition) / 5)


# Mutations that touch different claims share a run of the page.
MUTATIONS = {
    "loss and size": (
        SMALL,
        [rate_becomes_its_absolute_value, the_size_is_five_times_too_small],
        {
            "two-leaks",
            "paper-identities",
            "two-rates-are-backward",
            "best-rate",
            "rule-overshoots",
            "rate-turns",
            "rule-brackets",
        },
    ),
    "noise and people": (
        SMALL,
        [noise_changes_nothing, people_are_nearly_symmetric, the_mean_row_says_what_is_bounded],
        {"bias-vanishes", "arg-max", "people-are-not-symmetric", "best-is-unbounded"},
    ),
    "rates of labels": (SMALL, [each_label_gets_the_symmetric_rate], {"two-rates-are-backward", "keep-or-replace"}),
    "training": (
        FULL,
        [forward_correction_takes_the_transpose, negative_rates_count_as_zero],
        {"matrix-beats-rate", "matrix-is-more-accurate", "counted-beats-rate", "best-rate-can-hurt"},
    ),
}
TRAINED = {"matrix-beats-rate", "matrix-is-more-accurate", "best-rate-can-hurt", "counted-beats-rate"}


@pytest.fixture(scope="module")
def chapter():
    """The names that the chapter leaves."""
    with pytest.MonkeyPatch.context() as patch:
        return run_chapter(STEM, patch, **FULL)


def test_the_claims_of_the_chapter_are_as_it_says(chapter, monkeypatch):
    assert unexpected(chapter) == set()
    assert {name for *_, names in MUTATIONS.values() for name in names} == {claim.name for claim in chapter["claims"]}
    # What the small runs leave out is what they have too few samples for.
    assert unexpected(run_chapter(STEM, monkeypatch, **SMALL)) <= TRAINED


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_fail_under_a_mutation(mutation, monkeypatch):
    scale, mutations, names = MUTATIONS[mutation]
    for mutate in mutations:
        mutate(monkeypatch)
    assert names <= unexpected(run_chapter(STEM, monkeypatch, **scale))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("solution-mean", ("chosen = rate", "chosen = naive")),
        ("solution-own", ("(1 - flip.sum())", "(1 - 2 * flip)")),
        ("solution-accuracy", ("aim = noisy_posteriors", "aim = posteriors")),
    ],
)
def test_solutions_are_checked(name, change, chapter):
    run_solution(STEM, name, chapter)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, chapter, change)
