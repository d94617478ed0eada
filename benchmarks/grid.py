"""A whole grid on the cores of this machine, beside the loop over its cells."""

from __future__ import annotations

import dataclasses
import os
import time

import torch

from benchmarks.measure import Sample, interleave
from benchmarks.plain import plain_mlp, shuffled, train_model
from benchmarks.stack import RATES
from benchmarks.table import Benchmark, MissingError, Options, Row, need, ratio_row
from nls.data import Dataset, load_dataset
from nls.noise import draw_noisy_labels, symmetric_transition

GRID_RATES = [0.8, 0.6, 0.4, 0.2, 0.0, -0.2, -0.4, -0.6, -0.8, -1.0, -2.0, -4.0, -6.0, -8.0]
NOISE_RATES = [0.0, 0.2, 0.4, 0.6]
CLIP, LEARNING_RATE = 1.0, 0.02


def make_grid(options: Options) -> object:
    """Return the grid of 14 rates, 4 noise rates and 5 seeds; a corner of it for a quick run."""
    known = {field.name for field in dataclasses.fields(need("nls", "Cell"))}
    if "max_update_norm" not in known:
        raise MissingError("nls.Cell(max_update_norm=)")
    return need("nls", "Grid")(
        dataset="digits",
        noise_rate=NOISE_RATES[:1] if options.quick else NOISE_RATES,
        smooth_rate=GRID_RATES[3:5] if options.quick else GRID_RATES,
        seed=range(options.size(5, 1)),
        hidden=(32, 32),
        optimizer="sgd",
        learning_rate=LEARNING_RATE,
        max_update_norm=CLIP,
        batch_size=64,
        epochs=options.size(60, 1),
    )


def time_grid(grid: object, workers: int) -> Sample:
    """Return the seconds of a run, the start of its processes and the loading of the data included."""
    from joblib.externals.loky import get_reusable_executor

    spent = time.process_time() + _children()
    start = time.perf_counter()
    need("nls", "run_grid")(grid, workers=workers)
    wall = time.perf_counter() - start
    # joblib keeps its processes for the next run: the next repetition must start its own, and only a process that has
    # ended counts as spent time.
    get_reusable_executor().shutdown(wait=True)
    return Sample(time.process_time() + _children() - spent, wall)


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def time_loop(data: Dataset, members: int, epochs: int) -> Sample:
    """Return the seconds of one cell of the loop: train, and measure accuracy on two splits after each epoch."""

    def evaluate(model: torch.nn.Module) -> None:
        for features, labels in ((data.validation_features, validation), (data.test_features, data.test_labels)):
            (model(features).argmax(-1) == labels).float().mean().item()

    generator, transition = torch.Generator().manual_seed(0), symmetric_transition(10, 0.4)
    wall, cpu = time.perf_counter(), time.process_time()
    for member in range(members):
        labels = draw_noisy_labels(data.train_labels, transition, generator)
        validation = draw_noisy_labels(data.validation_labels, transition, generator)
        batches = shuffled(data.train_features, labels, 64, generator)
        options = {"epochs": epochs, "learning_rate": LEARNING_RATE, "max_norm": CLIP, "evaluate": evaluate}
        train_model(plain_mlp((64, 32, 32, 10)), batches, RATES[member], **options)
    return Sample(time.process_time() - cpu, time.perf_counter() - wall).per(members)


def compare_grid(options: Options) -> list[Row]:
    grid, data = make_grid(options), load_dataset("digits")
    epochs, members = options.size(60, 1), options.size(2, 1)
    variants = {
        "ours": lambda: time_grid(grid, 2),
        "loop": lambda: time_loop(data, members, epochs).per(1 / len(grid)),
    }
    found = interleave(variants, options.repeats, warm=False)
    rest = {
        "sizes": f"{len(grid)} cells: 64-32-32-10, batch 64, digits, {epochs} epochs, SGD, clipped",
        "unit": "whole grid",
        "note": f"the loop ran {members} cells, extrapolated, and clips the gradient; ours with the start of processes",
    }
    words = "run_grid on 2 cores against a loop over nn.Modules on one"
    return [ratio_row(f"grid of {len(grid)} cells", words, found["ours"], found["loop"], "wall", **rest)]


BENCHMARKS = [Benchmark("grid", compare_grid)]
