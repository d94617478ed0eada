r"""Runs of any function: each finished one is kept in a folder, and only what is missing is run.

:func:`nls.run_grid` trains the cells of a grid. Whatever has no such cell, a graph, a teacher with its students or a
language model, is a function of plain parameters, and :func:`run_all` calls it once for each set of them.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import json
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import joblib
import pandas as pd
import torch
from tqdm import tqdm

from nls import _checks
from nls.chunk import code_commit
from nls.engine import _count_workers, _deadline, _shows
from nls.records import RecordWarning, decode, encode, put_whole, session_store

Value = bool | int | float | str | None
Rows = Mapping[str, Value] | list[Mapping[str, Value]]

_PLAIN = (bool, int, float, str, type(None))


def run_all(
    function: Callable[..., Rows],
    runs: Iterable[Mapping[str, Value]],
    *,
    store: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    time_limit: float | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Call a function once for each set of parameters, and return what it found as one table.

    A finished run is a file in ``store`` that appears whole or not at all. A later call reads it back instead of
    running it again, after an interruption too. A file that is cut short, changed by a byte, or made by the function
    when its code was another, is named in a :class:`nls.records.RecordWarning` and run again; comments, layout and
    docstrings do not count as code, and a change in what the function calls is not seen.

    Args:
        function: Defined at the top of a module. It takes the parameters by keyword, and returns one row, a dict of
            plain values, or a list of rows.
        runs: The parameters of each run: names to plain values (bool, int, float, str or None).
        store: Folder of finished runs, made if it is missing; by default the one that the environment variable
            ``NLS_STORE`` names, and without it nothing is kept.
        workers: Processes at once; by default as :func:`nls.run_grid`. Each has one thread of torch. One run alone
            starts none.
        time_limit: Seconds after which no further run is begun; what is left over has no row.
        progress: Whether to show a bar; by default in notebooks and terminals.

    Returns:
        The rows in the order of ``runs``: parameters, what the function found, and ``seconds`` that the run took.

    Raises:
        TypeError: If the function is not callable, or a parameter or a value found is not plain.
        ValueError: If there is no run, two are equal, or a row repeats the name of a parameter.
        OSError: If the store cannot be written.

    Examples:
        >>> def power(base, exponent):
        ...     return {"value": base**exponent}
        >>> runs = [{"base": 2, "exponent": 3}, {"base": 2, "exponent": -1}]
        >>> run_all(power, runs, workers=1)["value"].tolist()
        [8.0, 0.5]
    """
    if not inspect.isfunction(function):
        raise TypeError(f"function must be a function, got {_checks.describe(function)}")
    wanted = [_checked(run, "runs") for run in runs]
    if not wanted:
        raise ValueError("runs must hold at least one set of parameters, got none")
    kept = _Kept(function, session_store() if store is None else store)
    names = [kept.name(run) for run in wanted]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"runs must differ from each other, got {wanted[index]} twice")
    deadline = _deadline(time_limit)
    found = {name: record for name in names if (record := kept.read(name))}
    tasks = [(name, run) for name, run in zip(names, wanted, strict=True) if name not in found]
    with tqdm(total=len(names), initial=len(found), disable=not _shows(progress), unit="run", file=sys.stderr) as bar:
        for record in _made(function, tasks, _count_workers(workers, on_gpu=False), deadline):
            kept.write(record)
            found[record["id"]] = record
            bar.update()
    rows = [
        run | row | {"seconds": found[name]["seconds"]}
        for name, run in zip(names, wanted, strict=True) if name in found
        for row in found[name]["rows"]
    ]  # fmt: skip
    return pd.DataFrame(rows)


class _Kept:
    """The folder of a function's finished runs."""

    def __init__(self, function: Callable[..., Rows], folder: str | os.PathLike[str] | None) -> None:
        self.function = f"{function.__module__}.{function.__qualname__}"
        self.code, self.commit = _digest(function), code_commit()
        self.folder = None if folder is None else Path(folder).expanduser()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def name(self, run: Mapping[str, Value]) -> str:
        """Return the name of a run's file: a digest of the function's name and the parameters."""
        return hashlib.sha256(json.dumps([self.function, sorted(run.items())]).encode()).hexdigest()[:16]

    def read(self, name: str) -> dict | None:
        """Return the record of a run, or None if there is none that is sound."""
        if self.folder is None:
            return None
        path = self.folder / f"{name}.json"
        try:
            record = decode(path.read_bytes())
            if record.get("code") != self.code:
                raise ValueError(f"it was made by another version of {self.function}")
        except FileNotFoundError:
            return None
        except ValueError as error:
            warnings.warn(f"{path.name} in {self.folder} counts as missing: {error}", RecordWarning, stacklevel=4)
            return None
        return record

    def write(self, record: dict) -> None:
        """Write a record in one step."""
        if self.folder is None:
            return
        made = record | {"function": self.function, "code": self.code, "commit": self.commit}
        put_whole(
            self.folder / f"{record['id']}.json", encode(made), self.folder / f".{record['id']}.{os.getpid()}.part"
        )


def _made(
    function: Callable[..., Rows], tasks: list[tuple[str, dict]], workers: int, deadline: float
) -> Iterator[dict]:
    """Run the tasks, and yield a record of each as it ends."""
    within = (joblib.delayed(_run)(function, name, run) for name, run in tasks if time.time() < deadline)
    workers = min(workers, max(1, len(tasks)))  # one task needs no other process; a cluster's -1 stays
    parallel = joblib.Parallel(workers, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
    with contextlib.closing(parallel(within)) as records:
        yield from records


def _run(function: Callable[..., Rows], name: str, run: dict) -> dict:
    """Run one task on one thread."""
    threads, start = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        rows = function(**run)
    except Exception as error:
        error.add_note(f"in {function.__qualname__} with {run}")
        raise
    finally:
        torch.set_num_threads(threads)
    rows = [
        _checked(row, f"what {function.__qualname__} returns") for row in (rows if isinstance(rows, list) else [rows])
    ]
    for row in rows:
        if both := row.keys() & run.keys():
            raise ValueError(f"{function.__qualname__} must not return the names of its parameters, got {min(both)!r}")
    return {"id": name, "parameters": run, "rows": rows, "seconds": round(time.perf_counter() - start, 3)}


def _checked(values: object, argument: str) -> dict[str, Value]:
    """Return a dict of plain values, numbers of NumPy as those of Python."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{argument} must hold dicts of plain values, got {_checks.describe(values)}")
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
    for key, value in plain.items():
        if not isinstance(key, str) or not isinstance(value, _PLAIN):
            raise TypeError(
                f"{argument} must hold numbers, texts or None by name, got {key!r}: {_checks.describe(value)}"
            )
    return plain


def _digest(function: Callable[..., Rows]) -> str:
    """Return a digest of a function's code without comments, layout and docstrings."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
