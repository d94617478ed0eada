"""The oracle is a loop in Python floats; torch's own smoothing is a second one for rates in [0, 1]."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from nls.losses import GLSLoss, backward_corrected_loss, forward_corrected_loss, gls_loss, gls_targets

RATES = (-8, -4, -1, -0.4, 0, 0.1, 0.8, 1)
SIZES = (2, 3, 10, 100)
REDUCTIONS = ("mean", "sum", "none")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
CASES = [
    *((torch.float64, offset) for offset in (0, 1e4, 1e6)),
    *((torch.float32, offset) for offset in (0, 1e4, 1e6)),
    *((torch.bfloat16, offset) for offset in (0, 100, 1000)),
    (torch.float16, 100),
]


def draw(num_classes, num_examples=6, extra=(), seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + num_classes)
    logits = 2 * torch.randn(num_examples, num_classes, *extra, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (num_examples, *extra), generator=generator)


def symmetric(num_classes, noise_rate):
    matrix = torch.full((num_classes, num_classes), noise_rate / (num_classes - 1), dtype=torch.float64)
    return matrix.fill_diagonal_(1 - noise_rate)


def random_transition(num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(num_classes, num_classes, generator=generator, dtype=torch.float64)
    matrix = matrix + num_classes * torch.eye(num_classes, dtype=torch.float64)
    return matrix / matrix.sum(1, keepdim=True)


def naive_row(logits, target):
    """Return the loss of one row and its gradient, for any target weights."""
    top = max(logits)
    shifted = [value - top for value in logits]
    partition = math.fsum(math.exp(value) for value in shifted)
    loss = math.fsum(weight * (math.log(partition) - value) for value, weight in zip(shifted, target, strict=True))
    mass = math.fsum(target)
    pairs = zip(shifted, target, strict=True)
    return loss, [math.exp(value) / partition * mass - weight for value, weight in pairs]


def naive(logits, labels, rate):
    """Return losses [N] and gradients [N, K] of generalised label smoothing by loops in float64."""
    losses, gradients = [], []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        size = len(row)
        target = [rate / size + (1 - rate if k == label else 0.0) for k in range(size)]
        loss, gradient = naive_row(row, target)
        losses.append(loss)
        gradients.append(gradient)
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(gradients, dtype=torch.float64)


def value_and_gradient(function, logits, *args, **kwargs):
    logits = logits.detach().requires_grad_()
    value = function(logits, *args, **kwargs)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return value.detach(), gradient


def excess(function, rate, num_classes, dtype, offset):
    """Return the largest error of losses and gradients against the oracle, in multiples of the tolerance."""
    logits, labels = draw(num_classes)
    logits = (logits + offset).to(dtype)
    losses, gradient = value_and_gradient(function, logits, labels, rate, reduction="none")
    expected, expected_gradient = naive(logits, labels, rate)
    tolerance = TOLERANCE[dtype] * (1 + abs(rate))
    loss_error = (losses.double() - expected).abs().max() / expected.abs().max() / tolerance
    # A gradient has the type of the logits, and in half precision is rounded to it once.
    rounding = torch.finfo(dtype).eps / 2 if dtype in (torch.bfloat16, torch.float16) else 0
    allowed = tolerance + rounding * expected_gradient.abs()
    gradient_error = ((gradient.double() - expected_gradient).abs() / allowed).max()
    return max(loss_error.item(), gradient_error.item())


def same(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=atol, equal_nan=True)


# 1. The oracle, and wrong implementations that it must reject.


@pytest.mark.parametrize(("dtype", "offset"), CASES)
@pytest.mark.parametrize("num_classes", SIZES)
@pytest.mark.parametrize("rate", RATES)
def test_matches_the_loop(rate, num_classes, dtype, offset):
    assert excess(gls_loss, rate, num_classes, dtype, offset) <= 1


def absolute_rate(logits, labels, rate, reduction):
    return gls_loss(logits, labels, abs(rate), reduction=reduction)


def clamped_rate(logits, labels, rate, reduction):
    return gls_loss(logits, labels, max(rate, 0), reduction=reduction)


def torch_smoothing(logits, labels, rate, reduction):
    return F.cross_entropy(logits.float(), labels, label_smoothing=rate, reduction=reduction)


def plain(logits, labels, rate, mean, lse=None):
    lse = logits.logsumexp(1) if lse is None else lse
    return lse - (1 - rate) * logits.gather(1, labels[:, None]).squeeze(1) - rate * mean


def uncentred(logits, labels, rate, reduction):
    return plain(logits, labels, rate, logits.mean(1))


def in_half(logits, labels, rate, reduction):
    return uncentred(logits - logits.amax(1, keepdim=True), labels, rate, reduction)


def over_others(logits, labels, rate, reduction):
    """Spread the rate over the K - 1 other classes."""
    picked = logits.gather(1, labels[:, None]).squeeze(1)
    return plain(logits, labels, rate, (logits.sum(1) - picked) / (logits.shape[1] - 1))


def over_too_few(logits, labels, rate, reduction):
    return plain(logits, labels, rate, logits.sum(1) / (logits.shape[1] - 1))


def over_examples(logits, labels, rate, reduction):
    return plain(logits, labels, rate, logits.mean())


def double_gradient(logits, labels, rate, reduction):
    """Right values, wrong gradients."""
    loss = gls_loss(logits, labels, rate, reduction=reduction)
    return 2 * loss - loss.detach()


@pytest.mark.parametrize(
    ("wrong", "rate", "dtype", "offset"),
    [
        (absolute_rate, -0.4, torch.float32, 0),
        (clamped_rate, -0.4, torch.float32, 0),
        (torch_smoothing, -0.4, torch.float32, 0),
        (uncentred, -0.4, torch.float32, 1e4),
        (uncentred, -0.4, torch.float64, 1e6),
        (in_half, 0.1, torch.bfloat16, 0),
        (over_others, 0.1, torch.float32, 0),
        (over_too_few, 0.1, torch.float32, 0),
        (over_examples, 0.1, torch.float32, 0),
        (double_gradient, 0, torch.float32, 0),
    ],
)
def test_the_loop_rejects_wrong_losses(wrong, rate, dtype, offset):
    assert excess(gls_loss, rate, 10, dtype, offset) <= 1
    assert excess(wrong, rate, 10, dtype, offset) > 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_types(dtype):
    logits, labels = draw(4)
    logits, expected = logits.to(dtype), torch.promote_types(dtype, torch.float32)
    matrix = symmetric(4, 0.2)
    assert gls_loss(logits, labels, -0.4, weight=torch.ones(4, dtype=torch.float64)).dtype == expected
    assert gls_loss(logits, labels, torch.zeros(6, dtype=torch.float64)).dtype == expected
    assert gls_loss(logits, logits.softmax(1), -0.4).dtype == expected
    assert backward_corrected_loss(logits, labels, matrix).dtype == expected
    assert forward_corrected_loss(logits, labels, matrix).dtype == expected
    assert value_and_gradient(gls_loss, logits, labels, -0.4)[1].dtype == dtype


# 2. torch for rates in [0, 1].


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [-100, 1])
@pytest.mark.parametrize("extra", [(), (3,), (2, 3)])
@pytest.mark.parametrize("weight", [None, (0.5, 2.0, 0.0, 1.0, 3.0)])
@pytest.mark.parametrize("rate", [0, 0.1, 0.8, 1])
def test_matches_torch(rate, weight, extra, ignore_index, reduction):
    logits, labels = draw(5, num_examples=7, extra=extra)
    labels[::3] = ignore_index
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    shared = {"weight": weight, "reduction": reduction}
    expected = value_and_gradient(
        F.cross_entropy, logits, labels, label_smoothing=rate, ignore_index=ignore_index, **shared
    )
    same(value_and_gradient(gls_loss, logits, labels, rate, ignore_index=ignore_index, **shared), expected)
    rates = torch.full((7,), rate, dtype=torch.float64)
    same(value_and_gradient(gls_loss, logits, labels, rates, ignore_index=ignore_index, **shared), expected)

    soft = draw(5, num_examples=7, extra=extra, seed=1)[0].softmax(1)
    expected = value_and_gradient(F.cross_entropy, logits, soft, label_smoothing=rate, **shared)
    same(value_and_gradient(gls_loss, logits, soft, rate, **shared), expected)
    same(value_and_gradient(gls_loss, logits, soft, rates, **shared), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rate", [-0.4, 0, 0.1])
def test_all_ignored_and_empty_as_torch(rate, weighted, reduction):
    logits, labels = draw(3)
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) if weighted else None
    shared = {"weight": weight, "reduction": reduction}
    for some_logits, some_labels in [
        (logits, torch.full_like(labels, -100)),
        (logits[:0], labels[:0]),
        (torch.zeros(2, 3, 0, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.long)),
        (logits[:0], logits[:0]),
    ]:
        expected = F.cross_entropy(some_logits, some_labels, label_smoothing=max(rate, 0), **shared)
        same(gls_loss(some_logits, some_labels, rate, **shared), expected)
        rates = torch.full(some_logits.shape[:1], rate, dtype=torch.float64)
        same(gls_loss(some_logits, some_labels, rates, **shared), expected)


@pytest.mark.parametrize("rate", [0, 0.1, 0.8])
def test_masked_classes_as_torch(rate):
    logits, labels = draw(4, num_examples=5)
    logits[:, 2] = -math.inf
    labels[:] = torch.tensor([0, 1, 2, 3, 0])
    expected = value_and_gradient(F.cross_entropy, logits, labels, label_smoothing=rate, reduction="none")
    assert expected[0].isinf().tolist() == ([False, False, True, False, False] if rate == 0 else [True] * 5)
    for rates in (rate, torch.tensor(rate, dtype=torch.float64), torch.full((5,), rate, dtype=torch.float64)):
        same(value_and_gradient(gls_loss, logits, labels, rates, reduction="none"), expected)


def test_masked_class_below_zero():
    logits = torch.tensor([[1.0, -math.inf, 0.0]])
    assert gls_loss(logits, torch.tensor([0]), -0.4).item() == -math.inf
    assert gls_loss(logits, torch.tensor([1]), -0.4).isnan()


def test_rate_per_example():
    logits, labels = draw(5, num_examples=8, extra=(2, 3))
    rates = torch.tensor(RATES, dtype=torch.float64)
    expected = torch.stack([gls_loss(logits[[i]], labels[[i]], RATES[i], reduction="none")[0] for i in range(8)])
    same(gls_loss(logits, labels, rates, reduction="none"), expected)
    same(gls_loss(logits, labels, rates[:, None, None].expand(8, 2, 3), reduction="none"), expected)
    varied = rates[(labels + torch.arange(8)[:, None, None]) % 8]
    expected = torch.stack([gls_loss(logits, labels, rate, reduction="none") for rate in RATES])
    index = (labels + torch.arange(8)[:, None, None]) % 8
    same(gls_loss(logits, labels, varied, reduction="none"), expected.gather(0, index[None])[0])
    soft = logits.softmax(1).flip(0)
    expected = torch.stack([gls_loss(logits[[i]], soft[[i]], RATES[i], reduction="none")[0] for i in range(8)])
    same(gls_loss(logits, soft, rates, reduction="none"), expected)
    same(gls_loss(logits, labels, torch.tensor(-4)), gls_loss(logits, labels, -4))


def test_coarse_rate_tensor_keeps_its_precision():
    """A rate in half precision is widened before 1 - r is formed."""
    logits, labels = draw(5)
    rate = torch.tensor(-0.00390625, dtype=torch.bfloat16)
    same(gls_loss(logits, labels, rate), gls_loss(logits, labels, -0.00390625))


@pytest.mark.parametrize("rate", [-8, -0.4, 0.8])
def test_weights_below_zero_rate(rate):
    """Weights multiply the target row also where torch cannot be asked."""
    logits, labels = draw(4)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    rows = (gls_targets(labels, 4, torch.tensor(rate, dtype=torch.float64)) * weight).tolist()
    expected = [naive_row(row, target) for row, target in zip(logits.tolist(), rows, strict=True)]
    losses, gradients = (torch.tensor(part, dtype=torch.float64) for part in zip(*expected, strict=True))
    same(value_and_gradient(gls_loss, logits, labels, rate, weight=weight, reduction="none"), (losses, gradients))
    mean = losses.sum() / weight[labels].sum()
    same(gls_loss(logits, labels, rate, weight=weight), mean)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_narrow_labels(dtype):
    logits, labels = draw(5)
    same(gls_loss(logits, labels.to(dtype), -0.4), gls_loss(logits, labels, -0.4))
    matrix = symmetric(5, 0.2)
    same(backward_corrected_loss(logits, labels.to(dtype), matrix), backward_corrected_loss(logits, labels, matrix))


# 3. The trap.


@pytest.mark.parametrize("rate", [-0.001, -0.5, -8.0])
def test_torch_ignores_a_negative_rate(rate):
    logits, labels = draw(5)
    plain_loss = F.cross_entropy(logits, labels)
    assert F.cross_entropy(logits, labels, label_smoothing=rate).equal(plain_loss)
    assert torch.nn.CrossEntropyLoss(label_smoothing=rate)(logits, labels).equal(plain_loss)
    uniform = (logits.logsumexp(1) - logits.mean(1)).mean()
    ours = gls_loss(logits, labels, rate)
    same(ours - plain_loss, rate * (uniform - plain_loss))
    assert (ours - plain_loss).abs() > 1e-4


# 4. Derivatives.


@pytest.mark.parametrize("rate", [-8, -0.4, 0.8])
def test_gradient_is_softmax_less_target(rate):
    logits, labels = draw(10)
    _, gradient = value_and_gradient(gls_loss, logits, labels, rate, reduction="sum")
    same(gradient, logits.softmax(1) - (1 - rate) * F.one_hot(labels, 10).double() - rate / 10)


@pytest.mark.parametrize("rate", [-4, 0, 0.8])
def test_derivatives_numerically(rate):
    logits, labels = draw(4, num_examples=3, extra=(2,))
    labels[0, 0] = -100
    logits.requires_grad_()
    rates = torch.tensor([rate, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    soft = logits.detach().flip(1).softmax(1).requires_grad_()

    def from_indices(z, r):
        return gls_loss(z, labels, r, weight=weight)

    def unweighted(z, r):
        return gls_loss(z, labels, r)

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(from_indices, (logits, rates))
        assert check(unweighted, (logits, rates))
        assert check(lambda z: gls_loss(z, soft.detach(), rate, reduction="none"), (logits,))


def test_corrections_derivatives_numerically():
    logits, labels = draw(3, num_examples=4)
    logits.requires_grad_()
    # Softmax rows stay row-stochastic under the perturbations of the check.
    free = random_transition(3).log().requires_grad_()
    for loss in (backward_corrected_loss, forward_corrected_loss):
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(lambda z, t, loss=loss: loss(z, labels, t.softmax(1), reduction="none"), (logits, free))


# 5. Corrections.


def all_pairs(num_classes, num_examples=5):
    """Return every example with every label."""
    logits, _ = draw(num_classes, num_examples)
    return logits.repeat_interleave(num_classes, 0), torch.arange(num_classes).repeat(num_examples)


@pytest.mark.parametrize(
    ("num_classes", "noise_rate"),
    [(2, 0.1), (2, 0.4), (3, 0.1), (3, 0.2), (3, 0.6), (10, 0.1), (10, 0.2), (10, 0.4), (10, 0.6), (10, 0.8)],
)
def test_backward_with_symmetric_noise_is_gls(num_classes, noise_rate):
    logits, labels = all_pairs(num_classes)
    rate = -1 / (1 / (num_classes * noise_rate / (num_classes - 1)) - 1)
    matrix = symmetric(num_classes, noise_rate)
    backward = value_and_gradient(backward_corrected_loss, logits, labels, matrix, reduction="none")
    same(backward, value_and_gradient(gls_loss, logits, labels, rate, reduction="none"))
    forward = value_and_gradient(forward_corrected_loss, logits, labels, matrix, reduction="none")
    for one, other in zip(backward, forward, strict=True):
        assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_corrections_match_loops(num_classes):
    matrix = random_transition(num_classes)
    inverse = torch.linalg.solve(matrix, torch.eye(num_classes, dtype=torch.float64)).tolist()
    logits, labels = all_pairs(num_classes)
    posteriors = logits.softmax(1).tolist()
    columns = matrix.T.tolist()
    backward, forward = [], []
    for p, j in zip(posteriors, labels.tolist(), strict=True):
        backward.append(-math.fsum(inverse[j][k] * math.log(p[k]) for k in range(num_classes)))
        forward.append(-math.log(math.fsum(columns[j][k] * p[k] for k in range(num_classes))))
    for loss, values in ((backward_corrected_loss, backward), (forward_corrected_loss, forward)):
        values = torch.tensor(values, dtype=torch.float64)
        same(loss(logits, labels, matrix, reduction="none"), values, atol=1e-11)
        same(loss(logits, labels, matrix), values.mean(), atol=1e-11)
        same(loss(logits, labels, matrix, reduction="sum"), values.sum(), atol=1e-10)


def test_backward_is_unbiased():
    """Averaged over the noise it is cross entropy on the clean label, for a matrix that is not symmetric."""
    matrix = random_transition(4)
    logits, labels = all_pairs(4)
    losses = backward_corrected_loss(logits, labels, matrix, reduction="none").view(5, 4)
    same(losses @ matrix.T, F.cross_entropy(logits, labels, reduction="none").view(5, 4))
    assert not torch.allclose(losses @ matrix, losses @ matrix.T, atol=1e-2)


def test_forward_gradient_is_posterior_less_posterior_given_the_label():
    matrix = random_transition(4)
    logits, labels = all_pairs(4)
    _, gradient = value_and_gradient(forward_corrected_loss, logits, labels, matrix, reduction="none")
    joint = logits.softmax(1) * matrix.T[labels]
    same(gradient, logits.softmax(1) - joint / joint.sum(1, keepdim=True))


@pytest.mark.parametrize("loss", [backward_corrected_loss, forward_corrected_loss])
def test_identity_matrix_is_cross_entropy(loss):
    logits, labels = draw(5, extra=(2, 3))
    actual = value_and_gradient(loss, logits, labels, torch.eye(5, dtype=torch.float64), reduction="none")
    same(actual, value_and_gradient(F.cross_entropy, logits, labels, reduction="none"))


def test_forward_is_bounded_below_and_backward_is_not():
    matrix = random_transition(4)
    logits, labels = all_pairs(4, num_examples=200)
    bound = -matrix.amax(0).log()
    for scale in (1, 10, 1000):
        assert (forward_corrected_loss(scale * logits, labels, matrix, reduction="none") >= bound[labels] - 1e-12).all()
    best = 1e4 * F.one_hot(matrix.argmax(0), 4).double()
    same(forward_corrected_loss(best, torch.arange(4), matrix, reduction="none"), bound)
    assert backward_corrected_loss(best, torch.arange(4), matrix, reduction="none").max() < -1e3


@pytest.mark.parametrize("loss", [backward_corrected_loss, forward_corrected_loss])
@pytest.mark.parametrize(("dtype", "offset"), [(torch.float32, 1e6), (torch.bfloat16, 1000)])
def test_corrections_lose_nothing_to_an_offset(loss, dtype, offset):
    logits, labels = draw(10)
    logits = (logits + offset).to(dtype)
    matrix = symmetric(10, 0.4)
    actual, gradient = value_and_gradient(loss, logits, labels, matrix, reduction="none")
    expected, expected_gradient = value_and_gradient(loss, logits.double() - offset, labels, matrix, reduction="none")
    torch.testing.assert_close(actual.double(), expected, rtol=4e-6, atol=4e-6)
    rounding = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 0
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=rounding + 1e-7, atol=4e-6)


def test_forward_survives_a_vanishing_posterior():
    """The label's only source has a posterior that underflows, and the loss stays finite."""
    matrix = torch.eye(3, dtype=torch.float64)
    logits = torch.tensor([[0.0, 500.0, 0.0]])
    value, gradient = value_and_gradient(forward_corrected_loss, logits, torch.tensor([0]), matrix)
    assert value.item() == 500
    assert gradient.tolist() == [[-1.0, 1.0, 0.0]]


