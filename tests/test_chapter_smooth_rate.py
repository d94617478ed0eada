"""What the chapter says about rates holds, by other means than its own, and its claims fall under mutations."""

import itertools
import math

import numpy as np
import pytest
import sympy
import timm.loss
import torch
from chapters import run_chapter, run_solution, unexpected
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch.nn import functional

import nls
import nls.linear
import nls.losses
import nls.rates
from nls.linear import fit_linear
from nls.losses import gls_loss, gls_parts, gls_targets
from nls.rates import compose_rates

STEM = "01_smooth_rate"
SMALL = {"num_draws": 200, "num_labels": 50_000}
exactly = settings(deadline=None, max_examples=50, derandomize=True)
class_counts = st.integers(2, 12)
seeds = st.integers(0, 10**6)
rates = st.floats(-50, 1)


def draw(num_classes, seed, num_examples=8, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_examples, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (num_examples,), generator=generator)


def rows(rate, num_classes):
    """The targets of all labels, from the definition."""
    return (1 - rate) * torch.eye(num_classes, dtype=torch.float64) + rate / num_classes


def by_torch(logits, labels, rate):
    """Torch's cross entropy on explicit target rows, which takes any real rate."""
    return functional.cross_entropy(logits, rows(rate, logits.shape[1])[labels], reduction="none")


def close(actual, expected, size=1.0):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14 * (1 + float(size)))


def size_of(logits, rate):
    return 20 * (1 + abs(rate)) * (1 + logits.abs().max())


# The identity


@exactly
@given(class_counts, seeds, st.floats(-50, 5))
def test_the_loss_is_a_label_free_part_less_a_linear_one(num_classes, seed, rate):
    logits, labels = draw(num_classes, seed)
    free, linear = gls_parts(logits, labels)
    expected = by_torch(logits, labels, rate)
    close(free - (1 - rate) * linear, expected, size_of(logits, rate))
    if rate <= 1:
        close(gls_loss(logits, labels, rate, reduction="none"), expected, size_of(logits, rate))


@exactly
@given(class_counts, seeds, rates)
def test_the_label_free_part_is_a_divergence_and_the_mean_over_labels(num_classes, seed, rate):
    logits, labels = draw(num_classes, seed)
    free, _ = gls_parts(logits, labels)
    uniform = torch.full_like(logits, 1 / num_classes)
    divergence = functional.kl_div(logits.log_softmax(1), uniform, reduction="none").sum(1)
    close(free, math.log(num_classes) + divergence, size_of(logits, 0))
    every = [by_torch(logits, torch.full_like(labels, k), rate) for k in range(num_classes)]
    close(free, sum(every) / num_classes, size_of(logits, rate))
    assert float(free.min()) >= math.log(num_classes)
    flat, _ = gls_parts(torch.full_like(logits, 3.0), labels)
    close(flat, torch.full_like(flat, math.log(num_classes)))


@exactly
@given(class_counts, seeds)
def test_the_linear_part_is_linear_and_sums_to_zero_over_classes(num_classes, seed):
    logits, labels = draw(num_classes, seed)
    others, _ = draw(num_classes, seed + 1)
    _, linear = gls_parts(logits, labels)
    _, joint = gls_parts(2 * logits - 5 * others, labels)
    close(joint, 2 * linear - 5 * gls_parts(others, labels)[1], 100)
    every = [gls_parts(logits, torch.full_like(labels, k))[1] for k in range(num_classes)]
    close(sum(every), torch.zeros(len(labels), dtype=torch.float64), size_of(logits, 0))


@exactly
@given(class_counts, seeds, rates)
def test_the_gradient_is_the_posterior_less_the_target(num_classes, seed, rate):
    logits, labels = draw(num_classes, seed)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(gls_loss(logits, labels, rate, reduction="sum"), logits)
    close(gradient, logits.detach().softmax(1) - rows(rate, num_classes)[labels], 20 * (1 + abs(rate)))


