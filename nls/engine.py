r"""Run a grid: chunks of cells on worker processes, a store that survives any of them, one line of progress."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import inspect
import logging
import math
import os
import re
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import pandas as pd
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from nls import _checks
from nls.chunk import train_chunk
from nls.grid import ENGINE_VERSION, Cell, Grid
from nls.records import RecordStore, row_of, session_store
from nls.text import TEXT_SETS

CHUNK = 28
"""The most cells in one chunk, few enough that little is lost with one."""

_LOG = logging.getLogger(__name__)
_PATIENCE = 3  # deaths of workers in a row without a single new record
_READ_WHOLE = 2**28  # bytes of a folder of data up to which its files are read for their digest
_POLL = 0.5  # seconds between looks at cells that another process trains


class WorkerError(RuntimeError):
    """Workers died again and again without finishing anything, or are of another version of the engine."""


class _Memory:
    """What a run without a store keeps: the results of this run, nothing on disk."""

    folder = None

    def __init__(self) -> None:
        self._done: dict[str, dict] = {}
        self.files: dict[str, str] = {}

    def expect(self, files: dict[str, str]) -> None:
        self.files = files

    def results(self, cell: Cell) -> dict | None:
        return self._done.get(cell.id)

    def write(self, record: dict) -> None:
        self._done[record["id"]] = {name: record[name] for name in ("results", "chunk")}

    def claim(self, ids: list[str]) -> bool:
        return True

    def release(self, ids: list[str]) -> None:
        pass

    sweep = close = lambda self: None


def run_grid(
    grid: Grid,
    *,
    store: str | os.PathLike[str] | RecordStore | None = None,
    root: str | Path | None = None,
    workers: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
    time_limit: float | None = None,
) -> pd.DataFrame:
    r"""Train every cell of a grid that is not in the store, and return one row for each cell, in the grid's order.

    MLPs that share data, seed and schedule are trained together by :func:`nls.fit_stack`, at most :data:`CHUNK` at a
    time; other networks one by one by :func:`nls.fit_each`, those with the same warm-up from one that is trained once.
    Chunks go to worker processes of one thread each on a CPU, one process to a GPU. Training and validation labels are
    noisy, test labels clean. A cell's labels, initialisation and batches depend on its own factors alone, and the flips
    at one seed are nested: a higher rate only adds some.

    With a ``store`` a finished chunk is on disk before the next result is taken. Call again after an interruption, and
    only chunks that were in flight are trained again, with the same neighbours, so that the table of the same grid is
    the same to the last bit on the same machine. A larger grid trains only what it adds. Several processes may run on
    one store.

    On a cluster, start the workers there and name joblib's backend:
    ``with joblib.parallel_config(backend="dask"): run_grid(grid, store=folder)``. Only this process writes records; a
    ``root`` must be at the same place everywhere, and image networks keep checkpoints where a worker sees the store.
    The cluster decides how many chunks it trains at once. It gives up a chunk that kills its worker again and again,
    and joblib 1.6 then waits for ever: interrupt, and call again.

    Columns: ``id`` and the factors; ``realised_noise_rate`` of the training labels; for each rule (``last``,
    ``noisy_validation``, ``clean_test``) the ``epoch`` and, on the clean test set, ``accuracy``, ``nll`` in nats,
    ``nll_mapped`` (after the output map that undoes rate and noise, :func:`nls.output_map`), ``kl`` = KL(true
    posterior || model) and ``kl_mapped`` where the posterior is known, ``entropy`` of the model's prediction, ``ece``
    (:func:`nls.expected_calibration_error`), ``confidence_right`` and ``confidence_wrong`` (mean largest probability
    where the prediction is right and where it is wrong); of networks other than MLPs on 5,000 training examples also
    ``memorised``, ``recovered`` and ``train_accuracy`` (:func:`nls.measure.fitted`); ``validation_accuracy``, on noisy
    labels; ``train_loss``; ``negative_loss_epoch``, the first epoch with a mean training loss below 0, which no
    probability vector can reach when the rate is feasible, or 0; ``diverged_epoch``, or 0; ``seconds``, its share of
    the chunk's.
    ``table.attrs`` counts the cells that this call ``trained`` and, of torn chunks, those that it ``repeated``.

    Args:
        grid: The cells.
        store: A :class:`nls.records.RecordStore` or its folder; by default the folder that the environment variable
            ``NLS_STORE`` names, and without it the results are kept in memory only.
        root: Folder of your own data sets, see :func:`nls.load_dataset`; for the cells with ``from_root``.
        workers: Processes on this machine; by default as many as the environment variable ``NLS_WORKERS`` says, else
            one for each core, or for each GPU where networks are trained on them; 1 runs in this process.
        device: Where networks are trained, such as ``"cuda"``; by default MLPs on the CPU, image networks on a GPU
            where there is one.
        time_limit: Seconds, for a machine that is lent for a while: no cell is started that would end later, judged by
            those before it, and the table holds the finished cells only; None for no limit.
        progress: Whether to show a line on stderr; None shows it on a terminal and in a notebook, unless the
            environment variable ``CI`` or ``TQDM_DISABLE`` is set.

    Returns:
        The table, one row for each cell.

    Raises:
        TypeError: If ``grid`` is not a :class:`nls.Grid`, or ``store`` not a path.
        ValueError: If a data set cannot be loaded, ``workers`` or ``time_limit`` is out of range, or ``root`` is given
            without cells that need it, or missing for cells that do.
        OSError: If the store cannot be written; what it holds stays.
        WorkerError: If workers die (killed, or out of memory) three times in a row before anything is finished,
            or answer with records of another engine.

    Examples:
        >>> table = run_grid(Grid(dataset="wine", smooth_rate=[0.0, -1.0], noise_rate=0.2, epochs=2), workers=1)
        >>> table[["smooth_rate", "diverged_epoch"]].values.tolist()
        [[0.0, 0.0], [-1.0, 0.0]]
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a Grid, got {type(grid).__name__}")
    if any(cell.from_root for cell in grid) != (root is not None):
        raise ValueError("root must be given for cells with from_root=True, and only for them")
    if workers is not None:
        workers = _checks.integer(workers, "workers", low=1)
    if not (store is None or isinstance(store, (str, os.PathLike, RecordStore))):
        raise TypeError(f"store must be a folder or a RecordStore, got {_checks.describe(store)}")
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", str(device)):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:0' and so on, got {device!r}")
    store = session_store() if store is None else store
    records = _Memory() if store is None else store if isinstance(store, RecordStore) else RecordStore(store)
    records.expect({name: _digest(root, name) for name in {cell.dataset for cell in grid if cell.from_root}})
    images = any(cell.network != "mlp" for cell in grid)
    on_gpu = torch.cuda.is_available() and (images if device is None else str(device) == "cuda")
    workers = _count_workers(workers, on_gpu)
    options = {"root": root, "device": device, "keep_curves": store is not None}
    options |= {"checkpoints": records.folder, "files": records.files, "deadline": _deadline(time_limit)}
    options["parent"] = os.getpid() if workers > 1 and _is_local() else None
    run = _Run(grid, records, workers, options, _shows(progress))
    try:
        run.finish()
    finally:
        if records is not store:
            records.close()
    found = {cell: stored["results"] for cell in grid if (stored := records.results(cell))}
    table = pd.DataFrame([row_of(cell) | results for cell, results in found.items()])
    table.attrs |= {"trained": run.trained, "repeated": run.repeated}
    return table