# 6. Identities.

any_batch = st.tuples(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from([0.1, 1.0, 10.0]))
any_rate = st.floats(-8, 1)
identity = settings(derandomize=True, deadline=None, max_examples=50)


def batch(parameters):
    seed, num_classes, scale = parameters
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(4, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (4,), generator=generator)


def losses_at(logits, labels, rate):
    return gls_loss(logits, labels, rate, reduction="none")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@given(any_batch, any_rate)
@identity
def test_identity_with_the_margin(parameters, rate):
    logits, labels = batch(parameters)
    label_free = -logits.log_softmax(1).mean(1)
    assert (label_free >= math.log(logits.shape[1]) - 1e-12).all()
    margin = (logits - logits.mean(1, keepdim=True)).gather(1, labels[:, None])[:, 0]
    close(losses_at(logits, labels, rate), label_free - (1 - rate) * margin)
    every = torch.stack([losses_at(logits, torch.full_like(labels, k), rate) for k in range(logits.shape[1])])
    close(every.mean(0), label_free)


@given(any_batch, any_rate)
@identity
def test_reflection(parameters, rate):
    logits, labels = batch(parameters)
    rate = max(rate, -1)
    close(losses_at(logits, labels, -rate), 2 * losses_at(logits, labels, 0) - losses_at(logits, labels, rate))


