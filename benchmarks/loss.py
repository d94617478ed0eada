"""The loss with its gradient, beside the released formula and torch's own label smoothing; time and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch.nn import functional

from benchmarks.measure import Worker, interleave, peak_memory, repeated_in, spread
from benchmarks.plain import plain_loss
from benchmarks.table import Benchmark, Options, Row, memory_row, need, ratio_row

Shape = tuple[int, int]

NEGATIVE_RATE, POSITIVE_RATE = -1.0, 0.2
FULL_SHAPES, QUICK_SHAPES = ((128, 10), (4096, 1000), (256, 50257)), ((8, 10), (16, 20), (4, 50))
RELEASED = "the released formula and its backward pass"


@cache
def problem(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randint(shape[1], shape[:1], generator=generator)


def plain_step(shape: Shape, rate: float) -> None:
    logits, labels = problem(shape)
    plain_loss(logits.detach().requires_grad_(), labels, rate).backward()


def torch_step(shape: Shape, rate: float) -> None:
    logits, labels = problem(shape)
    functional.cross_entropy(logits.detach().requires_grad_(), labels, label_smoothing=rate).backward()


def fused_step(shape: Shape, rate: float) -> None:
    logits, labels = problem(shape)
    need("nls.fused", "fused_gls_loss")(logits.detach().requires_grad_(), labels, rate).backward()


def fused_pair(shape: Shape, rate: float) -> None:
    need("nls.fused", "loss_and_gradient")(*problem(shape), rate, scale=1 / shape[0])


def compare(
    options: Options,
    name: str,
    sides: tuple[Callable, Callable],
    words: tuple[str, str],
    cases: list[dict],
    rate: float = NEGATIVE_RATE,
    tuned: tuple[bool, bool] = (True, True),
) -> list[Row]:
    """Return a row for each case; each side lives in a process of its own, so that neither shapes the other's heap.

    Unless told otherwise both allocators are tuned: else a gain from fewer fresh pages would pass for a faster formula.
    """
    allocators = {
        (False, False): "system allocator",
        (True, True): "tuned allocator",
        (True, False): "allocators differ",
    }
    rows = []
    with Worker() as first, Worker() as second:
        for worker, tune in zip((first, second), tuned, strict=True):
            if tune:
                worker.call(need("nls.fused", "tune_allocator"))
        for case in cases:
            shape = case.pop("shape")
            ours = repeated_in(first, options.at_least, sides[0], shape, rate)
            baseline = repeated_in(second, options.at_least, sides[1], shape, rate)
            samples = interleave({"ours": ours, "baseline": baseline}, options.repeats)
            title = f"{name}, {shape[0]}x{shape[1]}"
            sizes = f"logits {shape[0]}x{shape[1]} float32, r = {rate:g}, {allocators[tuned]}"
            compared = f"{words[0]} against {words[1]}"
            rows.append(ratio_row(title, compared, **samples, sizes=sizes, unit="call", **case))
    return rows


def shapes(options: Options) -> tuple[Shape, Shape, Shape]:
    return QUICK_SHAPES if options.quick else FULL_SHAPES


def compare_pair(options: Options) -> list[Row]:
    small, middle, large = shapes(options)
    need("nls.fused", "loss_and_gradient", "scale")
    cases = [{"shape": small}, {"shape": middle, "target": 2.5, "gate": 1.8}, {"shape": large}]
    words = ("loss_and_gradient", RELEASED)
    rows = compare(options, "loss and gradient", (fused_pair, plain_step), words, cases)
    cases = [{"shape": middle, "note": "blocks of this size straddle the threshold of glibc"}, {"shape": large}]
    name = "loss and gradient, allocator as it is"
    return rows + compare(options, name, (fused_pair, plain_step), words, cases, tuned=(False, False))


def compare_backward(options: Options) -> list[Row]:
    small, middle, large = shapes(options)
    need("nls.fused", "fused_gls_loss")
    cases = [{"shape": small}, {"shape": middle, "target": 2.0, "gate": 1.8}, {"shape": large}]
    words = ("fused_gls_loss(...).backward()", RELEASED)
    return compare(options, "fused loss, backward", (fused_step, plain_step), words, cases)


def compare_torch(options: Options) -> list[Row]:
    need("nls.fused", "fused_gls_loss")
    cases = [{"shape": shape} for shape in shapes(options)]
    words = ("fused_gls_loss(...).backward()", "cross_entropy(label_smoothing=r) and its backward pass, r >= 0 only")
    return compare(options, "fused loss, torch's own", (fused_step, torch_step), words, cases, POSITIVE_RATE)


def compare_allocator(options: Options) -> list[Row]:
    need("nls.fused", "tune_allocator")
    shape = shapes(options)[2]
    words = ("loss_and_gradient after tune_allocator()", f"{RELEASED}, the allocator as it is")
    cases = [{"shape": shape, "target": 9.5, "gate": 5.0, "note": "both levers together"}]
    name = "loss and gradient, tune_allocator"
    return compare(options, name, (fused_pair, plain_step), words, cases, tuned=(True, False))


def compare_classes(options: Options) -> list[Row]:
    need("nls.fused", "loss_and_gradient")
    batch, classes = (4, (10, 50)) if options.quick else (256, (10, 100, 1000, 10_000, 50_000))
    cases = [{"shape": (batch, count)} for count in classes]
    return compare(options, "loss, cost of K", (fused_pair, plain_step), ("loss_and_gradient", RELEASED), cases)


def prepare(step: Callable, shape: Shape, rate: float) -> Callable[[], object]:
    """Return the call whose peak is measured; the logits exist before it."""
    problem(shape)
    return partial(step, shape, rate)


def compare_memory(options: Options) -> list[Row]:
    need("nls.fused", "fused_gls_loss")
    rows = []
    for shape in shapes(options)[1 : 2 if options.quick else 3]:
        logits = shape[0] * shape[1] * 4
        repeats = 1 if options.quick else 2
        peaks = {step: [] for step in (fused_pair, fused_step, torch_step, plain_step)}
        for _ in range(repeats):
            for step, values in peaks.items():
                rate = POSITIVE_RATE if step is torch_step else NEGATIVE_RATE
                values.append(peak_memory(prepare, step, shape, rate) / logits)
        found = {step: spread(values) for step, values in peaks.items()}
        rest = {
            "sizes": f"logits {shape[0]}x{shape[1]} float32, fresh process",
            "unit": "multiples of the logits, gradient included",
            "repeats": repeats,
            "target": 2.1,
            "gate": 2.1,
        }
        for step, label in ((fused_pair, "loss_and_gradient"), (fused_step, "fused_gls_loss(...).backward()")):
            name = f"peak memory, {label.split('(')[0]}, {shape[0]}x{shape[1]}"
            note = f"torch's own label smoothing: {found[torch_step].median:.2f}"
            compared = f"{label} against {RELEASED}"
            rows.append(memory_row(name, compared, found[step], found[plain_step], note=note, **rest))
    return rows


BENCHMARKS = [
    Benchmark("loss-and-gradient", compare_pair),
    Benchmark("loss-backward", compare_backward),
    Benchmark("loss-torch", compare_torch),
    Benchmark("loss-allocator", compare_allocator),
    Benchmark("loss-classes", compare_classes),
    Benchmark("loss-memory", compare_memory),
]
