"""Seconds of a training epoch of the large networks on a GPU, beside the released way of training them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.measure import Sample, interleave, seconds
from benchmarks.pipeline import random_images
from benchmarks.plain import plain_loader, train_model
from benchmarks.table import Benchmark, Options, Row, need, note_row, ratio_row, show_seconds

COUNT, RATE, LEARNING_RATE = 50_000, 0.2, 0.05
# (network, batch size, longer runs to extrapolate to: name, epochs, cells)
FULL = (
    ("resnet34", 128, ("one cell of 200 epochs", 200, 1)),
    ("resnet34", 512, None),
    ("resnet9", 128, None),
    ("resnet9", 512, ("a grid of 70 cells of 60 epochs, one after another", 60, 70)),
)


def load_images(path: str | None, count: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Return uint8 images [n, 3, 32, 32], labels, and what they are."""
    if path is None:
        return *random_images(count), "random images"
    with np.load(path) as arrays:
        images, labels = (torch.from_numpy(arrays[name][:count]) for name in ("train_images", "train_labels"))
    images = images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, labels.long(), "the images of --images"


def _finish(device: str) -> float:
    """Return the wall time at which the device has done all its work."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_ours(data: tuple, network: str, batch_size: int, device: str, compile_it: bool) -> Sample:
    """Return the seconds of the second epoch; the first one warms up, and compiles."""
    wall, cpu = [], []

    def note_time(_: object) -> dict[str, float]:
        wall.append(_finish(device))
        cpu.append(time.process_time())
        return {}

    if compile_it:
        torch.compiler.reset()  # each call compiles anew, and after a few torch would give up and run eagerly
    need("nls.each", "fit_each")(
        *data, RATE, network=network, num_classes=10, epochs=2, batch_size=batch_size, optimizer="sgd",
        learning_rate=LEARNING_RATE, augment="crop_flip", device=device, precision="auto", compile=compile_it,
        evaluate=note_time, seed=0,
    )  # fmt: skip
    return Sample(cpu[1] - cpu[0], wall[1] - wall[0])


def time_released(data: tuple, network: str, batch_size: int, device: str, workers: int) -> Sample:
    """Return the seconds of an epoch as the released code trains: PIL, float32, NCHW, a wait for the loss at each step.

    The processor time is that of this process; the loader's own processes are not in it.
    """
    loader = plain_loader(*data, batch_size=batch_size, workers=workers)
    model = need("nls.models", "build_network")(network, 10).to(device)

    def batches(most: int | None = None):
        for step, (images, labels) in enumerate(loader):
            if step == most:
                return
            yield images.to(device), labels.to(device)

    options = {"epochs": 1, "learning_rate": LEARNING_RATE}
    train_model(model, lambda: batches(3), RATE, **options)
    wall, cpu = _finish(device), time.process_time()
    train_model(model, batches, RATE, **options)
    return Sample(cpu=time.process_time() - cpu, wall=_finish(device) - wall)


def measure_network(
    network: str,
    batch_size: int,
    longer: tuple[str, int, int] | None = None,
    *,
    device: str = "cuda",
    count: int = COUNT,
    images: str | None = None,
    repeats: int = 5,
    compiled: bool = True,
    workers: int = 4,
) -> list[Row]:
    """Return a row for eager and compiled training of one network, and for a longer run extrapolated from each.

    Args:
        network: A name that ``fit_each`` knows.
        batch_size: Images in a step.
        longer: Name, epochs and cells of a run to extrapolate to.
        device: Where to train; tests use the CPU.
        count: Images in an epoch.
        images: NPZ with ``train_images`` and ``train_labels``; random images if None.
        repeats: Samples of each side.
        compiled: Whether to measure torch.compile as well.
        workers: Processes of the released loader.
    """
    *data, kind = load_images(images, count)
    variants: dict[str, Callable[[], Sample]] = {
        "released": lambda: time_released(data, network, batch_size, device, workers),
        "eager": lambda: time_ours(data, network, batch_size, device, False),
    }
    if compiled:
        variants["compiled"] = lambda: time_ours(data, network, batch_size, device, True)
    found = interleave(variants, repeats, warm=False)
    rows, released = [], found.pop("released")
    words = f"the released way (PIL, {workers} loader processes, float32 with torch's defaults, NCHW, a wait per step)"
    sizes = f"{len(data[0]):,} {kind}, batch {batch_size}, {device}"
    for mode, ours in found.items():
        name, compared = f"gpu, {network}, batch {batch_size}, {mode}", f"fit_each, {mode}, against {words}"
        rows.append(ratio_row(name, compared, ours, released, "wall", sizes=sizes, unit="epoch, training alone"))
        if longer:
            label, epochs, cells = longer
            many = [[sample.per(1 / (epochs * cells)) for sample in side] for side in (ours, released)]
            note = f"EXTRAPOLATED from {show_seconds(seconds(ours, 'wall').median)} per epoch"
            rows.append(
                ratio_row(
                    f"{name}, {label}", compared, *many, "wall", sizes=sizes, unit=f"{label}, training alone", note=note
                )
            )
    return rows


def measure_gpu(options: Options) -> list[Row]:
    if not torch.cuda.is_available():
        return [note_row("gpu", "no GPU: not measured")]
    rows = []
    for network, batch_size, longer in (("cnn", 16, None),) if options.quick else FULL:
        tiny = {"count": 64, "workers": 0, "compiled": False} if options.quick else {}
        found = measure_network(network, batch_size, longer, images=options.images, repeats=options.repeats, **tiny)
        rows += found
    return rows


BENCHMARKS = [Benchmark("gpu", measure_gpu)]