@given(any_batch, any_rate, any_rate, st.floats(0, 1))
@identity
def test_affine_in_the_rate(parameters, one, other, share):
    logits, labels = batch(parameters)
    mixed = share * losses_at(logits, labels, one) + (1 - share) * losses_at(logits, labels, other)
    close(losses_at(logits, labels, min(1.0, share * one + (1 - share) * other)), mixed)


@given(any_batch, any_rate, st.floats(-1e6, 1e6))
@identity
def test_shift_invariance(parameters, rate, shift):
    logits, labels = batch(parameters)
    # Adding and taking away first leaves logits to which the shift adds nothing but itself.
    logits = (logits + shift) - shift
    shifted = logits + shift
    actual = value_and_gradient(losses_at, shifted, labels, rate)
    expected = value_and_gradient(losses_at, shifted - shift, labels, rate)
    for one, other in zip(actual, expected, strict=True):
        close(one, other)


@given(any_batch, any_rate, st.floats(-2, 3))
@identity
def test_linear_in_soft_labels(parameters, rate, share):
    """Also outside the simplex, where the mixture of two labels has a negative entry."""
    logits, labels = batch(parameters)
    others = labels.roll(1)
    onehots = [F.one_hot(index, logits.shape[1]).double() for index in (labels, others)]
    soft = share * onehots[0] + (1 - share) * onehots[1]
    mixed = share * losses_at(logits, labels, rate) + (1 - share) * losses_at(logits, others, rate)
    close(losses_at(logits, soft, rate), mixed)


