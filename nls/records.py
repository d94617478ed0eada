r"""The store of a grid: one file for each trained cell, written atomically, checked when it is read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import struct
import threading
import warnings
import weakref
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from nls import _checks
from nls.grid import ENGINE_VERSION, Cell, Grid

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

FORMAT = "nls-record-1"
"""First word of every record; another first word is a foreign file."""

_NAME = re.compile(r"[0-9a-f]{16}")
# What a file system answers that knows no locks, as some mounted drives do.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_TAKEN = {errno.EACCES, errno.EAGAIN}


class RecordWarning(UserWarning):
    """A record that is damaged or foreign, or a store that cannot be locked."""


def session_store() -> str | None:
    """Return the folder that the environment variable ``NLS_STORE`` names, or None.

    What a call without a store of its own trains is kept there, so that on a machine that may be taken away, as on
    Colab, one setting loses no run of any study.
    """
    return os.environ.get("NLS_STORE") or None


class RecordStore:
    r"""A folder with one file ``<id>.json`` for each trained cell.

    A file holds one line with the SHA-256 of what follows, and one line of JSON (with ``NaN`` and ``Infinity``): the
    cell's factors, ``results`` (a row of :func:`nls.run_grid`), ``curves`` (a list for each metric, one value an
    epoch), ``chunk`` (the ids that were trained together), and the ``device``, ``seconds``, ``versions``, ``commit``
    and time of its making. It appears whole or not at all. A file that is cut short, changed by a byte or not of this
    store is named in a :class:`RecordWarning` and counts as missing, so that the next run replaces it.

    ``files`` maps the name of a data set of your own to the digest of its file; a record of a cell with ``from_root``
    that was trained on another file then counts as missing too. :func:`nls.run_grid` fills it in by :meth:`expect`.

    Processes may share a store: each claims the cells that it trains by locks on the file ``.lock``, which the system
    drops when a process ends, however it ends. On a drive without locks one process at a time is safe.

    Args:
        folder: Where the records are; made with its parents if it is missing.

    Raises:
        TypeError: If ``folder`` is not a path.
        ValueError: If it is a file, or cannot be made.

    Examples:
        >>> import tempfile
        >>> from nls import run_grid
        >>> grid = Grid(dataset="wine", noise_rate=0.2, smooth_rate=[0.2, -1.0], epochs=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = run_grid(Grid.of(grid.cells[:1]), store=folder, workers=1)
        ...     store = RecordStore(folder)
        ...     print(store.table(grid)[["smooth_rate", "state"]].values.tolist(), len(store.missing(grid)))
        [[0.2, 'done'], [-1.0, 'missing']] 1
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"folder must be a path, got {_checks.describe(folder)}")
        self.folder = Path(folder).expanduser().absolute()
        self.files: dict[str, str] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"folder must be one that exists or can be made, got {self.folder}: {error}") from error
        self._known: dict[str, tuple[tuple[int, int, int] | None, dict | None]] = {}
        self._claimed: set[str] = set()
        self._guard = threading.Lock()
        self._handle: int | None = None

    def expect(self, files: dict[str, str]) -> None:
        """Say which files of your own, by digest, the records must have been trained on."""
        if files != self.files:
            self._known.clear()  # what was sound for other files may not be for these
        self.files = files

    def read(self, cell: Cell) -> dict | None:
        """Return a cell's record, or None if it is missing, damaged or foreign, which is said in a warning."""
        return self._look(cell)[1]

    def results(self, cell: Cell) -> dict | None:
        """Return a record's ``results`` and ``chunk``, without reading an unchanged file again; None as for read."""
        stamp, light = self._known.get(cell.id, (None, None))
        if stamp is None or stamp != self._stamp(cell):
            stamp, record = self._look(cell)
            light = record and {name: record[name] for name in ("results", "chunk")}
            self._known[cell.id] = stamp, light  # a damaged file is named once
        return light

    def _stamp(self, cell: Cell) -> tuple[int, int, int] | None:
        """Return what changes with the file of a cell, or None without one."""
        try:
            stat = (self.folder / f"{cell.id}.json").stat()
        except FileNotFoundError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _look(self, cell: Cell) -> tuple[tuple[int, int, int] | None, dict | None]:
        """Return the stamp of a cell's file and what it holds, both None without a file."""
        path, stamp = self.folder / f"{cell.id}.json", self._stamp(cell)
        try:
            return stamp, _decode(path.read_bytes(), cell, self.files)
        except FileNotFoundError:
            return None, None
        except ValueError as error:
            message = f"{path.name} in {self.folder} counts as missing: {error}"
            warnings.warn(message, RecordWarning, stacklevel=4)
            return stamp, None

    def write(self, record: dict) -> None:
        """Write a record in one step: readers see nothing of it, or all.

        Raises:
            OSError: If the drive is full or read-only; nothing is left behind.
        """
        path = self.folder / f"{record['id']}.json"
        try:
            put_whole(path, encode(record), self.folder / f".{record['id']}.part")
            path.with_suffix(".checkpoint").unlink(missing_ok=True)  # not needed any more
        except OSError as error:
            message = f"the store {self.folder} must take a record of {len(encode(record))} bytes: {error.strerror}"
            raise OSError(error.errno, message) from error

    def table(self, grid: Grid) -> pd.DataFrame:
        """Return one row for each cell of a grid, in its order, trained or not.

        The column ``state`` is ``"done"``, ``"diverged"`` or ``"missing"``; a missing cell has its factors and id
        only, the rest is not a number.

        Raises:
            TypeError: If ``grid`` is not a :class:`nls.Grid`.
        """
        rows = []
        for cell in _checked(grid):
            record = self.results(cell)
            results = record["results"] if record else {}
            state = "diverged" if results.get("diverged_epoch") else "done" if record else "missing"
            rows.append(row_of(cell) | {"state": state} | results)
        return pd.DataFrame(rows)

    def curves(self, grid: Grid) -> pd.DataFrame:
        """Return the curves of a grid's trained cells: columns ``id``, ``epoch`` from 1, and one for each metric."""
        records = [record for cell in _checked(grid) if (record := self.read(cell))]
        tables = [pd.DataFrame(record["curves"]).assign(id=record["id"]) for record in records]
        if not tables:
            return pd.DataFrame(columns=["id", "epoch"])
        tables = [table.assign(epoch=range(1, len(table) + 1)) for table in tables]
        joined = pd.concat(tables, ignore_index=True)
        return joined[["id", "epoch", *joined.columns.drop(["id", "epoch"])]]

    def missing(self, grid: Grid) -> Grid:
        """Return the cells of a grid that have no sound record."""
        return Grid.of(cell for cell in _checked(grid) if self.results(cell) is None)

    def sweep(self) -> None:
        """Remove what killed processes left half-written; what a living one is writing stays."""
        for part in self.folder.glob(".*.part"):
            name = part.name[1:-5]
            with contextlib.suppress(OSError):  # on a read-only drive it stays, and does no harm
                if _NAME.fullmatch(name) and self.claim([name]):
                    part.unlink(missing_ok=True)
                    self.release([name])

    def claim(self, ids: Iterable[str]) -> bool:
        """Take the sole right to train these cells, and return whether no other process or store has one of them.

        Raises:
            OSError: If the store is read-only.
        """
        with self._guard:
            ids, got = list(ids), []
            try:
                for name in ids:
                    if name in self._claimed or not self._lock(name, True):
                        break
                    got.append(name)
            finally:
                if len(got) < len(ids):
                    for name in got:
                        self._lock(name, False)
            if len(got) < len(ids):
                return False
            self._claimed.update(got)
            return True

    def release(self, ids: Iterable[str]) -> None:
        """Give claims back."""
        with self._guard:
            for name in self._claimed.intersection(ids):
                self._claimed.discard(name)
                self._lock(name, False)

    def close(self) -> None:
        """Give all claims back."""
        self.release(set(self._claimed))
        if self._handle is not None:
            self._closing()
            self._handle = None

    def _lock(self, name: str, taking: bool) -> bool:
        """Lock or unlock the byte of ``.lock`` that stands for a cell; return whether that worked."""
        if self._handle is None:
            try:
                self._handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
                self._closing = weakref.finalize(self, os.close, self._handle)
            except OSError as error:
                raise OSError(error.errno, f"the store {self.folder} must be writable: {error.strerror}") from error
        try:
            _lock_byte(self._handle, int(name, 16) >> 1, taking)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                message = f"{self.folder} cannot be locked ({error.strerror}): let one process at a time train there"
                warnings.warn(message, RecordWarning, stacklevel=5)
                return True
            if error.errno not in _TAKEN:
                raise
            return False
        return True


