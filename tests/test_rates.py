import math

import pytest
import torch

from nls.noise import cifar10_asymmetric_transition, cifar10_pair_transition, pair_transition, symmetric_transition
from nls.rates import (
    crossover_pairs,
    feasible_rate,
    frobenius_rate,
    optimal_smooth_rate,
    per_label_rates,
    scalar_share,
)


def random_posterior(*shape, seed=0, dtype=torch.float64):
    values = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (values / values.sum(-1, keepdim=True)).to(dtype)


def smoothing(num_classes, rate):
    """G(r) = (1 - r) I + r u 1^T, written out."""
    identity = torch.eye(num_classes, dtype=torch.float64)
    return (1 - rate) * identity + rate * torch.full_like(identity, 1 / num_classes)


# The optimal rate


@pytest.mark.parametrize(
    ("noise_rate", "num_classes", "clean_rate", "expected"),
    [
        (0.0, 10, 0.0, 0.0),
        (0.2, 10, 0.1, -0.157),
        (0.4, 10, 0.1, -0.620),
        (0.6, 10, 0.1, -1.700),
        (0.2, 10, 0.0, -0.286),
        (0.4, 10, 0.0, -0.8),
        (0.6, 10, 0.0, -2.0),
        (0.1, 2, 0.0, -0.25),
        (0.2, 2, 0.0, -0.667),
        (0.3, 2, 0.0, -1.5),
        (0.4, 2, 0.0, -4.0),
        (0.3, 5, 1.0, 1.0),
    ],
)
def test_known_optimal_rates(noise_rate, num_classes, clean_rate, expected):
    rate = optimal_smooth_rate(noise_rate, num_classes, clean_rate)
    assert isinstance(rate, float)
    assert rate == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("clean_rate", [-3.0, 0.0, 0.1, 0.9])
@pytest.mark.parametrize("noise_rate", [0.0, 0.1, 0.3, 0.49])
def test_two_classes_have_the_formula_of_the_paper(noise_rate, clean_rate):
    expected = (clean_rate - 2 * noise_rate) / (1 - 2 * noise_rate)
    assert optimal_smooth_rate(noise_rate, 2, clean_rate) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_sign_flips_at_the_clean_rate_times_k_minus_one_over_k(num_classes):
    turn = 0.1 * (num_classes - 1) / num_classes
    assert optimal_smooth_rate(turn, num_classes, 0.1) == pytest.approx(0, abs=1e-15)
    assert optimal_smooth_rate(turn - 1e-3, num_classes, 0.1) > 0 > optimal_smooth_rate(turn + 1e-3, num_classes, 0.1)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("clean_rate", [-1.0, 0.0, 0.4])
def test_smoothing_noisy_labels_at_the_optimal_rate_is_smoothing_clean_ones(num_classes, clean_rate):
    for noise_rate in (0.05, 0.2, 0.45):
        rate = optimal_smooth_rate(noise_rate, num_classes, clean_rate)
        product = symmetric_transition(num_classes, noise_rate) @ smoothing(num_classes, rate)
        torch.testing.assert_close(product, smoothing(num_classes, clean_rate), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_of_noise_rates_is_treated_element_by_element(dtype):
    noise_rates = torch.tensor([[0.0, 0.1], [0.3, 0.8]], dtype=dtype)
    rates = optimal_smooth_rate(noise_rates, 10, 0.1)
    assert rates.dtype == torch.float64
    assert rates.shape == (2, 2)
    for rate, noise_rate in zip(rates.flatten(), noise_rates.flatten(), strict=True):
        assert float(rate) == optimal_smooth_rate(float(noise_rate), 10, 0.1)
    assert optimal_smooth_rate(noise_rates[1, 0], 10, 0.1).equal(rates[1, 0])


def test_labels_without_information_are_refused_in_spite_of_rounding():
    for num_classes in range(2, 201):
        limit = (num_classes - 1) / num_classes
        for noise_rate in (limit, torch.tensor([0.1, limit], dtype=torch.float32)):
            with pytest.raises(ValueError, match="labels carry no information, beyond it reversed"):
                optimal_smooth_rate(noise_rate, num_classes)
        assert optimal_smooth_rate(limit - 1e-3, num_classes) < -400


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.95, 10), ValueError, r"noise_rate must be below \(K - 1\) / K = 0.9 for K = 10, got 0.95"),
        ((1.0, 2), ValueError, r"noise_rate must be below \(K - 1\) / K = 0.5 for K = 2, got 1"),
        ((torch.tensor([0.1, 0.9]), 10), ValueError, r"noise_rate must be below .* got 0.9"),
        ((torch.tensor([0.1, -0.1]), 10), ValueError, r"noise_rate must lie in \[0, 1\], got -0.1 to 0.1"),
        ((torch.tensor([math.nan]), 10), ValueError, r"noise_rate must lie in \[0, 1\]"),
        ((torch.tensor([0]), 10), TypeError, "noise_rate must be a floating-point tensor"),
        ((-0.1, 10), ValueError, r"noise_rate must be a finite number in \[0, 1\], got -0.1"),
        (("a", 10), TypeError, "noise_rate must be a real number"),
        ((0.1, 1), ValueError, "num_classes must be at least 2"),
        ((0.1, 10.0), TypeError, "num_classes must be an integer"),
        ((0.1, 10, 1.1), ValueError, r"clean_rate must be a finite number in \(-inf, 1\], got 1.1"),
        ((0.1, 10, None), TypeError, "clean_rate must be a real number"),
    ],
)
def test_optimal_rate_refuses_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        optimal_smooth_rate(*arguments)


