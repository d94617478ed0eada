"""Noise, posterior and rates do not know each other; these identities join them."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nls.noise import cifar10_pair_transition, pair_transition, symmetric_transition
from nls.posterior import entropy, gls_posterior, js_divergence, margin, mutual_information, noisy_posterior
from nls.rates import feasible_rate, frobenius_rate, optimal_smooth_rate

exactly = settings(deadline=None, max_examples=50, derandomize=True)
class_counts = st.integers(2, 12)
seeds = st.integers(0, 10**6)
bounded_rates = st.floats(-4, 0.99)


def random_posterior(num_examples, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(num_examples, num_classes, dtype=torch.float64, generator=generator)
    return values / values.sum(1, keepdim=True)


def sure(num_classes):
    return torch.eye(num_classes, dtype=torch.float64)


def flipped_share(num_classes, noise_rate):
    """c, the share of labels that symmetric noise replaces by a uniform draw."""
    return num_classes * noise_rate / (num_classes - 1)


# Symmetric noise is label smoothing


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("noise_rate", [0.0, 0.1, 0.4, 0.5])
def test_symmetric_noise_is_label_smoothing(num_classes, noise_rate):
    share = flipped_share(num_classes, noise_rate)
    smoothed = gls_posterior(sure(num_classes), share)
    torch.testing.assert_close(symmetric_transition(num_classes, noise_rate), smoothed, rtol=0, atol=1e-15)
    clean = random_posterior(20, num_classes)
    noisy = noisy_posterior(clean, symmetric_transition(num_classes, noise_rate))
    torch.testing.assert_close(noisy, gls_posterior(clean, share), rtol=0, atol=1e-15)


def test_other_noise_is_not_label_smoothing():
    rate, residual = frobenius_rate(pair_transition(10, 0.4))
    assert residual > 0.5
    repaired = gls_posterior(noisy_posterior(sure(10), pair_transition(10, 0.4)), rate)
    assert (repaired - sure(10)).abs().max() > 0.3


@exactly
@given(class_counts, seeds, bounded_rates, bounded_rates)
def test_rates_compose_as_a_group(num_classes, seed, first, second):
    posterior = random_posterior(5, num_classes, seed)
    joint = 1 - (1 - first) * (1 - second)
    twice = gls_posterior(gls_posterior(posterior, first), second)
    torch.testing.assert_close(twice, gls_posterior(posterior, joint), rtol=0, atol=1e-12)


@exactly
@given(class_counts, seeds, st.floats(-4, 0.9))
def test_each_rate_below_one_has_an_inverse(num_classes, seed, rate):
    posterior = random_posterior(5, num_classes, seed)
    back = gls_posterior(gls_posterior(posterior, rate), -rate / (1 - rate))
    torch.testing.assert_close(back, posterior, rtol=0, atol=1e-12)


@exactly
@given(class_counts, seeds, st.floats(0, 0.95), st.floats(-2, 0.99))
def test_the_optimal_rate_turns_noisy_into_clean_smoothing(num_classes, seed, share, clean_rate):
    noise_rate = share * (num_classes - 1) / num_classes
    clean = random_posterior(5, num_classes, seed)
    noisy = noisy_posterior(clean, symmetric_transition(num_classes, noise_rate))
    rate = optimal_smooth_rate(noise_rate, num_classes, clean_rate)
    expected = gls_posterior(clean, clean_rate)
    torch.testing.assert_close(gls_posterior(noisy, rate), expected, rtol=0, atol=1e-11)


# The edge of boundedness


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("noise_rate", [0.0, 0.05, 0.2, 0.4])
def test_for_sure_classes_the_exact_correction_is_the_last_bounded_rate(num_classes, noise_rate):
    noisy = noisy_posterior(sure(num_classes), symmetric_transition(num_classes, noise_rate))
    exact = optimal_smooth_rate(noise_rate, num_classes)
    assert feasible_rate(noisy) == pytest.approx(exact, abs=1e-12)
    # At that edge the weights are the clean labels again, and rounding below zero is no error.
    assert float(entropy(gls_posterior(noisy, exact)).max()) == pytest.approx(0, abs=1e-12)


@exactly
@given(class_counts, seeds, st.floats(0, 0.95))
def test_noise_lowers_the_feasible_rate_as_it_lowers_the_optimal_one(num_classes, seed, share):
    noise_rate = share * (num_classes - 1) / num_classes
    clean = random_posterior(5, num_classes, seed)
    noisy = noisy_posterior(clean, symmetric_transition(num_classes, noise_rate))
    correction = optimal_smooth_rate(noise_rate, num_classes)
    expected = (1 - feasible_rate(clean)) * (1 - correction)
    assert 1 - feasible_rate(noisy) == pytest.approx(expected, rel=1e-9)
    assert feasible_rate(noisy) < correction + 1e-12


# The arg-max


@exactly
@given(class_counts, seeds, st.floats(0, 0.95), bounded_rates)
def test_noise_and_smoothing_keep_the_arg_max(num_classes, seed, share, rate):
    clean = random_posterior(5, num_classes, seed)
    noise_rate = share * (num_classes - 1) / num_classes
    weights = gls_posterior(noisy_posterior(clean, symmetric_transition(num_classes, noise_rate)), rate)
    assert weights.argmax(1).equal(clean.argmax(1))
    scale = (1 - rate) * (1 - share)
    torch.testing.assert_close(margin(weights), scale * margin(clean), rtol=1e-9, atol=1e-13)


def test_the_arg_max_ties_at_full_smoothing_and_reverses_beyond():
    clean = random_posterior(20, 4)
    assert (margin(gls_posterior(clean, 1.0)) == 0).all()
    reversed_noise = noisy_posterior(clean, symmetric_transition(4, 0.9))
    assert reversed_noise.argmax(1).equal(clean.argmin(1))
    paired = noisy_posterior(sure(4), pair_transition(4, 0.6))
    assert not paired.argmax(1).equal(sure(4).argmax(1))


# Entropy and information


@pytest.mark.parametrize(
    ("noise_rate", "noisy", "smoothed"),
    [(0.0, 0.0, 1.444), (0.2, 0.940, 1.747), (0.4, 1.552, 1.991), (0.6, 1.991, 2.175)],
)
def test_entropies_of_ten_sure_classes(noise_rate, noisy, smoothed):
    posterior = noisy_posterior(sure(10), symmetric_transition(10, noise_rate))
    torch.testing.assert_close(entropy(posterior), torch.full((10,), noisy).double(), rtol=0, atol=5e-4)
    over = entropy(gls_posterior(posterior, 0.4))
    torch.testing.assert_close(over, torch.full((10,), smoothed).double(), rtol=0, atol=5e-4)


def test_asymmetric_noise_can_lower_the_entropy():
    clean = torch.tensor([0.5, 0.5], dtype=torch.float64)
    noisy = noisy_posterior(clean, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert float(entropy(clean)) == pytest.approx(0.693, abs=5e-4)
    assert float(entropy(noisy)) == pytest.approx(0.562, abs=5e-4)


@pytest.mark.parametrize("seed", range(10))
def test_doubly_stochastic_noise_never_lowers_the_entropy(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = random_posterior(1, 6, seed)[0]
    mixture = sum(w * sure(5)[torch.randperm(5, generator=generator)] for w in weights)
    clean = random_posterior(200, 5, seed)
    for transition in (mixture, symmetric_transition(5, 0.7), pair_transition(5, 0.3)):
        gained = entropy(noisy_posterior(clean, transition)) - entropy(clean)
        assert float(gained.min()) >= -1e-12
    assert float(entropy(noisy_posterior(sure(10), cifar10_pair_transition(0.2))).min()) > 0.5


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_symmetric_noise_raises_entropy_and_costs_information_up_to_c_of_one(num_classes):
    clean = random_posterior(50, num_classes, seed=1)
    noise_rates = [share * (num_classes - 1) / num_classes for share in (0, 0.1, 0.3, 0.6, 0.9, 1)]
    transitions = [symmetric_transition(num_classes, noise_rate) for noise_rate in noise_rates]
    entropies = torch.stack([entropy(noisy_posterior(clean, transition)) for transition in transitions])
    assert (entropies.diff(dim=0) > 0).all()
    information = [mutual_information(clean, transition) for transition in transitions]
    assert all(more > less for more, less in itertools.pairwise(information))
    assert information[-1] == pytest.approx(0, abs=1e-12)


def test_wrong_labels_beyond_c_of_one_inform_again():
    assert mutual_information(sure(10), symmetric_transition(10, 1.0)) == pytest.approx(math.log(10 / 9), abs=1e-12)
    assert mutual_information(sure(10), symmetric_transition(10, 0.9)) == pytest.approx(0, abs=1e-12)
    assert mutual_information(sure(2), symmetric_transition(2, 1.0)) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.9])
def test_label_smoothing_is_one_more_channel(rate):
    clean, transition = random_posterior(50, 10, seed=2), cifar10_pair_transition(0.2)
    smoothing = symmetric_transition(10, rate * 0.9)
    both = mutual_information(clean, transition @ smoothing)
    smoothed = gls_posterior(noisy_posterior(clean, transition), rate)
    assert both == pytest.approx(mutual_information(smoothed, sure(10)), abs=1e-12)
    assert both < mutual_information(clean, transition) < mutual_information(clean, sure(10))


def test_the_optimal_rate_recovers_the_clean_posterior():
    clean = random_posterior(50, 10, seed=3)
    noisy = noisy_posterior(clean, symmetric_transition(10, 0.4))
    distances = [float(js_divergence(clean, gls_posterior(noisy, r)).mean()) for r in (0.4, 0.0, -0.4, -0.8)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == pytest.approx(0, abs=1e-15)
    assert distances[0] > 1e-2


# Confidence


def test_a_lower_rate_may_lower_the_expected_margin_of_the_label():
    posterior = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
    labels = torch.arange(3)
    for rate, expected in [(0.0, -0.02), (-0.5, -0.03), (-1.0, -0.04)]:
        weights = gls_posterior(posterior, rate).repeat(3, 1)
        assert float(posterior @ margin(weights, labels)) == pytest.approx(expected, abs=1e-12)
        assert float(margin(weights)[0]) == pytest.approx((1 - rate) * 0.1, abs=1e-12)