def test_the_loss_is_convex_at_every_rate_with_the_same_curvature():
    z, rate = sympy.symbols("z:3", real=True), sympy.Symbol("r", real=True)
    total = sum(sympy.exp(v) for v in z)
    target = [(1 - rate) * int(k == 0) + rate / 3 for k in range(3)]
    loss = -sum(t * (v - sympy.log(total)) for t, v in zip(target, z, strict=True))
    p = sympy.Matrix([sympy.exp(v) / total for v in z])
    assert sympy.simplify(sympy.hessian(loss, z) - (sympy.diag(*p) - p * p.T)) == sympy.zeros(3)
    least = math.inf
    for rate in (5.0, 1.0, 0.4, 0.0, -0.8, -1000.0):
        logits, labels = draw(6, seed=3, num_examples=1)
        hessian = torch.autograd.functional.hessian(lambda v, rate=rate, y=labels: by_torch(v, y, rate).sum(), logits)
        p = logits[0].softmax(0)
        torch.testing.assert_close(hessian.squeeze(), p.diag() - p.outer(p), rtol=0, atol=1e-12 * (1 + abs(rate)))
        least = min(least, float(torch.linalg.eigvalsh(hessian.squeeze())[0]))
    assert least > -1e-12


@exactly
@given(class_counts, seeds, st.floats(-1, 1), rates)
def test_the_loss_is_a_straight_line_in_the_rate(num_classes, seed, rate, far):
    logits, labels = draw(num_classes, seed)
    at = {r: gls_loss(logits, labels, r, reduction="none") for r in (-rate, 0.0, rate, 1.0, far)}
    close(at[-rate], 2 * at[0.0] - at[rate], size_of(logits, 1))
    close(at[far], at[0.0] + far * (at[1.0] - at[0.0]), size_of(logits, far))


@exactly
@given(class_counts, seeds, st.floats(-50, 0.99))
def test_divided_by_one_less_the_rate_it_weights_the_label_free_part(num_classes, seed, rate):
    logits, labels = draw(num_classes, seed)
    free, linear = gls_parts(logits, labels)
    weight = 1 / (1 - rate)
    close(weight * by_torch(logits, labels, rate), weight * free - linear, weight * size_of(logits, rate))


def test_near_zero_the_label_free_part_is_half_the_variance_of_the_logits():
    logits, labels = draw(7, seed=0, num_examples=20, scale=1.0)
    logits = logits - logits.mean(1, keepdim=True)
    third = logits.pow(3).mean(1) / 6
    for size, tolerance in ((1e-1, 0.1), (1e-2, 0.01)):
        free, _ = gls_parts(size * logits, labels)
        error = free - math.log(7) - (size * logits).square().mean(1) / 2
        assert float((error / size**3 - third).abs().max()) < tolerance
    assert float(third.abs().max()) > 0.1  # so the error is of third order and no higher


def test_a_target_is_a_probability_vector_for_rates_from_zero_to_k_over_k_less_one():
    for num_classes in (2, 3, 10):
        border = num_classes / (num_classes - 1)
        for rate, inside in ((-1e-9, False), (0.0, True), (1.0, True), (border, True), (border + 1e-9, False)):
            table = rows(rate, num_classes)
            assert torch.allclose(table.sum(1), torch.ones(num_classes, dtype=torch.float64))
            assert bool((table >= -1e-15).all()) == inside


def test_a_single_label_has_a_minimum_at_positive_rates_only():
    for num_classes in (2, 10):
        ones, label = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
        model = fit_linear(ones, label, num_classes, 0.4, intercept=False)
        torch.testing.assert_close(model(ones).softmax(1), rows(0.4, num_classes)[:1], rtol=0, atol=1e-7)
        assert not fit_linear(ones, label, num_classes, -0.4, intercept=False).converged
        ray = torch.zeros(3, num_classes, dtype=torch.float64)
        ray[:, 0] = torch.tensor([5.0, 50.0, 500.0])
        losses = {r: by_torch(ray, label.expand(3), r) for r in (0.4, 0.0, -0.4)}
        assert float(losses[0.4].diff().min()) > 5
        assert 0 <= float(losses[0.0][2]) <= float(losses[0.0][1]) < 1e-15 < float(losses[0.0][0])
        slope = -0.4 * (1 - 1 / num_classes)
        assert float(losses[-0.4][2] - losses[-0.4][1]) / 450 == pytest.approx(slope, abs=1e-9)


# The path


