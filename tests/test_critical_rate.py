"""The critical rate of a linear model is where its risk loses the minimum, by oracles that share no formula with it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import foldnorm

from nls import draw_noisy_labels, feasible_rate, gls_loss, noisy_posterior, seeded_generator, symmetric_transition
from nls.generators import draw
from nls.linear import critical_rate, fit_linear


def make(num_examples, dimension, num_classes, seed, signal=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat(
        [torch.arange(num_classes), torch.randint(num_classes, (num_examples - num_classes,), generator=generator)]
    )
    centres = signal * torch.randn(num_classes, dimension, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(num_examples, dimension, generator=generator, dtype=torch.float64), labels


def steepest(features, labels, num_classes):
    """Maximise M(W) / B(W) over all weights [K, d], the other side of the duality: value and weights."""
    x, n = features.numpy(), len(features)
    size = num_classes * x.shape[1]
    signs = np.eye(num_classes)[labels.numpy()] - 1 / num_classes
    gain = np.append((signs.T @ x / n).ravel(), np.zeros(n))
    rows, limits = [], []
    for i, k in itertools.product(range(n), range(num_classes)):  # z_ik - mean z_i <= t_i
        row = np.zeros(size + n)
        row[:size] = np.kron(np.eye(num_classes)[k] - 1 / num_classes, x[i])
        row[size + i] = -1
        rows.append(row)
        limits.append(0)
    rows.append(np.append(np.zeros(size), np.full(n, 1 / n)))  # mean t <= 1
    found = linprog(-gain, A_ub=np.array(rows), b_ub=[*limits, 1], bounds=[(None, None)] * size + [(0, None)] * n)
    return -found.fun, torch.from_numpy(found.x[:size].reshape(num_classes, -1))


@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize("intercept", [True, False])
def test_it_is_the_dual_of_the_steepest_direction(num_classes, intercept):
    for seed in range(3):
        features, labels = make(30, 3, num_classes, seed, signal=0.7)
        wide = torch.cat([features, torch.ones(30, 1, dtype=torch.float64)], 1) if intercept else features
        value, _ = steepest(wide, labels, num_classes)
        rate = critical_rate(features, labels, num_classes, intercept=intercept)
        assert rate == pytest.approx(1 - 1 / value, abs=1e-8)
        assert -5 < rate <= 0


def test_one_feature_by_enumeration():
    """On a line the ratio is largest at a threshold on one of the points, or at a constant."""
    for seed in range(5):
        features, labels = make(25, 1, 2, seed)
        x, sign = features[:, 0].numpy(), 2 * labels.numpy() - 1
        directions = [x - threshold for threshold in x] + [np.ones(25)]
        best = max(abs((sign * f).mean()) / np.abs(f).mean() for f in directions)
        assert critical_rate(features, labels) == pytest.approx(1 - 1 / best, abs=1e-9)


@pytest.mark.parametrize(("num_classes", "n"), [(2, 60), (3, 90)])
def test_the_fit_has_a_minimum_above_and_none_below(num_classes, n):
    tried = 0
    for seed in range(6):
        features, labels = make(n, 4, num_classes, seed, signal=0.8)
        rate = critical_rate(features, labels, num_classes)
        if rate < 0:
            tried += 1
            above = fit_linear(features, labels, num_classes, rate + 0.01)
            below = fit_linear(features, labels, num_classes, rate - 0.01, max_iterations=300)
            assert above.converged
            assert above.value > 0
            assert not below.converged
            assert below.value < -100
    assert tried >= 4


def test_at_the_critical_rate_the_risk_is_bounded_and_no_weights_are_best():
    features, labels = make(40, 3, 3, seed=1, signal=0.7)
    rate = critical_rate(features, labels, 3, intercept=False)
    value, direction = steepest(features, labels, 3)

    def risk(weights, at=rate):
        return float(gls_loss(features @ weights.T, labels, at))

    assert rate < -0.1
    assert 1 - 1 / value == pytest.approx(rate, abs=1e-9)
    along = [risk(scale * direction) for scale in (1, 3, 9, 27, 81)]
    assert all(later < earlier for earlier, later in itertools.pairwise(along[:4]))
    assert along[-1] >= 0
    for seed in range(200):  # nowhere below zero, also in the steepest directions
        random = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert risk(10 * direction + 3 * random) >= 0
    # From the best that an optimiser finds, the direction still leads down.
    fit = fit_linear(features, labels, 3, rate + 1e-3, intercept=False)
    assert risk(fit.weight + 100 * direction) < risk(fit.weight)
    assert risk(1e4 * direction, rate - 0.01) < -10


def test_separable_labels_and_missing_classes_leave_no_negative_rate():
    line = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    assert critical_rate(line, torch.tensor([0, 0, 1, 1])) == 0
    tied = torch.tensor([[-2.0], [0.0], [0.0], [2.0]])  # separated but for points on the border
    assert critical_rate(tied, torch.tensor([0, 0, 1, 1])) == 0
    features, labels = make(50, 2, 2, 0)
    assert critical_rate(features, labels, 3) == 0
    assert critical_rate(features, labels, 2) < 0
    plenty, anything = make(20, 40, 2, 0, signal=0.0)
    assert critical_rate(plenty, anything) == 0


def test_labels_without_a_relation_to_the_features_allow_every_rate():
    features = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert critical_rate(features, torch.tensor([0, 1, 0, 1])) == -math.inf
    assert fit_linear(features, torch.tensor([0, 1, 0, 1]), 2, -50.0).converged


@given(classes=st.integers(2, 5), seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_free_logits_have_the_feasible_rate(classes, seed):
    scores = torch.randn(6, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    posterior = scores.softmax(1)
    own = torch.eye(6, dtype=torch.float64)
    rate = critical_rate(own, posterior, classes, intercept=False)
    assert rate == pytest.approx(feasible_rate(posterior), abs=1e-8)


def test_an_intercept_alone_has_the_rate_of_the_class_frequencies():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    constant = torch.ones(10, 1)
    frequencies = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    assert critical_rate(constant, labels, 3, intercept=False) == pytest.approx(feasible_rate(frequencies))


def test_a_larger_class_loses_its_minimum_earlier_and_units_do_not_matter():
    for seed in range(4):
        features, labels = make(60, 5, 3, seed, signal=0.5)
        few = critical_rate(features[:, :2], labels, 3)
        many = critical_rate(features, labels, 3)
        assert critical_rate(features, labels, 3, intercept=False) <= many + 1e-9
        assert few < many <= 0
        units = torch.tensor([1e-12, 1.0, 1e12, 3.0, -2.0], dtype=torch.float64)
        assert critical_rate(features * units, labels, 3) == pytest.approx(many, abs=1e-7)


def test_it_falls_with_the_sample_of_twonorm():
    """Means of 6 samples; the numbers of theory for one draw lie within the spread of ours."""
    transition, means = symmetric_transition(2, 0.3), []
    for size in (15, 30, 60, 200, 1000):
        rates = []
        for seed in range(6):
            raw = draw("twonorm", size, np.random.default_rng(seed))
            labels = torch.from_numpy(raw.labels)
            noisy = draw_noisy_labels(labels, transition, seeded_generator(seed, "noise"))
            rates.append(critical_rate(torch.from_numpy(raw.features), noisy))
        means.append(np.mean(rates))
    assert means[0] == means[1] == 0
    assert means[1] > means[2] + 0.05 > means[3] + 0.3 > means[4] + 0.6
    assert min(rates) < -1.45 < max(rates)


def test_many_points_reach_the_closed_form_of_twonorm():
    raw = draw("twonorm", 3000, np.random.default_rng(1))
    noisy = noisy_posterior(raw.posterior, symmetric_transition(2, 0.3))
    limit = 1 - foldnorm.mean(2) / (0.4 * 2)
    assert limit == pytest.approx(-1.5212, abs=1e-4)
    assert critical_rate(torch.from_numpy(raw.features), noisy) == pytest.approx(limit, abs=0.02)


def test_no_direction_or_bias_of_twonorm_is_steeper_than_the_class_means():
    """E[s f] / E|f| of f = w.x + b, by the mean of |N| with both classes: no more than at the class means."""
    best = 2 / foldnorm.mean(2)
    for mean, bias in itertools.product((0.1, 0.7, 1.5, 1.9, 2.0), (-3.0, -0.4, 0.0, 0.2, 5.0)):
        size = (foldnorm.mean(abs(mean + bias)) + foldnorm.mean(abs(mean - bias))) / 2
        if (mean, bias) == (2.0, 0.0):
            assert mean / size == pytest.approx(best, abs=1e-12)
        else:
            assert mean / size < best - 1e-3


def test_inputs_that_do_not_span_the_space_change_nothing():
    """Directions along which no logit moves: the boundary and the minimum above it stay."""
    features, labels = make(60, 3, 3, seed=2, signal=0.7)
    rate = critical_rate(features, labels, 3)
    wide = torch.cat([features, features[:, :1] + features[:, 1:2], torch.zeros(60, 1, dtype=torch.float64)], 1)
    assert -5 < rate < -0.1
    assert critical_rate(wide, labels, 3) == pytest.approx(rate, abs=1e-8)
    assert fit_linear(wide, labels, 3, rate + 0.02).converged
    assert not fit_linear(wide, labels, 3, rate - 0.02, max_iterations=300).converged


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, y: critical_rate(x.numpy(), y), TypeError, "features must be a torch tensor"),
        (lambda x, y: critical_rate(x[0], y), ValueError, r"features must have shape \[N, d\]"),
        (lambda x, y: critical_rate(x, y[:-1]), ValueError, r"labels must have shape \(8,\), got \(7,\)"),
        (lambda x, y: critical_rate(x, y + 1), ValueError, r"labels must lie in \[0, 1\], got the value 2"),
        (lambda x, y: critical_rate(x, y, 1), ValueError, "num_classes must be at least 2, got 1"),
        (lambda x, y: critical_rate(x, x[:, :2], 2), ValueError, "soft labels must have rows that sum to 1"),
        (lambda x, y: critical_rate(x * math.nan, y), ValueError, "features must be finite"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    features, labels = make(8, 3, 2, 0)
    with pytest.raises(error, match=words):
        call(features, labels)