@given(any_batch, any_rate, any_rate)
@identity
def test_rates_compose_through_targets(parameters, one, other):
    logits, labels = batch(parameters)
    rows = gls_targets(labels, logits.shape[1], torch.tensor(one, dtype=torch.float64))
    combined = 1 - (1 - one) * (1 - other)
    rows_twice = (1 - other) * rows + other / logits.shape[1]
    close(losses_at(logits, rows, other), losses_at(logits, rows_twice, 0))
    if combined <= 1:
        close(losses_at(logits, rows, other), losses_at(logits, labels, combined))


@given(any_batch, any_rate, st.floats(0, 1))
@identity
def test_convex_in_the_logits(parameters, rate, share):
    logits, labels = batch(parameters)
    others = logits.roll(1, 0)
    middle = losses_at(share * logits + (1 - share) * others, labels, rate)
    chord = share * losses_at(logits, labels, rate) + (1 - share) * losses_at(others, labels, rate)
    assert (middle <= chord + 1e-11).all()


# 7. Boundedness.


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("rate", [-8, -1, -0.4, -0.01])
def test_unbounded_below_zero(rate, num_classes):
    labels = torch.arange(num_classes)
    direction = torch.eye(num_classes, dtype=torch.float64)
    losses, gradients = value_and_gradient(losses_at, 1e6 * direction, labels, rate)
    assert (losses < -1e3).all()
    # On a perfect fit the gradient does not vanish.
    expected = abs(rate) * math.sqrt((num_classes - 1) / num_classes)
    same(gradients.norm(dim=1), torch.full((num_classes,), expected, dtype=torch.float64), atol=1e-11)


