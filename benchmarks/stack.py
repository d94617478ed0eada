"""Many small networks in one stack, beside one nn.Module after another and torch.func."""

from __future__ import annotations

import itertools
from functools import cache

import torch

from benchmarks.measure import Sample, Worker, interleave, time_call, time_function, time_together
from benchmarks.plain import plain_mlp, shuffled, train_model
from benchmarks.table import Benchmark, Options, Row, cost_row, need, ratio_row
from nls.data import load_dataset
from nls.noise import draw_noisy_labels, symmetric_transition

# Rates that neither diverge nor reach subnormal numbers in the few epochs timed: both would change what a step costs.
RATES = (0.8, 0.6, 0.4, 0.2, 0.0, -0.2, -0.4)
NARROW, WIDE = ((32, 32), 64), ((128, 128), 128)
MEMBERS, LEARNING_RATE = 14, 0.01
LOOP = "a loop over nn.Modules"


@cache
def problem(members: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the digits' training split, noisy labels [B, n] and rates [B]."""
    data = load_dataset("digits")
    generator = torch.Generator().manual_seed(0)
    noise = [symmetric_transition(10, 0.2 * (i // len(RATES) % 4)) for i in range(members)]
    labels = torch.stack([draw_noisy_labels(data.train_labels, matrix, generator) for matrix in noise])
    return data.train_features, labels, torch.tensor(list(itertools.islice(itertools.cycle(RATES), members)))


def train_stack(network: tuple, members: int, epochs: int, method: str | None = None) -> None:
    hidden, batch = network
    chosen = {} if method is None else {"method": method}
    need("nls.training", "fit_stack", *chosen)(
        *problem(members),
        num_classes=10,
        hidden=hidden,
        epochs=epochs,
        batch_size=batch,
        optimizer="sgd",
        learning_rate=LEARNING_RATE,
        momentum=0.9,
        seed=0,
        **chosen,
    )


def train_loop(network: tuple, members: int, epochs: int) -> None:
    hidden, batch = network
    features, labels, rates = problem(members)
    for member in range(members):
        model = plain_mlp((features.shape[1], *hidden, 10))
        batches = shuffled(features, labels[member], batch, torch.Generator().manual_seed(0))
        train_model(model, batches, float(rates[member]), epochs=epochs, learning_rate=LEARNING_RATE)


def _sizes(network: tuple, members: int, few: int, epochs: int) -> str:
    hidden, batch = network
    shape = "-".join(map(str, (64, *hidden, 10)))
    rows = len(problem(1)[0])
    return f"{shape}, batch {batch}, digits ({rows} rows), {epochs} epochs, {members} in the stack, {few} in the loop"


def compare_core(options: Options) -> list[Row]:
    need("nls.training", "fit_stack")
    members, few = options.size(MEMBERS, 3), options.size(2, 1)
    epochs, rows = options.size(6, 1), []
    for network, target, gate in ((NARROW, 8.0, 5.0), (WIDE, None, None)):
        ours = (members, train_stack, network, members, epochs)
        found = _in_two_processes(ours, (few, train_loop, network, few, epochs), epochs, options.repeats)
        words = f"fit_stack against {LOOP}, one core"
        rest = {"sizes": _sizes(network, members, few, epochs), "unit": "epoch of one member"}
        name = f"stack, {network[0][0]} wide, one core"
        rows.append(ratio_row(name, words, **found, target=target, gate=gate, **rest))
    return rows


def _in_two_processes(ours: tuple, baseline: tuple, epochs: int, repeats: int) -> dict[str, list[Sample]]:
    """Return samples per member and epoch; each side has a process of its own, so that no setting leaks to the other.

    The sides take turns: only one of the two works at a time.
    """
    with Worker() as first, Worker() as second:
        variants = {
            name: lambda worker=worker, call=call: worker.call(time_function, *call[1:]).per(call[0] * epochs)
            for name, worker, call in (("ours", first, ours), ("baseline", second, baseline))
        }
        return interleave(variants, repeats)


def compare_vmap(options: Options) -> list[Row]:
    need("nls.training", "fit_stack", "method")
    members, epochs = options.size(MEMBERS, 3), options.size(6, 1)
    ours, baseline = ((members, train_stack, NARROW, members, epochs, method) for method in ("manual", "vmap"))
    found = _in_two_processes(ours, baseline, epochs, options.repeats)
    words = "fit_stack, hand-written gradients, against method='vmap' (torch.func), one core"
    sizes = f"64-32-32-10, batch 64, digits, {epochs} epochs, {members} in each stack"
    return [ratio_row("stack, 32 wide, torch.func", words, **found, sizes=sizes, unit="epoch of one member")]


def compare_processes(options: Options) -> list[Row]:
    need("nls.training", "fit_stack")
    members, few = options.size(MEMBERS, 3), options.size(2, 1)
    epochs, rows = options.size(6, 1), []
    with Worker() as first, Worker() as second, Worker() as third:
        pair = (first, second)
        for network, target, gate in ((NARROW, 15.0, 8.0), (WIDE, 3.0, 2.5)):
            found = interleave(
                {
                    "ours": lambda: _together(pair, 2 * members * epochs, train_stack, network, members, epochs),  # noqa: B023
                    "loop": lambda: _together((third,), few * epochs, train_loop, network, few, epochs),  # noqa: B023
                    "loops": lambda: _together(pair, 2 * few * epochs, train_loop, network, few, epochs),  # noqa: B023
                },
                options.repeats,
            )
            rest = {"sizes": _sizes(network, members, few, epochs) + ", in each process", "unit": "epoch of one member"}
            rest |= {"note": "start of the processes not counted", "clock": "wall"}
            name, words = f"stack, {network[0][0]} wide, 2 processes", "fit_stack in two processes of one thread"
            rows += [
                ratio_row(name, f"{words} against {LOOP} in one", found["ours"], found["loop"],
                          target=target, gate=gate, **rest),
                ratio_row(f"{name} each", f"{words} against {LOOP} in two", found["ours"], found["loops"], **rest),
            ]  # fmt: skip
    return rows


def _together(workers: tuple[Worker, ...], units: int, *call: object) -> Sample:
    return time_together(workers, *call).per(units)


def cost_of_cells(options: Options) -> list[Row]:
    need("nls.training", "fit_stack")
    counts, epochs = ((3, 6) if options.quick else (14, 56, 280, 1400)), options.size(2, 1)
    variants = {
        f"{count}": lambda count=count: time_call(lambda: train_stack(NARROW, count, epochs)).per(count * epochs)
        for count in counts
    }
    rows = []
    for count, found in interleave(variants, options.repeats).items():
        row = cost_row(f"stack, cost of {count} cells", "fit_stack, one core", found, unit="epoch of one member")
        row.sizes = f"64-32-32-10, batch 64, digits, {epochs} epochs"
        row.note = f"{1 / (60 * row.value):.3g} cells of 60 epochs per second, extrapolated"
        rows.append(row)
    return rows


BENCHMARKS = [
    Benchmark("stack-core", compare_core),
    Benchmark("stack-vmap", compare_vmap),
    Benchmark("stack-processes", compare_processes),
    Benchmark("stack-cells", cost_of_cells),
]