def classes_in_the_plane(num_classes, per_class=60, dimension=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat(per_class)
    centres = torch.randn(num_classes, dimension, generator=generator, dtype=torch.float64)
    mix = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), dimension, generator=generator, dtype=torch.float64)
    return centres[labels] + noise @ mix, labels


# The error is of order 1 / lambda; without a decay the third moment is all of it, and two classes have none.
@pytest.mark.parametrize(("num_classes", "decay", "order"), [(2, 0.05, 10), (3, 0.05, 10), (3, 0.0, 10), (2, 0.0, 100)])
def test_towards_rate_one_the_linear_model_becomes_least_squares(num_classes, decay, order):
    features, labels = classes_in_the_plane(num_classes, seed=1)
    onehot = torch.eye(num_classes, dtype=torch.float64)[labels]
    squares = num_classes * torch.from_numpy(LinearRegression().fit(features, onehot).coef_)
    errors = []
    for weight in (1e1, 1e2, 1e3):
        model = fit_linear(features, labels, num_classes, 1 - 1 / weight, ridge=decay / weight)
        errors.append(float((weight * model.weight - squares).norm() / squares.norm()))
    assert errors[-1] < 2e-3
    assert all(0.8 * order < first / then < 1.4 * order for first, then in itertools.pairwise(errors))
    if num_classes == 2:
        fisher = LinearDiscriminantAnalysis().fit(features, labels).coef_[0]
        difference = (model.weight[1] - model.weight[0]).numpy()
        cosine = fisher @ difference / np.linalg.norm(fisher) / np.linalg.norm(difference)
        assert cosine > 1 - 1e-6


@pytest.mark.parametrize("num_classes", [2, 3])
def test_at_rate_zero_the_linear_model_is_logistic_regression(num_classes):
    features, labels = classes_in_the_plane(num_classes, seed=1)
    ridge = 0.05
    model = fit_linear(features, labels, num_classes, 0.0, ridge=ridge)
    scale = 2 if num_classes == 2 else 1  # two classes share one weight vector there
    theirs = LogisticRegression(C=scale / (len(labels) * ridge), tol=1e-10).fit(features, labels).coef_
    ours = model.weight[1:] - model.weight[:1] if num_classes == 2 else model.weight
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_towards_minus_infinity_the_weights_are_the_class_centroids(num_classes):
    features, labels = classes_in_the_plane(num_classes, seed=2)
    centroids = torch.stack([features[labels == k].mean(0) for k in range(num_classes)])
    limit = (centroids - features.mean(0)) / num_classes
    decay, errors = 0.1, {}
    for weight in (1.0, 1e-1, 1e-2, 1e-3, 1e-4):
        model = fit_linear(features, labels, num_classes, 1 - 1 / weight, ridge=decay / weight)
        assert model.converged  # there is a minimum at every rate below one
        assert float(model.weight.sum(0).abs().max()) < 1e-7 * float(model.weight.norm())
        errors[weight] = float((decay * model.weight - limit).norm())
        assert errors[weight] < weight * float(features.norm(dim=1).mean())
    assert errors[1e-4] < 1e-3 * float(limit.norm())
    assert 8 < errors[1e-3] / errors[1e-4] < 12


@pytest.mark.parametrize(("counts", "border"), [((60, 40), -4.0), ((50, 30, 20), -1.5)])
@pytest.mark.parametrize("decay", [0.05, 10.0])
def test_unequal_classes_let_the_intercept_run_away_below_a_rate(counts, border, decay):
    num_classes = len(counts)
    lowest = num_classes * min(counts) / sum(counts)
    assert border == pytest.approx(-lowest / (1 - lowest))
    labels = torch.repeat_interleave(torch.arange(num_classes), torch.tensor(counts))
    features = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for rate, bounded in ((0.95 * border, True), (1.05 * border, False)):
        model = fit_linear(features, labels, num_classes, rate, ridge=(1 - rate) * decay)
        assert model.converged == bounded
    even = torch.arange(100) % 2
    assert fit_linear(features, even, 2, -100.0, ridge=101 * decay).converged


# The group