@pytest.mark.parametrize("rate", [0, 0.1, 0.8, 1])
def test_bounded_by_the_entropy_of_the_target(rate):
    targets = gls_targets(torch.arange(5), 5, torch.tensor(rate, dtype=torch.float64))
    entropies = torch.special.entr(targets).sum(1)
    logits, labels = all_pairs(5, num_examples=200)
    for scale in (0.1, 1, 10, 1000):
        assert (losses_at(scale * logits, labels, rate) >= entropies[labels] - 1e-12).all()
    if rate > 0:
        same(losses_at(targets.log(), torch.arange(5), rate), entropies)


# Targets and the module.


@pytest.mark.parametrize("rate", RATES)
def test_targets(rate):
    rows = gls_targets(torch.tensor([[0, 2], [1, 1]]), 3, rate)
    assert rows.shape == (2, 2, 3)
    assert rows.dtype == torch.float32
    for row, label in zip(rows.view(-1, 3).tolist(), [0, 2, 1, 1], strict=True):
        expected = [rate / 3 + (1 - rate if k == label else 0) for k in range(3)]
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert (rows.min() < 0) == (rate < 0)
    wide = gls_targets(torch.arange(7) % 3, 3, torch.full((7,), rate, dtype=torch.float64))
    assert wide.dtype == torch.float64
    same(wide.sum(1), torch.ones(7, dtype=torch.float64))


def test_targets_with_a_rate_per_example():
    labels = torch.tensor([[0, 2], [1, 1]])
    rates_each = torch.tensor([-1.0, 0.5])
    rows = gls_targets(labels, 3, rates_each)
    for i in range(2):
        torch.testing.assert_close(rows[i], gls_targets(labels[i], 3, rates_each[i].item()))
    torch.testing.assert_close(gls_targets(labels, 3, rates_each[:, None].expand(2, 2)), rows)


def test_rates_above_one_go_through_soft_labels():
    """The estimator for uniform complementary labels, sum_k l_k - (K - 1) l_y, is the target row at r = K."""
    logits, labels = draw(5)
    rows = (1 - 5) * F.one_hot(labels, 5).double() + 1
    minus_log = -logits.log_softmax(1)
    expected = minus_log.sum(1) - 4 * minus_log.gather(1, labels[:, None])[:, 0]
    same(gls_loss(logits, rows, 0, reduction="none"), expected)