def row_of(cell: Cell) -> dict:
    """Return a cell's id and factors as the first columns of a table."""
    factors = {name: getattr(cell, name) for name in Cell.__dataclass_fields__}
    return {"id": cell.id} | factors | {"hidden": "x".join(map(str, cell.hidden)) or "linear"}


def _checked(grid: object) -> Grid:
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a Grid, got {type(grid).__name__}")
    return grid


def put_whole(path: Path, content: bytes, part: Path) -> None:
    """Write a file beside its place and move it there in one step: readers see nothing of it, or all."""
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a drive that became read-only
            part.unlink(missing_ok=True)
        raise


def encode(record: dict) -> bytes:
    """Return what the file of a record holds: the SHA-256 of its JSON, and the JSON."""
    body = json.dumps(record).encode() + b"\n"
    return f"{FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def decode(content: bytes) -> dict:
    """Return the record in a file, or raise a ValueError that says what is wrong with it."""
    head, _, body = content.partition(b"\n")
    if not head.startswith(FORMAT.encode() + b" "):
        raise ValueError(f"it does not start with {FORMAT!r}, so it is foreign, empty or damaged")
    if head != f"{FORMAT} {hashlib.sha256(body).hexdigest()}".encode():
        raise ValueError(f"its {len(content)} bytes do not have the checksum in their first line: cut short or changed")
    return json.loads(body)


def _decode(content: bytes, cell: Cell, files: dict[str, str]) -> dict:
    """Return the record of a cell in a file, or raise a ValueError that says what is wrong with it."""
    record = decode(content)
    if record.get("engine") != ENGINE_VERSION:
        raise ValueError(f"it was made by engine {record.get('engine')}, this is engine {ENGINE_VERSION}")
    if record.get("id") != cell.id:
        raise ValueError(f"it is the record of cell {record.get('id')}")
    if cell.from_root and record.get("file") != files.get(cell.dataset, record.get("file")):
        raise ValueError(f"it was trained on another file {cell.dataset!r} than the one in root")
    return record


def _lock_byte(handle: int, byte: int, taking: bool) -> None:
    """Lock or unlock one byte without waiting; the lock ends with the open file, so with its process."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no file locks on this system")
    if hasattr(fcntl, "F_OFD_SETLK"):
        # Locks of the open file, not of the process: two stores in one process exclude each other as well.
        kind = fcntl.F_WRLCK if taking else fcntl.F_UNLCK
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, byte, 1, 0))
    else:
        fcntl.lockf(handle, (fcntl.LOCK_EX | fcntl.LOCK_NB) if taking else fcntl.LOCK_UN, 1, byte)
