import errno
import json
import math
import multiprocessing
import os

import pytest

import nls.records
from nls.grid import ENGINE_VERSION, Grid
from nls.records import RecordStore, RecordWarning

GRID = Grid(dataset="wine", smooth_rate=[0.2, 0.0, -1.0])


def record(cell, **results):
    """A record as the engine makes it, with little in it."""
    return {
        "engine": ENGINE_VERSION, "id": cell.id, "chunk": [c.id for c in GRID], "factors": {},
        "curves": {"accuracy": [0.1, math.nan, math.inf]},
        "results": {"accuracy_last": 1 / 3, "diverged_epoch": 0} | results,
    }  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path / "store")


def test_a_record_comes_back_to_the_last_bit(store):
    first = GRID.cells[0]
    store.write(record(first))
    back = store.read(first)
    assert back["results"]["accuracy_last"] == 1 / 3
    assert back["curves"]["accuracy"][0] == 0.1
    assert math.isnan(back["curves"]["accuracy"][1])
    assert back["curves"]["accuracy"][2] == math.inf
    assert RecordStore(store.folder).read(first)["results"] == back["results"]


def test_a_table_has_a_row_for_each_cell_with_its_state(store):
    store.write(record(GRID.cells[0]))
    store.write(record(GRID.cells[2], diverged_epoch=4))
    table = store.table(GRID)
    assert table["state"].tolist() == ["done", "missing", "diverged"]
    assert table["smooth_rate"].tolist() == [0.2, 0.0, -1.0]
    assert table["accuracy_last"].isna().tolist() == [False, True, False]
    assert [cell.id for cell in store.missing(GRID)] == [GRID.cells[1].id]
    curves = store.curves(GRID)
    assert curves.columns.tolist() == ["id", "epoch", "accuracy"]
    assert curves["epoch"].tolist() == [1, 2, 3, 1, 2, 3]
    assert store.curves(store.missing(GRID)).empty


@pytest.mark.parametrize("position", [0, 5, 40, 84, 90, 150, -2, -1])
def test_any_changed_byte_is_found(store, position):
    cell = GRID.cells[0]
    store.write(record(cell))
    path = store.folder / f"{cell.id}.json"
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    with pytest.warns(RecordWarning, match=rf"{cell.id}\.json in .* counts as missing"):
        assert store.read(cell) is None


def test_any_truncation_is_found(store):
    cell = GRID.cells[0]
    store.write(record(cell))
    path = store.folder / f"{cell.id}.json"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.warns(RecordWarning, match="cut short or changed|empty or damaged"):
            assert store.read(cell) is None


def test_a_damaged_record_is_named_once_and_a_mended_one_is_read(store, recwarn):
    cell = GRID.cells[0]
    (store.folder / f"{cell.id}.json").write_text("nonsense")
    assert store.results(cell) is None
    assert store.results(cell) is None
    assert len(recwarn) == 1
    store.write(record(cell))
    assert store.results(cell)["results"]["accuracy_last"] == 1 / 3


def test_records_of_another_engine_or_cell_count_as_missing(store):
    first, second = GRID.cells[:2]
    store.write(record(first) | {"engine": ENGINE_VERSION - 1})
    with pytest.warns(RecordWarning, match=f"made by engine {ENGINE_VERSION - 1}, this is engine {ENGINE_VERSION}"):
        assert store.read(first) is None
    store.write(record(first))
    (store.folder / f"{first.id}.json").rename(store.folder / f"{second.id}.json")
    with pytest.warns(RecordWarning, match=f"it is the record of cell {first.id}"):
        assert store.read(second) is None


def test_two_stores_exclude_each_other_until_release(store):
    other, ids = RecordStore(store.folder), [cell.id for cell in GRID]
    assert store.claim(ids[:2])
    assert not store.claim(ids[:1])
    assert not other.claim(ids[1:])  # all or nothing: the free one is given back
    assert other.claim(ids[2:])
    store.release(ids[:2])
    assert other.claim(ids[:2])
    assert not store.claim(ids[1:2])
    other.close()
    assert store.claim(ids)


def hold(folder, name, claimed):
    claimed.put(RecordStore(folder).claim([name]))
    os.kill(os.getpid(), 9)


def test_a_killed_process_loses_its_claim(store):
    name = GRID.cells[0].id
    context = multiprocessing.get_context("spawn")
    claimed = context.SimpleQueue()
    process = context.Process(target=hold, args=(store.folder, name, claimed))
    process.start()
    process.join()
    assert claimed.get() is True
    assert store.claim([name])


def test_a_living_process_keeps_its_claim_and_its_part(store):
    name = GRID.cells[0].id
    part = store.folder / f".{name}.part"
    part.write_text("half")
    (store.folder / ".notes.part").write_text("of somebody else")
    assert RecordStore(store.folder).claim([name]) is True  # given back with its store, which nobody keeps
    holder = RecordStore(store.folder)
    assert holder.claim([name])
    store.sweep()
    assert part.exists()
    holder.close()
    store.sweep()
    assert sorted(path.name for path in store.folder.iterdir()) == [".lock", ".notes.part"]


def test_a_drive_without_locks_is_said_and_used(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(nls.records, "_lock_byte", refuse)
    with pytest.warns(RecordWarning, match="cannot be locked .*: let one process at a time train there"):
        assert store.claim([GRID.cells[0].id])


def test_a_drive_that_fails_is_not_taken_for_a_claim(store, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(nls.records, "_lock_byte", fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.claim([GRID.cells[0].id])


def test_locks_of_the_process_work_where_those_of_the_file_are_missing(store, monkeypatch):
    monkeypatch.delattr(nls.records.fcntl, "F_OFD_SETLK")
    name = GRID.cells[0].id
    assert store.claim([name])
    assert not store.claim([name])
    context = multiprocessing.get_context("spawn")
    claimed = context.SimpleQueue()
    process = context.Process(target=hold, args=(store.folder, name, claimed))
    process.start()
    process.join()
    assert claimed.get() is False  # held by this process, whichever kind of lock the other one uses
    store.release([name])
    assert store.claim([name])


def test_a_failed_write_leaves_nothing_behind(store, monkeypatch):
    cell = GRID.cells[0]
    store.write(record(cell, accuracy_last=0.5))

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"the store .* must take a record of \d+ bytes: No space left") as caught:
        store.write(record(cell))
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in store.folder.iterdir()] == [f"{cell.id}.json"]
    assert store.read(cell)["results"]["accuracy_last"] == 0.5


def test_a_record_is_text_that_other_programs_read(store):
    cell = GRID.cells[0]
    store.write(record(cell))
    head, body = (store.folder / f"{cell.id}.json").read_text().splitlines()
    assert head.startswith("nls-record-1 ")
    assert json.loads(body)["id"] == cell.id


def test_bad_folders_and_grids_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, error, message in (
        (3, TypeError, "folder must be a path, got 3"),
        (tmp_path / "file", ValueError, "folder must be one that exists or can be made"),
    ):
        with pytest.raises(error, match=message):
            RecordStore(folder)
    for name in ("table", "curves", "missing"):
        with pytest.raises(TypeError, match="grid must be a Grid, got list"):
            getattr(RecordStore(tmp_path), name)([])
