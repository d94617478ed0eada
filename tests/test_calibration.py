"""The calibration errors equal naive loops and torchmetrics, whatever the ties, empty bins and absent classes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torchmetrics.functional.classification import binary_calibration_error

import nls
from nls.calibration import adaptive_calibration_error, classwise_calibration_error, reliability_curve

ERRORS = [classwise_calibration_error, adaptive_calibration_error]
ALL = [*ERRORS, reliability_curve]


def sample(n, k, *, seed=0, steps=None, dtype=torch.float64):
    """Return probabilities [n, k], in multiples of 1 / steps if given so that they tie, and labels."""
    rng = np.random.default_rng(seed)
    if steps is None:
        rows = rng.dirichlet(np.full(k, 0.5), size=n)
    else:
        rows = rng.multinomial(steps, np.full(k, 1 / k), size=n) / steps
    return torch.tensor(rows).to(dtype), torch.from_numpy(rng.integers(k, size=n))


def naive_gap(pairs):
    """Return |share of hits - mean probability| times the number of examples."""
    return abs(sum(hit for _, hit in pairs) - sum(value for value, _ in pairs))


def naive_classwise(probabilities, labels, num_bins):
    n, k = probabilities.shape
    total = 0.0
    for c in range(k):
        bins = {}
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            place = num_bins - 1
            for b in range(num_bins):
                if b / num_bins <= row[c] < (b + 1) / num_bins:
                    place = b
            bins.setdefault(place, []).append((row[c], label == c))
        total += sum(naive_gap(pairs) for pairs in bins.values()) / n
    return total / k


def naive_adaptive(probabilities, labels, num_bins):
    n, k = probabilities.shape
    total = 0.0
    for c in range(k):
        pairs = sorted(zip(probabilities[:, c].tolist(), (labels == c).tolist(), strict=True))
        bins, last = {}, 0
        for rank, (value, hit) in enumerate(pairs):
            # The bin of the rank, but equal values go where the last of them goes.
            final = max(r for r in range(rank, n) if pairs[r][0] == value)
            last = max(b for b in range(num_bins) if b * n // num_bins <= final)
            bins.setdefault(last, []).append((value, hit))
        total += sum(naive_gap(group) for group in bins.values()) / n
    return total / k


@pytest.mark.parametrize(
    ("n", "k", "bins", "steps"), [(40, 3, 15, None), (40, 4, 5, 10), (25, 2, 7, 4), (1, 5, 3, None)]
)
@pytest.mark.parametrize("name", ["classwise", "adaptive"])
def test_errors_equal_naive_loops(name, n, k, bins, steps):
    probabilities, labels = sample(n, k, seed=n, steps=steps)
    ours, naive = {
        "classwise": (classwise_calibration_error, naive_classwise),
        "adaptive": (adaptive_calibration_error, naive_adaptive),
    }[name]
    assert ours(probabilities, labels, bins) == pytest.approx(naive(probabilities, labels, bins), abs=1e-14)


def test_classwise_error_is_the_mean_of_binary_errors_of_torchmetrics():
    probabilities, labels = sample(500, 4, seed=1)
    binary = [binary_calibration_error(probabilities[:, c].clone(), (labels == c).long(), n_bins=15) for c in range(4)]
    assert classwise_calibration_error(probabilities, labels) == pytest.approx(float(np.mean(binary)), abs=1e-6)


def test_adaptive_bins_without_ties_are_equal_parts_of_the_sorted_values():
    probabilities, labels = sample(60, 3, seed=2)
    by_class = []
    for c in range(3):
        order = probabilities[:, c].argsort()
        gaps = ((labels == c).double() - probabilities[:, c])[order]
        by_class.append(sum(abs(float(part.mean())) / 12 for part in gaps.view(12, 5)))
    assert adaptive_calibration_error(probabilities, labels, 12) == pytest.approx(np.mean(by_class), abs=1e-14)


def test_a_constant_prediction_has_one_bin():
    probabilities = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).expand(8, -1)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    expected = (0 + 0.2 + 0.2) / 3
    for error in ERRORS:
        assert error(probabilities, labels) == pytest.approx(expected, abs=1e-15)


def test_an_absent_class_counts_with_what_it_is_given():
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.0, 0.1]], dtype=torch.float64)
    for error in ERRORS:
        assert error(probabilities, torch.tensor([0, 0])) == pytest.approx((0.1 + 0.05 + 0.05) / 3, abs=1e-15)
    curve = reliability_curve(probabilities, torch.tensor([0, 0]), 10)
    assert curve.count.tolist() == [0] * 9 + [2]
    assert curve.accuracy[:9].isnan().all()
    assert curve.accuracy[9] == 1


@pytest.mark.parametrize("error", ERRORS)
def test_sure_and_right_is_perfect_sure_and_wrong_is_not(error):
    sure = torch.eye(4, dtype=torch.float64)
    assert error(sure, torch.arange(4)) == 0
    assert error(sure, torch.tensor([1, 0, 3, 2])) == pytest.approx(0.5)  # each class: 1/4 given wrongly, 1/4 missed


@pytest.mark.parametrize("error", ERRORS)
def test_labels_drawn_from_the_probabilities_leave_only_sampling_error(error):
    probabilities, _ = sample(40000, 3, seed=3)
    labels = probabilities.multinomial(1, generator=torch.Generator().manual_seed(0))[:, 0]
    # With 15 bins of a class the mean error is at most sqrt(2 / pi * 15 / 4 / n).
    assert error(probabilities, labels) < 2 * math.sqrt(2 / math.pi * 15 / 4 / 40000)
    assert error(probabilities, (labels + 1) % 3) > 0.2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(2, 6), st.integers(1, 20), st.sampled_from([None, 5, 20]), st.integers(0, 10**6))
def test_order_of_examples_and_refined_bins(n, k, bins, steps, seed):
    probabilities, labels = sample(n, k, seed=seed, steps=steps)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    for error in ERRORS:
        value = error(probabilities, labels, bins)
        assert -1e-15 <= value <= 1 + 1e-15
        assert error(probabilities[order], labels[order], bins) == pytest.approx(value, abs=1e-14)
    # Parts of a bin can only have larger gaps than the whole, by the triangle inequality.
    fine = classwise_calibration_error(probabilities, labels, 3 * bins)
    assert fine >= classwise_calibration_error(probabilities, labels, bins) - 1e-14
    assert (
        adaptive_calibration_error(probabilities, labels, n + 3)
        >= adaptive_calibration_error(probabilities, labels, 1) - 1e-14
    )


@pytest.mark.parametrize("adaptive", [False, True])
def test_curve_equals_a_loop_and_scipy(adaptive):
    probabilities, labels = sample(300, 3, seed=4)
    curve = reliability_curve(probabilities, labels, 8, adaptive=adaptive, level=0.9)
    top = probabilities.max(1)
    order = np.sort(top.values.numpy())
    edges = [order[b * 300 // 8] for b in range(8)] if adaptive else [b / 8 for b in range(8)]
    for b in range(8):
        inside = (top.values >= edges[b]) & (top.values < (edges[b + 1] if b < 7 else math.inf))
        assert int(curve.count[b]) == int(inside.sum())
        if not inside.any():
            assert all(values[b].isnan() for values in (curve.confidence, curve.accuracy, curve.low, curve.high))
            continue
        right = int((top.indices == labels)[inside].sum())
        wilson = binomtest(right, int(inside.sum())).proportion_ci(0.9, method="wilson")
        assert float(curve.confidence[b]) == pytest.approx(float(top.values[inside].mean()), abs=1e-14)
        assert float(curve.accuracy[b]) == pytest.approx(right / int(inside.sum()), abs=1e-14)
        assert float(curve.low[b]) == pytest.approx(wilson.low, abs=1e-12)
        assert float(curve.high[b]) == pytest.approx(wilson.high, abs=1e-12)
    if adaptive:
        assert set(curve.count.tolist()) <= {37, 38}


def test_gaps_of_the_curve_add_up_to_the_error_of_the_top_class():
    probabilities, labels = sample(400, 5, seed=5)
    curve = reliability_curve(probabilities, labels)
    kept = curve.count > 0
    gaps = (curve.accuracy - curve.confidence).abs()[kept] * curve.count[kept] / 400
    assert float(gaps.sum()) == pytest.approx(nls.expected_calibration_error(probabilities, labels), abs=1e-6)


def test_intervals_stay_in_the_unit_interval_and_cover():
    all_right = reliability_curve(torch.tensor([[0.9, 0.1]] * 4, dtype=torch.float64), torch.zeros(4).long(), 1)
    none_right = reliability_curve(torch.tensor([[0.9, 0.1]] * 4, dtype=torch.float64), torch.ones(4).long(), 1)
    assert 0 < float(all_right.low) < float(all_right.high) == 1
    assert 0 == float(none_right.low) < float(none_right.high) < 1
    generator, covered = torch.Generator().manual_seed(0), 0
    probabilities = torch.tensor([[0.7, 0.3]], dtype=torch.float64).expand(50, -1)
    for _ in range(200):
        labels = probabilities.multinomial(1, generator=generator)[:, 0]
        curve = reliability_curve(probabilities, labels, 1)
        covered += float(curve.low) <= 0.7 <= float(curve.high)
    assert abs(covered / 200 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 200)


def test_decimal_edges_belong_to_the_bin_above_and_one_to_the_last():
    values = torch.tensor([0.55, 0.6, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64)
    curve = reliability_curve(torch.stack([values, 1 - values], 1), torch.zeros(6).long(), 10)
    assert curve.count.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    many = torch.arange(51, 100, dtype=torch.float64) / 100
    curve = reliability_curve(torch.stack([many, 1 - many], 1), torch.zeros(49).long(), 100)
    assert curve.count.tolist() == [0] * 51 + [1] * 49


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_computed_in_float64(dtype):
    probabilities, labels = sample(50, 3, seed=6, dtype=dtype)
    given_values = probabilities.requires_grad_()
    # The sums of half-precision rows are off by their rounding, which float64 would not allow.
    exact = probabilities.detach().double()
    exact = exact / exact.sum(1, keepdim=True)
    for error in ERRORS:
        assert error(given_values, labels.int()) == pytest.approx(error(exact, labels), abs=0.02)
    assert reliability_curve(given_values, labels).accuracy.dtype == torch.float64


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, 2), torch.tensor([0, 1])), ValueError, "probabilities must sum to 1 .* got a sum of 2"),
        ((torch.tensor([[1.5, -0.5]]), torch.tensor([0])), ValueError, "probabilities must not be negative"),
        (
            (torch.tensor([0.5, 0.5]), torch.tensor(0)),
            ValueError,
            r"probabilities must have shape \[N, K\] with N >= 1",
        ),
        ((torch.ones(0, 2), torch.ones(0).long()), ValueError, r"shape \[N, K\] with N >= 1, got .*\(0, 2\)"),
        ((torch.eye(2), torch.tensor([0])), ValueError, r"labels must have shape \(2,\), one for each row, got \(1,\)"),
        ((torch.eye(2), torch.tensor([0, 2])), ValueError, r"labels must lie in \[0, 1\], got the value 2"),
        ((torch.eye(2), torch.tensor([0, 1]), 0), ValueError, "num_bins must be at least 1, got 0"),
        ((torch.eye(2), torch.tensor([0, 1]), 2.5), TypeError, "num_bins must be an integer"),
        ((torch.eye(2).long(), torch.tensor([0, 1])), TypeError, "probabilities must be a floating-point tensor"),
        ((torch.eye(2), torch.tensor([0.0, 1.0])), TypeError, "labels must hold integer class indices"),
        (([[0.5, 0.5]], torch.tensor([0])), TypeError, "probabilities must be a torch tensor, got list"),
    ],
)
def test_bad_arguments_are_named(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_a_level_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="level must be a finite number"):
        reliability_curve(torch.eye(2), torch.tensor([0, 1]), level=1.0)