# The rate for any matrix


def distance(transition, rate):
    """||T G(r) - I|| / ||I - u 1^T||, written out."""
    num_classes = len(transition)
    identity = torch.eye(num_classes, dtype=torch.float64)
    left = (transition @ smoothing(num_classes, rate) - identity).square().sum().sqrt()
    return float(left / (identity - 1 / num_classes).square().sum().sqrt())


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("noise_rate", [0.0, 0.05, 0.2, 0.4])
def test_symmetric_noise_has_its_exact_rate_and_no_residual(num_classes, noise_rate):
    rate, residual = frobenius_rate(symmetric_transition(num_classes, noise_rate))
    assert isinstance(rate, float)
    assert isinstance(residual, float)
    assert rate == pytest.approx(optimal_smooth_rate(noise_rate, num_classes), abs=1e-12)
    assert residual == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("noise_rate", "residual", "share"), [(0.05, 0.053, 0.705), (0.2, 0.248, 0.830), (0.4, 0.582, 0.976)]
)
def test_known_residuals_of_pair_noise(noise_rate, residual, share):
    transition = pair_transition(10, noise_rate)
    rate, left = frobenius_rate(transition)
    assert left == pytest.approx(residual, abs=5e-4)
    assert left / distance(transition, 0) == pytest.approx(share, abs=5e-4)
    assert left == pytest.approx(distance(transition, rate), abs=1e-12)


def hard_transitions():
    yield from (pair_transition(10, rate) for rate in (0.05, 0.2, 0.4, 0.6))
    yield from (cifar10_asymmetric_transition(0.4), cifar10_pair_transition(0.2), cifar10_pair_transition(0.49))
    for num_classes in (2, 3, 10):
        yield (random_posterior(num_classes, num_classes, seed=num_classes) + torch.eye(num_classes)) / 2
    # Barely better than a guess: the best rate is far below zero.
    yield 0.999 / 4 + 0.001 * torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize("transition", list(hard_transitions()))
def test_frobenius_rate_is_the_minimiser(transition):
    rate, residual = frobenius_rate(transition)
    assert 0 <= residual < 1
    assert residual == pytest.approx(distance(transition, rate), abs=1e-9)
    # One minus the rate, from far above to far below: a grid that does not know the formula.
    grid = [1 - scale for scale in torch.logspace(-3, 4, 2000, dtype=torch.float64).tolist()]
    best = min(grid, key=lambda candidate: distance(transition, candidate))
    assert abs(math.log((1 - rate) / (1 - best))) <= 7 * math.log(10) / 1999
    assert residual <= distance(transition, best) + 1e-12
    assert residual < distance(transition, rate + 0.01 * (1 - rate))
    assert residual < distance(transition, rate - 0.01 * (1 - rate))


def test_frobenius_rate_is_not_monotone_in_the_noise_rate():
    rates = [frobenius_rate(pair_transition(10, noise_rate))[0] for noise_rate in (0.05, 0.2, 0.4, 0.6)]
    assert rates[1] < rates[0] < 0
    assert rates[3] > rates[2]


