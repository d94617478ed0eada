"""The best rate of n noisy labels of one input, and the n at which it turns, against enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from nls.noise import symmetric_transition
from nls.posterior import noisy_posterior
from nls.rates import crossover_size, finite_sample_rate, optimal_smooth_rate

CLEAR = torch.tensor([0.82] + [0.02] * 9, dtype=torch.float64)
properties = settings(max_examples=50, deadline=None, derandomize=True)


@st.composite
def inputs(draw):
    """A clean posterior that is not uniform, and a noise rate below that of uniform labels."""
    num_classes = draw(st.integers(2, 12))
    weights = draw(st.lists(st.floats(0, 1), min_size=num_classes, max_size=num_classes))
    weights = np.array(weights) ** 3
    assume(weights.sum() > 0.1)
    posterior = weights / weights.sum()
    assume(posterior.max() - posterior.min() > 0.05)
    lost = draw(st.floats(0.01, 0.97))
    return torch.from_numpy(posterior), lost * (num_classes - 1) / num_classes


def expected_error(rate, posterior, noise_rate, num_examples):
    """Sum the squared error of (1 - r) F + r u over all sequences of labels, each with its probability."""
    num_classes = len(posterior)
    noisy = noisy_posterior(posterior, symmetric_transition(num_classes, noise_rate)).numpy()
    total = 0.0
    for labels in itertools.product(range(num_classes), repeat=num_examples):
        frequencies = np.bincount(labels, minlength=num_classes) / num_examples
        estimate = (1 - rate) * frequencies + rate / num_classes
        total += noisy[list(labels)].prod() * ((estimate - posterior.numpy()) ** 2).sum()
    return total


def simulated_rate(posterior, noise_rate, num_examples, generator, num_sets=40_000):
    """Return the best rate over simulated sets of labels, and its standard error."""
    noisy = noisy_posterior(posterior, symmetric_transition(len(posterior), noise_rate)).numpy()
    centred = generator.multinomial(num_examples, noisy, size=num_sets) / num_examples - 1 / len(posterior)
    product, square = centred @ (posterior.numpy() - 1 / len(posterior)), (centred**2).sum(1)
    slope = product.mean() / square.mean()
    return 1 - slope, (product - slope * square).std() / square.mean() / math.sqrt(num_sets)


# The rate


@pytest.mark.parametrize("posterior", [[0.7, 0.2, 0.1], [0.6, 0.4], [1.0, 0.0, 0.0]])
@pytest.mark.parametrize("noise_rate", [0.0, 0.15, 0.35])
@pytest.mark.parametrize("num_examples", [1, 2, 4])
def test_the_finite_sample_rate_is_the_minimiser(posterior, noise_rate, num_examples):
    posterior = torch.tensor(posterior, dtype=torch.float64)
    arguments = (posterior, noise_rate, num_examples)
    found = minimize_scalar(expected_error, args=arguments, bracket=(-1, 0.5), options={"xtol": 1e-12})
    assert float(finite_sample_rate(*arguments)) == pytest.approx(found.x, abs=1e-6)


@pytest.mark.parametrize(
    ("num_examples", "expected"), [(1, 0.644), (5, 0.007), (6, -0.073), (20, -0.496), (1000, -0.793)]
)
def test_simulated_rates_are_those_of_the_formula(num_examples, expected):
    rate = float(finite_sample_rate(CLEAR, 0.4, num_examples))
    assert rate == pytest.approx(expected, abs=5e-4)
    simulated, error = simulated_rate(CLEAR, 0.4, num_examples, np.random.default_rng(num_examples))
    assert error < 0.01
    assert abs(simulated - rate) < 4 * error


@properties
@given(inputs(), st.integers(1, 10_000))
def test_the_rate_stays_above_the_exact_correction_and_falls_to_it(case, num_examples):
    posterior, noise_rate = case
    exact = optimal_smooth_rate(noise_rate, len(posterior))
    rates = [float(finite_sample_rate(posterior, noise_rate, n)) for n in (num_examples, 2 * num_examples, 10**12)]
    assert rates[0] > rates[1] > rates[2] > exact
    # The margin is 1 / (1 + n (1 - c)^2 S / V) of 1 - r_LC, at least about 1e-11 here.
    assert rates[2] - exact < 1e-6 * (1 - exact)


@properties
@given(inputs(), st.integers(1, 1000))
def test_the_shift_of_a_finite_sample_rate_is_too_low(case, num_examples):
    posterior, noise_rate = case
    clean = float(finite_sample_rate(posterior, 0.0, num_examples))
    shifted = optimal_smooth_rate(noise_rate, len(posterior), clean)
    noisy = float(finite_sample_rate(posterior, noise_rate, num_examples))
    assert noisy > shifted
    # Both by how much, from the variances that the proof names.
    lost = len(posterior) * noise_rate / (len(posterior) - 1)
    signal = float((posterior - 1 / len(posterior)).square().sum())
    extra = (1 - 1 / len(posterior)) * (1 - (1 - lost) ** 2) / num_examples
    variance = 1 - float(posterior.square().sum())
    ratio = 1 + extra / ((1 - lost) ** 2 * (signal + variance / num_examples))
    assert (1 - shifted) / (1 - noisy) == pytest.approx(ratio, rel=1e-9)


def test_more_noise_brings_the_rate_to_one():
    rates = [float(finite_sample_rate(CLEAR, noise_rate, 20)) for noise_rate in (0.0, 0.3, 0.6, 0.85, 0.8999)]
    assert rates[0] > 0 > rates[1]
    assert rates[2] < 0 < rates[3] < rates[4]
    assert rates[4] > 0.99


def test_limits_that_the_formula_reaches():
    uniform, certain = torch.full((4,), 0.25, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    assert float(finite_sample_rate(uniform, 0.3, 7)) == 1
    assert float(finite_sample_rate(certain[0], 0.0, 1)) == 0  # one clean label says it all
    assert finite_sample_rate(certain.view(2, 2, 4), 0.3, 3).shape == (2, 2)
    assert finite_sample_rate(certain.float(), 0.3, 3).dtype == torch.float64


# The crossover


@properties
@given(inputs())
def test_the_sign_changes_at_the_crossover(case):
    posterior, noise_rate = case
    turn = float(crossover_size(posterior, noise_rate))
    assume(turn < 1e6)
    below, above = math.ceil(turn) - 1, math.floor(turn) + 1
    assert float(finite_sample_rate(posterior, noise_rate, above)) < 0
    assert below == 0 or float(finite_sample_rate(posterior, noise_rate, below)) > 0


@pytest.mark.parametrize(("noise_rate", "below", "above"), [(0.4, 4, 6), (0.1, 6, 10), (0.8, 12, 22)])
def test_the_crossover_size_is_where_the_simulated_rate_turns(noise_rate, below, above):
    assert below < float(crossover_size(CLEAR, noise_rate)) < above
    rates = [simulated_rate(CLEAR, noise_rate, n, np.random.default_rng(n)) for n in (below, above)]
    assert rates[0][0] > 4 * rates[0][1]
    assert rates[1][0] < -4 * rates[1][1]


@properties
@given(st.integers(2, 20), st.integers(3, 500), st.floats(0.01, 0.99))
def test_with_certain_labels_a_negative_rate_needs_enough_labels(num_classes, num_examples, kept):
    assume(abs(kept - 1 / (num_examples - 1)) > 1e-9)
    certain = torch.eye(num_classes, dtype=torch.float64)[0]
    noise_rate = (1 - kept) * (num_classes - 1) / num_classes
    rate = float(finite_sample_rate(certain, noise_rate, num_examples))
    assert (rate < 0) == (kept > 1 / (num_examples - 1))
    assert float(crossover_size(certain, noise_rate)) == pytest.approx(1 + 1 / kept, rel=1e-9)


@pytest.mark.parametrize("num_examples", [1, 2])
def test_one_or_two_labels_never_want_a_negative_rate(num_examples):
    certain = torch.eye(10, dtype=torch.float64)[0]
    for noise_rate in (0.01, 0.2, 0.5, 0.89):
        assert float(finite_sample_rate(certain, noise_rate, num_examples)) > 0


def test_the_crossover_is_infinite_where_there_is_none():
    assert float(crossover_size(CLEAR, 0.0)) == math.inf
    assert float(crossover_size(torch.eye(3, dtype=torch.float64)[0], 0.0)) == math.inf
    assert float(crossover_size(torch.full((4,), 0.25, dtype=torch.float64), 0.3)) == math.inf
    assert crossover_size(torch.eye(3, dtype=torch.float64), 0.3).shape == (3,)


# Errors


@pytest.mark.parametrize("function", [lambda *given: finite_sample_rate(*given, 5), crossover_size])
@pytest.mark.parametrize(
    ("posterior", "noise_rate", "error", "message"),
    [
        ([0.5, 0.5], 0.1, TypeError, "posterior must be a torch tensor, got list"),
        (torch.tensor([1, 0]), 0.1, TypeError, "posterior must be a floating-point tensor"),
        (torch.tensor([0.5, 0.6]), 0.1, ValueError, "posterior must sum to 1"),
        (torch.tensor([1.5, -0.5]), 0.1, ValueError, "posterior must not be negative"),
        (torch.tensor([1.0]), 0.1, ValueError, "posterior must have at least 2 classes"),
        (torch.tensor([0.5, 0.5]), 0.5, ValueError, r"noise_rate must be a finite number in \[0, 0.5\), got 0.5"),
        (torch.tensor([0.5, 0.5]), -0.1, ValueError, "noise_rate must be a finite number"),
        (torch.tensor([0.5, 0.5]), "0.1", TypeError, "noise_rate must be a real number"),
    ],
)
def test_bad_arguments_are_named(function, posterior, noise_rate, error, message):
    with pytest.raises(error, match=message):
        function(posterior, noise_rate)


@pytest.mark.parametrize(
    ("num_examples", "error", "message"),
    [
        (0, ValueError, "num_examples must be at least 1, got 0"),
        (2.5, TypeError, "num_examples must be an integer"),
    ],
)
def test_a_bad_number_of_labels_is_named(num_examples, error, message):
    with pytest.raises(error, match=message):
        finite_sample_rate(CLEAR, 0.4, num_examples)
