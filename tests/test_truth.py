import math

import numpy as np
import pytest
import torch

import nls
from nls.truth import truth_scores


def problem(n=40, k=3, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(0, 2, (n, k))), torch.tensor(rng.dirichlet(np.ones(k), size=n))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_scores_are_the_sums_over_inputs_and_labels(k):
    """Every input with every label, weighted by how likely the label is."""
    logits, posterior = problem(k=k)
    right = wrong = right_sure = wrong_sure = kl = 0.0
    disagree = 0
    for z, eta in zip(logits.tolist(), posterior.tolist(), strict=True):
        total = sum(math.exp(v) for v in z)
        p = [math.exp(v) / total for v in z]
        guess = p.index(max(p))
        for label, weight in enumerate(eta):
            kl += weight * math.log(weight / p[label])
            if label == guess:
                right, right_sure = right + weight, right_sure + weight * p[guess]
            else:
                wrong, wrong_sure = wrong + weight, wrong_sure + weight * p[guess]
        disagree += guess != eta.index(max(eta))
    n = len(logits)
    found = truth_scores(logits, posterior)
    expected = {
        "accuracy": right / n,
        "disagreement": disagree / n,
        "kl": kl / n,
        "confidence": (right_sure + wrong_sure) / n,
        "confidence_right": right_sure / right,
        "confidence_wrong": wrong_sure / wrong,
    }
    assert found.keys() == expected.keys()
    assert {key: float(value) for key, value in found.items()} == pytest.approx(expected, rel=1e-12)


def test_a_large_sample_of_labels_gives_the_same():
    logits, posterior = problem(n=20)
    rows = torch.arange(20).repeat(20_000)
    labels = posterior.multinomial(20_000, replacement=True, generator=torch.Generator().manual_seed(0)).T.flatten()
    confidence, guess = logits.softmax(1).max(1)
    hits, sure = guess[rows] == labels, confidence[rows]
    found = truth_scores(logits, posterior)
    assert float(hits.double().mean()) == pytest.approx(float(found["accuracy"]), abs=5 * 0.5 / math.sqrt(len(rows)))
    for key, part in (("confidence_right", hits), ("confidence_wrong", ~hits)):
        error = float(sure[part].std()) / math.sqrt(int(part.sum()))
        assert float(sure[part].mean()) == pytest.approx(float(found[key]), abs=5 * error)


def test_the_truth_itself():
    _, posterior = problem()
    found = truth_scores(posterior.log(), posterior)
    assert float(found["disagreement"]) == 0
    assert float(found["kl"]) == pytest.approx(0, abs=1e-12)
    assert float(found["accuracy"]) == pytest.approx(float(posterior.amax(1).mean()))
    # It is surer where it is right, and not unsure where it is wrong.
    assert 1 / 3 < float(found["confidence_wrong"]) < float(found["confidence_right"])


def test_kl_is_that_of_the_package_and_a_class_of_no_probability_costs_nothing():
    logits, posterior = problem()
    expected = nls.kl_divergence(posterior, logits.softmax(1)).mean()
    torch.testing.assert_close(truth_scores(logits, posterior)["kl"], expected)
    sure = torch.tensor([[1.0, 0.0]])
    assert float(truth_scores(torch.tensor([[0.0, -math.inf]]), sure)["kl"]) == 0
    assert float(truth_scores(torch.tensor([[-math.inf, 0.0]]), sure)["kl"]) == math.inf


def test_many_models_at_once_are_each_alone_and_a_lost_one_touches_no_other():
    logits, posterior = problem()
    stack = torch.stack([logits, 3 * logits, -logits])
    stack[1, 0, 0] = math.nan
    found = truth_scores(stack[:, None], posterior)
    for key, values in found.items():
        assert values.shape == (3, 1)
        assert math.isnan(values[1, 0]), key
        for i in (0, 2):
            torch.testing.assert_close(values[i, 0], truth_scores(stack[i], posterior)[key])
    assert {v.dtype for v in truth_scores(logits.float(), posterior.float()).values()} == {torch.float64}


@pytest.mark.parametrize(
    ("logits", "posterior", "error", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 2), ValueError, "posterior must sum to 1"),
        (torch.zeros(4, 2), torch.full((2,), 0.5), ValueError, r"posterior must have shape \[n, K\] with n >= 1, got"),
        (torch.zeros(0, 2), torch.zeros(0, 2), ValueError, r"posterior must have shape \[n, K\] with n >= 1"),
        (
            torch.zeros(3, 2),
            torch.full((4, 2), 0.5),
            ValueError,
            r"logits must have shape \[..., 4, 2\] as posterior has",
        ),
        (torch.zeros(4, 3), torch.full((4, 2), 0.5), ValueError, r"got .*\(4, 3\)"),
        (torch.zeros(2), torch.full((4, 2), 0.5), ValueError, "logits must have shape"),
        (torch.zeros(4, 2, dtype=torch.int64), torch.full((4, 2), 0.5), TypeError, "logits must be a floating-point"),
        ([[0.0, 1.0]], torch.full((1, 2), 0.5), TypeError, "logits must be a torch tensor"),
    ],
)
def test_other_arguments_are_refused(logits, posterior, error, message):
    with pytest.raises(error, match=message):
        truth_scores(logits, posterior)