def test_identity_needs_no_correction():
    assert frobenius_rate(torch.eye(4)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("transition", "error", "message"),
    [
        (torch.full((4, 4), 0.25), ValueError, "transition must have a trace above 1, got 1: on average"),
        (symmetric_transition(7, 6 / 7), ValueError, "transition must have a trace above 1"),
        (pair_transition(10, 1.0), ValueError, "transition must have a trace above 1, got 0"),
        (torch.ones(4, 4), ValueError, "transition must have rows that sum to 1"),
        (torch.tensor([[0.9, 0.5], [0.1, 0.5]]), ValueError, "so pass the transpose"),
        (torch.eye(3).long(), TypeError, "transition must be a floating-point tensor"),
        ([[1.0]], TypeError, "transition must be a torch tensor"),
    ],
)
def test_frobenius_rate_refuses_bad_input(transition, error, message):
    with pytest.raises(error, match=message):
        frobenius_rate(transition)


def weighted_distance(matrix, prior):
    """The distance of targets from one-hot rows under a prior, one row at a time."""
    num_classes = len(matrix)
    apart = [float((row - torch.eye(num_classes)[i]).square().sum()) for i, row in enumerate(matrix)]
    return math.sqrt(sum(p * a for p, a in zip(prior.tolist(), apart, strict=True)) / (1 - 1 / num_classes))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_a_class_prior_weighs_the_rows(num_classes):
    transition = (random_posterior(num_classes, num_classes, seed=num_classes) + torch.eye(num_classes)) / 2
    prior = random_posterior(num_classes, seed=1)
    rate, residual = frobenius_rate(transition, prior)
    candidates = [rate + step for step in (-0.01, 0, 0.01)]
    left = [weighted_distance(transition @ smoothing(num_classes, r), prior) for r in candidates]
    assert left[1] == pytest.approx(residual, abs=1e-12)
    assert min(left[0], left[2]) > left[1] + 1e-6
    uniform = torch.full((num_classes,), 1 / num_classes, dtype=torch.float32)
    assert frobenius_rate(transition, uniform) == pytest.approx(frobenius_rate(transition), abs=1e-12)


def test_a_prior_on_one_class_looks_at_its_row_alone():
    # The first class is clean, the others are noise: for an example of the first class nothing is to be done.
    transition = torch.tensor([[1.0, 0, 0], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5]], dtype=torch.float64)
    only = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    assert frobenius_rate(transition, only) == (0.0, 0.0)
    assert scalar_share(transition, only) == 0.0
    rates, residual = per_label_rates(transition, only)
    assert rates[0] == pytest.approx(0, abs=1e-12)
    assert residual == pytest.approx(0, abs=1e-12)
    # Below one in K correct labels there is no rate below 1, whatever the other classes do.
    with pytest.raises(ValueError, match=r"transition must have a trace above 1, got 0\.9: on average"):
        frobenius_rate(torch.tensor([[0.3, 0.7, 0], [0, 1, 0], [0, 0, 1.0]], dtype=torch.float64), only)


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (torch.tensor([0.5, 0.5]), ValueError, r"prior must have shape \(3,\), got \(2,\)"),
        (torch.tensor([0.5, 0.5, 0.5]), ValueError, "prior must sum to 1"),
        (torch.tensor([1.5, -0.5, 0.0]), ValueError, "prior must not be negative"),
        (torch.tensor([1, 0, 0]), TypeError, "prior must be a floating-point tensor"),
        ([1.0, 0.0, 0.0], TypeError, "prior must be a torch tensor"),
    ],
)
@pytest.mark.parametrize("function", [frobenius_rate, scalar_share, per_label_rates])
def test_a_prior_must_be_made_of_probabilities(function, prior, error, message):
    with pytest.raises(error, match=message):
        function(symmetric_transition(3, 0.1), prior)


@pytest.mark.parametrize("transition", list(hard_transitions()))
def test_the_share_compares_with_no_correction(transition):
    share = scalar_share(transition)
    assert share == pytest.approx(frobenius_rate(transition)[1] / distance(transition, 0), abs=1e-12)
    assert 0 <= share <= 1


