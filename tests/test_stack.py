import math

import pytest
import torch
from torch import nn

from nls import stack as module
from nls.losses import gls_targets
from nls.stack import (
    LossSegment,
    Segment,
    StackedMLP,
    automatic_chunk,
    fast_matmul,
    gls_loss_and_gradient,
    target_values,
)

RATES = (0.8, 0.2, 0.0, -0.4, -2.0)
SIZES = [(4, 3), (4, 7, 3), (4, 6, 5, 3)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_stack(sizes, members=5, dtype=torch.float64):
    """A stack whose members differ."""
    stack = StackedMLP(sizes, members, generator(), dtype)
    stack.parameters.add_(0.3 * torch.randn(stack.parameters.shape, dtype=dtype, generator=generator(1)))
    return stack


def as_module(stack, index):
    """The oracle: one member as a plain network."""
    layers = []
    for weight, bias in stack.member(index):
        linear = nn.Linear(*weight.shape, dtype=weight.dtype)
        linear.weight.data, linear.bias.data = weight.T.clone(), bias.clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def naive_losses(logits, labels, rate):
    """The definition, one example at a time: (1 - r) l_y + r mean_k l_k."""
    losses = -logits.log_softmax(-1)
    chosen = torch.stack([row[y] for row, y in zip(losses, labels, strict=True)])
    return (1 - rate) * chosen + rate * losses.mean(-1)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("n", [1, 9, 33])
def test_logits_are_those_of_each_member_as_a_plain_network(sizes, n, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT", 4 * 5 * max(sizes[1:]) * 8)  # blocks of 8 examples, and a rest of 1
    stack = make_stack(sizes)
    features = torch.randn(n, 4, dtype=torch.float64, generator=generator(2))
    logits = stack.forward(features)
    assert logits.shape == (5, n, 3)
    assert logits.is_contiguous()
    assert torch.equal(stack.forward(features, classes_last=False), logits.mT)
    for i in range(5):
        assert (logits[i] - as_module(stack, i)(features)).abs().max() < 1e-13


def test_every_member_starts_from_one_initialisation_with_the_bounds_of_torch_linear():
    stack, draws = StackedMLP((400, 300, 2), 3, generator()), generator()
    for i, (fan_in, fan_out) in enumerate(((400, 300), (300, 2))):
        bound = 1 / math.sqrt(fan_in)
        weight = torch.empty(fan_in, fan_out).uniform_(-bound, bound, generator=draws)
        bias = torch.empty(fan_out).uniform_(-bound, bound, generator=draws)
        for member in range(3):
            assert torch.equal(stack.member(member)[i][0], weight)
            assert torch.equal(stack.member(member)[i][1], bias)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            default = nn.Linear(fan_in, fan_out)
        ratio = float(weight.abs().max() / default.weight.detach().abs().max())
        assert ratio == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("sizes", SIZES)
def test_rows_parts_and_spread_values_belong_to_their_members(sizes):
    stack = make_stack(sizes)
    values = torch.arange(5.0, dtype=torch.float64)
    stack.parameters.copy_(stack.per_parameter(values))
    for i in range(5):
        assert {float(v) for pair in stack.member(i) for tensor in pair for v in tensor.flatten()} == {float(i)}
        assert {float(v) for row in stack.rows(stack.parameters) for v in row[i]} == {float(i)}
    part = stack.part(slice(1, 3))
    assert part.num_members == 2
    assert set(part.parameters.tolist()) == {1.0, 2.0}
    part.parameters.mul_(-10)
    stack.put(slice(1, 3), part)
    owners = [float(stack.member(i)[0][0].flatten()[0]) for i in range(5)]
    assert owners == [0.0, -10.0, -20.0, 3.0, 4.0]
    assert sum(row[0].numel() for row in stack.rows(stack.parameters)) == stack.num_parameters


def test_loss_and_gradient_agree_with_autograd_on_the_definition():
    logits = (4 * torch.randn(len(RATES), 9, 5, dtype=torch.float64, generator=generator())).requires_grad_()
    labels = torch.randint(5, (len(RATES), 9), generator=generator(1))
    loss, gradient = gls_loss_and_gradient(logits.detach(), labels, torch.tensor(RATES, dtype=torch.float64))
    for i, rate in enumerate(RATES):
        naive = naive_losses(logits[i], labels[i], rate)
        (expected,) = torch.autograd.grad(naive.sum(), logits)
        assert (loss[i] - naive.detach()).abs().max() < 1e-12
        assert (gradient[i] - expected[i]).abs().max() < 1e-12


def test_target_values_are_the_entries_of_the_targets():
    for rate in RATES:
        off, on = (float(v) for v in target_values(torch.tensor(rate, dtype=torch.float64), 4))
        target = gls_targets(torch.tensor([2]), 4, rate)[0]
        assert target.tolist() == pytest.approx([off, off, on, off])


def load_segment(sizes, size, scale, dtype=torch.float64, n=40, make=Segment):
    stack = make_stack(sizes, dtype=dtype)
    features = torch.randn(n, 4, dtype=dtype, generator=generator(2))
    labels = torch.randint(3, (5, n), generator=generator(3))
    segment = make(stack, size, n // size, torch.tensor(RATES, dtype=dtype), scale.to(dtype))
    return stack, features, labels, segment


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("own", [False, True])
def test_gradients_and_losses_of_a_segment_agree_with_autograd(sizes, own, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT", 2 * 8 * 15)  # two batches of eight at a time, so several loads
    scale = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    rates = torch.tensor(RATES, dtype=torch.float64)

    def loss(logits, labels, members):
        assert members == slice(3, 8)
        return torch.stack([naive_losses(z, y, r) for z, y, r in zip(logits, labels, rates, strict=True)])

    make = (lambda *rest: LossSegment(loss, slice(3, 8), *rest)) if own else Segment
    stack, features, labels, segment = load_segment(sizes, 8, scale, make=make)
    weights, bias = stack.views(torch.zeros_like(stack.parameters))
    order, done, total = torch.randperm(40, generator=generator(4)), 0, 0
    expected_total = torch.zeros(5, dtype=torch.float64)
    velocity = [torch.zeros(sum(p.numel() for p in as_module(stack, 0).parameters())) for _ in range(5)]
    loads = 0
    while done < 40:
        count = segment.load(features, labels, order[done:])
        for step in range(count // 8):
            segment.backward(step, [*weights, bias], 0.9)
            batch = order[done + 8 * step : done + 8 * step + 8]
            for i in range(5):
                network = as_module(stack, i)
                losses = naive_losses(network(features[batch]), labels[i, batch], RATES[i])
                gradients = torch.autograd.grad(scale[i] * losses.mean(), list(network.parameters()))
                velocity[i] = 0.9 * velocity[i] + torch.cat([g.flatten() for g in gradients])
                expected_total[i] += losses.detach().sum()
        total = total + segment.losses()
        done += count
        loads += 1
    assert loads == 3
    assert (total - expected_total).abs().max() < 1e-11
    biases = bias.split(sizes[1:], 1)
    for i in range(5):
        found = torch.cat([t[i].flatten() for pair in zip(weights, biases, strict=True) for t in pair])
        assert (found - velocity[i]).abs().max() < 1e-12


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_loss_and_gradient_keep_their_precision_where_logits_share_an_offset(offset):
    stack, features, labels, segment = load_segment((4, 3), 40, torch.ones(5), torch.float32)
    stack.biases[0].copy_(torch.full((5, 3), offset))
    segment.load(features, labels, torch.arange(40))
    logits = segment.passes.forward(segment.rows[0], segment.each_logits[0]).clone()
    gradient = segment.logit_gradient(0, logits).clone()
    for i, rate in enumerate(RATES):
        exact = logits[i].T.double().requires_grad_()  # the float32 logits, as they are
        losses = naive_losses(exact, labels[i], rate)
        (expected,) = torch.autograd.grad(losses.mean(), exact)
        assert (gradient[i].T - expected).abs().max() < 1e-6 / 40 * (1 - rate)
        assert abs(float(segment.losses()[i] / losses.detach().sum()) - 1) < 1e-6


def test_gradients_kept_by_a_share_of_zero_do_not_pass_on_what_is_not_a_number():
    stack, features, labels, segment = load_segment((4, 6, 5, 3), 40, torch.ones(5))
    weights, bias = stack.views(torch.full_like(stack.parameters, torch.nan))
    bias.zero_()
    segment.load(features, labels, torch.arange(40))
    segment.backward(0, [*weights, bias], 0.0)
    assert all(bool(w.isfinite().all()) for w in weights)


def test_automatic_chunk_shrinks_with_the_network_and_is_never_empty():
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    small, wide = (64, 32, 32, 10), (64, 128, 128, 10)
    assert automatic_chunk(small, 64, single) > automatic_chunk(wide, 64, single) > automatic_chunk(wide, 256, single)
    assert automatic_chunk(small, 64, single) // automatic_chunk(small, 64, double) == 2
    assert automatic_chunk((3072, 4096, 10), 512, single) == 1
    assert automatic_chunk(wide, 64, torch.zeros(1, device="meta")) > 50 * automatic_chunk(wide, 64, single)


@pytest.mark.parametrize(("error", "used"), [(0.0, True), (1e-3, False), (math.nan, False)])
def test_fast_matmul_is_used_only_where_it_is_exact_and_is_always_undone(error, used, monkeypatch):
    monkeypatch.setattr(module, "_matmul_error", lambda: error)
    before, inside = torch.get_float32_matmul_precision(), []

    def work():
        with fast_matmul() as found:
            inside.append((found, torch.get_float32_matmul_precision()))
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert inside == [(used, "medium" if used else before)]
    assert torch.get_float32_matmul_precision() == before


def test_fast_matmul_is_undone_where_the_probe_itself_fails(monkeypatch):
    def fail():
        raise RuntimeError

    monkeypatch.setattr(module, "_matmul_error", fail)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError), fast_matmul():
        pass
    assert torch.get_float32_matmul_precision() == before


def test_the_error_of_a_product_is_seen():
    assert 0 < module._matmul_error() < 1e-6


def test_the_error_of_products_in_half_precision_is_seen(monkeypatch):
    exact = torch.Tensor.__matmul__

    def rounded(left, right):
        if left.dtype == torch.float32:
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return exact(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert module._matmul_error() > 1e-4
