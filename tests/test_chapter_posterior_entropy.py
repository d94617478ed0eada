"""The statements of the chapter on posterior and entropy, each against an oracle of its own, and its claims."""

import itertools
import math

import numpy as np
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from scipy.special import rel_entr
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import cross_entropy

import nls
import nls.crossfit
import nls.linear
import nls.losses
from nls import (
    gls_loss,
    gls_posterior,
    gls_targets,
    kl_divergence,
    mutual_information,
    noisy_posterior,
    pair_transition,
    symmetric_transition,
)
from nls.crossfit import entropy_estimate
from nls.generators import draw, gaussian_posterior
from nls.linear import critical_rate, fit_linear
from nls.losses import gls_parts

STEM = "03_posterior_entropy"
exactly = settings(deadline=None, max_examples=50, derandomize=True)
class_counts = st.integers(2, 12)
seeds = st.integers(0, 10**6)


def simplex(num_examples, num_classes, seed=0, concentration=1.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.dirichlet(np.full(num_classes, concentration), num_examples))


def channel(num_classes, seed=0, concentration=0.5):
    return simplex(num_classes, num_classes, seed, concentration)


def doubly_stochastic(num_classes, seed=0):
    """A random mixture of random permutations."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(2 * num_classes, 0.3))
    return torch.from_numpy(sum(weight * np.eye(num_classes)[rng.permutation(num_classes)] for weight in weights))


def entropies(posterior):
    return stats.entropy(np.asarray(posterior), axis=-1)


def information(posterior, transition):
    """The mean divergence from the mean, where nls takes a difference of entropies."""
    noisy = np.asarray(posterior) @ np.asarray(transition)
    return rel_entr(noisy, noisy.mean(0)).sum(1).mean()


# Noise is smoothing


@exactly
@given(class_counts, seeds, st.floats(0, 1), st.floats(-4, 1))
def test_symmetric_noise_is_smoothing_of_target_margin_and_risk(num_classes, seed, noise_rate, rate):
    """Enumerated over all noisy labels, against torch's cross entropy on targets written out here."""
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(4, num_classes, generator=generator, dtype=torch.float64)
    clean = torch.randint(num_classes, (4,), generator=generator)
    c = num_classes * noise_rate / (num_classes - 1)
    rows = symmetric_transition(num_classes, noise_rate)[clean]
    hard = torch.eye(num_classes, dtype=torch.float64)
    # Part 1: E onehot = sum_j P(j) onehot(j).
    mean_onehot = torch.einsum("nj,jk->nk", rows, hard)
    torch.testing.assert_close(mean_onehot, (1 - c) * hard[clean] + c / num_classes, rtol=0, atol=1e-15)
    # Part 2, on A and m apart.
    labels = torch.arange(num_classes).expand(4, -1)
    spread = logits[:, None].expand(-1, num_classes, -1).reshape(-1, num_classes)
    level, margin = (part.view(4, num_classes) for part in gls_parts(spread, labels.reshape(-1)))
    clean_level, clean_margin = gls_parts(logits, clean)
    torch.testing.assert_close((rows * margin).sum(1), (1 - c) * clean_margin, rtol=0, atol=1e-13)
    torch.testing.assert_close((rows * level).sum(1), clean_level, rtol=0, atol=1e-13)
    # Part 3, with the target of the effective rate, which may be above 1 for c > 1.
    risk = (rows * gls_loss(spread, labels.reshape(-1), rate, reduction="none").view(4, num_classes)).sum(1)
    s = (1 - rate) * (1 - c)
    expected = -((s * hard[clean] + (1 - s) / num_classes) * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(risk, expected, rtol=0, atol=1e-12)
    if 0 <= 1 - s <= 1:
        torch.testing.assert_close(
            risk, cross_entropy(logits, clean, label_smoothing=1 - s, reduction="none"), rtol=0, atol=1e-12
        )


def test_noise_that_depends_on_the_input_is_smoothing_at_each_input_and_at_no_single_rate():
    noise = torch.tensor([0.0, 0.1, 0.3, 0.5], dtype=torch.float64)
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.stack([symmetric_transition(5, float(e))[0] for e in noise])
    spread = gls_loss(logits.repeat_interleave(5, 0), torch.arange(5).repeat(4), -0.5, reduction="none").view(4, 5)
    s = 1.5 * (1 - 1.25 * noise)
    on_clean = gls_loss(logits, torch.zeros(4, dtype=torch.int64), 1 - s, reduction="none")
    torch.testing.assert_close((rows * spread).sum(1), on_clean, rtol=0, atol=1e-14)
    undone = (1 - 1.25 * noise) / (1 - 1.25 * 0.3)  # the exact rate of the third input
    assert float((undone - 1).abs()[[0, 1, 3]].min()) > 0.3


@pytest.mark.parametrize(
    ("noise_rate", "noisy", "smoothed"),
    [(0.0, 0.0, 1.444), (0.2, 0.940, 1.747), (0.4, 1.552, 1.991), (0.6, 1.991, 2.175)],
)
def test_entropies_of_ten_certain_classes(noise_rate, noisy, smoothed):
    """Shares written out: 1 - eps of the true class, eps / 9 of each other one, then LS at 0.4."""
    shares = np.array([1 - noise_rate] + [noise_rate / 9] * 9)
    assert stats.entropy(shares) == pytest.approx(noisy, abs=5e-4)
    assert stats.entropy(0.6 * shares + 0.04) == pytest.approx(smoothed, abs=5e-4)
    row = symmetric_transition(10, noise_rate)[0]
    assert float(nls.entropy(row)) == pytest.approx(stats.entropy(shares), abs=1e-12)
    assert float(nls.entropy(gls_posterior(row, 0.4))) == pytest.approx(stats.entropy(0.6 * shares + 0.04), abs=1e-12)


def test_smoothing_by_04_at_40_percent_noise_is_60_percent_noise():
    shares = np.array([0.6] + [0.4 / 9] * 9)
    np.testing.assert_allclose(0.6 * shares + 0.04, [0.4] + [0.6 / 9] * 9, rtol=0, atol=1e-15)


@exactly
@given(class_counts, seeds)
def test_entropy_falls_and_information_rises_away_from_c_of_one(num_classes, seed):
    """Strictly in steps of c; also beyond c = 1, up to noise that leaves no label right."""
    clean = simplex(6, num_classes, seed)
    most = num_classes / (num_classes - 1)
    for shares in (np.linspace(0, 1, 6), np.linspace(most, 1, 6)):
        transitions = [symmetric_transition(num_classes, share / most) for share in shares]
        heights = np.stack([entropies(noisy_posterior(clean, transition)) for transition in transitions])
        assert np.diff(heights, axis=0).min() > 0
        told = [information(clean, transition) for transition in transitions]
        assert np.diff(told).max() < 0
        assert told[-1] == pytest.approx(0, abs=1e-12)
        assert [mutual_information(clean, transition) for transition in transitions] == pytest.approx(told, abs=1e-12)


def test_labels_that_are_all_wrong_tell_log_10_over_9():
    """Counted by scikit-learn from a table in which each wrong class comes once."""
    pairs = [(i, j) for i in range(10) for j in range(10) if i != j]
    assert mutual_info_score(*zip(*pairs, strict=True)) == pytest.approx(math.log(10 / 9), abs=1e-12)
    assert information(np.eye(10), symmetric_transition(10, 1.0)) == pytest.approx(math.log(10 / 9), abs=1e-12)


# When entropy rises, and what always holds


@exactly
@given(st.integers(2, 8), seeds)
def test_noise_lowers_no_entropy_if_and_only_if_doubly_stochastic(num_classes, seed):
    clean = torch.cat([simplex(50, num_classes, seed, a) for a in (0.2, 1, 20)])
    balanced = doubly_stochastic(num_classes, seed)
    assert (entropies(clean @ balanced) - entropies(clean)).min() > -1e-12
    tilted = channel(num_classes, seed)
    off = float((tilted.sum(0) - 1).abs().max())
    uniform = np.full(num_classes, 1 / num_classes)
    lost = math.log(num_classes) - stats.entropy(uniform @ tilted.numpy())
    # Pinsker: the uniform posterior loses at least half the squared total deviation of its image.
    assert lost >= 0.5 * (off / num_classes) ** 2 > 0


def test_one_sided_noise_lowers_the_entropy():
    transition = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    coin = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert stats.entropy(coin) == pytest.approx(0.693, abs=5e-4)
    assert stats.entropy(noisy_posterior(coin, transition)) == pytest.approx(0.562, abs=5e-4)

    def gain(one):
        clean = np.array([1 - one, one])
        return stats.entropy(clean @ transition.numpy()) - stats.entropy(clean)

    assert brentq(gain, 0.55, 0.8) == pytest.approx(2 / 3, abs=1e-9)
    assert max(gain(one) for one in np.linspace(0.01, 0.66, 50)) < 0


@exactly
@given(st.integers(2, 8), seeds)
def test_information_never_grows_through_a_channel(num_classes, seed):
    clean = simplex(8, num_classes, seed)
    first, second = channel(num_classes, seed), channel(num_classes, seed + 1)
    before, between = information(clean, np.eye(num_classes)), information(clean, first)
    after = information(clean, first @ second)
    assert before + 1e-12 >= between
    assert between + 1e-12 >= after
    rate = np.random.default_rng(seed).uniform()
    smoothed = gls_posterior(noisy_posterior(clean, first), rate)
    assert information(smoothed, np.eye(num_classes)) <= between + 1e-12


@exactly
@given(class_counts, seeds, st.floats(0, 1), st.floats(0, 1))
def test_symmetric_channels_compose_by_their_factors(num_classes, seed, first, second):
    most = num_classes / (num_classes - 1)
    both = symmetric_transition(num_classes, first / most) @ symmetric_transition(num_classes, second / most)
    joint = symmetric_transition(num_classes, (1 - (1 - first) * (1 - second)) / most)
    torch.testing.assert_close(both, joint, rtol=0, atol=1e-14)


# What a rate undoes


@exactly
@given(class_counts, seeds, st.floats(0, 0.95))
def test_a_corrected_label_is_unbiased_and_tells_no_more(num_classes, seed, share):
    """Enumerated over the labels; the information from the joint table of inputs and targets."""
    clean = simplex(6, num_classes, seed)
    noisy = noisy_posterior(clean, symmetric_transition(num_classes, share * (num_classes - 1) / num_classes))
    exact = -share / (1 - share)
    targets = gls_targets(torch.arange(num_classes), num_classes, torch.tensor(exact, dtype=torch.float64))
    torch.testing.assert_close(noisy @ targets, clean, rtol=0, atol=1e-12)
    error = torch.einsum("nj,njk->n", noisy, (targets - clean[:, None]).square())
    expected = (1 - noisy.square().sum(1)) / (1 - share) ** 2
    torch.testing.assert_close(error, expected, rtol=1e-10, atol=1e-12)
    kinds = targets.unique(dim=0, return_inverse=True)[1]
    assert len(set(kinds.tolist())) == num_classes


def test_n_noisy_labels_tell_at_most_n_times_what_one_tells():
    rows = symmetric_transition(3, 0.3)
    told = [0.0]
    for n in range(1, 6):
        outcomes = torch.tensor(list(itertools.product(range(3), repeat=n)))
        told.append(information(rows[:, outcomes].prod(-1), np.eye(3**n)))
    gains = np.diff(told)
    assert np.diff(gains).max() < -0.005  # each label tells less than the one before
    assert told[5] < math.log(3) < 6 * told[1]
    assert told[4] < 0.7 * math.log(3) < math.log(3) < 4 * told[1]


def test_the_spread_of_a_target_exceeds_the_distance_of_two_classes_from_40_percent_noise_on():
    spread = {e: math.sqrt(1 - float(symmetric_transition(10, e)[0].square().sum())) / (1 - 10 * e / 9) for e in
              (0.2, 0.4, 0.6)}  # fmt: skip
    assert spread[0.2] < math.sqrt(2) - 0.5
    assert math.sqrt(2) < spread[0.4] < spread[0.6]


def test_singular_noise_merges_posteriors():
    for num_classes in (2, 4, 10):
        half = pair_transition(num_classes, 0.5)
        wave = torch.tensor([1.0, -1.0] * (num_classes // 2), dtype=torch.float64)
        assert torch.linalg.matrix_rank(half) == num_classes - 1
        pair = torch.stack([1 / num_classes + delta * wave for delta in (0.0, 0.5 / num_classes)])
        images = noisy_posterior(pair, half)
        torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-15)
    assert float(torch.linalg.svdvals(pair_transition(9, 0.5)).min()) > 0.1
    for noise_rate in (0.0, 0.5, 0.85, 0.95, 1.0):
        assert float(torch.linalg.svdvals(symmetric_transition(10, noise_rate)).min()) > 0.05
    assert torch.linalg.matrix_rank(symmetric_transition(10, 0.9)) == 1
    assert information(np.eye(10), pair_transition(10, 0.5)) == pytest.approx(math.log(5), abs=1e-12)


@exactly
@given(st.integers(3, 8), seeds)
def test_what_a_singular_matrix_loses_sums_to_zero(num_classes, seed):
    transition = channel(num_classes, seed)
    transition[0] = transition[1]
    lost = torch.linalg.svd(transition.T)[2][-1]
    assert float((transition.T @ lost).abs().max()) < 1e-12
    assert abs(float(lost.sum())) < 1e-12


# The study


@exactly
@given(st.integers(2, 8), seeds, st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_distance_depends_on_the_effective_rate_alone(num_classes, seed, first, second):
    """Two noises with rates that reach one effective rate: one distance, which grows with that rate."""
    clean = simplex(5, num_classes, seed)
    most = num_classes / (num_classes - 1)
    reached = []
    for effective in (0.0, 0.2, 0.5, 0.95):
        values = []
        for share in (first, second):
            noisy = noisy_posterior(clean, symmetric_transition(num_classes, share / most))
            q = gls_posterior(noisy, 1 - (1 - effective) / (1 - share)).clamp_min(1e-300)
            values.append(np.stack([rel_entr(clean.numpy(), q.numpy()).sum(1), kl_divergence(clean, q)]))
        np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-10)
        reached.append(values[0][0])
    assert np.diff(reached, axis=0).min() > 0


def test_at_the_exact_rate_a_linear_model_has_the_weights_of_the_gaussians():
    """The log-odds of a Gaussian mixture are linear, those of its noisy posterior are not."""
    means = torch.tensor([[0.0, 3**0.5], [-1.5, -(3**0.5) / 2], [1.5, -(3**0.5) / 2]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    features = means.repeat(500, 1) + torch.randn(1500, 2, generator=generator, dtype=torch.float64)
    clean = gaussian_posterior(features, means)
    noisy = noisy_posterior(clean, symmetric_transition(3, 0.3))
    exact = fit_linear(features, noisy, 3, -0.45 / 0.55)
    torch.testing.assert_close(exact.weight - exact.weight.mean(0), means, rtol=0, atol=1e-4)
    plain = fit_linear(features, noisy, 3, 0.0)
    gap = kl_divergence(noisy, plain(features).softmax(1)).mean()
    assert float(gap) > 0.005  # it lacks the noisy posterior
    assert float(kl_divergence(clean, exact(features).softmax(1)).mean()) < 1e-8


def test_where_the_exact_rate_has_no_minimum_a_linear_programme_says_so():
    """A fit that does not converge might be slow; here each lies below the critical rate of its sample."""
    exact, found = -0.675 / 0.325, []
    for seed in range(4):
        raw = draw("three_gaussians", 2000, np.random.default_rng(seed))
        labels = nls.draw_noisy_labels(
            torch.from_numpy(raw.labels), symmetric_transition(3, 0.45), torch.Generator().manual_seed(seed)
        )
        features = torch.from_numpy(raw.features)
        critical = critical_rate(features, labels, 3)
        assert abs(critical - exact) > 0.01
        found.append(fit_linear(features, labels, 3, exact).converged)
        assert found[-1] == (exact > critical)
    assert set(found) == {True, False}


# The bracket


@pytest.mark.parametrize("strength", [0.0, 1.0, 20.0])
def test_the_bracket_holds_exactly_over_all_labels(strength):
    """All 2^6 label vectors at two inputs: frequencies with a prior, held out above, in-sample below."""
    chances, inputs = np.array([0.3] * 3 + [0.8] * 3), np.array([0] * 3 + [1] * 3)
    truth = stats.entropy(np.stack([chances, 1 - chances])).mean()
    fold = np.array([0, 1, 2] * 2)
    held_out = in_sample = penalty = 0.0
    for labels in map(np.array, itertools.product((0, 1), repeat=6)):
        weight = np.where(labels, chances, 1 - chances).prod()
        for i in range(6):
            same = inputs == inputs[i]
            other = same & (fold != fold[i])
            p = (labels[other].sum() + 0.5 + strength / 2) / (other.sum() + 1 + strength)
            held_out -= weight * math.log(p if labels[i] else 1 - p) / 6
            penalty += weight * stats.entropy([chances[i], 1 - chances[i]], [p, 1 - p]) / 6
            in_sample += weight * stats.entropy([labels[same].mean(), 1 - labels[same].mean()]) / 6
    assert held_out == pytest.approx(truth + penalty, abs=1e-12)
    assert held_out > truth + 0.03
    assert in_sample < truth - 0.1


@exactly
@given(st.integers(2, 8), seeds)
def test_entropy_is_at_least_that_of_the_noise_alone(num_classes, seed):
    clean, transition = simplex(8, num_classes, seed), channel(num_classes, seed)
    alone = entropies(transition) @ clean.mean(0).numpy()
    assert entropies(clean @ transition).mean() >= alone - 1e-12
    certain = np.eye(num_classes)
    assert entropies(certain @ transition.numpy()).mean() == pytest.approx(entropies(transition).mean(), abs=1e-12)


def test_a_logistic_model_expects_of_itself_the_loss_that_it_has():
    """In-sample log loss and plug-in entropy agree at the minimum without a penalty, and only there."""
    raw = draw("three_gaussians", 150, np.random.default_rng(0))
    labels = torch.from_numpy(raw.labels)
    gaps = {}
    for penalty in (1e8, 1e-2):
        fitted = LogisticRegression(C=penalty, max_iter=2000, tol=1e-8).fit(raw.features, raw.labels)
        found = entropy_estimate(torch.from_numpy(fitted.predict_proba(raw.features)), labels)
        gaps[penalty] = abs(found.cross_entropy.mean - found.plug_in.mean)
    assert gaps[1e8] < 1e-6
    assert gaps[1e-2] > 0.1


# The chapter

LIGHT = {
    "num_labels": 20_000,
    "num_matrices": 20,
    "study_seeds": 2,
    "study_examples": 500,
    "sizes": [70],
    "estimate_seeds": 6,
}
WHOLE = LIGHT | {"sizes": [70, 1600]}


def stronger_noise(patch):
    """Draw and assume more symmetric noise than asked for."""
    original = nls.symmetric_transition
    patch.setattr(nls, "symmetric_transition", lambda k, rate: original(k, min(1.0, 1.25 * rate)))


def absolute_rates(patch):
    """Take |r| for r in losses, targets and fits, at most 1."""
    for module, name, place in (
        (nls, "gls_loss", 2),
        (nls, "gls_targets", 2),
        (nls.linear, "fit_linear", 3),
    ):
        original = getattr(module, name)

        def mutated(*args, original=original, place=place, **keywords):
            return original(*args[:place], min(1.0, abs(args[place])), *args[place + 1 :], **keywords)

        patch.setattr(module, name, mutated)


def wrong_entropy(patch):
    """Lose the sign of the entropy; make pair noise invertible; swap smoothing and its opposite in fits."""
    entropy, pair, fit = nls.entropy, nls.pair_transition, nls.linear.fit_linear
    patch.setattr(nls, "entropy", lambda posterior: -entropy(posterior))
    patch.setattr(nls, "pair_transition", lambda k, rate: pair(k, 0.9 * rate))
    patch.setattr(nls.linear, "fit_linear", lambda x, y, k, rate, **rest: fit(x, y, k, -abs(rate) / 8, **rest))


def in_sample_for_cross_fitted(patch):
    """Predict the examples that a model was fitted to."""

    def seen(features, labels, num_classes, estimator, *_, **__):
        fitted = estimator.fit(features.numpy(), labels.numpy())
        return torch.from_numpy(fitted.predict_proba(features.numpy()))

    patch.setattr(nls.crossfit, "crossfit_posterior", seen)


def models_that_do_not_fit(patch):
    patch.setattr("sklearn.linear_model.LogisticRegression", lambda **_: DummyClassifier(strategy="prior"))


def models_that_memorise(patch):
    patch.setattr("sklearn.linear_model.LogisticRegression", lambda **_: KNeighborsClassifier(1))


def shuffled_labels(patch):
    original = nls.draw_noisy_labels

    def shuffled(labels, transition, generator):
        return original(labels, transition, generator)[torch.randperm(len(labels), generator=generator)]

    patch.setattr(nls, "draw_noisy_labels", shuffled)


MUTATIONS = {
    stronger_noise: (
        LIGHT, {"noise-is-smoothing", "rates-compose-with-noise", "smoothing-equals-more-noise", "information-falls",
                "no-information-back", "one-curve"}),
    absolute_rates: (LIGHT, {"rates-compose-with-noise", "no-information-back", "one-curve"}),
    wrong_entropy: (LIGHT, {"doubly-stochastic", "noise-raises-entropy", "singular", "over-smoothing"}),
    in_sample_for_cross_fitted: (LIGHT, {"cross-fitted-above"}),
    models_that_do_not_fit: (LIGHT, {"in-sample-below", "plug-in-below"}),
    models_that_memorise: (WHOLE, {"in-sample-no-bound"}),
    shuffled_labels: (LIGHT, {"rates-compose-with-noise", "information-falls", "real-data-rises"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def chapter():
    with pytest.MonkeyPatch.context() as patch:
        yield run_chapter(STEM, patch, **WHOLE)


def test_claims_are_as_the_page_says(chapter, monkeypatch):
    """With small samples alone, too, but for the claim about large ones."""
    assert unexpected(chapter) == set()
    assert len(chapter["claims"]) == 15
    assert unexpected(run_chapter(STEM, monkeypatch, **LIGHT)) == {"in-sample-no-bound"}


def test_each_claim_falls_under_some_mutation(chapter):
    falls = set().union(*(names for _, names in MUTATIONS.values()))
    assert falls == {claim.name for claim in chapter["claims"]}


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_claims_fall_under_mutations(mutate, monkeypatch):
    values, names = MUTATIONS[mutate]
    mutate(monkeypatch)
    assert names <= unexpected(run_chapter(STEM, monkeypatch, **values))


WRONG = {
    "solution-add": ("joint = compose_rates(0.5, 10 * 0.45 / 9)", "joint = 0.5 + 10 * 0.45 / 9"),
    "solution-insample": (
        "honest[k] = found.cross_entropy",
        "honest[k] = mean_interval(1 - KNeighborsClassifier(k).fit(features, labels).predict_proba(features).max(1))",
    ),
    "solution-worth": ("rows = symmetric_transition(3, 0.3)", "rows = torch.eye(3, dtype=torch.float64)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_solutions_run_and_wrong_ones_fail(chapter, name):
    """Rates added, certainty on the training set, and labels taken for clean ones."""
    run_solution(STEM, name, chapter)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, chapter, WRONG[name])