def test_known_shares():
    assert scalar_share(torch.eye(4)) == 0
    assert scalar_share(symmetric_transition(5, 0.3)) == pytest.approx(0, abs=1e-12)
    # At one half the best single rate of pair flips is no rate at all.
    assert scalar_share(pair_transition(10, 0.5)) == pytest.approx(1, abs=1e-12)


# A rate for each label


@pytest.mark.parametrize("transition", list(hard_transitions()))
@pytest.mark.parametrize("weighted", [False, True])
def test_rates_for_each_label_are_the_least_squares_solution(transition, weighted):
    num_classes = len(transition)
    prior = random_posterior(num_classes, seed=3) if weighted else None
    rates, residual = per_label_rates(transition, prior)
    uniform = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    root = (uniform if prior is None else prior).sqrt()
    # One column of the design for each label: how its rate moves all K^2 entries of T Q.
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    columns = [torch.outer(root * transition[:, i], centred[i]).flatten() for i in range(num_classes)]
    wanted = (root.unsqueeze(1) * (transition - torch.eye(num_classes))).flatten()
    solved = torch.linalg.lstsq(torch.stack(columns, 1), wanted.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    left = torch.linalg.norm(torch.stack(columns, 1) @ solved - wanted) / math.sqrt(1 - 1 / num_classes)
    assert residual == pytest.approx(float(left), abs=1e-9)
    assert residual <= frobenius_rate(transition, prior)[1] + 1e-9
    if torch.linalg.cond(transition) < 1e3:
        torch.testing.assert_close(rates, solved, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (0.0, 0.4), (0.1, 0.4), (0.3, 0.3), (0.45, 0.5)])
def test_two_classes_have_exact_rates(first, second):
    transition = torch.tensor([[1 - first, first], [second, 1 - second]], dtype=torch.float64)
    rates, residual = per_label_rates(transition)
    expected = torch.tensor([-2 * first, -2 * second], dtype=torch.float64) / (1 - first - second)
    torch.testing.assert_close(rates, expected, rtol=1e-9, atol=1e-12)
    assert residual < 1e-10


def test_a_label_that_never_occurs_has_rate_zero():
    transition = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    rates, residual = per_label_rates(transition)
    assert rates[2] == pytest.approx(0, abs=1e-12)
    assert 0 < residual < 1
    # Labels without information are left as they are.
    assert per_label_rates(torch.full((4, 4), 0.25))[0].abs().max() < 1e-12


# How many labels a counted matrix needs


def counted_residuals(transition, num_labels, num_draws, generator):
    """|| T That^-1 - I || / || I - u 1^T || for matrices counted from labels of each class, one at a time."""
    for _ in range(num_draws):
        drawn = torch.multinomial(transition, num_labels, replacement=True, generator=generator)
        counted = torch.stack([torch.bincount(row, minlength=len(transition)) for row in drawn]) / num_labels
        corrected = transition @ torch.linalg.pinv(counted.double())
        yield float((corrected - torch.eye(len(transition))).norm()) / math.sqrt(len(transition) - 1)


# One class that spreads over the others: rows and columns of the inverse differ.
SPREAD = torch.tensor([[0.3, 0.4, 0.3], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)


@pytest.mark.parametrize("transition", [pair_transition(10, 0.2), cifar10_asymmetric_transition(0.3), SPREAD])
def test_the_error_of_a_counted_matrix_falls_as_the_size_says(transition):
    size, residual = crossover_pairs(transition), frobenius_rate(transition)[1]
    generator = torch.Generator().manual_seed(0)
    num_labels = round(64 * size)
    squares = [value**2 for value in counted_residuals(transition, num_labels, 300, generator)]
    # The first order: the squared error is residual^2 times m_0 / m; four standard errors of the mean.
    expected = residual**2 * size / num_labels
    mean, spread = sum(squares) / 300, torch.tensor(squares).std().item() / math.sqrt(300)
    assert abs(mean - expected) < 4 * spread + 0.02 * expected
    assert spread < 0.1 * expected


def test_known_sizes():
    assert crossover_pairs(pair_transition(10, 0.2)) == pytest.approx(12.083, abs=1e-3)
    # By hand: the rows of R are (0.49, -0.21, 0.09) / 0.37 in turn, so V = 3 (0.2923 / 0.1369 - 1), and what the rate
    # leaves is 2 - 1.1^2 / 0.74.
    by_hand = 3 * (0.2923 / 0.1369 - 1) / (2 - 1.1**2 / 0.74)
    assert crossover_pairs(pair_transition(3, 0.3)) == pytest.approx(by_hand, abs=1e-9)
    assert crossover_pairs(pair_transition(3, 0.3)) == pytest.approx(28 / 3, abs=1e-9)
    assert crossover_pairs(symmetric_transition(5, 0.3)) == math.inf
    assert crossover_pairs(torch.eye(3)) == math.inf
    singular = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]])
    assert crossover_pairs(singular) == math.inf


