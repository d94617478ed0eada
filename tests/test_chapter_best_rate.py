"""The statements of the chapter by independent means; its claims as it runs, and each seen to fail under a mutation."""

import math

import numpy as np
import pytest
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize, minimize_scalar

import nls
import nls.linear
import nls.rates
from nls.linear import fit_linear
from nls.losses import gls_loss
from nls.noise import pair_transition, symmetric_transition
from nls.posterior import gls_posterior, noisy_posterior, output_map
from nls.rates import feasible_rate, finite_sample_rate, optimal_smooth_rate

STEM = "04_best_rate"
SMALL = {"num_draws": 3, "num_sets": 5000, "num_seeds": 6}
exactly = settings(max_examples=50, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
class_counts = st.integers(2, 10)
shares = st.floats(0, 0.9)  # c


def make(seed, num_classes, num_inputs=6, floor=0.0):
    """Posteriors [N, K] with entries of at least ``floor`` / K, and the generator they came from."""
    generator = np.random.default_rng(seed)
    drawn = generator.random((num_inputs, num_classes)) ** 4
    drawn /= drawn.sum(1, keepdims=True)
    return torch.from_numpy((1 - floor) * drawn + floor / num_classes), generator


def log_loss(logits, labels, rate):
    """The loss of each label from the definition: (1 - r) times -log p_y plus r times the mean of -log p_k."""
    losses = torch.logsumexp(logits, 1, keepdim=True) - logits
    return (1 - rate) * losses.gather(1, labels.unsqueeze(1)).squeeze(1) + rate * losses.mean(1)


def enumerated_risk(logits, posterior, transition, rate):
    """The mean loss over inputs, clean labels and noisy labels, each with its probability."""
    total = 0.0
    for clean in range(len(transition)):
        for noisy in range(len(transition)):
            losses = log_loss(logits, torch.full((len(logits),), noisy), rate)
            total += float((posterior[:, clean] * transition[clean, noisy] * losses).mean())
    return total


def trained(posterior, rate):
    """Free logits that minimise the loss at a rate, by scipy on the risk written out."""
    weights = ((1 - rate) * posterior + rate / posterior.shape[1]).numpy()

    def risk(flat):
        z = flat.reshape(weights.shape)
        p = np.exp(z - z.max(1, keepdims=True))
        total = p.sum(1, keepdims=True)
        value = (np.log(total)[:, 0] + z.max(1) - (weights * z).sum(1)).sum()
        return value, (p / total - weights).ravel()

    found = minimize(risk, np.zeros(weights.size), jac=True, method="BFGS", options={"gtol": 1e-9})
    return torch.from_numpy(found.x.reshape(weights.shape))


# The shift


@exactly
@given(seeds, st.integers(2, 6), shares, st.floats(-20, 1))
def test_the_noisy_risk_is_the_clean_one_at_the_composed_rate(seed, num_classes, lost, rate):
    posterior, generator = make(seed, num_classes)
    logits = torch.from_numpy(3 * generator.standard_normal(posterior.shape))
    transition = symmetric_transition(num_classes, lost * (num_classes - 1) / num_classes)
    noisy = enumerated_risk(logits, posterior, transition, rate)
    clean = enumerated_risk(logits, posterior, torch.eye(num_classes), 1 - (1 - rate) * (1 - lost))
    assert noisy == pytest.approx(clean, abs=1e-12 * (1 + abs(rate)) * 20)


@pytest.mark.parametrize(
    ("num_classes", "clean_rate", "noise_rate", "expected"),
    [(10, 0.1, 0.4, -0.62), (2, 0.0, 0.3, -1.5), (3, 0.3, 0.1, 0.15 / 0.85), (3, -0.2, 0.2, -0.5 / 0.7)],
)
def test_the_best_rate_found_by_search_is_the_shift(num_classes, clean_rate, noise_rate, expected):
    posterior, _ = make(num_classes, num_classes, num_inputs=3, floor=0.3)
    noisy = noisy_posterior(posterior, symmetric_transition(num_classes, noise_rate))

    def judged(rate):
        return float(gls_loss(trained(noisy, rate), posterior, clean_rate))

    bounds = (0.98 * feasible_rate(noisy), 0.9)
    best = minimize_scalar(judged, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    assert bounds[0] + 0.01 < best.x < bounds[1] - 0.01
    assert best.x == pytest.approx(expected, abs=1e-3)
    assert optimal_smooth_rate(noise_rate, num_classes, clean_rate) == pytest.approx(expected, abs=1e-12)
    # The optimum is one: a step of 0.05 to either side costs something that is no rounding.
    assert min(judged(expected - 0.05), judged(expected + 0.05)) - best.fun > 1e-5


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("clean_rate", [0.1, 0.5])
def test_the_sign_flips_on_the_line(num_classes, clean_rate):
    posterior, _ = make(3, num_classes, num_inputs=3, floor=0.3)
    line = clean_rate * (num_classes - 1) / num_classes
    for noise_rate, side in ((line - 0.02, 1), (line + 0.02, -1)):
        noisy = noisy_posterior(posterior, symmetric_transition(num_classes, noise_rate))
        above, below = (float(gls_loss(trained(noisy, rate), posterior, clean_rate)) for rate in (0.005, -0.005))
        assert side * (below - above) > 1e-7
        assert side * optimal_smooth_rate(noise_rate, num_classes, clean_rate) > 0


# The arg-max


@exactly
@given(seeds, class_counts, st.floats(0, 1), st.floats(-30, 1))
def test_weights_keep_tie_or_reverse_the_order(seed, num_classes, noise_rate, rate):
    posterior, _ = make(seed, num_classes, num_inputs=4)
    lost = num_classes * noise_rate / (num_classes - 1)
    strength = (1 - rate) * (1 - lost)
    assume(abs(strength) > 1e-6)
    transition = symmetric_transition(num_classes, noise_rate)
    weights = gls_posterior(noisy_posterior(posterior, transition), rate)
    order = weights.argsort(1) if strength > 0 else weights.argsort(1, descending=True)
    sorted_posterior = posterior.gather(1, order)
    assert float(sorted_posterior.diff(dim=1).min()) > -1e-8


@pytest.mark.parametrize("num_classes", [2, 5, 10])
def test_no_class_leads_where_the_strength_is_zero_and_a_rate_above_one_undoes_reversed_labels(num_classes):
    posterior, _ = make(0, num_classes)
    silent = symmetric_transition(num_classes, (num_classes - 1) / num_classes)
    for weights in (gls_posterior(posterior, 1.0), noisy_posterior(posterior, silent)):
        assert float((weights - 1 / num_classes).abs().max()) < 1e-15
    noise_rate = 1 - 0.3 / num_classes
    lost = num_classes * noise_rate / (num_classes - 1)
    noisy = noisy_posterior(posterior, symmetric_transition(num_classes, noise_rate))
    assert lost > 1
    assert (noisy.argmax(1) == posterior.argmin(1)).all()
    rate = -lost / (1 - lost)
    assert rate > 1
    torch.testing.assert_close((1 - rate) * noisy + rate / num_classes, posterior, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise_rate", [0.1, 0.45, 0.8])
def test_fitted_models_keep_the_argmax_at_every_bounded_rate(noise_rate):
    posterior, generator = make(1, 10, num_inputs=5, floor=0.1)
    varying = torch.from_numpy(generator.uniform(0, noise_rate, (5, 1)))  # noise may depend on the input
    lost = 10 * varying / 9
    for noisy in (noisy_posterior(posterior, symmetric_transition(10, noise_rate)), (1 - lost) * posterior + lost / 10):
        for rate in (0.9, 0.0, 0.5 * feasible_rate(noisy), 0.98 * feasible_rate(noisy)):
            predicted = trained(noisy, rate).softmax(1)
            assert (predicted.argmax(1) == posterior.argmax(1)).all()
            assert float((predicted - gls_posterior(noisy, rate)).abs().max()) < 1e-6


@exactly
@given(seeds, class_counts, shares, st.floats(-4, 0.9))
def test_the_map_never_changes_the_argmax(seed, num_classes, lost, rate):
    predicted, _ = make(seed, num_classes)
    mapped = output_map(predicted, rate, lost * (num_classes - 1) / num_classes)
    assert (mapped.argmax(1) == predicted.argmax(1)).all()


# The four points and the five


def points_of(g):
    return np.array([[1, 0], [g, -g], [g, -g], [g, 5 * g]])


def minimiser(points, strength):
    """The minimiser of the mean of log 2 cosh(f / 2) - s f / 2, by Newton's method."""
    w = np.zeros(2)
    for _ in range(200):
        t = np.tanh(points @ w / 2)
        gradient = points.T @ (t - strength)
        step = np.linalg.solve((points * (1 - t**2)[:, None]).T @ points / 2, gradient)
        w -= step * min(1, 5 / np.abs(step).max())
        if np.abs(gradient).max() < 1e-13:
            break
    return w


@pytest.mark.parametrize("g", [0.01, 0.05, 0.07])
def test_the_four_points_turn_at_the_root(g):
    points = points_of(g)
    root = brentq(lambda t: 3 * np.tanh(t) - (5 + 12 * g) * np.tanh(6 * g * t), 1e-3, 60)
    turn = 5 * math.tanh(root) / (5 + 12 * g)
    assert brentq(lambda s: points[1] @ minimiser(points, s), 0.05, 0.995) == pytest.approx(turn, abs=1e-9)
    for strength in (0.05, 0.5 * turn, 0.99 * turn, turn + 0.1 * (1 - turn), turn + 0.9 * (1 - turn)):
        right = points @ minimiser(points, strength) > 0
        assert right.tolist() == [True, strength > turn, strength > turn, True]


def test_the_root_is_there_up_to_one_twelfth():
    for g, crosses in ((1 / 12 - 1e-3, True), (1 / 12 + 1e-3, False)):
        points = points_of(g)
        assert (points[1] @ minimiser(points, 0.01) < 0) == crosses
        # The ratio tanh t / tanh 6gt starts at 1 / 6g and falls to 1.
        assert (1 / (6 * g) > 5 / 3 + 4 * g) == crosses
        assert points[1] @ minimiser(points, 0.9) > 0


@pytest.mark.parametrize(("rate", "accuracy"), [(0.5, 0.5), (0.0, 0.5), (-0.06, 0.5), (-0.07, 1.0), (-0.2, 1.0)])
def test_the_four_points_with_the_loss_and_with_each_flip_drawn_out(rate, accuracy):
    features = torch.from_numpy(points_of(0.05))
    twice = torch.cat([features, features])  # each point with either label, weighted by its probability
    labels, weight = torch.tensor([1] * 4 + [0] * 4), torch.tensor([0.9] * 4 + [0.1] * 4, dtype=torch.float64)
    model = fit_linear(twice, labels, 2, rate, intercept=False, weight=weight)
    assert model.converged
    assert float(model(features).argmax(1).double().mean()) == accuracy
    w = minimiser(features.numpy(), (1 - rate) * 0.8)
    assert (model.weight[1] - model.weight[0]).numpy() == pytest.approx(w, abs=1e-5)


def test_five_points_turn_the_other_way():
    points = np.array([[4, 3], [-2, 1], [-2, 2], [-1, 1], [3, -2]], dtype=float)
    margins = {strength: points @ minimiser(points, strength) for strength in (0.8, 1.0)}  # CE, exact correction
    assert (margins[0.8] > 0).mean() == 0.8
    assert (margins[1.0] > 0).mean() == 0.6
    assert min(np.abs(values).min() for values in margins.values()) > 0.1
    # No weights get all five, so the exact correction has a minimum of its own.
    assert (points[[3, 1, 4]].sum(0) == 0).all()


# Few labels, and a large ridge


def test_no_rate_changes_a_decision_made_from_frequencies():
    generator = np.random.default_rng(0)
    frequencies = torch.from_numpy(generator.multinomial(7, [0.4, 0.3, 0.2, 0.1], size=500) / 7)
    for rate in (0.99, 0.3, -0.8, -40.0):
        estimate = gls_posterior(frequencies, rate)
        ties = frequencies == frequencies.amax(1, keepdim=True)
        assert ((estimate > estimate.amax(1, keepdim=True) - 1e-9 * (1 - rate)) == ties).all()


def test_a_large_ridge_points_every_rate_along_the_centroids():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (200,), generator=generator)
    onehot = torch.nn.functional.one_hot(labels, 3).double()
    moments = (onehot - 1 / 3).T @ features / 200
    for ridge, apart in ((1.0, 0.1), (100.0, 1e-5), (1e4, 1e-9)):
        for rate in (0.5, 0.0, -8.0):
            weight = fit_linear(features, labels, 3, rate, ridge=ridge, intercept=False).weight
            assert 1 - float((weight * moments).sum() / weight.norm() / moments.norm()) < apart
            if ridge == 1e4:
                assert float(weight.norm() * ridge / moments.norm()) == pytest.approx(1 - rate, rel=1e-3)


# The chapter as it runs

FITTED = {}  # what a fit gets -> the model, for runs that do not change it


def remembered(*args, **kwargs):
    """Fit once in this process, and give the same model for the same arguments."""
    key = tuple(
        (value.shape, value.stride(), value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value
        for value in (*args, *sorted(kwargs.items()))
    )
    if key not in FITTED:
        FITTED[key] = fit_linear(*args, **kwargs)
    return FITTED[key]


def change_rate(change, *ridges):
    """Fit with another rate than the one asked for, at some ridges or at all."""

    def mutate(patch):
        def fit(features, labels, num_classes, smooth_rate=0.0, **options):
            if not ridges or options.get("ridge", 0.0) in ridges:
                smooth_rate = change(smooth_rate, num_classes)
            return remembered(features, labels, num_classes, smooth_rate, **options)

        patch.setattr(nls.linear, "fit_linear", fit)

    return mutate


def swap(rate, num_classes):
    """Train the negative rate where cross entropy is asked for, and the other way round."""
    return rate if rate > 0 else 0.0 if rate < 0 else -1.5 if num_classes == 3 else -0.24


def change_noise(change):
    """Flip labels by another matrix than the symmetric one, but for those that linear models are fitted to."""

    def mutate(patch):
        def transition(num_classes, noise_rate):
            kept = (num_classes, noise_rate) == (3, 0.4)
            return (symmetric_transition if kept else change)(num_classes, noise_rate)

        patch.setattr(nls, "symmetric_transition", transition)

    return mutate


def reverse_map(patch):
    """Map in the direction of the noise instead of against it."""

    def mapped(posterior, *rates, **options):
        return (1 - posterior) / (posterior.shape[-1] - 1)

    patch.setattr(nls, "output_map", mapped)


def forget_noise(patch):
    """Leave the clean rate where it is, and take the variance of clean labels where that of noisy ones belongs."""

    def rate(posterior, noise_rate, num_examples):
        kept = 1 - noise_rate * len(posterior) / (len(posterior) - 1)
        signal, variance = (posterior - 1 / len(posterior)).square().sum(), 1 - posterior.square().sum()
        return 1 - kept * signal / (kept**2 * signal + variance / num_examples)

    def size(posterior, noise_rate):
        kept = 1 - noise_rate * len(posterior) / (len(posterior) - 1)
        return (1 - posterior.square().sum()) / (kept * (1 - kept) * (posterior - 1 / len(posterior)).square().sum())

    patch.setattr(nls.rates, "finite_sample_rate", rate)
    patch.setattr(nls.rates, "crossover_size", size)
    patch.setattr(nls, "optimal_smooth_rate", lambda noise, k, clean_rate=0.0: clean_rate + 0 * noise)


MUTATIONS = {
    "negative rate -> 0, as torch does": (change_rate(lambda rate, k: max(rate, 0.0)), [
        "posterior-repaired", "accuracy-lost", "points-turn", "points-mirrored", "rival-linear", "rival-rich"]),
    "negative rate and cross entropy swapped": (change_rate(swap, 0.0, 0.03), ["high-noise-accuracy", "points-turn"]),
    "more noise than said": (
        change_noise(lambda k, rate: symmetric_transition(k, min(2.2 * rate, 0.98 * (k - 1) / k))),
        ["shift-two-classes", "shift-many-classes", "sign-flips", "few-formula", "few-above", "few-vectors"]),
    "pair noise": (change_noise(pair_transition), ["argmax-stays", "noise-brings-smoothing-back"]),
    "map reversed": (reverse_map, ["map-keeps-argmax", "rival-few"]),
    "formulas without the noise": (forget_noise, [
        "shift-two-classes", "shift-many-classes", "few-formula", "few-crossover", "shift-too-low"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def chapter():
    """The chapter as it is, at a smaller scale at which its claims hold as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nls.linear, "fit_linear", remembered)
        return run_chapter(STEM, patch, **SMALL)


def test_every_claim_is_as_the_page_says(chapter):
    assert unexpected(chapter) == set()
    assert {claim.name for claim in chapter["claims"]} == {name for _, names in MUTATIONS.values() for name in names}
    assert {claim.name for claim in chapter["claims"] if claim.says == "fails"} == {"high-noise-accuracy"}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_claims_fall_under_a_mutation(mutation, chapter, monkeypatch):
    mutate, expected = MUTATIONS[mutation]
    monkeypatch.setattr(nls.linear, "fit_linear", remembered)
    mutate(monkeypatch)
    fallen = unexpected(run_chapter(STEM, monkeypatch, **SMALL))
    assert set(expected) - fallen == set()


@pytest.mark.parametrize(
    ("solution", "wrong"),
    [
        ("solution-reversed", ("-weight / (1 - weight)", "-weight / (1 + weight)")),  # a negative rate
        ("solution-reversed", ("argmin(1)", "argmax(1)")),  # "the order survives any noise"
        ("solution-experts", ("/ (20 - 1))", "/ 20)")),  # 1 / n for 1 / (n - 1)
        ("solution-experts", ("before < 0 < after", "before > 0 > after")),  # "more noise, lower rate"
        ("solution-ridge", ("0.3, 30.0", "0.02, 0.03")),  # cross entropy gets no penalty of its own
        ("solution-ridge", ("2, rate, ridge", "2, max(rate, 0.0), ridge")),  # a negative rate -> 0, as torch does
    ],
)
def test_solutions_run_and_wrong_ones_do_not(solution, wrong, chapter):
    run_solution(STEM, solution, chapter)
    with pytest.raises(AssertionError):
        run_solution(STEM, solution, chapter, wrong)


def test_the_rates_of_twenty_labels_quoted_on_the_page():
    clear = torch.tensor([0.82] + [0.02] * 9, dtype=torch.float64)
    assert float(finite_sample_rate(clear, 0.85, 20)) > 0.3
    assert float(finite_sample_rate(clear, 0.4, 20)) < -0.49
