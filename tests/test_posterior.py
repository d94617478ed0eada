import ast
import math
from pathlib import Path

import pytest
import torch

import nls.posterior
from nls.noise import pair_transition
from nls.posterior import (
    entropy,
    expected_calibration_error,
    gls_posterior,
    js_divergence,
    kl_divergence,
    margin,
    mutual_information,
    noisy_posterior,
    output_map,
)
from nls.rates import feasible_rate

RATES = [-8.0, -1.0, -0.3, 0.0, 0.2, 0.9, 1.0]


def random_posterior(*shape, seed=0, zeros=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(*shape, dtype=torch.float64, generator=generator)
    values[torch.rand(*shape, generator=generator) < zeros] = 0
    values[..., 0] += 0.1
    return (values / values.sum(-1, keepdim=True)).to(dtype)


def naive_entropy(row):
    return -sum(p * math.log(p) for p in row if p > 0)


def naive_kl(target, predicted):
    total = 0.0
    for t, p in zip(target, predicted, strict=True):
        if t > 0:
            total += math.inf if p == 0 else t * math.log(t / p)
    return total


# Noise and smoothing


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_noisy_posterior_equals_a_loop(num_classes):
    posterior = random_posterior(6, num_classes, seed=1)
    transition = random_posterior(num_classes, num_classes, seed=2)
    noisy = noisy_posterior(posterior, transition)
    for n in range(6):
        for j in range(num_classes):
            expected = sum(posterior[n, i] * transition[i, j] for i in range(num_classes))
            torch.testing.assert_close(noisy[n, j], expected, rtol=0, atol=1e-15)


def test_noisy_posterior_of_a_sure_class_is_its_row():
    transition = random_posterior(4, 4, seed=3)
    assert noisy_posterior(torch.eye(4, dtype=torch.float64), transition).equal(transition)
    assert noisy_posterior(torch.tensor([0.0, 1.0, 0.0]), pair_transition(3, 1)).tolist() == [0, 0, 1]


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("smooth_rate", RATES)
def test_gls_posterior_equals_a_loop(num_classes, smooth_rate):
    posterior = random_posterior(6, num_classes, seed=4)
    weights = gls_posterior(posterior, smooth_rate)
    for n in range(6):
        for k in range(num_classes):
            expected = (1 - smooth_rate) * float(posterior[n, k]) + smooth_rate / num_classes
            assert float(weights[n, k]) == pytest.approx(expected, abs=1e-14)
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, dtype=torch.float64))


def test_gls_posterior_broadcasts_a_tensor_of_rates():
    posterior, rates = random_posterior(6, 3, seed=5), torch.tensor(RATES, dtype=torch.float64)
    weights = gls_posterior(posterior, rates[:, None])
    assert weights.shape == (7, 6, 3)
    for index, rate in enumerate(RATES):
        assert weights[index].equal(gls_posterior(posterior, rate))
    per_example = gls_posterior(posterior, rates[:6])
    assert per_example[2].equal(gls_posterior(posterior[2], RATES[2]))
    assert gls_posterior(posterior, torch.tensor(-0.5)).equal(gls_posterior(posterior, -0.5))