def plan_chunks(grid: Grid, results: Callable[[Cell], dict | None]) -> list[list[Cell]]:
    """Return the chunks that are left to train, the longest first.

    An untouched grid is cut into chunks of cells with one ``stack_key``, in its order. A chunk of which a part is
    missing, because the run was killed between two records or one was damaged, is trained again as it was: float32
    results are the same to the last bit for the same chunk only. Cells that were added to a grid later make chunks of
    their own.

    Args:
        grid: The cells.
        results: Returns what is stored of a cell, with its ``chunk``, or None.
    """
    stacks: dict[tuple, list[Cell]] = {}
    for cell in grid:
        stacks.setdefault(cell.stack_key, []).append(cell)
    chunks = []
    for cells in stacks.values():
        known, by_id = {cell.id: results(cell) for cell in cells}, {cell.id: cell for cell in cells}
        missing = {name for name, stored in known.items() if stored is None}
        if not missing:
            continue
        planned = [cells[i : i + CHUNK] for i in range(0, len(cells), CHUNK)]
        # Chunks that were cut short, by the word of the records that they left.
        torn = {tuple(stored["chunk"]) for stored in known.values() if stored and missing.intersection(stored["chunk"])}
        whole = [[by_id[name] for name in ids] for ids in sorted(torn) if set(ids) <= set(by_id)]
        again = {cell.id for chunk in whole for cell in chunk}
        whole += [chunk for chunk in planned if all(cell.id in missing - again for cell in chunk)]
        covered = {cell.id for chunk in whole for cell in chunk}
        rest = [cell for cell in cells if cell.id in missing - covered]
        chunks += whole + [rest[i : i + CHUNK] for i in range(0, len(rest), CHUNK)]
    return sorted(chunks, key=lambda chunk: -sum(cell.epochs + cell.warmup_epochs for cell in chunk))


