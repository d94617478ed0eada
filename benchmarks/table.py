"""Rows of the benchmark table, their verdicts, the machine they come from, and how both are written down."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import importlib.metadata
import inspect
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch

import nls
from benchmarks.measure import Sample, Spread, ratio, seconds

PASS, BELOW, MEANINGLESS, MISSING, CRASHED = "PASS", "below gate", "meaningless", "missing", "CRASHED"


class MissingError(Exception):
    """A function that a row measures is not there."""


@dataclass(frozen=True)
class Options:
    """What the command line sets for every benchmark."""

    quick: bool = False
    repeats: int = 5
    images: str | None = None

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @property
    def at_least(self) -> float:
        """CPU seconds that a short call is repeated for."""
        return 0.001 if self.quick else 0.05


@dataclass(frozen=True)
class Benchmark:
    """A name for ``--only``, and the function that measures its rows."""

    name: str
    run: Callable[[Options], list[Row]]


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: Topic and row, such as ``"noise, any transition, 50k"``.
        compared: What is compared with what, in words.
        kind: ``"ratio"``, ``"memory"``, ``"cost"`` (no baseline), ``"note"``, ``"missing"`` or ``"crashed"``.
        sizes: Shapes and counts.
        clock: ``"cpu"`` or ``"wall"``: the seconds that the ratio is made of.
        unit: What the seconds, or the numbers of a memory row, are for.
        repeats: Samples of each side.
        ours: ``{"cpu": ..., "wall": ...}``, medians; a memory row has ``{"peak": ...}``.
        baseline: The same for the other side.
        value: The ratio (larger is better) or, in a memory row, the peak (smaller is better); the median.
        low: Least value of the repetitions.
        high: Greatest value of the repetitions.
        target: The value that was aimed at.
        gate: The value that the row must reach; None where it is only reported.
        note: What else must be known to read the row.
        samples: All seconds of both sides.
    """

    name: str
    compared: str
    kind: str = "ratio"
    sizes: str = ""
    clock: str = "cpu"
    unit: str = ""
    repeats: int = 0
    ours: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    value: float | None = None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    gate: float | None = None
    verdict: str = ""
    note: str = ""
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def judge(self, quick: bool) -> Row:
        """Set the verdict from value and gate."""
        if self.value is None:
            return self
        if quick:
            self.verdict = MEANINGLESS
        elif self.gate is not None:
            reached = self.value <= self.gate if self.kind == "memory" else self.value >= self.gate
            self.verdict = PASS if reached else BELOW
        return self


def ratio_row(
    name: str, compared: str, ours: Sequence[Sample], baseline: Sequence[Sample], clock: str = "cpu", **rest: object
) -> Row:
    """Return a row whose value is baseline over ours, both for the same unit of work."""
    value = ratio(baseline, ours, clock)
    return Row(
        name,
        compared,
        clock=clock,
        repeats=len(ours),
        ours=_medians(ours),
        baseline=_medians(baseline),
        value=value.median,
        low=value.low,
        high=value.high,
        samples={"ours": list(ours), "baseline": list(baseline)},
        **rest,
    )


def cost_row(name: str, what: str, ours: Sequence[Sample], clock: str = "cpu", **rest: object) -> Row:
    """Return a row of seconds alone, which shows how a cost grows."""
    value = seconds(ours, clock)
    numbers = {"value": value.median, "low": value.low, "high": value.high, "samples": {"ours": list(ours)}}
    return Row(name, what, kind="cost", clock=clock, repeats=len(ours), ours=_medians(ours), **numbers, **rest)


def memory_row(name: str, compared: str, ours: Spread, baseline: Spread, **rest: object) -> Row:
    """Return a row whose value is our peak memory."""
    sides = {"ours": {"peak": ours.median}, "baseline": {"peak": baseline.median}}
    return Row(name, compared, kind="memory", value=ours.median, low=ours.low, high=ours.high, **sides, **rest)


def note_row(name: str, text: str, kind: str = "note", verdict: str = "") -> Row:
    return Row(name, text, kind=kind, verdict=verdict)


def _medians(samples: Sequence[Sample]) -> dict[str, float]:
    return {clock: seconds(samples, clock).median for clock in Sample._fields}


def need(module: str, name: str, *parameters: str) -> Callable:
    """Return a function of a module, or raise :class:`MissingError` if it, or one of its parameters, is not there."""
    try:
        function = getattr(importlib.import_module(module), name)
        known = inspect.signature(function).parameters
    except (ImportError, AttributeError) as error:
        raise MissingError(f"{module}.{name}") from error
    for parameter in parameters:
        if parameter not in known:
            raise MissingError(f"{module}.{name}({parameter}=)")
    return function


