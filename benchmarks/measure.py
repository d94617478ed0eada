"""Time things side by side: interleaved repetitions, ratios of pairs, worker processes and peak memory."""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import multiprocessing
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch


class Sample(NamedTuple):
    """Seconds of one repetition, for one unit of work: CPU time of the process or of all workers, and wall time."""

    cpu: float
    wall: float

    def per(self, units: float) -> Sample:
        return Sample(self.cpu / units, self.wall / units)


class Spread(NamedTuple):
    """A median with the least and the greatest value."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def seconds(samples: Sequence[Sample], clock: str) -> Spread:
    return spread([getattr(sample, clock) for sample in samples])


def ratio(baseline: Sequence[Sample], ours: Sequence[Sample], clock: str) -> Spread:
    """Return the median, least and greatest ratio of the repetitions, each baseline over the neighbour it ran beside.

    A pair ran within seconds, so whatever slows the machine for longer cancels in its ratio.
    """
    pairs = zip(baseline, ours, strict=True)
    return spread([getattr(slow, clock) / getattr(fast, clock) for slow, fast in pairs])


def time_call(
    call: Callable[[], object],
    number: int = 1,
    *,
    cpu_clock: Callable[[], float] = time.process_time,
    wall_clock: Callable[[], float] = time.perf_counter,
) -> Sample:
    """Return the seconds of one call, the mean of ``number`` calls in a row."""
    gc.collect()
    gc.disable()  # a collection would land on whichever variant happens to trigger it
    try:
        wall, cpu = wall_clock(), cpu_clock()
        for _ in range(number):
            call()
        return Sample(cpu_clock() - cpu, wall_clock() - wall).per(number)
    finally:
        gc.enable()


def calls_for(call: Callable[[], object], at_least: float, **clocks: Callable[[], float]) -> int:
    """Return how many calls in a row take ``at_least`` seconds of CPU time, after a first call to warm up."""
    call()
    number = 1
    while (total := time_call(call, number, **clocks).cpu * number) < at_least:
        number = max(number + 1, math.ceil(number * min(10, 1.1 * at_least / max(total, 1e-9))))
    return number


def repeated(call: Callable[[], object], at_least: float = 0.05) -> Callable[[], Sample]:
    """Return a variant for :func:`interleave` that repeats a short call until the clocks can resolve it."""
    number = calls_for(call, at_least)
    return lambda: time_call(call, number)


def interleave(
    variants: Mapping[str, Callable[[], Sample]], repeats: int, *, warm: bool = True
) -> dict[str, list[Sample]]:
    """Run the variants in turn, in reversed order every other repetition, and return the samples of each.

    Args:
        variants: Name to a function that does its work once and returns how long it took.
        repeats: Repetitions of each variant, at least 1.
        warm: Whether each runs once more at the start, uncounted.

    Returns:
        Name to its samples; samples of equal index ran side by side.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if warm:
        for run in variants.values():
            run()
    samples = {name: [] for name in variants}
    for repetition in range(repeats):
        names = list(variants)
        for name in reversed(names) if repetition % 2 else names:
            samples[name].append(variants[name]())
    return samples


class WorkerError(RuntimeError):
    """A call failed in a worker; the message is its traceback there."""


class Worker:
    """A fresh process with one thread; it keeps what its calls cached. Use it in a ``with`` block.

    Functions travel by name, so they must be defined at the top level of a module.
    """

    def __init__(self) -> None:
        # Forked from a server that has imported the libraries and run nothing: as fresh as a spawned process, at once.
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload(["torch", "nls"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()

    def start(self, function: Callable, *args: object, **options: object) -> None:
        self._pipe.send((function, args, options))

    def result(self) -> object:
        try:
            succeeded, value = self._pipe.recv()
        except EOFError as error:
            raise WorkerError(f"the worker ended with status {self._process.exitcode}") from error
        if not succeeded:
            raise WorkerError(value)
        return value

    def call(self, function: Callable, *args: object, **options: object) -> object:
        self.start(function, *args, **options)
        return self.result()


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    """Do what comes through the pipe until None comes."""
    torch.set_num_threads(1)
    # A CUDA toolkit without a GPU makes the compiler warn in every worker.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    while True:
        try:
            job = pipe.recv()  # imports what the function needs
            if job is None:
                return
            gc.freeze()  # what is imported by now need not be searched before every sample
            function, args, options = job
            answer = True, function(*args, **options)
        except EOFError:
            return
        except Exception:
            answer = False, traceback.format_exc()
        pipe.send(answer)


def time_function(function: Callable, *args: object, number: int = 1, **options: object) -> Sample:
    return time_call(lambda: function(*args, **options), number)


def repeated_in(worker: Worker, at_least: float, function: Callable, *args: object) -> Callable[[], Sample]:
    """Return a variant for :func:`interleave` that runs in a worker, see :func:`repeated`."""
    number = worker.call(_calls_for_function, at_least, function, *args)
    return lambda: worker.call(time_function, function, *args, number=number)


def _calls_for_function(at_least: float, function: Callable, *args: object) -> int:
    return calls_for(lambda: function(*args), at_least)


def time_together(workers: Sequence[Worker], function: Callable, *args: object, **options: object) -> Sample:
    """Run the same call in all workers at once: the CPU time of all, and the wall time until the last is done.

    The workers are up already; the start of a process is not counted.
    """
    for worker in workers:
        worker.call(gc.collect)
    start = time.perf_counter()
    for worker in workers:
        worker.start(_cpu_seconds, function, *args, **options)
    cpu = sum(worker.result() for worker in workers)
    return Sample(cpu, time.perf_counter() - start)


def _cpu_seconds(function: Callable, *args: object, **options: object) -> float:
    start = time.process_time()
    function(*args, **options)
    return time.process_time() - start


def peak_memory(prepare: Callable, *args: object) -> int:
    """Return the bytes of memory that a call needs at its peak beyond what was there before it, in a fresh process.

    Args:
        prepare: Returns the call to measure; given ``args``.
        args: Whatever ``prepare`` takes.
    """
    with Worker() as worker:
        return worker.call(_peak_here, prepare, *args)


def _peak_here(prepare: Callable, *args: object) -> int:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        # M_MMAP_THRESHOLD: every block from 1 MiB on gets fresh pages, and gives them back when it is freed. Otherwise
        # the peak would depend on the holes that earlier blocks left.
        library.mallopt(-3, 2**20)
    call = prepare(*args)
    call()  # libraries, caches and compiled code are in place afterwards
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM") - before
    del result
    return peak


def _status(field: str) -> int:
    """Return a field of the process's memory status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in the status of this process; peak memory needs Linux")