@exactly
@given(class_counts, seeds, st.floats(-5, 5), st.floats(-5, 5))
def test_rates_compose_to_one_rate_and_have_an_inverse_for_any_prior(num_classes, seed, first, second):
    prior = draw(num_classes, seed, 1)[0][0].softmax(0)
    identity, spread = torch.eye(num_classes, dtype=torch.float64), prior.expand(num_classes, -1)

    def smoothing(rate):
        return (1 - rate) * identity + rate * spread

    close(smoothing(first) @ smoothing(second), smoothing(1 - (1 - first) * (1 - second)), 1000)
    if abs(first - 1) > 0.01:
        inverse = torch.linalg.inv(smoothing(first))
        torch.testing.assert_close(inverse, smoothing(-first / (1 - first)), rtol=1e-9, atol=1e-9)
    close(smoothing(first) @ smoothing(second), smoothing(second) @ smoothing(first), 1000)
    if max(first, second) <= 1:
        assert compose_rates(first, second) == pytest.approx(1 - (1 - first) * (1 - second), abs=1e-12)
        targets = gls_targets(torch.arange(num_classes), num_classes, torch.tensor(first, dtype=torch.float64))
        uniform = rows(second, num_classes)
        close(targets @ uniform, rows(compose_rates(first, second), num_classes), 1000)


# A rate is not a temperature


def best_gap(weight, num_classes):
    """The gap of least expected log loss when the first class has this weight and the others share the rest."""
    found = minimize_scalar(lambda gap: math.log(math.exp(gap) + num_classes - 1) - weight * gap, bounds=(0, 20))
    return found.x


def test_noise_compresses_logit_gaps_as_no_temperature_does():
    num_classes, noise_rate = 10, 0.4
    share = num_classes * noise_rate / (num_classes - 1)
    found = {}
    for gap in (0.1, 2.0, 10.0):
        clean = math.exp(gap) / (math.exp(gap) + num_classes - 1)
        noisy = (1 - noise_rate) * clean + noise_rate * (1 - clean) / (num_classes - 1)
        found[gap] = best_gap(noisy, num_classes)
        undone = 1.8 * noisy - 0.8 / num_classes
        assert best_gap(undone, num_classes) == pytest.approx(gap, abs=1e-3)
    assert [round(found[0.1], 3), round(found[2.0], 2), round(found[10.0], 2)] == [0.057, 1.33, 2.6]
    ratios = [value / gap for gap, value in found.items()]
    assert ratios[1] > ratios[0] > ratios[2]
    assert ratios[1] / ratios[2] > 2.5
    # The factor starts at 1 - c, and the gap ends at a ceiling.
    assert found[0.1] / 0.1 == pytest.approx(1 - share, abs=0.02)
    assert found[10.0] == pytest.approx(math.log(1 + num_classes * (1 - share) / share), abs=0.002)


# The page


def as_torch_does(patch):
    """A negative rate of a linear fit becomes zero."""
    original = nls.linear.fit_linear
    patch.setattr(nls.linear, "fit_linear", lambda x, y, k, rate=0.0, **kw: original(x, y, k, max(rate, 0.0), **kw))


def size_of_the_rate(patch):
    original = nls.gls_loss

    def turned(logits, labels, smooth_rate, **kw):
        return original(logits, labels, min(abs(smooth_rate), 1.0), **kw)

    patch.setattr(nls, "gls_loss", turned)


def without_the_mean(patch):
    original = nls.losses.gls_parts
    patch.setattr(nls.losses, "gls_parts", lambda z, y: (z.logsumexp(1), original(z, y)[1]))


def confidence_penalty(patch):
    """The entropy of the output instead of its distance from uniform: a cousin that is not convex."""

    def loss(logits, labels, smooth_rate, *, reduction="mean"):
        losses = functional.cross_entropy(logits, labels, reduction="none")
        losses = losses - smooth_rate * functional.softmax(logits, 1).mul(logits.log_softmax(1)).sum(1)
        return losses if reduction == "none" else losses.mean()

    patch.setattr(nls, "gls_loss", loss)


def shuffled_points(patch):
    original = nls.linear.fit_linear

    def fit(x, y, k, *rest, **kw):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        return original(x, y[order] if len(y) > 100 else y, k, *rest, **kw)

    patch.setattr(nls.linear, "fit_linear", fit)


def without_ridge(patch):
    original = nls.linear.fit_linear
    patch.setattr(nls.linear, "fit_linear", lambda *args, ridge=0.0, **kw: original(*args, **kw))