class _Run:
    """One call of :func:`run_grid`: what is left, who trains it, and what is shown of it."""

    def __init__(self, grid: Grid, records: RecordStore | _Memory, workers: int, options: dict, shows: bool) -> None:
        self.grid, self.records, self.workers, self.options, self.shows = grid, records, workers, options, shows
        self.trained = self.repeated = 0
        self.slowest = 0.0  # seconds of the slowest cell so far
        self.known = {cell.id for cell in grid}
        self.first_shown: int | None = None
        self.claimed: set[str] = set()

    def finish(self) -> None:
        """Train until no cell is missing."""
        self.records.sweep()
        deaths = 0
        with tqdm(total=len(self.grid), disable=not self.shows, unit="cell", file=sys.stderr) as bar:
            while self._has_time() and (chunks := plan_chunks(self.grid, self.records.results)):
                before, died = self.trained, False
                try:
                    self._train(chunks, bar)
                except TerminatedWorkerError as error:
                    died, deaths = True, 1 if self.trained > before else deaths + 1
                    if deaths >= _PATIENCE:
                        named = ", ".join(sorted(self.claimed))
                        raise WorkerError(f"workers died {deaths} times in a row, at the cells {named}") from error
                    message = f"a worker process died; its cells of {len(self.claimed)} in flight are trained again"
                    warnings.warn(message, RuntimeWarning, stacklevel=3)
                finally:
                    self.records.release(list(self.claimed))
                    self.claimed.clear()
                if self.trained == before and not died:
                    time.sleep(_POLL)  # what is left is being trained by another process
            self._show(bar)

    def _train(self, chunks: list[list[Cell]], bar: tqdm) -> None:
        """Train the chunks that no other process has claimed, and store each as it comes."""
        self._show(bar)
        with warnings.catch_warnings():
            # joblib replaces a worker that has grown by a large data set, loses nothing by it, and warns.
            warnings.filterwarnings(
                "ignore", "A worker stopped while some jobs were given to the executor", UserWarning
            )
            # What was in flight when this run failed is trained again by the next.
            warnings.filterwarnings("ignore", ".*You could benefit from adjusting the input task", UserWarning)
            options = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "n_jobs + 1"}
            if self.options["parent"] and _HAS_INITIALIZER:
                options |= {"initializer": _end_with_parent, "initargs": (self.options["parent"],)}
            parallel = joblib.Parallel(n_jobs=self.workers, **options)
            with contextlib.closing(parallel(self._tasks(chunks))) as results:
                for made in results:
                    for record in made:
                        if record["engine"] != ENGINE_VERSION or record["id"] not in self.known:
                            told = f"engine {record['engine']} and cell {record['id']}, this is {ENGINE_VERSION}"
                            raise WorkerError(f"all workers must have one version of nls, one answered with {told}")
                        if record["id"] in self.claimed:
                            self.records.write(record)
                            self.trained += 1
                            self.slowest = max(self.slowest, record["seconds"])
                        else:
                            self.repeated += 1
                    ids = [record["id"] for record in made]
                    self.records.release(ids)
                    self.claimed.difference_update(ids)
                    self._show(bar)

    def _tasks(self, chunks: list[list[Cell]]) -> Iterator:
        """Claim chunks as joblib asks for them, a few ahead of the workers: processes on one store share the rest."""
        for chunk in chunks:
            if not self._has_time():
                return
            missing = [cell.id for cell in chunk if self.records.results(cell) is None]
            if not missing or not self.records.claim(missing):
                continue
            self.claimed.update(missing)
            # Another process may have finished them between the look and the claim.
            if any(self.records.results(cell) for cell in chunk if cell.id in missing):
                self.records.release(missing)
                self.claimed.difference_update(missing)
                continue
            yield joblib.delayed(_work)(chunk, **self.options)

    def _has_time(self) -> bool:
        """Return whether a cell that takes as long as the slowest so far would end in time."""
        return time.time() + self.slowest <= self.options["deadline"]

    def _show(self, bar: tqdm) -> None:
        if not self.shows:
            return
        stored = [self.records.results(cell) for cell in self.grid]
        done = [entry for entry in stored if entry]
        if self.first_shown is None:
            self.first_shown = bar.initial = len(done)  # the rate and the time left are those of this run
        bar.n = len(done)
        bar.set_postfix(diverged=sum(entry["results"]["diverged_epoch"] > 0 for entry in done))


