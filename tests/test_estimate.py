"""The estimated matrix is the one that made the noise, within its standard error, and loops count the same."""

import math

import numpy as np
import pytest
import torch

import nls
from nls.crossfit import crossfit_posterior
from nls.estimate import estimate_transition

METHODS = ("anchor", "confident")
NOISES = {
    "symmetric": nls.symmetric_transition(5, 0.4),
    "pair": nls.pair_transition(5, 0.3),
    "uneven": torch.tensor(
        [[0.9, 0.1, 0, 0, 0], [0.1, 0.6, 0.1, 0.1, 0.1], [0, 0, 1, 0, 0], [0.2, 0, 0, 0.7, 0.1], [0, 0.4, 0, 0, 0.6]],
        dtype=torch.float64,
    ),
}


def separate(transition, num_examples=20000, seed=0):
    """Return noisy posterior and noisy labels where the input tells the class for sure, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(len(transition), (num_examples,), generator=generator)
    return transition[clean], nls.draw_noisy_labels(clean, transition, generator), clean


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("percentile", [0.97, 1.0])
def test_anchors_are_exact_for_the_exact_posterior_of_separate_classes(noise, percentile):
    probabilities, labels, _ = separate(NOISES[noise], 500)
    found = estimate_transition(probabilities, labels, percentile=percentile)
    torch.testing.assert_close(found, NOISES[noise], rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", NOISES)
def test_confident_joint_counts_what_happened(noise):
    probabilities, labels, clean = separate(NOISES[noise])
    found = estimate_transition(probabilities, labels, method="confident")
    k = len(found)
    happened = np.zeros((k, k))
    for i, j in zip(clean.tolist(), labels.tolist(), strict=True):
        happened[i, j] += 1
    shares = torch.from_numpy(happened / happened.sum(1, keepdims=True))
    torch.testing.assert_close(found, shares, rtol=0, atol=1e-12)
    error = (NOISES[noise] * (1 - NOISES[noise]) / 4000).sqrt()  # of a binomial share in a class of about 4,000
    assert bool(((found - NOISES[noise]).abs() <= 4.5 * error).all())


def naive_confident(probabilities, labels):
    """The published counts, with loops and floats."""
    p, labels = probabilities.tolist(), labels.tolist()
    n, k = len(p), len(p[0])
    counts = [labels.count(i) for i in range(k)]
    limits = [math.fsum(p[x][j] for x in range(n) if labels[x] == j) / counts[j] for j in range(k)]
    joint = [[0] * k for _ in range(k)]
    for x in range(n):
        passing = [j for j in range(k) if p[x][j] >= limits[j]]
        if passing:
            joint[labels[x]][max(passing, key=lambda j: p[x][j])] += 1
    share = [[joint[i][j] / sum(joint[i]) * counts[i] for j in range(k)] for i in range(k)]
    return [[share[i][j] / sum(row[j] for row in share) for i in range(k)] for j in range(k)]


@pytest.mark.parametrize("seed", range(3))
def test_confident_joint_against_loops(seed):
    rng = np.random.default_rng(seed)
    probabilities = torch.tensor(rng.dirichlet([0.5] * 4, size=200))
    labels = torch.tensor([rng.choice(4, p=row) for row in probabilities.numpy()])
    found = estimate_transition(probabilities, labels, method="confident")
    expected = torch.tensor(naive_confident(probabilities, labels), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_anchor_is_the_example_at_the_percentile():
    first = torch.tensor([0.1, 0.9, 0.3, 0.7, 0.5], dtype=torch.float64)
    probabilities, labels = torch.stack([first, 1 - first], 1), torch.tensor([0, 1, 1, 0, 0])
    # Sorted by class 0: .1 .3 .5 .7 .9; place round(.75 * 4) = 3 is .7; class 1 has .9 .7 .5 .3 .1 and takes .7.
    found = estimate_transition(probabilities, labels, percentile=0.75)
    assert found.tolist() == [[pytest.approx(0.7), pytest.approx(0.3)], [pytest.approx(0.3), pytest.approx(0.7)]]
    assert estimate_transition(probabilities, labels, percentile=1.0)[0, 0] == pytest.approx(0.9)


def test_a_percentile_keeps_an_outlier_from_being_the_anchor():
    probabilities, labels, _ = separate(NOISES["symmetric"], 500)
    probabilities[0] = torch.tensor([0.96, 0.01, 0.01, 0.01, 0.01])
    spoilt = estimate_transition(probabilities, labels, percentile=1.0)
    assert float(spoilt[0, 0]) == pytest.approx(0.96)
    torch.testing.assert_close(estimate_transition(probabilities, labels), NOISES["symmetric"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_limits(method):
    clean = torch.arange(4).repeat(10)
    identity = torch.eye(4, dtype=torch.float64)
    # No noise, a sure model: nothing to correct.
    torch.testing.assert_close(estimate_transition(identity[clean], clean, method=method), identity)
    # A model that has memorised its labels says the same, whatever the noise: out of sample it would not.
    memorised = nls.draw_noisy_labels(clean, nls.symmetric_transition(4, 0.5), torch.Generator().manual_seed(0))
    found = estimate_transition(identity[memorised], memorised, method=method, percentile=0.97)
    torch.testing.assert_close(found, identity)


@pytest.mark.parametrize("noise", ["symmetric", "pair"])
@pytest.mark.parametrize("method", METHODS)
def test_estimates_from_a_fitted_model_find_most_of_the_noise(method, noise):
    """Five classes that nearly touch, neighbours out of fold: far closer to the truth than no noise."""
    from sklearn.neighbors import KNeighborsClassifier

    transition = nls.symmetric_transition(5, 0.4) if noise == "symmetric" else nls.pair_transition(5, 0.3)
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(5, (4000,), generator=generator)
    angles = 2 * math.pi * torch.arange(5, dtype=torch.float64) / 5
    means = 3.5 * torch.stack([angles.cos(), angles.sin()], 1)
    features = means[clean] + torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    labels = nls.draw_noisy_labels(clean, transition, generator)
    probabilities = crossfit_posterior(features, labels, 5, KNeighborsClassifier(100))
    found = estimate_transition(probabilities, labels, method=method)
    torch.testing.assert_close(found.sum(1), torch.ones(5, dtype=torch.float64))
    assert float(found.min()) >= 0
    error = float((found - transition).abs().sum(1).mean())
    untouched = float((torch.eye(5) - transition).abs().sum(1).mean())
    assert error < 0.3 * untouched, (error, untouched)
    assert error > 1e-6  # it is an estimate


def test_an_example_at_its_own_threshold_counts():
    """Where all of a class have one probability, their mean may round to more than it."""
    for n in range(1, 60):
        row = torch.tensor([0.7, 0.3], dtype=torch.float64)
        probabilities, labels = torch.stack([row, row.flip(0)]).repeat(n, 1), torch.tensor([0, 1]).repeat(n)
        found = estimate_transition(probabilities, labels, method="confident")
        torch.testing.assert_close(found, torch.eye(2, dtype=torch.float64))


def test_half_precision_gives_a_valid_matrix():
    probabilities, labels, _ = separate(NOISES["symmetric"], 500)
    found = estimate_transition(probabilities.to(torch.bfloat16), labels)
    assert found.dtype == torch.float64
    nls.backward_corrected_loss(torch.zeros(2, 5), torch.tensor([0, 1]), found)  # refuses rows that do not sum to one
    torch.testing.assert_close(found, NOISES["symmetric"], rtol=0, atol=4e-3)


def test_bad_arguments():
    probabilities, labels = torch.full((4, 2), 0.5), torch.tensor([0, 1, 0, 1])
    with pytest.raises(TypeError, match="probabilities must be a torch tensor, got list"):
        estimate_transition([[0.5, 0.5]], labels)
    with pytest.raises(ValueError, match="probabilities must sum to 1"):
        estimate_transition(2 * probabilities, labels)
    for shape in ((2, 2, 2), (0, 2)):
        with pytest.raises(ValueError, match=r"probabilities must have shape \[n, K\] with n >= 1, got"):
            estimate_transition(torch.full(shape, 0.5), labels)
    with pytest.raises(ValueError, match=r"noisy_labels must have shape \(4,\), got \(3,\)"):
        estimate_transition(probabilities, labels[:3])
    with pytest.raises(ValueError, match=r"noisy_labels must lie in \[0, 1\], got the value 2"):
        estimate_transition(probabilities, torch.tensor([0, 1, 2, 1]))
    with pytest.raises(TypeError, match="noisy_labels must hold integer class indices"):
        estimate_transition(probabilities, torch.zeros(4))
    with pytest.raises(ValueError, match="method must be one of 'anchor', 'confident', got 'em'"):
        estimate_transition(probabilities, labels, method="em")
    for percentile in (0.0, 1.5):
        with pytest.raises(ValueError, match="percentile must be a finite number in"):
            estimate_transition(probabilities, labels, percentile=percentile)
    with pytest.raises(ValueError, match="noisy_labels must hold every class, got none of class 1"):
        estimate_transition(probabilities, torch.zeros(4).long(), method="confident")
    sure_of_one = torch.tensor([[0.4, 0.6], [0.4, 0.6], [0.4, 0.6], [0.4, 0.6]])
    with pytest.raises(ValueError, match="confident of every class somewhere, got no such example of 0"):
        estimate_transition(sure_of_one, labels, method="confident")
