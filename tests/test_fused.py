"""The oracle is gls_loss under autograd in float64, which has its own oracles."""

import ctypes
import math
import subprocess
import sys
import warnings

import pytest
import torch

from nls import fused
from nls.fused import fused_gls_loss, loss_and_gradient, tune_allocator
from nls.losses import gls_loss

RATES = (-8, -1.0, -0.4, 0, 0.1, 0.8, 1)
REDUCTIONS = ("mean", "sum", "none")
HALVES = (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}

needs_compiler = pytest.mark.skipif(not fused._compiler_at_hand("cpu"), reason="needs a C++ compiler")


def draw(num_classes, num_examples=6, extra=(), seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + num_classes)
    logits = 2 * torch.randn(num_examples, num_classes, *extra, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (num_examples, *extra), generator=generator)


def rate_per_example(num_examples):
    return torch.linspace(-2, 1, num_examples, dtype=torch.float64)


def value_and_gradient(function, logits, *args, outer=1.0, **kwargs):
    logits = logits.detach().requires_grad_()
    value = function(logits, *args, **kwargs)
    (gradient,) = torch.autograd.grad((value * outer).sum(), logits)
    return value.detach(), gradient


def check(logits, labels, rate, outer=1.0, compile=False, **kwargs):
    """Compare with gls_loss in float64 on the same logits."""
    value, gradient = value_and_gradient(fused_gls_loss, logits, labels, rate, outer=outer, compile=compile, **kwargs)
    wide_outer = outer.double() if isinstance(outer, torch.Tensor) else outer
    expected = value_and_gradient(gls_loss, logits.double(), labels, rate, outer=wide_outer, **kwargs)
    assert gradient.dtype == logits.dtype
    assert value.dtype == (torch.float32 if logits.dtype in HALVES else logits.dtype)
    assert gradient.shape == logits.shape
    assert value.shape == expected[0].shape
    size = 1 + torch.as_tensor(rate).abs().max().item()
    tolerance = TOLERANCE[logits.dtype] * size
    # A gradient in half precision is rounded once to its type, and once more by another factor than 1.
    once = isinstance(outer, float) and outer == 1
    rounding = torch.finfo(logits.dtype).eps * (0.5 if once else 1.1) if logits.dtype in HALVES else 0
    scale = expected[0].abs().max().nan_to_num(1, 1, 1).clamp_min(1)
    torch.testing.assert_close(value.double(), expected[0], rtol=0, atol=tolerance * scale.item(), equal_nan=True)
    top = torch.as_tensor(outer).abs().max().item()
    allowed = tolerance * max(1, top) + (rounding + 1e-6 * (rounding > 0)) * expected[1].abs()
    assert ((gradient.double() - expected[1]).abs() <= allowed).all()


# 1. Equality with the plain loss


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("rate", RATES)
def test_equals_the_plain_loss(rate, num_classes, dtype):
    logits, labels = draw(num_classes)
    for reduction in REDUCTIONS:
        check(logits.to(dtype), labels, rate, reduction=reduction)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_a_common_offset_costs_no_precision(dtype, offset):
    logits, labels = draw(50)
    offset = min(offset, torch.finfo(dtype).max / 2)
    for rate in (-8, 0.4):
        check((logits + offset).to(dtype), labels, rate)
        check((logits - offset).to(dtype), labels, rate, reduction="none")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rates_as_tensors_of_every_shape(dtype, reduction):
    logits, labels = draw(7, extra=(2, 3))
    rates = torch.tensor(-0.7), rate_per_example(6), rate_per_example(36).view(6, 2, 3)
    for rate in rates:
        check(logits.to(dtype), labels, rate, reduction=reduction)
    flat, flat_labels = draw(7)
    check(flat.to(dtype), flat_labels, rate_per_example(6).float(), reduction=reduction)


@pytest.mark.parametrize("ignore_index", [-100, 0, 2, 7])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_labels_add_nothing(ignore_index, reduction):
    logits, labels = draw(5, num_examples=9)
    labels[[1, 4]] = ignore_index
    for rate in (-1.0, rate_per_example(9)):
        check(logits, labels, rate, ignore_index=ignore_index, reduction=reduction, outer=3.0)
    # Padding may hold anything.
    logits[1], logits[4] = math.nan, -math.inf
    gradient = value_and_gradient(fused_gls_loss, logits, labels, -1.0, ignore_index=ignore_index)[1]
    assert (gradient[[1, 4]] == 0).all()
    assert gradient.isfinite().all()


