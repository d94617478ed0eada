"""Clipped logits and a floor keep a negative rate bounded, exactly as far as they say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nls import fit_stack, gls_loss
from nls.remedies import clip_logits, floored_loss


def random_logits(shape, scale=1.0, seed=0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_clipping_centres_and_shortens_row_by_row():
    logits = random_logits((2, 5, 3), scale=2.0)
    clipped = clip_logits(logits, 1.5)
    for row, expected in zip(clipped.flatten(0, 1), logits.flatten(0, 1), strict=True):
        centred = expected - expected.mean()
        factor = 1.5 / float(centred.norm()) if centred.norm() > 1.5 else 1.0
        torch.testing.assert_close(row, factor * centred, atol=1e-15, rtol=1e-14)
    assert (clipped.norm(dim=-1) < 1.5 - 1e-6).any()  # both sides of the bound were there
    assert (clipped.norm(dim=-1) > 1.5 - 1e-12).any()


def test_logits_within_the_bound_keep_their_probabilities_and_gradients():
    logits = random_logits((6, 4)).requires_grad_()
    clipped = clip_logits(logits, 100.0)
    torch.testing.assert_close(clipped.softmax(-1), logits.softmax(-1))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    (through,) = torch.autograd.grad(gls_loss(clipped, labels, -1.0), logits)
    (direct,) = torch.autograd.grad(gls_loss(logits, labels, -1.0), logits)
    torch.testing.assert_close(through, direct)


def test_beyond_the_bound_the_gradient_has_no_part_along_the_logits():
    logits = random_logits((6, 4), scale=5.0)
    logits = (logits - logits.mean(-1, keepdim=True)).requires_grad_()
    loss = gls_loss(clip_logits(logits, 0.5), torch.tensor([0, 1, 2, 3, 0, 1]), -1.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float((gradient * logits.detach()).sum(-1).abs().max()) < 1e-15
    assert float(gradient.abs().max()) > 1e-4
    assert torch.autograd.gradcheck(lambda z: clip_logits(z, 0.5), logits)


@given(
    classes=st.integers(2, 8),
    bound=st.floats(0.1, 20),
    rate=st.floats(-8, 0),
    seed=st.integers(0, 99),
    far=st.booleans(),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_loss_and_the_confidence_have_the_bounds_of_the_docstring(classes, bound, rate, seed, far):
    logits = random_logits((50, classes), scale=1e3 if far else 1.0, seed=seed)
    logits[0] = 1e6 * torch.eye(classes, dtype=torch.float64)[0]  # the worst case reaches both bounds
    clipped = clip_logits(logits, bound)
    losses = gls_loss(clipped, torch.zeros(50, dtype=torch.long), rate, reduction="none")
    gap = bound * math.sqrt(classes / (classes - 1))
    lowest = rate * gap * (classes - 1) / classes + math.log(1 + (classes - 1) * math.exp(-gap))
    assert float(losses.min()) == pytest.approx(lowest, abs=1e-9)
    assert float(clipped.softmax(-1).max()) == pytest.approx(1 / (1 + (classes - 1) * math.exp(-gap)), abs=1e-12)


def test_the_type_is_kept_and_zero_logits_have_a_gradient():
    assert clip_logits(torch.ones(2, 3, dtype=torch.float32), 1.0).dtype == torch.float32
    zero = torch.zeros(2, 3, requires_grad=True)
    clip_logits(zero, 1.0)[:, 0].sum().backward()
    assert torch.isfinite(zero.grad).all()
    assert zero.grad.abs().max() > 0.5


@given(floor=st.floats(-5, 5), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_mean_turns_around_at_the_floor(floor, seed):
    losses = random_logits((3, 7), scale=3.0, seed=seed)
    expected = [floor + abs(sum(row) / 7 - floor) for row in losses.tolist()]
    torch.testing.assert_close(floored_loss(losses, floor).mean(-1), torch.tensor(expected, dtype=torch.float64))


def test_descent_turns_into_ascent_below_the_floor():
    losses = torch.tensor([[1.0, 3.0], [-4.0, 2.0], [-1.0, 1.0]], requires_grad=True)
    floored_loss(losses, 0.0).sum().backward()
    assert losses.grad.tolist() == [[1, 1], [-1, -1], [0, 0]]


def test_a_memorising_network_runs_off_and_both_hold_it():
    features = random_logits((20, 5)).float()
    labels = torch.randint(2, (20,), generator=torch.Generator().manual_seed(1)).expand(3, -1)

    def losses(logits, labels, members):
        free = gls_loss(logits[0], labels[0], -2.0, reduction="none")
        clipped = gls_loss(clip_logits(logits[1], 2.0), labels[1], -2.0, reduction="none")
        return torch.stack([free, clipped, floored_loss(gls_loss(logits[2], labels[2], -2.0, reduction="none"), 0.0)])

    fit = fit_stack(
        features, labels, num_classes=2, hidden=(16,), epochs=150, batch_size=20, optimizer="sgd", momentum=0.0,
        learning_rate=0.1, loss=losses, chunk=3,
    )  # fmt: skip
    free, clipped, floored = fit.curves["train_loss"]
    assert free[-1] < -1000
    lowest = -2.0 * 2.0 * 2**0.5 / 2 + math.log(1 + math.exp(-2.0 * 2**0.5))
    assert lowest - 1e-5 < clipped[-1] < lowest + 1
    assert floored.min() >= 0
    assert floored[-1] < 0.2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: clip_logits([[1.0, 2.0]], 1.0), TypeError, "logits must be a torch tensor, got list"),
        (lambda: clip_logits(torch.ones(2, 2, dtype=torch.long), 1.0), TypeError, "logits must be a floating-point"),
        (lambda: clip_logits(torch.ones(3, 1), 1.0), ValueError, r"at least 2 classes .* got float32 .*\(3, 1\)"),
        (lambda: clip_logits(torch.ones(3, 2), 0.0), ValueError, r"bound must be .* got 0\.0"),
        (lambda: clip_logits(torch.ones(3, 2), math.inf), ValueError, "bound must be a finite number"),
        (lambda: floored_loss(1.0, 0.0), TypeError, "losses must be a torch tensor"),
        (lambda: floored_loss(torch.tensor(1.0), 0.0), ValueError, r"losses must have shape \[..., n\]"),
        (lambda: floored_loss(torch.empty(2, 0), 0.0), ValueError, "n >= 1, got float32 tensor"),
        (lambda: floored_loss(torch.ones(2), math.nan), ValueError, "floor must be a finite number"),
        (lambda: floored_loss(torch.ones(2), "0"), TypeError, "floor must be a real number"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
