"""Drawing noisy labels, beside the released loops and torch.multinomial."""

from __future__ import annotations

import torch

from benchmarks.measure import interleave, repeated, time_call
from benchmarks.plain import plain_instance_noise, plain_noise
from benchmarks.table import Benchmark, MissingError, Options, Row, cost_row, need, ratio_row
from nls.noise import cifar10_asymmetric_transition, symmetric_transition

LOOP = "the released loop, one multinomial draw per label"


def clean_labels(count: int, num_classes: int = 10) -> torch.Tensor:
    return torch.randint(num_classes, (count,), generator=torch.Generator().manual_seed(0))


def compare_any(options: Options) -> list[Row]:
    draw = need("nls.noise", "draw_noisy_labels")
    small, large = options.size(50_000, 200), options.size(10_000_000, 1000)
    transition, generator = cifar10_asymmetric_transition(0.4), torch.Generator().manual_seed(0)
    few, many = clean_labels(small), clean_labels(large)
    loop = (few.numpy(), transition.numpy(), 0)
    variants = {
        "few": repeated(lambda: draw(few, transition, generator), options.at_least),
        "loop": lambda: time_call(lambda: plain_noise(*loop)),
        "many": lambda: time_call(lambda: draw(many, transition, generator)),
    }
    found = interleave(variants, options.repeats)
    loop_for_many = [sample.per(small / large) for sample in found["loop"]]
    words, rest = f"draw_noisy_labels, asymmetric, against {LOOP}", {"unit": "draw of all labels", "gate": 50.0}
    note = f"the loop ran on {small:,} labels and is extrapolated to {large:,}"
    return [
        ratio_row("noise, any matrix, 50k", words, found["few"], found["loop"], sizes=f"{small:,} labels, K = 10",
                  target=115.0, **rest),
        ratio_row("noise, any matrix, 10M", words, found["many"], loop_for_many, sizes=f"{large:,} labels, K = 10",
                  target=115.0, note=note, **rest),
    ]  # fmt: skip


def compare_symmetric(options: Options) -> list[Row]:
    transition, generator = symmetric_transition(10, 0.4), torch.Generator().manual_seed(0)
    labels = clean_labels(options.size(50_000, 200))
    draw = need("nls.noise", "draw_noisy_labels")
    variants = {
        "matrix": repeated(lambda: draw(labels, transition, generator), options.at_least),
        "loop": lambda: time_call(lambda: plain_noise(labels.numpy(), transition.numpy(), 0)),
    }
    direct = _symmetric()
    if direct:
        variants["direct"] = repeated(lambda: direct(labels, 10, 0.4, generator), options.at_least)
    found = interleave(variants, options.repeats)
    rest = {"sizes": f"{len(labels):,} labels, K = 10", "unit": "draw of all labels"}
    name, against = "noise, symmetric, 50k", f"against {LOOP}"
    words = f"draw_noisy_labels, symmetric matrix, {against}"
    rows = [ratio_row(name, words, found["matrix"], found["loop"], target=115.0, gate=50.0, **rest)]
    if direct:
        words = f"draw_symmetric_labels, no matrix, {against}"
        row = ratio_row(f"{name}, no matrix", words, found["direct"], found["loop"], target=300.0, gate=100.0, **rest)
        rows.append(row)
    return rows


def _symmetric():
    """Return the function that draws symmetric noise without a matrix, where there is one."""
    try:
        return need("nls.noise", "draw_symmetric_labels")
    except MissingError:
        return None


def compare_multinomial(options: Options) -> list[Row]:
    draw = need("nls.noise", "draw_noisy_labels")
    transition, rows = cifar10_asymmetric_transition(0.4), []
    for count, title in ((options.size(50_000, 200), "50k"), (options.size(1_000_000, 1000), "1M")):
        generator, labels = torch.Generator().manual_seed(0), clean_labels(count)
        ours = repeated(lambda: draw(labels, transition, generator), options.at_least)  # noqa: B023
        other = repeated(lambda: torch.multinomial(transition[labels], 1, generator=generator), options.at_least)  # noqa: B023
        found = interleave({"ours": ours, "baseline": other}, options.repeats)
        words = "draw_noisy_labels against torch.multinomial(transition[labels], 1)"
        rest = {"sizes": f"{count:,} labels, K = 10", "unit": "draw of all labels"}
        rows.append(ratio_row(f"noise, torch.multinomial, {title}", words, **found, **rest))
    return rows