def shuffled_labels(patch):
    original = nls.draw_noisy_labels

    def shuffled(labels, transition, generator):
        return original(labels, transition, generator)[torch.randperm(len(labels), generator=generator)]

    patch.setattr(nls, "draw_noisy_labels", shuffled)


def count_the_true_class(patch):
    original = nls.symmetric_transition
    patch.setattr(nls, "symmetric_transition", lambda k, rate: original(k, rate * (k - 1) / k))


def added_rates(patch):
    patch.setattr(nls.rates, "compose_rates", lambda *rates: sum(rates))


def divergence_turned_round(patch):
    original = nls.kl_divergence
    patch.setattr(nls, "kl_divergence", lambda target, predicted: original(predicted, target))


def noise_as_a_temperature(patch):
    patch.setattr(nls, "noisy_posterior", lambda posterior, transition: (0.57 * posterior.log()).softmax(1))


def no_distant_group(patch):
    original = torch.rand
    patch.setattr(torch, "rand", lambda *args, **kw: original(*args, **kw) + 1)


def torch_mended(patch):
    original = functional.cross_entropy

    def cross_entropy(logits, labels, label_smoothing=0.0, **kw):
        plain = original(logits, labels, **kw)
        return plain if not label_smoothing else nls.gls_loss(logits, labels, label_smoothing, **kw)

    patch.setattr(functional, "cross_entropy", cross_entropy)


def timm_clamps(patch):
    original = timm.loss.LabelSmoothingCrossEntropy
    patch.setattr(timm.loss, "LabelSmoothingCrossEntropy", lambda rate: original(max(rate, 0.0)))


def wrong_calls_stored(patch):
    original = nls.load_results
    patch.setattr(nls, "load_results", lambda study: original(study).assign(control="neither"))


def as_sure_as_not(patch):
    """The stored answers at large logits are those at moderate ones."""
    original = nls.load_results
    patch.setattr(nls, "load_results", lambda study: (rows := original(study)).assign(confident=rows["result"]))


MUTATIONS = {
    size_of_the_rate: {"identity", "gradient", "one-label"},
    without_the_mean: {"identity", "label-free", "square"},
    confidence_penalty: {"identity", "gradient", "convex"},
    as_torch_does: {"path-centroids", "intercept", "gap-restored"},
    shuffled_points: {"path-least-squares", "path-logistic", "path-centroids"},
    without_ridge: {"path-logistic", "path-centroids"},
    no_distant_group: {"path-turns", "path-group"},
    shuffled_labels: {"rates-multiply", "rates-undo"},
    count_the_true_class: {"rates-multiply", "rates-undo", "gaps", "gap-restored"},
    added_rates: {"rates-multiply", "rates-undo"},
    divergence_turned_round: {"label-free"},
    noise_as_a_temperature: {"gaps", "no-temperature", "gap-restored"},
    torch_mended: {"torch-silent"},
    timm_clamps: {"timm-exact"},
    wrong_calls_stored: {"libraries"},
    as_sure_as_not: {"confident"},
}


@pytest.fixture(scope="module")
def page():
    """The names of the chapter, run once as it is."""
    with pytest.MonkeyPatch.context() as patch:
        return run_chapter(STEM, patch, **SMALL)


def test_the_claims_hold_and_fall_under_mutations(page, monkeypatch):
    assert unexpected(page) == set()
    assert set().union(*MUTATIONS.values()) == {claim.name for claim in page["claims"]}
    for mutate, expected in MUTATIONS.items():
        with monkeypatch.context() as patch:
            mutate(patch)
            fallen = unexpected(run_chapter(STEM, patch, **SMALL))
        assert expected <= fallen, f"{mutate.__name__}: {expected - fallen} still stand"


WRONG = {
    "solution-curvature": ("answer = 0.0", "answer = 1.0"),
    "solution-undo": ("answer = -1.0", "answer = -0.5"),
    "solution-line": ("at_zero + rate * (at_one - at_zero)", "at_zero + rate * at_one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_solutions_are_right_and_the_misconceptions_wrong(name, page):
    run_solution(STEM, name, page)
    with pytest.raises(AssertionError):
        run_solution(STEM, name, page, WRONG[name])
