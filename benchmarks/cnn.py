"""One small convolutional network after another, beside a plain loop over the same network."""

from __future__ import annotations

from functools import cache

import torch

from benchmarks.measure import Worker, interleave, time_together
from benchmarks.pipeline import random_images
from benchmarks.plain import CIFAR_MEAN, CIFAR_STD, shuffled, train_model
from benchmarks.table import Benchmark, Options, Row, need, ratio_row

BATCH, RATE, LEARNING_RATE = 100, 0.2, 0.01


@cache
def problem(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random_images(count)


@cache
def normalised(count: int) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (CIFAR_MEAN, CIFAR_STD))
    return (problem(count)[0].float() / 255 - mean) / std


def train_ours(count: int) -> None:
    need("nls.each", "fit_each")(
        *problem(count), RATE, network="cnn", num_classes=10, epochs=1, batch_size=BATCH, optimizer="sgd",
        learning_rate=LEARNING_RATE, augment=None, device="cpu", seed=0,
    )  # fmt: skip


def train_loop(count: int) -> None:
    """Train the same network in torch's default layout, on images that are float already."""
    network = need("nls.models", "build_network")("cnn", 10)
    batches = shuffled(normalised(count), problem(count)[1], BATCH, torch.Generator().manual_seed(0))
    train_model(network, batches, RATE, epochs=1, learning_rate=LEARNING_RATE)


def compare_cnn(options: Options) -> list[Row]:
    need("nls.each", "fit_each")
    count = options.size(2000, 16)
    with Worker() as first, Worker() as second:
        found = interleave(
            {
                "pair": lambda: time_together((first, second), train_ours, count).per(2 * count),
                "loop": lambda: time_together((first,), train_loop, count).per(count),
                "ours": lambda: time_together((first,), train_ours, count).per(count),
            },
            options.repeats,
        )
    rest = {"sizes": f"{count} random images 3x32x32, batch {BATCH}, one epoch", "unit": "image in training"}
    loop = "a loop over the same network, NCHW, one thread"
    return [
        ratio_row("cnn, 2 processes", f"fit_each in two processes of one thread against {loop}", found["pair"],
                  found["loop"], "wall", target=2.5, gate=1.8, note="start of the processes not counted", **rest),
        ratio_row("cnn, one core", f"fit_each against {loop}", found["ours"], found["loop"], **rest),
    ]  # fmt: skip


BENCHMARKS = [Benchmark("cnn", compare_cnn)]