def test_soft_labels_in_half_precision_are_accepted():
    logits, _ = draw(100, num_examples=50)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        soft = logits.to(dtype).softmax(1)
        expected = F.cross_entropy(logits, soft.double())
        same(gls_loss(logits, soft, 0), expected)
        # Rows rounded after smoothing have entries of -r in size.
        gls_loss(logits, (9 * soft.double() - 8 / 100).to(dtype), 0)


def test_module_equals_the_function():
    logits, labels = draw(4, num_examples=8)
    labels[0] = 3
    weight = torch.tensor([0.5, 2.0, 1.0, 1.0], dtype=torch.float64)
    rate = torch.tensor(RATES, dtype=torch.float64)
    options = {"weight": weight, "ignore_index": 3, "reduction": "sum"}
    module = GLSLoss(rate, **options)
    expected = gls_loss(logits, labels, rate, **options)
    same(module(logits, labels), expected)
    same(pickle.loads(pickle.dumps(module))(logits, labels), expected)
    same(GLSLoss(-0.4)(logits, labels), gls_loss(logits, labels, -0.4))


def test_module_state():
    weight = torch.tensor([0.5, 2.0])
    module = GLSLoss(torch.tensor(-0.4), weight=weight)
    assert module.state_dict().keys() == {"smooth_rate", "weight"}
    other = GLSLoss(torch.tensor(0.0), weight=torch.ones(2))
    other.load_state_dict(module.state_dict())
    assert other.smooth_rate.item() == module.smooth_rate.item()
    assert other.weight.equal(weight)
    assert not list(module.parameters())
    assert not GLSLoss(-0.4).state_dict()
    moved = GLSLoss(torch.tensor(-0.4), weight=weight).to("meta")
    assert {moved.smooth_rate.device.type, moved.weight.device.type} == {"meta"}
    assert repr(GLSLoss(-0.4)) == "GLSLoss(smooth_rate=-0.4, ignore_index=-100, reduction='mean')"
    expected = "GLSLoss(smooth_rate=<float32 tensor of shape ()>, weight=<float32 tensor of shape (2,)>, "
    assert repr(module).startswith(expected)


def test_the_rate_of_a_module_may_change_after_a_warm_up():
    logits, labels = draw(4)
    module = GLSLoss(0.0)
    same(module(logits, labels), F.cross_entropy(logits, labels))
    module.smooth_rate = -0.4
    same(module(logits, labels), gls_loss(logits, labels, -0.4))
    module.smooth_rate = 2.0
    with pytest.raises(ValueError, match=r"smooth_rate must be a finite number in \(-inf, 1\], got 2.0"):
        module(logits, labels)


# Accelerators and compilation.


def test_values_are_read_on_the_cpu_only():
    """Reading a value of a meta tensor raises, as reading one on an accelerator would wait."""
    logits, labels = torch.empty(3, 4, device="meta"), torch.empty(3, dtype=torch.long, device="meta")
    floats, matrix = torch.empty(3, device="meta"), torch.empty(4, 4, device="meta")
    weight = torch.empty(4, device="meta")
    assert gls_loss(logits, labels, floats, weight=weight, reduction="none").shape == (3,)
    assert gls_loss(logits, logits, floats, weight=weight).shape == ()
    assert gls_targets(labels, 4, floats).shape == (3, 4)
    assert backward_corrected_loss(logits, labels, matrix, reduction="none").shape == (3,)
    assert forward_corrected_loss(logits, labels, matrix, reduction="none").shape == (3,)


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    logits, labels = draw(5, num_examples=8)
    labels[0] = -100
    compiled = torch.compile(gls_loss, fullgraph=True, backend="aot_eager")
    for rate in (torch.tensor(RATES, dtype=torch.float64), -0.4, 0.1, -0.4):
        same(value_and_gradient(compiled, logits, labels, rate), value_and_gradient(gls_loss, logits, labels, rate))
    soft = logits.softmax(1)
    same(compiled(logits, soft, -0.4), gls_loss(logits, soft, -0.4))
    torch._dynamo.reset()


# 8. Bad input.

LOGITS, LABELS = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
MATRIX = torch.eye(3, dtype=torch.float64)
WIDE = torch.tensor([0.0, -0.4, -1e300, 0.1], dtype=torch.float64)
BAD_RATES = [
    (1.0001, ValueError, r"smooth_rate must be a finite number in \(-inf, 1\], got 1.0001"),
    (math.nan, ValueError, "smooth_rate must be a finite number.*got nan"),
    (-math.inf, ValueError, "smooth_rate must be a finite number.*got -inf"),
    (True, TypeError, "smooth_rate must be a real number, got True"),
    ("0.1", TypeError, "smooth_rate must be a real number, got '0.1'"),
    (None, TypeError, "smooth_rate must be a real number, got None"),
    (torch.tensor([0.0, 0.5, 1.5, 2.0]), ValueError, "smooth_rate must be finite and at most 1, got 1.5"),
    (torch.tensor(1.5), ValueError, "smooth_rate must be finite and at most 1, got 1.5"),
    (torch.tensor([0.0, math.nan, 0.0, 0.0]), ValueError, "smooth_rate must be finite and at most 1, got nan"),
    (torch.tensor([0.0, -math.inf, 0.0, 0.0]), ValueError, "smooth_rate must be finite and at most 1, got -inf"),
    (torch.tensor(True), TypeError, "smooth_rate must hold real numbers, got bool tensor"),
    (torch.tensor(0j), TypeError, "smooth_rate must hold real numbers, got complex64 tensor"),
    (torch.zeros(4).to_sparse(), TypeError, "smooth_rate must be a dense tensor, got torch.sparse_coo"),
]


