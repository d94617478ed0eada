"""Order and scale of confidences: risk by coverage against naive loops, temperatures against a fine search."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nls
from nls.confidence import TEMPERATURES, fit_temperature, risk_coverage

FAST = settings(max_examples=40, deadline=None, derandomize=True)


def naive_risk(confidence, right):
    """Return the mean risk by coverage over all orders that sort the confidences."""
    curves = []
    for order in itertools.permutations(range(len(right))):
        values = [confidence[i] for i in order]
        if values == sorted(values, reverse=True):
            wrong = [not right[i] for i in order]
            curves.append([sum(wrong[: k + 1]) / (k + 1) for k in range(len(wrong))])
    return np.mean(curves, 0)


@FAST
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
def test_risk_is_the_mean_over_all_orders_of_equal_confidences(pairs):
    confidence, right = [value / 3 for value, _ in pairs], [hit for _, hit in pairs]
    curve = risk_coverage(torch.tensor(confidence), torch.tensor(right))
    assert curve.risk.tolist() == pytest.approx(naive_risk(confidence, right).tolist())
    assert curve.area == pytest.approx(naive_risk(confidence, right).mean())
    assert curve.coverage.tolist() == pytest.approx([(k + 1) / len(right) for k in range(len(right))])


@FAST
@given(seed=st.integers(0, 10**6))
def test_only_the_order_of_confidences_matters(seed):
    rng = np.random.default_rng(seed)
    confidence, right = torch.tensor(rng.integers(1, 20, 50) / 20), torch.tensor(rng.random(50) < 0.6)
    curve = risk_coverage(confidence, right)
    torch.testing.assert_close(risk_coverage(confidence**3 - 5, right).risk, curve.risk)
    shuffled = torch.tensor(rng.permutation(50))
    torch.testing.assert_close(risk_coverage(confidence[shuffled], right[shuffled]).risk, curve.risk)
    assert curve.risk[-1] == pytest.approx(float((~right).double().mean()))


def test_best_and_worst_order():
    right = torch.tensor([True] * 8 + [False] * 2)
    score = torch.arange(10, 0, -1).double()
    best, worst = risk_coverage(score, right), risk_coverage(-score, right)
    assert best.accuracy_at(0.8) == best.accuracy_at(0.5) == 1
    assert best.area == pytest.approx((1 / 9 + 2 / 10) / 10)
    assert worst.accuracy_at(0.2) == 0
    assert worst.accuracy_at(0.5) == pytest.approx(3 / 5)
    assert worst.area > 2 * best.area
    flat = risk_coverage(torch.ones(10), right)
    assert flat.risk.tolist() == pytest.approx([0.2] * 10)


def test_coverage_keeps_the_whole_number_of_predictions():
    curve = risk_coverage(torch.arange(30, 0, -1).double(), torch.tensor([True] * 3 + [False] * 27))
    assert curve.accuracy_at(0.1) == curve.accuracy_at(1e-9) == 1
    assert curve.accuracy_at(0.11) == pytest.approx(3 / 4)
    assert curve.accuracy_at(1.0) == pytest.approx(0.1)
    curve = risk_coverage(torch.arange(100, 0, -1).double(), torch.tensor([True] * 7 + [False] * 93))
    assert 0.07 * 100 > 7  # in floating point
    assert curve.accuracy_at(0.07) == 1


def fine_temperature(logits, labels, transition):
    """Return the best of many temperatures, with probabilities as they are."""
    candidates = np.exp(np.linspace(math.log(0.05), math.log(20), 1200))
    losses = []
    for temperature in candidates:
        model = np.exp(logits / temperature)
        model = model / model.sum(1, keepdims=True) @ transition
        losses.append(-np.log(model[np.arange(len(labels)), labels]).mean())
    return candidates[int(np.argmin(losses))]


@pytest.mark.parametrize("matrix", [None, nls.symmetric_transition(4, 0.3), nls.pair_transition(4, 0.25)])
@pytest.mark.parametrize("seed", range(3))
def test_temperature_is_that_of_a_fine_search(matrix, seed):
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    logits = rng.normal(0, 2, (200, 4))
    labels = (torch.tensor(logits) / 1.5).softmax(1).multinomial(1, generator=generator)[:, 0]
    labels = (labels if matrix is None else nls.draw_noisy_labels(labels, matrix, generator)).numpy()
    found = fit_temperature(torch.tensor(logits), torch.tensor(labels), matrix)
    expected = fine_temperature(logits, labels, np.eye(4) if matrix is None else matrix.numpy())
    assert found == pytest.approx(expected, rel=0.003)
    assert fit_temperature(3 * torch.tensor(logits), torch.tensor(labels), matrix) == pytest.approx(3 * found, rel=1e-4)


def test_of_two_minima_the_lower_one_is_found():
    """Through this matrix the loss has one at 0.88 and a higher one at 5.8."""
    logits = torch.tensor([[2, 2, 2], [-2, 1, 1], [4, -3, -3], [-3, 0, 1], [1, 1, -5], [-2, -3, -1]]).double()
    labels, matrix = torch.tensor([2, 1, 1, 1, 1, 2]), nls.symmetric_transition(3, 0.4)
    expected = fine_temperature(logits.numpy(), labels.numpy(), matrix.numpy())
    assert expected == pytest.approx(0.878, abs=0.01)
    assert fit_temperature(logits, labels, matrix) == pytest.approx(expected, rel=0.003)


def test_noisy_labels_give_the_clean_temperature_through_the_matrix_only():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20000, 5, generator=generator, dtype=torch.float64)
    clean = (logits / 2).softmax(1).multinomial(1, generator=generator)[:, 0]  # the temperature of the truth is 2
    matrix = nls.pair_transition(5, 0.3)
    noisy = nls.draw_noisy_labels(clean, matrix, generator)
    assert fit_temperature(logits, clean) == pytest.approx(2, abs=0.08)
    assert fit_temperature(logits, noisy, matrix) == pytest.approx(2, abs=0.12)
    assert fit_temperature(logits, noisy) > 3
    assert fit_temperature(logits, noisy, matrix.T.contiguous()) > 3


def test_temperature_stays_in_its_range_without_a_minimum():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    low, high = TEMPERATURES
    right, wrong = (fit_temperature(logits, torch.tensor([label] * 2)) for label in (0, 1))
    assert low <= right < 0.1
    assert high >= wrong > 0.9 * high


def test_extreme_logits_do_not_overflow():
    logits = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 900.0, 0.0]])
    assert math.isfinite(fit_temperature(logits, torch.tensor([2, 0])))
    assert math.isfinite(fit_temperature(logits, torch.tensor([2, 0]), nls.pair_transition(3, 0.2)))


SOME = torch.tensor([0.5, 0.6])
LOGITS = torch.zeros(2, 3)
LABELS = torch.tensor([0, 1])
NEVER_2 = torch.tensor([[0.5, 0.5, 0.0]] * 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: risk_coverage([0.5], SOME > 0), TypeError, "confidence must be a torch tensor, got list"),
        (lambda: risk_coverage(SOME[None], SOME > 0), ValueError, r"confidence must have shape \[N\].*got \(1, 2\)"),
        (lambda: risk_coverage(SOME / 0, SOME > 0), ValueError, "confidence must be finite, got 2 values"),
        (lambda: risk_coverage(SOME, SOME), TypeError, "right must be a boolean tensor, got float32"),
        (lambda: risk_coverage(SOME, SOME[:1] > 0), ValueError, r"right must have shape \(2,\).*got \(1,\)"),
        (lambda: risk_coverage(SOME, SOME > 0).accuracy_at(0), ValueError, "coverage must be a finite number"),
        (lambda: fit_temperature(LOGITS[0], LABELS), ValueError, r"logits must have shape \[N, K\].*got \(3,\)"),
        (lambda: fit_temperature(LOGITS.long(), LABELS), TypeError, "logits must be a floating-point tensor"),
        (lambda: fit_temperature(LOGITS / 0, LABELS), ValueError, "logits must be finite, got 6 values"),
        (lambda: fit_temperature(LOGITS, LABELS + 2), ValueError, r"labels must lie in \[0, 2\], got the value 3"),
        (lambda: fit_temperature(LOGITS, LABELS[:1]), ValueError, r"labels must have shape \(2,\).*got \(1,\)"),
        (lambda: fit_temperature(LOGITS, LABELS, torch.eye(2)), ValueError, "transition must be 3 x 3.*got 2 rows"),
        (lambda: fit_temperature(LOGITS, LABELS + 1, NEVER_2), ValueError, "labels must be possible.*got 2"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