def _work(
    chunk: list[Cell],
    root: object,
    device: str | None,
    checkpoints: Path | None,
    files: dict[str, str],
    keep_curves: bool,
    deadline: float,
    parent: int | None,
) -> list[dict]:
    """Train a chunk on one thread, in a worker of the parent or, with one worker, in the launching process."""
    if parent:
        _end_with_parent(parent)
    images = chunk[0].network != "mlp"
    if torch.cuda.is_available() and (str(device) == "cuda" or (device is None and images)):
        device = f"cuda:{_own_gpu()}"
    # On another machine of a cluster the folder of the store may not be there.
    checkpoints = checkpoints if checkpoints and checkpoints.is_dir() else None
    # A cluster's worker may have several threads, but torch's seeds and number of threads are the process's.
    with _ONE_AT_A_TIME:
        _LOG.info("process %d trains %s", os.getpid(), " ".join(cell.id for cell in chunk))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            records = train_chunk(chunk, root, device, checkpoints, files, deadline)
        finally:
            torch.set_num_threads(threads)
    return records if keep_curves else [record | {"curves": {}} for record in records]


_ONE_AT_A_TIME = threading.Lock()


def _deadline(time_limit: float | None) -> float:
    if time_limit is None:
        return math.inf
    return time.time() + _checks.number(time_limit, "time_limit", low=0.0)


def _digest(root: object, name: str) -> str:
    """Return a digest of a data set's files, or "" where the loader checks them itself or will say what is wrong."""
    if not isinstance(root, (str, os.PathLike)):
        return ""
    for path in (Path(root) / f"{name}.csv", Path(root) / f"{name}.npz"):
        if path.is_file():
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    folders = [Path(root) / name, *([Path(root) / "ag_news_csv"] if name in TEXT_SETS else [])]
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    found = hashlib.sha256()
    few = sum(path.stat().st_size for path in paths) <= _READ_WHOLE
    for path in paths:
        found.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
        found.update(path.read_bytes() if few else b"")  # of a huge folder the names and sizes must do
    return found.hexdigest() if paths else ""


def _is_local() -> bool:
    return type(joblib.parallel.get_active_backend()[0]).__name__ == "LokyBackend"


_watched: set[int] = set()
# joblib 1.4 has none; there a worker watches its parent from its first task on.
_HAS_INITIALIZER = "backend_kwargs" in inspect.signature(joblib.Parallel).parameters


def _end_with_parent(parent: int) -> None:
    """End this process soon after its parent, which may be killed without a chance to end its workers."""
    if parent in _watched or parent == os.getpid():
        return
    _watched.add(parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_gpu: list = []


def _own_gpu() -> int:
    """Return the GPU of this process for its whole life: one that no other worker on this machine holds."""
    if not _gpu:
        claims = RecordStore(Path(tempfile.gettempdir()) / f"nls-gpus-{getpass.getuser()}")
        count = torch.cuda.device_count()
        free = (index for index in range(count) if claims.claim([f"{2 * index:016x}"]))
        # The store stays open, and with it the claim; with more workers than GPUs they share.
        _gpu.extend([next(free, os.getpid() % count), claims])
    return _gpu[0]


def _shows(progress: bool | None) -> bool:
    if progress is not None:
        return bool(progress)
    if os.environ.get("CI") or os.environ.get("TQDM_DISABLE"):
        return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _count_workers(workers: int | None, on_gpu: bool) -> int:
    """Return the number of processes: the argument, NLS_WORKERS, the cluster's, the GPUs or the cores."""
    named = os.environ.get("NLS_WORKERS", "")
    if named and not (named.isdecimal() and int(named)):
        raise ValueError(f"the environment variable NLS_WORKERS must be a number of at least 1, got {named!r}")
    if workers:
        return workers
    if not _is_local():
        return -1  # a cluster's backend knows how many workers it has
    return int(named or (torch.cuda.device_count() if on_gpu else os.cpu_count()) or 1)