@pytest.mark.parametrize(("rate", "error", "message"), BAD_RATES)
def test_bad_rates(rate, error, message):
    with pytest.raises(error, match=message):
        gls_loss(LOGITS, LABELS, rate)
    with pytest.raises(error, match=message):
        gls_loss(LOGITS, LOGITS + 1 / 3, rate)
    with pytest.raises(error, match=message):
        gls_targets(LABELS, 3, rate)
    with pytest.raises(error, match=message):
        GLSLoss(rate)


@pytest.mark.parametrize("rate", [-1e40, WIDE[2], WIDE])
def test_rates_beyond_the_type_are_refused(rate):
    """In float32 they would be -inf, and the loss nan."""
    message = r"smooth_rate must be finite in torch.float32, got -1e\+"
    with pytest.raises(ValueError, match=message):
        gls_loss(LOGITS, LABELS, rate)
    with pytest.raises(ValueError, match=message):
        gls_loss(LOGITS, LOGITS + 1 / 3, rate)
    with pytest.raises(ValueError, match=message):
        GLSLoss(rate)(LOGITS, LABELS)
    assert gls_loss(LOGITS.double(), LABELS, rate).isfinite()
    assert gls_targets(LABELS, 3, torch.as_tensor(rate, dtype=torch.float64)).isfinite().all()


def test_target_rates_beyond_the_type_are_refused():
    with pytest.raises(ValueError, match=r"smooth_rate must be finite in torch.float32, got -1e\+40"):
        gls_targets(LABELS, 3, -1e40)
    torch.set_default_dtype(torch.float16)
    try:
        with pytest.raises(ValueError, match=r"smooth_rate must be finite in torch.float16, got -100000"):
            gls_targets(LABELS, 3, torch.tensor(-100000))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("value", [2**64 - 100, 2**63, 3])
