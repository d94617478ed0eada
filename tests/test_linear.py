"""The linear fit finds the exact minimum of the GLS risk, and says where there is none."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nls.linear import fit_linear
from nls.losses import gls_loss


def make(num_examples=60, dimension=3, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_examples,), generator=generator)
    centres = torch.randn(num_classes, dimension, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_examples, dimension, generator=generator, dtype=torch.float64)
    return centres[labels] + 1.5 * noise, labels


def gradient_at(model, features, labels, rate, ridge, weight=None):
    """The largest entry of the gradient, by autograd through the loss of the package."""
    matrix, bias = model.weight.clone().requires_grad_(), model.bias.clone().requires_grad_()
    losses = gls_loss(features @ matrix.T + bias, labels, rate, reduction="none")
    shares = torch.ones_like(losses) if weight is None else weight
    value = (shares * losses).sum() / shares.sum() + ridge / 2 * matrix.square().sum()
    value.backward()
    return value.item(), max(float(matrix.grad.abs().max()), float(bias.grad.abs().max()))


@pytest.mark.parametrize(("rate", "ridge"), [(0.6, 0.0), (0.0, 0.0), (0.0, 0.1), (-0.1, 0.0), (-3.0, 1.0)])
def test_the_gradient_of_the_package_loss_vanishes_at_the_fit(rate, ridge):
    features, labels = make()
    model = fit_linear(features, labels, 3, rate, ridge=ridge)
    value, slope = gradient_at(model, features, labels, rate, ridge)
    assert model.converged
    assert slope < 1e-7
    assert model.value == pytest.approx(value, abs=1e-12)


def test_weights_count_examples_and_soft_labels_average_hard_ones():
    features, labels = make()
    weight = torch.arange(len(labels), dtype=torch.float64) % 3
    weighted = fit_linear(features, labels, 3, 0.2, ridge=0.05, weight=weight)
    repeats = weight.long()
    repeated = fit_linear(features.repeat_interleave(repeats, 0), labels.repeat_interleave(repeats), 3, 0.2, ridge=0.05)
    torch.testing.assert_close(weighted.weight, repeated.weight, atol=1e-6, rtol=0)
    soft = 0.7 * torch.eye(3, dtype=torch.float64)[labels] + 0.1
    smoothed = fit_linear(features, soft, 3, ridge=0.05)  # 0.7 onehot + 0.1 is the target of rate 0.3
    torch.testing.assert_close(
        smoothed.weight, fit_linear(features, labels, 3, 0.3, ridge=0.05).weight, atol=1e-6, rtol=0
    )


def test_at_rate_zero_it_is_logistic_regression():
    features, labels = make(200, 4, 3, seed=1)
    ours = fit_linear(features, labels, 3, ridge=0.02)
    theirs = LogisticRegression(C=1 / (0.02 * 200), tol=1e-10, max_iter=5000).fit(features.numpy(), labels.numpy())
    probabilities = theirs.predict_proba(features.numpy())
    np.testing.assert_allclose(ours(features).softmax(1).numpy(), probabilities, atol=2e-6)


def test_without_an_intercept_the_bias_is_zero_and_shifts_count():
    features, labels = make()
    model = fit_linear(features, labels, 3, ridge=0.1, intercept=False)
    assert torch.equal(model.bias, torch.zeros(3, dtype=torch.float64))
    assert gradient_at(model, features, labels, 0.0, 0.1)[0] == pytest.approx(model.value, abs=1e-12)
    assert fit_linear(features, labels, 3, ridge=0.1).value < model.value


def test_soft_labels_rounded_to_float32_have_a_minimum():
    features, labels = make()
    soft = 0.3 * torch.eye(3)[labels] + 0.7 / 3
    soft[:, 0] -= 2e-8  # as rounding may leave it
    assert float((soft.double().sum(1) - 1).abs().max()) > 0
    model = fit_linear(features, soft, 3, -0.2, ridge=0.0)
    assert model.converged
    assert float(model.bias.abs().max()) < 10


def test_a_risk_without_a_minimum_is_said():
    features, labels = make()
    assert not fit_linear(features, labels, 3, -20.0).converged
    assert fit_linear(features, labels, 3, -20.0).value < -10.0
    assert fit_linear(features, labels, 3, -20.0, ridge=1.0, intercept=False).converged


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.ones(4)}, ValueError, r"features must have shape \[N, d\]"),
        ({"features": torch.full((4, 2), torch.nan)}, ValueError, "features must be finite"),
        ({"features": torch.ones(4, 2, dtype=torch.long)}, TypeError, "features must be a floating-point tensor"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, ValueError, r"labels must have shape \(4,\), got \(3,\)"),
        ({"labels": torch.full((4,), 2)}, ValueError, r"labels must lie in \[0, 1\], got the value 2"),
        ({"labels": torch.ones(4, 3)}, ValueError, r"soft labels must have shape \(4, 2\), got \(4, 3\)"),
        ({"labels": torch.ones(4, 2)}, ValueError, "soft labels must have rows that sum to 1"),
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2"),
        ({"smooth_rate": 1.5}, ValueError, "smooth_rate must be a finite number"),
        ({"ridge": -1.0}, ValueError, "ridge must be a finite number"),
        ({"weight": torch.ones(3)}, ValueError, r"weight must have shape \(4,\), got \(3,\)"),
        ({"weight": torch.zeros(4)}, ValueError, "weight must be finite, not negative and not all zero"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"features": torch.ones(4, 2), "labels": torch.tensor([0, 1, 0, 1]), "num_classes": 2}
    with pytest.raises(error, match=message):
        fit_linear(**(arguments | change))