def test_the_size_refuses_bad_input():
    with pytest.raises(ValueError, match="transition must have a trace above 1"):
        crossover_pairs(pair_transition(3, 0.9))
    with pytest.raises(TypeError, match="transition must be a floating-point tensor"):
        crossover_pairs(torch.eye(3).long())


# The lowest bounded rate


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("shape", [(1,), (50,), (5, 6)])
def test_feasible_rate_is_where_the_first_weight_reaches_zero(num_classes, shape):
    posterior = random_posterior(*shape, num_classes, seed=num_classes)
    rate = feasible_rate(posterior)
    assert isinstance(rate, float)
    assert rate < 0
    weights = [(1 - r) * posterior + r / num_classes for r in (rate, rate + 1e-6, rate - 1e-6)]
    assert float(weights[0].min()) == pytest.approx(0, abs=1e-12)
    assert float(weights[1].min()) > 0 > float(weights[2].min())


def test_the_risk_is_bounded_down_to_the_feasible_rate_and_not_below():
    posterior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    lowest = feasible_rate(posterior)

    def risk(rate, logit):
        """The smoothed cross entropy where the rarest class has a logit that runs off, the others the best ones."""
        weights = (1 - rate) * posterior + rate / 3
        logits = torch.stack([weights[0].log(), weights[1].log(), torch.tensor(-logit, dtype=torch.float64)])
        return float(-(weights * torch.log_softmax(logits, 0)).sum())

    below, at, above = ([risk(lowest + step, logit) for logit in (10, 100, 1e6)] for step in (-0.1, 0, 0.1))
    assert below[0] > below[1] > below[2]
    assert below[2] < -1e3
    assert at[1] == pytest.approx(at[2], abs=1e-9)
    assert above[0] < above[1] < above[2]


def test_known_feasible_rates():
    assert feasible_rate(torch.tensor([[0.75, 0.25], [0.5, 0.5]])) == -1
    assert feasible_rate(torch.eye(3)) == 0
    assert math.copysign(1, feasible_rate(torch.eye(3))) == 1
    # The least entry over all rows decides, not that of the mean row.
    assert feasible_rate(torch.tensor([[0.9, 0.1], [0.1, 0.9]])) == pytest.approx(-0.25)


def test_feasible_rate_takes_a_posterior_that_requires_a_gradient():
    assert feasible_rate(torch.tensor([[0.75, 0.25]], requires_grad=True)) == -1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 3, 7, 10, 49, 1000])
def test_a_uniform_posterior_has_no_lowest_rate(num_classes, dtype):
    assert feasible_rate(torch.full((4, num_classes), 1 / num_classes, dtype=dtype)) == -math.inf
    assert feasible_rate(torch.softmax(torch.zeros(4, num_classes, dtype=dtype), -1)) == -math.inf
    nearly = torch.full((4, num_classes), 1 / num_classes, dtype=dtype)
    nearly[0, 0] += 1e-4 / num_classes
    nearly[0, 1] -= 1e-4 / num_classes
    assert feasible_rate(nearly) == pytest.approx(-1e4, rel=0.02)


@pytest.mark.parametrize(
    ("posterior", "error", "message"),
    [
        (torch.zeros(0, 3), ValueError, r"posterior must have at least one row, got float32 tensor of shape \(0, 3\)"),
        (torch.tensor([[0.5, 0.6]]), ValueError, "posterior must sum to 1"),
        (torch.tensor([[1.5, -0.5]]), ValueError, "posterior must not be negative"),
        (torch.tensor([[1, 0]]), TypeError, "posterior must be a floating-point tensor"),
        ([[1.0, 0.0]], TypeError, "posterior must be a torch tensor"),
    ],
)
def test_feasible_rate_refuses_bad_input(posterior, error, message):
    with pytest.raises(error, match=message):
        feasible_rate(posterior)