def test_unsigned_labels_out_of_range_are_not_ignored(value):
    labels = torch.tensor([0, value, 2, 1], dtype=torch.uint64)
    for ignore_index in (-100, -(2**63)):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 2\], got the value {value}$"):
            gls_loss(LOGITS, labels, 0.1, ignore_index=ignore_index)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(4, 3).to_sparse()}, TypeError, "logits must be a dense tensor, got torch.sparse_coo"),
        ({"labels": torch.ones(4).long().to_sparse()}, TypeError, "labels must be a dense tensor, got torch.sparse"),
        ({"labels": (LOGITS + 1 / 3).to_sparse()}, TypeError, "labels must be a dense tensor, got torch.sparse_coo"),
        ({"weight": torch.ones(3).to_sparse()}, TypeError, "weight must be a dense tensor, got torch.sparse_coo"),
        (
            {"ignore_index": 2**63},
            ValueError,
            "ignore_index must be at most 9223372036854775807, got 922337203685477580",
        ),
        (
            {"ignore_index": 2**70},
            ValueError,
            "ignore_index must be at most 9223372036854775807, got 118059162071741130",
        ),
        ({"ignore_index": -(2**70)}, ValueError, "ignore_index must be at least -9223372036854775808, got -1180591620"),
        ({"smooth_rate": torch.zeros(3)}, ValueError, r"smooth_rate must .* shapes \(\), \(4,\), got \(3,\)"),
        ({"smooth_rate": torch.zeros(4, 3)}, ValueError, r"smooth_rate must .* shapes \(\), \(4,\), got \(4, 3\)"),
        ({"logits": [[0.0, 1.0]]}, TypeError, "logits must be a torch tensor, got list"),
        ({"logits": torch.zeros(4, 3, dtype=torch.long)}, TypeError, "logits must be a floating-point tensor.*int64"),
        ({"logits": torch.zeros(3)}, ValueError, r"logits must have shape \[N, K\].*got \(3,\)"),
        ({"logits": torch.zeros(4, 1)}, ValueError, r"logits must have .*K >= 2, got \(4, 1\)"),
        ({"labels": [0, 1, 2, 0]}, TypeError, "labels must be a torch tensor, got list"),
        ({"labels": torch.ones(4, dtype=torch.bool)}, TypeError, "labels must hold integer class indices, got bool"),
        ({"labels": LABELS[:3]}, ValueError, r"labels must have shape \(4,\) for logits of shape \(4, 3\), got \(3,\)"),
        ({"labels": LABELS[:, None]}, ValueError, r"labels must have shape \(4,\) for .* \(4, 3\), got \(4, 1\)"),
        ({"labels": torch.tensor([0, 1, 3, 0])}, ValueError, r"labels must lie in \[0, 2\], got the value 3"),
        ({"labels": torch.tensor([0, -1, 1, 0])}, ValueError, r"labels must lie in \[0, 2\], got the value -1"),
        ({"labels": torch.tensor([0, -100, 1, 0]), "ignore_index": 1}, ValueError, "got the value -100"),
        ({"labels": LABELS.to("meta")}, ValueError, "labels must be on the device of the logits, cpu, got meta"),
        ({"labels": torch.zeros(4)}, ValueError, r"soft labels must have shape \(4, 3\) .*, got \(4,\); class indices"),
        ({"labels": torch.full((4, 3), 0.4)}, ValueError, "soft labels must sum to 1 .* axis 1, got 1.2"),
        ({"labels": torch.full((4, 3), math.nan)}, ValueError, "soft labels must sum to 1 .* axis 1, got nan"),
        ({"labels": LOGITS + 1 / 3, "ignore_index": 0}, ValueError, "ignore_index must not be given with soft labels"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an integer, got 0.5"),
        ({"weight": [1.0, 1.0, 1.0]}, TypeError, "weight must be a torch tensor, got list"),
        ({"weight": torch.ones(3, dtype=torch.long)}, TypeError, "weight must be a floating-point tensor"),
        ({"weight": torch.ones(2)}, ValueError, r"weight must have shape \(3,\), one per class, got \(2,\)"),
        ({"weight": torch.ones(3, 1)}, ValueError, r"weight must have shape \(3,\), one per class, got \(3, 1\)"),
        ({"weight": torch.tensor([1.0, -0.5, 1])}, ValueError, "weight must be finite and not negative, got -0.5"),
        ({"weight": torch.tensor([1.0, math.nan, 1])}, ValueError, "weight must be finite and not negative, got nan"),
        ({"reduction": "batchmean"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'batchmean'"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"logits": LOGITS, "labels": LABELS, "smooth_rate": -0.4} | change
    with pytest.raises(error, match=message):
        gls_loss(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"transition": [[1.0]]}, TypeError, "transition must be a torch tensor, got list"),
        ({"transition": torch.eye(3).long()}, TypeError, "transition must be a floating-point tensor"),
        (
            {"transition": torch.eye(2)},
            ValueError,
            r"transition must have shape \(3, 3\) for logits of shape \(4, 3\), got \(2, 2\)",
        ),
        ({"transition": 2 * MATRIX}, ValueError, "transition must have rows that sum to 1, got 2 in row 0"),
        ({"transition": -MATRIX}, ValueError, "transition must not be negative"),
        ({"labels": MATRIX[[0, 1, 2, 0]]}, TypeError, "labels must hold integer class indices, got float64"),
        ({"labels": torch.tensor([0, 1, -100, 0])}, ValueError, "labels must lie in .* got the value -100"),
        ({"labels": LABELS[:3]}, ValueError, r"labels must have shape \(4,\) for logits of shape \(4, 3\)"),
        ({"labels": None}, TypeError, "labels must be a torch tensor, got NoneType"),
        ({"logits": torch.zeros(4)}, ValueError, r"logits must have shape \[N, K\]"),
        ({"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
    ],
)
@pytest.mark.parametrize("loss", [backward_corrected_loss, forward_corrected_loss])
def test_bad_corrections(loss, change, error, message):
    arguments = {"logits": LOGITS, "labels": LABELS, "transition": MATRIX} | change
    with pytest.raises(error, match=message):
        loss(**arguments)


@pytest.mark.parametrize(
    "matrix",
    [
        torch.tensor([[0.5, 0.5], [0.5, 0.5]]),
        torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        torch.full((10, 10), 0.1),
        # Rounding leaves 1 - 0.9 and 0.9 / 9 apart by one bit, so this one has an inverse in floating point.
        symmetric(10, 0.9),
        torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3], [0.4, 0.2, 0.4]], dtype=torch.float64),
    ],
)
def test_backward_rejects_singular_matrices(matrix):
    size = len(matrix)
    with pytest.raises(ValueError, match=rf"transition must be invertible, got a singular matrix of shape \({size}"):
        backward_corrected_loss(torch.zeros(2, size), torch.tensor([0, 1]), matrix)


def test_backward_accepts_ill_conditioned_matrices():
    loss = backward_corrected_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), symmetric(2, 0.4999999))
    assert loss.isfinite()


def test_forward_rejects_an_impossible_label():
    matrix = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="labels must have a column of transition that is not all zero, got 2"):
        forward_corrected_loss(LOGITS, LABELS, matrix)
    assert forward_corrected_loss(LOGITS, LABELS.clamp_max(1), matrix).isfinite()


@pytest.mark.parametrize(
    ("labels", "num_classes", "error", "message"),
    [
        (torch.tensor(1), 3, ValueError, r"labels must have at least one axis.*got shape \(\)"),
        (LABELS, 1, ValueError, "num_classes must be at least 2, got 1"),
        (LABELS, 3.0, TypeError, "num_classes must be an integer, got 3.0"),
        (LABELS, 2, ValueError, r"labels must lie in \[0, 1\], got the value 2"),
        (LABELS.float(), 3, TypeError, "labels must hold integer class indices, got float32"),
    ],
)
def test_bad_targets(labels, num_classes, error, message):
    with pytest.raises(error, match=message):
        gls_targets(labels, num_classes, 0.1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": torch.ones(2, 2)}, ValueError, r"weight must have shape \(K,\), one per class, got \(2, 2\)"),
        ({"weight": -torch.ones(2)}, ValueError, "weight must be finite and not negative, got -1"),
        ({"reduction": None}, ValueError, "reduction must be one of .*, got None"),
        ({"ignore_index": "0"}, TypeError, "ignore_index must be an integer, got '0'"),
        ({"ignore_index": 2**70}, ValueError, "ignore_index must be at most 9223372036854775807"),
    ],
)
def test_bad_module(options, error, message):
    with pytest.raises(error, match=message):
        GLSLoss(0.1, **options)