def describe_machine() -> dict[str, object]:
    """Return the processor, the cores, the versions, and the load at this moment."""
    packages = ("torch", "torchvision", "numpy", "pillow")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "nls": nls.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def show_seconds(value: float) -> str:
    """Return seconds with a unit that fits, to three digits."""
    for unit, factor in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value < 1000 else f"{value:.0f} s"
    return f"{value / 1e-9:.3g} ns"


def cells(row: Row) -> list[str]:
    """Return what a line of the table shows."""
    if row.kind in ("note", "missing", "crashed"):
        return [row.name, row.compared, "", "", "", "", "", row.verdict]
    if row.kind == "cost":
        span = f"{show_seconds(row.low)} to {show_seconds(row.high)}"
        sides = [show_seconds(row.value), "", span, ""]
    elif row.kind == "memory":
        sides = [f"{row.ours['peak']:.2f}", f"{row.baseline['peak']:.2f}"]
        sides += [f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})", _bound("at most", row)]
    else:
        sides = [show_seconds(row.ours[row.clock]), show_seconds(row.baseline[row.clock])]
        sides += [f"{row.value:.3g} ({row.low:.3g} to {row.high:.3g})", _bound("at least", row)]
    compared = f"{row.compared} ({row.note})" if row.note else row.compared
    clock = "memory" if row.kind == "memory" else row.clock
    sizes = f"{row.sizes}; {clock}, {row.unit}; n = {row.repeats}"
    return [row.name, compared, sizes, *sides, row.verdict]


def _bound(word: str, row: Row) -> str:
    return "" if row.gate is None else f"{word} {row.gate:g} (target {row.target:g})"


HEADER = ["row", "what is compared", "sizes; clock, per; repeats", "ours", "baseline", "ratio (least to most)", "gate"]


def markdown(rows: Sequence[Row], machine: dict[str, object], date: str, quick: bool) -> str:
    """Return the page: the machine, then the table."""
    header = [*HEADER, "verdict"]
    lines = ["**Tiny sizes: these numbers mean nothing.**", ""] if quick else []
    lines += [f"Measured on {date}.", "", "| machine | |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in machine.items()]
    lines += ["", f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    lines += [f"| {' | '.join(text.replace('|', '/') for text in cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def as_json(rows: Sequence[Row], machine: dict[str, object], date: str, quick: bool) -> dict[str, object]:
    """Return the same as plain values, with every sample."""
    return {"date": date, "quick": quick, "machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}


_CURVES = {
    "classes": r"^loss, cost of K, \d+x(\d+)$",
    "labels": r"^noise, cost of size, (\w+)$",
    "cells": r"cost of (\d+) cells$",
}


def tidy(rows: Sequence[Row], machine: dict[str, object], date: str) -> pd.DataFrame:
    """Return the rows with a number, one line each, as ``nls.save_results`` takes them: no commas within a value.

    ``ours`` and ``baseline`` are medians on the row's clock, or peaks of memory; a row that belongs to a curve of cost
    against size has the names ``curve`` and ``size``.
    """
    lines = []
    for row in rows:
        if row.value is None:
            continue
        clock = "peak" if row.kind == "memory" else row.clock
        found = {name: re.search(pattern, row.name) for name, pattern in _CURVES.items()}
        curve, match = next(((name, match) for name, match in found.items() if match), ("", None))
        lines.append(
            {
                "topic": row.name.split(",")[0].split()[0], "name": row.name, "compared": row.compared,
                "kind": row.kind,
                "sizes": row.sizes, "clock": clock, "unit": row.unit, "repeats": row.repeats,
                "ours": row.ours.get(clock), "baseline": row.baseline.get(clock), "value": row.value, "low": row.low,
                "high": row.high, "target": row.target, "gate": row.gate, "verdict": row.verdict, "note": row.note,
                "curve": curve, "size": _count(match[1]) if match else None, "date": date,
            }
            | {name: machine[name] for name in ("cpu", "cores", "gpu", "torch", "load")}
        )  # fmt: skip
    table = pd.DataFrame(lines)
    texts = table.select_dtypes(exclude="number").columns
    table[texts] = table[texts].map(lambda text: re.sub(r"(?<=\d),(?=\d)", "", str(text)).replace(",", ""))
    return table


def _count(text: str) -> int:
    """Return 50k and 10M as numbers."""
    return int(text.rstrip("kM")) * {"k": 10**3, "M": 10**6}.get(text[-1], 1)
