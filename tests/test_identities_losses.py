"""Where losses, noise and rates meet: noise smooths, and a negative rate undoes it, as backward correction does."""

import pytest
import torch

from nls.losses import backward_corrected_loss, forward_corrected_loss, gls_loss, gls_parts, gls_targets
from nls.noise import pair_transition, symmetric_transition
from nls.rates import compose_rates, optimal_smooth_rate

CASES = [(k, e) for k in (2, 3, 10) for e in (0.1, 0.2, 0.4)]


def make_logits(num_classes, n=40):
    generator = torch.Generator().manual_seed(num_classes)
    return 3 * torch.randn(n, num_classes, dtype=torch.float64, generator=generator)


def every_label(logits, loss):
    """Return [N, K]: the loss of each example under each label."""
    labels = [torch.full((len(logits),), k) for k in range(logits.shape[1])]
    return torch.stack([loss(logits, y) for y in labels], 1)


@pytest.mark.parametrize(("num_classes", "noise_rate"), CASES)
@pytest.mark.parametrize("rate", [-2.0, 0.0, 0.3])
def test_symmetric_noise_acts_as_a_rate(num_classes, noise_rate, rate):
    logits, transition = make_logits(num_classes), symmetric_transition(num_classes, noise_rate)
    on_noisy = every_label(logits, lambda z, y: gls_loss(z, y, rate, reduction="none")) @ transition.T
    c = num_classes * noise_rate / (num_classes - 1)
    effective = 1 - (1 - rate) * (1 - c)
    on_clean = every_label(logits, lambda z, y: gls_loss(z, y, effective, reduction="none"))
    assert (on_noisy - on_clean).abs().max() < 1e-11


@pytest.mark.parametrize(("num_classes", "noise_rate"), CASES)
def test_the_optimal_rate_makes_the_noisy_risk_the_clean_one(num_classes, noise_rate):
    logits, transition = make_logits(num_classes), symmetric_transition(num_classes, noise_rate)
    rate = optimal_smooth_rate(noise_rate, num_classes)
    on_noisy = every_label(logits, lambda z, y: gls_loss(z, y, rate, reduction="none")) @ transition.T
    assert (on_noisy - every_label(logits, lambda z, y: gls_loss(z, y, 0.0, reduction="none"))).abs().max() < 1e-11
    wrong = every_label(logits, lambda z, y: gls_loss(z, y, abs(rate) / 10, reduction="none")) @ transition.T
    assert (wrong - every_label(logits, lambda z, y: gls_loss(z, y, 0.0, reduction="none"))).abs().max() > 1e-2


@pytest.mark.parametrize(("num_classes", "noise_rate"), CASES)
def test_backward_correction_is_the_optimal_rate_sample_by_sample(num_classes, noise_rate):
    logits, transition = make_logits(num_classes), symmetric_transition(num_classes, noise_rate)
    rate = optimal_smooth_rate(noise_rate, num_classes)
    backward = every_label(logits, lambda z, y: backward_corrected_loss(z, y, transition, reduction="none"))
    smoothed = every_label(logits, lambda z, y: gls_loss(z, y, rate, reduction="none"))
    assert (backward - smoothed).abs().max() < 1e-12 * smoothed.abs().max()
    forward = every_label(logits, lambda z, y: forward_corrected_loss(z, y, transition, reduction="none"))
    assert (forward - smoothed).abs().max() > 0.1


def test_no_rate_is_the_backward_correction_of_pair_noise():
    logits, transition = make_logits(3), pair_transition(3, 0.3)
    backward = every_label(logits, lambda z, y: backward_corrected_loss(z, y, transition, reduction="none"))
    rates = torch.linspace(-5, 1, 601, dtype=torch.float64).tolist()
    gaps = [
        float((backward - every_label(logits, lambda z, y, r=r: gls_loss(z, y, r, reduction="none"))).abs().max())
        for r in rates
    ]
    assert min(gaps) > 0.5
    flipped = every_label(
        logits, lambda z, y: backward_corrected_loss(z, y, transition.T.contiguous(), reduction="none")
    )
    assert (backward - flipped).abs().max() > 0.5  # T and its transpose are different noises


def test_backward_correction_is_unbiased_for_any_noise():
    logits = make_logits(3)
    transition = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    backward = every_label(logits, lambda z, y: backward_corrected_loss(z, y, transition, reduction="none"))
    clean = every_label(logits, lambda z, y: gls_loss(z, y, 0.0, reduction="none"))
    assert (backward @ transition.T - clean).abs().max() < 1e-11
    assert (backward @ transition - clean).abs().max() > 0.1


def test_forward_correction_has_the_clean_posterior_as_its_minimiser():
    transition = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    clean = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    logits = clean.log().requires_grad_()
    risk = (every_label(logits, lambda z, y: forward_corrected_loss(z, y, transition, reduction="none")) * (
        clean @ transition)).sum()  # fmt: skip
    (gradient,) = torch.autograd.grad(risk, logits)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("rate", [0.7, 0.0, -1.5])
@pytest.mark.parametrize("soft", [False, True])
def test_the_two_parts_make_the_loss(rate, soft):
    generator = torch.Generator().manual_seed(3)
    logits = 5 * torch.randn(40, 7, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (40, 2), generator=generator)
    if soft:
        labels = torch.rand(40, 7, 2, generator=generator, dtype=torch.float64).softmax(1)
    label_free, linear = gls_parts(logits, labels)
    loss = gls_loss(logits, labels, rate, reduction="none")
    torch.testing.assert_close(label_free - (1 - rate) * linear, loss, atol=1e-12, rtol=0)
    moved = gls_parts(logits + 100.0, labels)  # a common offset changes neither
    torch.testing.assert_close(moved, (label_free, linear), atol=1e-11, rtol=0)


@pytest.mark.parametrize("rates", [(), (0.3,), (0.5, -1.0), (0.2, -3.0, 0.9)])
def test_rates_compose_as_the_targets_do(rates):
    labels = torch.arange(5)
    rows = torch.eye(5, dtype=torch.float64)
    for rate in rates:
        rows = rows @ gls_targets(labels, 5, torch.tensor(rate, dtype=torch.float64))
    composed = torch.tensor(compose_rates(*rates), dtype=torch.float64)
    torch.testing.assert_close(rows, gls_targets(labels, 5, composed), atol=1e-14, rtol=0)
    with pytest.raises(ValueError, match=r"rates\[1\] must be a finite number"):
        compose_rates(0.5, 1.5)
