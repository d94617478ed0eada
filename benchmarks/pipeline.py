"""Batches of augmented images, beside the released PIL pipeline."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from benchmarks.measure import interleave, time_call
from benchmarks.plain import CIFAR_MEAN, CIFAR_STD, plain_loader
from benchmarks.table import Benchmark, Options, Row, need, ratio_row


def random_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images and labels of CIFAR's shape; what is on an image does not change what it costs."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(10, (count,), generator=generator)


def drain(batches: Iterable) -> None:
    for _ in batches:
        pass


def compare_loader(options: Options) -> list[Row]:
    batches = need("nls.batches", "TensorBatches")
    count, few = options.size(50_000, 64), options.size(5000, 64)
    images, labels = random_images(count)
    ours = batches(images, 128, augment="crop_flip", mean=torch.tensor(CIFAR_MEAN), std=torch.tensor(CIFAR_STD))
    loader = plain_loader(images[:few], labels[:few])
    variants = {
        "ours": lambda: time_call(lambda: drain(ours)).per(count),
        "baseline": lambda: time_call(lambda: drain(loader)).per(few),
    }
    found = interleave(variants, options.repeats)
    rest = {
        "sizes": f"random uint8 images 3x32x32, batch 128, {count:,} ours, {few:,} through PIL",
        "unit": "image, one epoch without start-up of loader processes",
        "target": 15.0,
        "gate": 8.0,
    }
    words = "TensorBatches against PIL images in torchvision's DataLoader: crop of 32 padded by 4, flip, normalise"
    return [ratio_row("pipeline, crop and flip", words, **found, **rest)]


BENCHMARKS = [Benchmark("pipeline", compare_loader)]