def test_gls_posterior_leaves_the_simplex_and_composes_there():
    weights = gls_posterior(torch.tensor([0.75, 0.25]), -2.0)
    assert weights.tolist() == [1.25, -0.25]
    assert gls_posterior(weights, 1.0).tolist() == [0.5, 0.5]
    # Float32 weights of a far rate sum to 1 only up to their own precision.
    far = gls_posterior(random_posterior(100, 10, seed=6, dtype=torch.float32), -1e4)
    assert gls_posterior(far, 0.5).shape == (100, 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_maps_keep_the_dtype_and_measures_return_float64(dtype):
    posterior = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]], dtype=dtype)
    assert noisy_posterior(posterior, pair_transition(3, 0.5)).dtype == dtype
    assert noisy_posterior(posterior, pair_transition(3, 0.5)).tolist() == [[0.375, 0.375, 0.25], [0.25, 0.25, 0.5]]
    assert gls_posterior(posterior, 0.5).dtype == dtype
    for measure in (entropy(posterior), kl_divergence(posterior, posterior), margin(posterior)):
        assert measure.dtype == torch.float64


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_softmax_outputs_in_half_precision_are_accepted(dtype, num_classes):
    logits = torch.randn(2000, num_classes, generator=torch.Generator().manual_seed(23))
    posterior = logits.to(dtype).softmax(-1)
    off = float((posterior.double().sum(-1) - 1).abs().max())
    assert off > 1e-4, "the rounding must be visible for this test to mean anything"
    transition = random_posterior(num_classes, num_classes, seed=24)
    exact = logits.to(dtype).double().softmax(-1)
    eps = torch.finfo(dtype).eps
    for result, expected in (
        (noisy_posterior(posterior, transition), noisy_posterior(exact, transition)),
        (gls_posterior(posterior, -2.0), gls_posterior(exact, -2.0)),
    ):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, rtol=2 * eps, atol=4 * eps)
    torch.testing.assert_close(entropy(posterior), entropy(exact), rtol=0, atol=2 * eps * math.log(2 * num_classes))
    assert feasible_rate(posterior) <= 0
    for call in (lambda p: noisy_posterior(p, transition), lambda p: gls_posterior(p, 0.1), entropy, feasible_rate):
        with pytest.raises(ValueError, match=r"posterior must .*sum to 1"):
            call(posterior * (1 + 8 * eps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("call", [lambda p: noisy_posterior(p, torch.eye(2)), entropy, feasible_rate])
def test_sums_in_full_precision_are_held_to_one(dtype, call):
    call(torch.tensor([0.5, 0.50009], dtype=dtype))
    with pytest.raises(ValueError, match=r"posterior must sum to 1 over its last axis, got a sum of 1.0002"):
        call(torch.tensor([0.5, 0.5002], dtype=dtype))


def test_output_map_equals_a_loop_and_undoes_rate_and_noise():
    clean = random_posterior(4, 6, 3, seed=25)
    rate = torch.tensor([-1.0, 0.0, 0.3, 0.9], dtype=torch.float64)[:, None]
    noise = torch.tensor([0.0, 0.2, 0.4, 0.1], dtype=torch.float64)[:, None]
    scale = ((1 - rate) * (1 - 1.5 * noise))[..., None]
    predicted = scale * clean + (1 - scale) / 3
    torch.testing.assert_close(output_map(predicted, rate, noise), clean)
    mapped = output_map(predicted, rate, noise)
    for index in range(4):
        same = output_map(predicted[index], float(rate[index]), noise[index, 0])
        torch.testing.assert_close(same, mapped[index], rtol=0, atol=1e-15)
    assert output_map(predicted * math.nan, rate, noise).isnan().all()
    assert output_map(predicted[0], 1.0, 0.0).isnan().all()
    assert output_map(predicted[0], torch.tensor(0), torch.tensor([1])).isnan().all()
    slope = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert output_map(predicted[1], slope, 0.2).requires_grad


def test_maps_have_exact_gradients():
    posterior, transition = random_posterior(2, 3, seed=7), random_posterior(3, 3, seed=8)
    # A small step, so that the perturbed rows still pass for probabilities.
    assert torch.autograd.gradcheck(lambda p: noisy_posterior(p, transition), posterior.requires_grad_(), eps=1e-6)
    rate = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gls_posterior, (posterior, rate), eps=1e-6)
    assert gls_posterior(posterior, rate[0]).requires_grad


def test_measures_take_a_posterior_that_requires_a_gradient():
    posterior = random_posterior(4, 3, seed=22).requires_grad_()
    inside = torch.autograd.grad(entropy(posterior).sum(), posterior)[0]
    torch.testing.assert_close(inside, -posterior.detach().log() - 1)
    assert kl_divergence(posterior, posterior).requires_grad
    assert isinstance(mutual_information(posterior, torch.eye(3)), float)
    assert isinstance(expected_calibration_error(posterior, torch.arange(4) % 3), float)
    with pytest.raises(ValueError, match="sum to 1"):
        entropy(2 * posterior)
    with pytest.raises(ValueError, match="sum to 1"):
        gls_posterior(2 * posterior, 0.1)


# Entropy and divergences


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_entropy_equals_a_loop(num_classes):
    posterior = random_posterior(5, 4, num_classes, seed=9, zeros=0.4)
    result = entropy(posterior)
    assert result.shape == (5, 4)
    for value, row in zip(result.flatten().tolist(), posterior.flatten(0, 1).tolist(), strict=True):
        assert value == pytest.approx(naive_entropy(row), abs=1e-13)


def test_entropy_ends():
    assert entropy(torch.eye(3)).tolist() == [0, 0, 0]
    assert float(entropy(torch.full((8,), 0.125))) == pytest.approx(math.log(8), abs=1e-15)


def test_entropy_is_computed_in_float64():
    posterior = torch.tensor([1 - 2**-24, 2**-24], dtype=torch.float32)
    assert float(entropy(posterior)) == pytest.approx(naive_entropy(posterior.tolist()), rel=1e-12)


def test_entries_below_zero_by_rounding_count_as_zero():
    assert entropy(torch.tensor([1 + 1e-17, -1e-17], dtype=torch.float64)) == 0
    with pytest.raises(ValueError, match="posterior must not be negative, got a smallest value of -1e-05"):
        entropy(torch.tensor([1 + 1e-5, -1e-5], dtype=torch.float64))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("zeros", [0.0, 0.3])
def test_divergences_equal_loops(num_classes, zeros):
    first = random_posterior(20, num_classes, seed=10, zeros=zeros)
    second = random_posterior(20, num_classes, seed=11, zeros=zeros)
    kl, js = kl_divergence(first, second), js_divergence(first, second)
    for n, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        middle = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
        assert float(kl[n]) == pytest.approx(naive_kl(a, b), abs=1e-14)
        assert float(js[n]) == pytest.approx(naive_kl(a, middle) / 2 + naive_kl(b, middle) / 2, abs=1e-14)
    if zeros and num_classes > 2:
        assert kl.isinf().any()
    assert not (kl_divergence(second, first) == kl).all()
    torch.testing.assert_close(js_divergence(second, first), js)
    assert ((js >= 0) & (js <= math.log(2) + 1e-15)).all()


def test_divergences_of_equal_and_disjoint_arguments():
    posterior = random_posterior(1000, 7, seed=12, zeros=0.2)
    assert (kl_divergence(posterior, posterior) == 0).all()
    assert (js_divergence(posterior, posterior) == 0).all()
    sure = torch.eye(2)
    assert kl_divergence(sure[0], sure).tolist() == [0, math.inf]
    assert js_divergence(sure[0], sure).tolist() == [0, math.log(2)]


def test_kl_is_never_negative_by_rounding():
    posterior = random_posterior(20_000, 5, seed=13)
    nearby = posterior * (1 + 1e-15)
    assert (kl_divergence(posterior, nearby) >= 0).all()


def test_divergences_broadcast():
    target, predicted = random_posterior(4, 1, 3, seed=14), random_posterior(5, 3, seed=15)
    kl = kl_divergence(target, predicted)
    assert kl.shape == (4, 5)
    assert kl[2, 3] == kl_divergence(target[2, 0], predicted[3])


# Information


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_mutual_information_equals_the_sum_over_the_joint_distribution(num_classes):
    posterior = random_posterior(30, num_classes, seed=16, zeros=0.3)
    transition = random_posterior(num_classes, num_classes, seed=17, zeros=0.3)
    joint = [[float(row @ transition[:, j]) / 30 for j in range(num_classes)] for row in posterior]
    marginal = [sum(row[j] for row in joint) for j in range(num_classes)]
    expected = sum(p * math.log(p * 30 / marginal[j]) for row in joint for j, p in enumerate(row) if p > 0)
    result = mutual_information(posterior, transition)
    assert isinstance(result, float)
    assert result == pytest.approx(expected, abs=1e-13)


def test_mutual_information_ends():
    assert mutual_information(torch.eye(5), torch.eye(5)) == pytest.approx(math.log(5))
    assert mutual_information(torch.eye(5), torch.full((5, 5), 0.2)) == pytest.approx(0, abs=1e-7)
    assert mutual_information(torch.eye(5)[:1], torch.eye(5)) == 0


# Margins


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_margin_equals_a_loop(num_classes):
    posterior = gls_posterior(random_posterior(4, 5, num_classes, seed=18), -2.0)
    labels = torch.randint(num_classes, (4, 5), generator=torch.Generator().manual_seed(19))
    top, own = margin(posterior), margin(posterior, labels)
    assert top.shape == own.shape == (4, 5)
    for index, row in enumerate(posterior.flatten(0, 1).tolist()):
        label = int(labels.flatten()[index])
        descending = sorted(row, reverse=True)
        assert float(top.flatten()[index]) == descending[0] - descending[1]
        assert float(own.flatten()[index]) == row[label] - max(p for k, p in enumerate(row) if k != label)


def test_margin_of_ties_is_zero():
    assert margin(torch.tensor([0.4, 0.4, 0.2])) == 0
    assert margin(torch.tensor([0.4, 0.4, 0.2]), torch.tensor(1)) == 0


# Calibration


def naive_calibration_error(probabilities, labels, num_bins):
    edges = torch.linspace(0, 1, num_bins + 1).tolist()
    bins = [[] for _ in edges]
    for row, label in zip(probabilities.float().tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        index = max(b for b, edge in enumerate(edges) if confidence >= edge)
        bins[index].append((confidence, row.index(confidence) == label))
    error = 0.0
    for members in bins:
        if members:
            confidence = sum(c for c, _ in members) / len(members)
            accuracy = sum(a for _, a in members) / len(members)
            error += len(members) / len(labels) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_calibration_error_equals_naive_binning(num_classes, num_bins):
    generator = torch.Generator().manual_seed(20)
    logits = 3 * torch.randn(2000, num_classes, generator=generator)
    probabilities = torch.softmax(logits, -1)
    probabilities[:50] = torch.eye(num_classes)[torch.arange(50) % num_classes]
    labels = torch.randint(num_classes, (2000,), generator=generator)
    expected = naive_calibration_error(probabilities, labels, num_bins)
    assert expected > 0.1
    assert expected_calibration_error(probabilities, labels, num_bins) == pytest.approx(expected, abs=1e-5)
    if num_bins == 15:
        assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-5)


def test_calibration_error_of_drawn_labels_is_small():
    generator = torch.Generator().manual_seed(21)
    probabilities = torch.softmax(2 * torch.randn(40_000, 4, generator=generator), -1)
    labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    # Each bin is off by its binomial standard error; over 15 bins these add up to at most sqrt(15 / 4 N).
    assert expected_calibration_error(probabilities, labels) <= 5 * math.sqrt(15 / (4 * 40_000))
    assert expected_calibration_error(gls_posterior(probabilities, 0.5), labels) > 0.1


def test_calibration_error_sees_the_top_class_only():
    labels = torch.tensor([0, 0, 0, 1])
    first = torch.tensor([[0.75, 0.25, 0.0]]).repeat(4, 1)
    second = torch.tensor([[0.75, 0.0, 0.25]]).repeat(4, 1)
    assert expected_calibration_error(first, labels) == expected_calibration_error(second, labels) == 0
    assert kl_divergence(torch.tensor([0.75, 0.25, 0.0]), second[0]) == math.inf


def test_confidence_just_above_one_is_not_taken_for_a_logit():
    probabilities = torch.tensor([[1 + 1e-6, 0.0], [0.0, 1 + 1e-6]])
    assert probabilities.max() > 1
    assert expected_calibration_error(probabilities, torch.tensor([0, 1])) == pytest.approx(0, abs=1e-6)


# Refusals

HALF = torch.tensor([[0.5, 0.5]])
THIRD = torch.tensor([[0.5, 0.25, 0.25]])
EYE = torch.eye(2)
FAR = torch.tensor(-1e300, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: noisy_posterior(THIRD, EYE),
            ValueError,
            "posterior and transition must have the same number.*3 and 2",
        ),
        (lambda: noisy_posterior(HALF * 2, EYE), ValueError, "posterior must sum to 1 over its last axis, got .* 2"),
        (lambda: noisy_posterior([0.5, 0.5], EYE), TypeError, "posterior must be a torch tensor, got list"),
        (lambda: noisy_posterior(HALF.long(), EYE), TypeError, "posterior must be a floating-point tensor"),
        (lambda: noisy_posterior(HALF, torch.tensor([[1.0, 1.0], [0, 0]])), ValueError, "so pass the transpose"),
        (lambda: noisy_posterior(HALF * math.nan, EYE), ValueError, "posterior must be finite"),
        (lambda: gls_posterior(HALF, 1.1), ValueError, r"smooth_rate must be a finite number in \(-inf, 1\], got 1.1"),
        (
            lambda: gls_posterior(HALF, torch.tensor([1.1])),
            ValueError,
            "smooth_rate must be finite and at most 1.* 1.1",
        ),
        (lambda: gls_posterior(HALF, torch.tensor([math.nan])), ValueError, "smooth_rate must be finite"),
        (lambda: gls_posterior(HALF, torch.tensor([-math.inf])), ValueError, "smooth_rate must be finite"),
        (lambda: gls_posterior(HALF, torch.tensor([1])), TypeError, "smooth_rate must be a floating-point tensor"),
        (lambda: gls_posterior(HALF, "0"), TypeError, "smooth_rate must be a real number"),
        (
            lambda: gls_posterior(HALF.repeat(3, 1), torch.zeros(2)),
            ValueError,
            r"smooth_rate must broadcast with posterior, got leading shapes \(2,\) and \(3,\)",
        ),
        (lambda: gls_posterior(HALF * 3, 0.1), ValueError, "posterior must be finite and sum to 1"),
        (lambda: gls_posterior(HALF * math.nan, 0.1), ValueError, "posterior must be finite and sum to 1"),
        (lambda: gls_posterior(torch.tensor([1.0]), 0.1), ValueError, "posterior must have at least 2 classes"),
        (lambda: gls_posterior(HALF.to_sparse(), 0.1), TypeError, "posterior must be a dense tensor, got torch.sparse"),
        (lambda: output_map(HALF, 1.1, 0.2), ValueError, r"smooth_rate must be a finite number in .* 1\], got 1.1"),
        (lambda: output_map(HALF, -math.inf, 0.2), ValueError, "smooth_rate must be a finite number"),
        (lambda: output_map(HALF, -1e40, 0.2), ValueError, r"smooth_rate must be a finite number.*got -1e\+40"),
        (lambda: output_map(HALF, 0.1, -0.1), ValueError, r"noise_rate must be a finite number in \[0, 1\], got -0.1"),
        (lambda: output_map(HALF, 0.1, 1.1), ValueError, r"noise_rate must be a finite number in \[0, 1\], got 1.1"),
        (lambda: output_map(HALF, "0", 0.1), TypeError, "smooth_rate must be a real number, got '0'"),
        (lambda: output_map(HALF, 0.1, [0.1]), TypeError, r"noise_rate must be a real number, got \[0.1\]"),
        (lambda: output_map(HALF, torch.tensor([1.1]), 0), ValueError, r"smooth_rate must lie in .* 1\], got 1.1"),
        (lambda: output_map(HALF, torch.tensor(math.nan), 0), ValueError, r"smooth_rate must lie in .* got nan"),
        (lambda: output_map(HALF, FAR, 0), ValueError, r"smooth_rate must lie in .* got -1e\+300"),
        (lambda: output_map(HALF.double(), -FAR.float(), 0), ValueError, "smooth_rate must lie in .* got inf"),
        (lambda: output_map(HALF.double(), FAR.float(), 0), ValueError, "smooth_rate must lie in .* got -inf"),
        (lambda: output_map(HALF, 0, torch.tensor([-0.1])), ValueError, r"noise_rate must lie in \[0, 1\], got -0.1"),
        (lambda: output_map(HALF, 0, torch.tensor(1.1)), ValueError, r"noise_rate must lie in \[0, 1\], got 1.1"),
        (lambda: output_map(HALF, torch.tensor(True), 0), TypeError, "smooth_rate must hold real numbers, got bool"),
        (
            lambda: output_map(HALF.repeat(3, 1), torch.zeros(2), 0.1),
            ValueError,
            r"must broadcast with posterior, got leading shapes \(2,\), \(\) and \(3,\)",
        ),
        (
            lambda: output_map(HALF, torch.zeros(2, 1), torch.zeros(3, 1)),
            ValueError,
            r"smooth_rate and noise_rate must broadcast .* \(2, 1\), \(3, 1\) and \(1,\)",
        ),
        (lambda: entropy(torch.tensor([1.2, -0.2])), ValueError, "posterior must not be negative.* -0.2"),
        (lambda: entropy(torch.tensor(1.0)), ValueError, "posterior must have at least 2 classes"),
        (lambda: kl_divergence(HALF, THIRD), ValueError, "target and predicted must have the same number.*2 and 3"),
        (lambda: kl_divergence(HALF, torch.tensor([1.2, -0.2])), ValueError, "predicted must not be negative"),
        (
            lambda: kl_divergence(HALF.repeat(2, 1), HALF.repeat(3, 1)),
            ValueError,
            r"predicted must broadcast with target, got leading shapes \(3,\) and \(2,\)",
        ),
        (lambda: js_divergence(HALF, THIRD), ValueError, "first and second must have the same number"),
        (lambda: js_divergence(HALF, HALF * 2), ValueError, "second must sum to 1"),
        (lambda: mutual_information(HALF[0], EYE), ValueError, r"posterior must have shape \[N, K\]"),
        (lambda: mutual_information(HALF[:0], EYE), ValueError, "N >= 1"),
        (lambda: mutual_information(THIRD, EYE), ValueError, "same number of classes"),
        (
            lambda: margin(HALF, torch.tensor([0, 1])),
            ValueError,
            r"labels must have one entry per row of posterior.*\(1,\)",
        ),
        (lambda: margin(HALF, torch.tensor([2])), ValueError, r"labels must lie in \[0, 1\], got the value 2"),
        (lambda: margin(HALF, torch.tensor([0.0])), TypeError, "labels must hold integer class indices"),
        (lambda: margin(HALF * 2), ValueError, "posterior must be finite and sum to 1"),
        (lambda: expected_calibration_error(HALF, torch.tensor([0]), 0), ValueError, "num_bins must be at least 1"),
        (lambda: expected_calibration_error(HALF, torch.tensor([0]), 1.5), TypeError, "num_bins must be an integer"),
        (lambda: expected_calibration_error(HALF * 4, torch.tensor([0])), ValueError, "probabilities must sum to 1"),
        (lambda: expected_calibration_error(HALF, torch.tensor([2])), ValueError, r"labels must lie in \[0, 1\]"),
        (lambda: expected_calibration_error(HALF, torch.tensor([0, 1])), ValueError, "one entry per row of probab"),
        (lambda: expected_calibration_error(HALF[:0], torch.tensor([]).long()), ValueError, "N >= 1"),
        (lambda: expected_calibration_error(HALF[0], torch.tensor(0)), ValueError, r"shape \[N, K\] with N >= 1"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def top_level_imports(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", ["noise", "posterior", "rates"])
def test_modules_load_torch_and_the_checks_only(name):
    """torchmetrics loads when it is needed, and noise, posterior and rates do not know each other."""
    imports = set(top_level_imports(Path(nls.posterior.__file__).with_name(f"{name}.py")))
    allowed = {"__future__.annotations", "collections.abc.Callable", "collections.abc.Iterator"}
    allowed |= {"dataclasses.dataclass", "math", "numpy", "torch", "nls._checks"}
    assert {"torch", "nls._checks"} <= imports <= allowed