def compare_instance(options: Options) -> list[Row]:
    draw = need("nls.noise", "draw_instance_noise")
    count, few, width = options.size(50_000, 100), options.size(1000, 20), options.size(3072, 20)
    features = torch.rand(count, width, generator=torch.Generator().manual_seed(0))
    labels, generator = clean_labels(count), torch.Generator().manual_seed(0)
    part = (features[:few].numpy(), labels[:few].numpy(), 0.2, 10, 0)
    variants = {
        "ours": lambda: time_call(lambda: draw(features, labels, 0.2, generator, num_classes=10)).per(count),
        "shared": lambda: time_call(lambda: plain_instance_noise(*part)).per(few),
        "classes": lambda: time_call(lambda: plain_instance_noise(*part, per_class=True)).per(few),
    }
    found = interleave(variants, options.repeats)
    rest = {"sizes": f"{count:,} x {width} float32, K = 10", "unit": "example"}
    rest |= {"note": f"the loop ran on {few:,} examples; its time per example is compared"}
    words = "draw_instance_noise against a loop over examples,"
    return [
        ratio_row("noise, instance, matrix per class", f"{words} one matrix per class (Xia et al.)",
                  found["ours"], found["classes"], target=5.0, gate=3.0, **rest),
        ratio_row("noise, instance, one matrix", f"{words} one matrix for all (released)",
                  found["ours"], found["shared"], **rest),
    ]  # fmt: skip


def cost_of_size(options: Options) -> list[Row]:
    draw, transition = need("nls.noise", "draw_noisy_labels"), cifar10_asymmetric_transition(0.4)
    rows = []
    for full, title in ((50_000, "50k"), (500_000, "500k"), (5_000_000, "5M"), (10_000_000, "10M")):
        count = options.size(full, full // 5000)
        labels, generator = clean_labels(count), torch.Generator().manual_seed(0)
        ours = repeated(lambda: draw(labels, transition, generator), options.at_least)  # noqa: B023
        found = [sample.per(count) for sample in interleave({"ours": ours}, options.repeats)["ours"]]
        rest = {"sizes": f"{count:,} labels, K = 10", "unit": "label"}
        rows.append(cost_row(f"noise, cost of size, {title}", "draw_noisy_labels", found, **rest))
    return rows


def cost_of_classes(options: Options) -> list[Row]:
    draw, direct, rows = need("nls.noise", "draw_noisy_labels"), _symmetric(), []
    count = options.size(50_000, 200)
    rest = {"unit": "draw of all labels"}
    for classes in (10, 100) if options.quick else (10, 100, 1000, 5000):
        transition, generator = symmetric_transition(classes, 0.4), torch.Generator().manual_seed(0)
        labels = clean_labels(count, classes)
        ours = repeated(lambda: draw(labels, transition, generator), options.at_least)  # noqa: B023
        found = interleave({"ours": ours}, options.repeats)["ours"]
        note = "checks the matrix and builds its tables, K x K in float64, at every call"
        sizes = f"{count:,} labels, K = {classes:,}"
        rows.append(
            cost_row(f"noise, cost of K = {classes}", "draw_noisy_labels", found, sizes=sizes, note=note, **rest)
        )
    for classes in ((10, 100) if options.quick else (10, 1000, 50_000)) if direct else ():
        generator, labels = torch.Generator().manual_seed(0), clean_labels(count, classes)
        ours = repeated(lambda: direct(labels, classes, 0.4, generator), options.at_least)  # noqa: B023
        found = interleave({"ours": ours}, options.repeats)["ours"]
        sizes = f"{count:,} labels, K = {classes:,}"
        name = f"noise, cost of K = {classes}, no matrix"
        rows.append(cost_row(name, "draw_symmetric_labels", found, sizes=sizes, **rest))
    return rows


BENCHMARKS = [
    Benchmark("noise-any", compare_any),
    Benchmark("noise-symmetric", compare_symmetric),
    Benchmark("noise-instance", compare_instance),
    Benchmark("noise-multinomial", compare_multinomial),
    Benchmark("noise-size", cost_of_size),
    Benchmark("noise-classes", cost_of_classes),
]