def test_nothing_left_to_average_is_nan_as_in_the_plain_loss():
    logits, labels = draw(5)
    value, gradient = value_and_gradient(fused_gls_loss, logits, torch.full_like(labels, -100), -1.0)
    assert value.isnan()
    assert (gradient == 0).all()
    assert fused_gls_loss(logits[:0].requires_grad_(), labels[:0], 0.1).isnan()
    assert value_and_gradient(fused_gls_loss, logits[:0], labels[:0], 0.1, reduction="sum")[0] == 0


@pytest.mark.parametrize("rate", [-1.0, 0.0, 0.3, torch.tensor([0.0, 0.3, -1.0, 0.0])])
def test_masked_classes_give_what_the_plain_loss_gives(rate):
    logits, labels = draw(5, num_examples=4)
    labels[:] = torch.tensor([1, 2, 3, 4])
    logits[:, 0] = -math.inf
    logits[3, 4] = -math.inf
    value, gradient = value_and_gradient(fused_gls_loss, logits, labels, rate, reduction="none")
    expected, expected_gradient = value_and_gradient(gls_loss, logits, labels, rate, reduction="none")
    torch.testing.assert_close(value, expected, equal_nan=True)
    torch.testing.assert_close(gradient, expected_gradient, equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_other_factors_reach_the_gradient(dtype):
    logits, labels = draw(9)
    check(logits.to(dtype), labels, -1.0, outer=-2.5)
    check(logits.to(dtype), labels, -1.0, outer=0.3, reduction="sum")
    outer = torch.linspace(-1, 2, 6)
    check(logits.to(dtype), labels, rate_per_example(6), outer=outer, reduction="none")


def test_scaled_float16_losses_do_not_underflow():
    logits = torch.randn(512, 100, generator=torch.Generator().manual_seed(0)).half()
    labels, outer = torch.arange(512) % 100, 2.0**12
    _, gradient = value_and_gradient(fused_gls_loss, logits, labels, -1.0, outer=outer)
    _, expected = value_and_gradient(gls_loss, logits.double(), labels, -1.0, outer=outer)
    assert ((gradient.double() - expected).abs() <= 1e-3 * expected.abs() + 1e-7).all()


def test_blocks_of_rows_change_nothing(monkeypatch):
    logits, labels = draw(13, num_examples=31)
    monkeypatch.setattr(fused, "CHUNK", 40)
    for rate in (-1.0, rate_per_example(31)):
        check(logits, labels, rate)
        check(logits.bfloat16(), labels, rate, reduction="sum")
    check(logits.T.contiguous().T, labels, -1.0)
    labels[:3] = -100
    check(logits, labels, -1.0, reduction="none")


def test_raw_losses_and_gradients():
    logits, labels = draw(9, extra=(2,))
    labels[0, 0] = -100
    losses, gradient = loss_and_gradient(logits, labels, -1.0)
    expected = value_and_gradient(gls_loss, logits, labels, -1.0, reduction="none")
    torch.testing.assert_close((losses, gradient), expected, rtol=1e-12, atol=1e-12)
    scaled = loss_and_gradient(logits, labels, rate_per_example(6), scale=0.25)[1]
    expected = value_and_gradient(gls_loss, logits, labels, rate_per_example(6), reduction="sum", outer=0.25)[1]
    torch.testing.assert_close(scaled, expected, rtol=1e-12, atol=1e-12)
    losses, gradient = loss_and_gradient(logits.bfloat16().requires_grad_(), labels, 0.1)
    assert (losses.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert not losses.requires_grad


# 2. Backward passes


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("outer", [1.0, 3.0])
def test_two_backward_passes_give_the_same(reduction, outer):
    logits, labels = draw(5)
    expected = value_and_gradient(gls_loss, logits, labels, -1.0, reduction=reduction, outer=outer)[1]
    logits.requires_grad_()
    loss = (fused_gls_loss(logits, labels, -1.0, reduction=reduction) * outer).sum()
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, logits, retain_graph=True)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(kept, expected)
    torch.testing.assert_close(second, expected)
    torch.testing.assert_close(logits.grad, 2 * expected)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_one_backward_pass_hands_the_gradient_over(monkeypatch):
    """No copy where nobody else can see it; a copy where the engine does not say."""
    formed = []
    form = fused._form
    monkeypatch.setattr(fused, "_form", lambda *args: formed.append(form(*args)) or formed[-1])
    logits, labels = draw(5)
    for outer, shared in ((1.0, True), (2.0, True)):
        _, gradient = value_and_gradient(fused_gls_loss, logits, labels, -1.0, outer=outer)
        assert (gradient.data_ptr() == formed[-1][1].data_ptr()) == shared
    monkeypatch.setattr(fused, "_used_again", lambda _: True)
    _, gradient = value_and_gradient(fused_gls_loss, logits, labels, -1.0)
    assert gradient.data_ptr() != formed[-1][1].data_ptr()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("extra", [(), (2,)])
def test_second_derivatives(reduction, extra):
    logits, labels = draw(4, num_examples=3, extra=extra)
    labels[0] = -100
    logits.requires_grad_()
    for rate in (-1.5, rate_per_example(3)):

        def loss(values, rate=rate):
            return fused_gls_loss(values, labels, rate, reduction=reduction)

        assert torch.autograd.gradcheck(loss, logits)
        assert torch.autograd.gradgradcheck(loss, logits)
        hessian = torch.autograd.functional.hessian(lambda values: loss(values).square().sum(), logits.detach())
        plain = torch.autograd.functional.hessian(
            lambda values: gls_loss(values, labels, rate, reduction=reduction).square().sum(),  # noqa: B023
            logits.detach(),
        )
        torch.testing.assert_close(hessian, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_batched_gradients(reduction):
    logits, labels = draw(4)
    logits.requires_grad_()
    outer = torch.eye(6, dtype=torch.float64) if reduction == "none" else torch.tensor([1.0, 2.0], dtype=torch.float64)
    rows = [
        torch.autograd.grad(function(logits, labels, -1.0, reduction=reduction), logits, outer, is_grads_batched=True)
        for function in (fused_gls_loss, gls_loss)
    ]
    torch.testing.assert_close(*rows, rtol=1e-12, atol=1e-12)
    loss = fused_gls_loss(logits, labels, -1.0, reduction=reduction)
    vectorised = torch.func.vmap(lambda row: torch.autograd.grad(loss, logits, row)[0])(outer)
    torch.testing.assert_close(vectorised, rows[1][0], rtol=1e-12, atol=1e-12)


def test_the_plain_loss_works_where_no_gradient_is_formed():
    logits, labels = draw(4)
    rate = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(fused_gls_loss(logits.requires_grad_(), labels, rate), rate)
    (expected,) = torch.autograd.grad(gls_loss(logits, labels, rate), rate)
    assert gradient == expected
    assert not fused_gls_loss(logits.detach(), labels, -0.5).requires_grad
    with torch.no_grad():
        assert not fused_gls_loss(logits, labels, -0.5).requires_grad


def test_gradients_flow_to_a_network():
    torch.manual_seed(0)
    network = torch.nn.Linear(8, 5).double()
    features, labels = torch.randn(12, 8, dtype=torch.float64), torch.arange(12) % 5
    for function in (gls_loss, fused_gls_loss):
        network.zero_grad()
        function(network(features), labels, -1.0).backward()
        gradient = network.weight.grad.clone()
        expected = gradient if function is gls_loss else expected  # noqa: F821
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


# 3. Compilation and its absence


@needs_compiler
def test_the_compiled_pass_equals_the_plain_loss_without_compiling_anew(recwarn):
    fused._FAILED.clear()
    torch._dynamo.reset()
    fused._compiled_sweep.cache_clear()
    compiles = torch._dynamo.utils.counters["stats"]
    before = None
    for num_examples, num_classes in ((6, 10), (33, 10), (12, 40)):
        logits, labels = draw(num_classes, num_examples=num_examples)
        logits = logits.float() + 1e4
        labels[0] = -100
        for rate in (-1.0, 0.1, rate_per_example(num_examples)):
            check(logits, labels, rate, compile=True)
            check(logits, labels, rate, compile=True, reduction="none", outer=2.0)
        check(logits.unsqueeze(2).expand(-1, -1, 2).clone(), labels[:, None].expand(-1, 2), -1.0, compile=True)
        before = compiles["unique_graphs"] if before is None else before
        assert compiles["unique_graphs"] == before
    check(logits.bfloat16(), labels, -1.0, compile=True)
    assert not fused._FAILED
    assert not recwarn.list
    torch._dynamo.reset()
    fused._compiled_sweep.cache_clear()


def test_a_failing_compiler_is_named_once_and_replaced(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such compiler\nand a long log")

    monkeypatch.setattr(fused, "_FAILED", set())
    monkeypatch.setattr(fused, "_compiled_sweep", lambda: fail)
    logits, labels = draw(5)
    with pytest.warns(
        UserWarning, match="runs eagerly, since it could not be compiled: RuntimeError: no such compiler$"
    ):
        check(logits, labels, -1.0, compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(logits, labels, -1.0, compile=True)


def test_running_out_of_memory_is_not_a_failing_compiler(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(fused, "_FAILED", set())
    monkeypatch.setattr(fused, "_compiled_sweep", lambda: fail)
    with pytest.raises(torch.OutOfMemoryError):
        loss_and_gradient(*draw(5), -1.0, compile=True)
    assert not fused._FAILED


@pytest.mark.parametrize(("compile", "size", "found", "expected"), [
    (None, 0, True, True), (None, 10**9, True, False), (None, 0, False, False), (False, 0, True, False),
    (True, 10**9, False, True),
])  # fmt: skip
def test_when_the_pass_is_compiled(monkeypatch, compile, size, found, expected):
    calls = []

    def record(*args):
        calls.append(args)
        return fused._sweep_once(*args)

    monkeypatch.setattr(fused, "_FAILED", set())
    monkeypatch.setattr(fused, "_compiled_sweep", lambda: record)
    monkeypatch.setattr(fused, "_compiler_at_hand", lambda _: found)
    monkeypatch.setattr(fused, "COMPILE_FROM", size)
    logits, labels = draw(5)
    for rate in (-1.0, rate_per_example(6)):
        check(logits, labels, rate, compile=compile)
    assert bool(calls) == expected
    for _, factor, slope, _ in calls:
        assert factor.shape == slope.shape == (6, 1)
        assert factor.is_contiguous()
        assert slope.is_contiguous()


def test_a_missing_compiler_is_seen_without_asking_torch(monkeypatch):
    seen = fused._compiler_at_hand.__wrapped__
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not seen("cpu")
    monkeypatch.setattr(fused.shutil, "which", lambda _: "/bin/compiler")
    monkeypatch.setattr(fused.Path, "exists", lambda _: False)
    assert not seen("cpu")
    monkeypatch.setattr(fused.Path, "exists", lambda _: True)
    assert seen("cpu")
    assert not seen("mps")
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda _: None)
    assert not seen("cuda")


def test_inside_a_compiled_function_the_plain_loss_is_fused_by_the_compiler():
    torch._dynamo.reset()
    step = torch.compile(lambda z, y: fused_gls_loss(z, y, -1.0), fullgraph=True, backend="aot_eager")
    logits, labels = draw(5)
    torch.testing.assert_close(
        value_and_gradient(step, logits, labels), value_and_gradient(gls_loss, logits, labels, -1.0)
    )
    torch._dynamo.reset()


# 4. Memory

MEMORY = """
import torch
from nls.fused import fused_gls_loss, tune_allocator
def peak(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def step(n):
    logits = torch.zeros(n, 1000, requires_grad=True)
    before = peak()
    fused_gls_loss(logits, torch.zeros(n, dtype=torch.long), -1.0, compile=False).backward()
    assert logits.grad is not None
    return (peak() - before) * 1024 / logits.numel() / 4
step(8)
first = step(8000)
print(first, tune_allocator())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_loss_takes_little_more_memory_than_its_gradient():
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    multiple, tuned = result.stdout.split()
    assert 0.5 < float(multiple) <= 1.5
    assert tuned in ("True", "False")


class Library:
    gnu_get_libc_version = None

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def mallopt(self, *args):
        self.calls.append(args)
        return self.answer


def test_the_allocator_is_told_where_there_is_one(monkeypatch):
    library = Library(1)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert tune_allocator() is True
    assert library.calls == [(-4, 0), (-1, 2**31 - 1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library(0))
    assert tune_allocator() is False
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert tune_allocator() is False
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert tune_allocator() is False


# 5. Bad input

LOGITS, LABELS = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
BAD = [
    ({"logits": [[0.0, 1.0]]}, TypeError, "logits must be a torch tensor, got list"),
    ({"logits": torch.zeros(4, 3, dtype=torch.long)}, TypeError, "logits must be a floating-point tensor.*int64"),
    ({"logits": torch.zeros(4, 1)}, ValueError, r"logits must have .*K >= 2, got \(4, 1\)"),
    ({"logits": torch.zeros(3).half()}, ValueError, r"logits must have shape \[N, K\].*got \(3,\)"),
    ({"labels": [0, 1, 2, 0]}, TypeError, "labels must be a torch tensor, got list"),
    ({"labels": LOGITS + 1 / 3}, TypeError, "labels must hold integer class indices, got float32.*gls_loss takes soft"),
    ({"labels": LABELS.bool()}, TypeError, "labels must hold integer class indices, got bool"),
    ({"labels": LABELS[:3]}, ValueError, r"labels must have shape \(4,\) for logits of shape \(4, 3\), got \(3,\)"),
    ({"labels": LABELS + 1}, ValueError, r"labels must lie in \[0, 2\], got the value 3"),
    ({"labels": LABELS - 1}, ValueError, r"labels must lie in \[0, 2\], got the value -1"),
    ({"labels": LABELS.to("meta")}, ValueError, "labels must be on the device of the logits, cpu, got meta"),
    ({"smooth_rate": 1.1}, ValueError, r"smooth_rate must be a finite number in \(-inf, 1\], got 1.1"),
    ({"smooth_rate": -1e40}, ValueError, "smooth_rate must be finite in torch.float32"),
    ({"smooth_rate": torch.tensor([0, 0, 0, 1.5])}, ValueError, "smooth_rate must be finite and at most 1, got 1.5"),
    ({"smooth_rate": torch.zeros(3)}, ValueError, r"smooth_rate must .* shapes \(\), \(4,\), got \(3,\)"),
    ({"smooth_rate": None}, TypeError, "smooth_rate must be a real number, got None"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index must be an integer, got 0.5"),
    ({"compile": 1}, TypeError, r"compile must be None, True or False, got 1 \(int\)"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change, error, message):
    arguments = {"logits": LOGITS, "labels": LABELS, "smooth_rate": -0.4} | change
    if isinstance(arguments["logits"], torch.Tensor) and arguments["logits"].is_floating_point():
        with pytest.raises(error, match=message):
            fused_gls_loss(**arguments | {"logits": arguments["logits"].clone().requires_grad_()})
    with pytest.raises(error, match=message):
        fused_gls_loss(**arguments)
    with pytest.raises(error, match=message):
        loss_and_gradient(**arguments)


def test_bad_reduction_and_scale():
    for logits in (LOGITS, LOGITS.clone().requires_grad_()):
        with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none', got 'max'"):
            fused_gls_loss(logits, LABELS, 0.1, reduction="max")
    with pytest.raises(ValueError, match="scale must be a finite number"):
        loss_and_gradient(LOGITS, LABELS, 0.1, scale=math.inf)


def test_transforms_are_refused():
    with pytest.raises(TypeError, match=r"torch.func transforms.*use gls_loss"):
        torch.func.vmap(lambda z: fused_gls_loss(z, LABELS, 0.1))(LOGITS.expand(2, 4, 3))
    with pytest.raises(TypeError, match=r"torch.func transforms.*use gls_loss"):
        torch.func.grad(lambda z: fused_gls_loss(z, LABELS, 0.1))(LOGITS)
