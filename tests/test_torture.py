"""Kill, fill, lock and damage a running grid; the resumed table must equal the uninterrupted one.

Three random kills by default; ``make torture`` makes twenty. The seed of the moments is printed and can be given.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from nls.engine import CHUNK, run_grid
from nls.grid import Grid
from nls.records import RecordStore, RecordWarning

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("NLS_TORTURE_KILLS", "3"))
SEED = int(os.environ.get("NLS_TORTURE_SEED") or time.time_ns() % 10**6)
FACTORS = {
    "dataset": "digits", "noise_rate": [0.0, 0.4], "smooth_rate": [0.8, 0.4, 0.2, 0.0, -0.2, -0.4, -0.8, -1.0, -2.0],
    "seed": range(6), "hidden": (32, 32), "epochs": 40, "optimizer": "sgd", "learning_rate": 0.02,
    "max_update_norm": 1.0,
}  # fmt: skip
GRID = Grid(**FACTORS)
SCRIPT = f"from nls import Grid, run_grid; import sys; run_grid(Grid(**{FACTORS!r}), store=sys.argv[1], workers=2)"


@pytest.fixture(scope="module")
def whole():
    """The table of an uninterrupted run; seconds are those of the clock."""
    return run_grid(GRID, workers=2).drop(columns="seconds")


def start(store, before="", **options):
    """Start a run with two workers in a process of its own, after a few words of code."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", before + SCRIPT, str(store)], env=environment, cwd=ROOT, **options)


def stored(folder):
    """Return name -> (inode, time of writing) of the records in a folder."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.json")}


def count_records(folder):
    """Count fast: a kill is to hit a chunk while its records are being written."""
    return sum(name.endswith(".json") for name in os.listdir(folder)) if folder.exists() else 0


def assert_resumes(folder, whole, before=None):
    """Run the grid to its end in the folder; nothing that was sound before may be written again."""
    before = stored(folder) if before is None else before
    table = run_grid(GRID, store=folder, workers=2)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole)
    after = stored(folder)
    assert {name: after[name] for name in before} == before
    assert table.attrs["trained"] == len(GRID) - len(before)
    assert set(after) == {f"{cell.id}.json" for cell in GRID}
    assert {path.name for path in folder.iterdir()} - set(after) <= {".lock"}
    return table.attrs


def workers_of(run):
    """Return the run's worker processes; a child that has just ended, such as git, is none."""
    found = []
    for process in psutil.Process(run.pid).children() if run.poll() is None else []:
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one of these
            if "popen_loky" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_for_death(processes):
    """Return those that live on three seconds later."""
    return psutil.wait_procs(processes, timeout=3)[1]


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_goes_on_where_it_stopped(number, whole, tmp_path, capsys):
    folder, chance = tmp_path / "store", random.Random(SEED + number)
    wanted = chance.randrange(len(GRID))  # so that it is never over, and most often in the middle of a chunk
    run = start(folder)
    while count_records(folder) < wanted and run.poll() is None:
        time.sleep(0.0005)
    time.sleep(0.003 * chance.random() if wanted else 8 * chance.random())  # the start takes seconds
    family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)] if run.poll() is None else []
    run.send_signal(signal.SIGKILL)
    status, orphans = run.wait(), wait_for_death(family)
    before = stored(folder)
    parts = [path.name for path in folder.glob(".*.part")]
    attrs = assert_resumes(folder, whole, before)
    with capsys.disabled():
        said = f"{len(before)} of {len(GRID)} cells stored, {attrs['trained']} trained, {attrs['repeated']} repeated"
        print(f"\nkill -9 no. {number} of seed {SEED} (status {status}): {said}, {len(parts)} torn files")
    assert orphans == []
    # A chunk whose records were half written is trained as a whole; there is one such at most.
    assert attrs["repeated"] < CHUNK


def test_workers_that_are_still_starting_do_not_outlive_the_run(tmp_path):
    run = start(tmp_path / "store")
    workers = []
    while len(workers) < 2 and run.poll() is None:
        workers = workers_of(run)
        time.sleep(0.01)
    assert len(workers) == 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    # They import torch first, which takes seconds, and then see that they are alone.
    assert psutil.wait_procs(workers, timeout=40)[1] == []


def test_workers_end_with_their_run_where_joblib_has_no_initializer(tmp_path):
    folder = tmp_path / "store"
    run = start(folder, before="import nls.engine; nls.engine._HAS_INITIALIZER = False; ")
    while not stored(folder) and run.poll() is None:
        time.sleep(0.01)
    workers = workers_of(run)
    run.send_signal(signal.SIGKILL)
    run.wait()
    ended, others = psutil.wait_procs(workers, timeout=10)
    for worker in others:  # one that had no task yet watches nothing there
        worker.kill()
    assert ended


def test_a_killed_worker_does_not_end_the_run(whole, tmp_path):
    folder = tmp_path / "store"
    run = start(folder, stderr=subprocess.PIPE, text=True)
    while not stored(folder) and run.poll() is None:
        time.sleep(0.01)
    workers = workers_of(run)
    workers[0].kill()
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 0, said
    assert "a worker process died" in said
    assert_resumes(folder, whole)


def test_two_runs_share_one_store_and_train_nothing_twice(whole, tmp_path):
    folder, go = tmp_path / "store", tmp_path / "go"
    # Both start their workers at once, or the first could be done before the second begins.
    script = (
        "import sys, time; from pathlib import Path; from nls import Grid, run_grid\n"
        "Path(sys.argv[2]).touch()\n"
        "while not Path(sys.argv[3]).exists(): time.sleep(0.01)\n"
        f"table = run_grid(Grid(**{FACTORS!r}), store=sys.argv[1], workers=2)\n"
        "print(table.attrs['trained'], table.attrs['repeated'])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ready = [tmp_path / "first", tmp_path / "second"]
    commands = [[sys.executable, "-c", script, str(folder), str(path), str(go)] for path in ready]
    runs = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, text=True) for c in commands]
    while not all(path.exists() for path in ready) and all(run.poll() is None for run in runs):
        time.sleep(0.01)
    go.touch()
    counts = [tuple(map(int, run.communicate(timeout=120)[0].split())) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum(trained for trained, _ in counts) == len(GRID)
    assert sum(repeated for _, repeated in counts) == 0
    assert min(trained for trained, _ in counts) > 0, "one of them had nothing to do"
    assert_resumes(folder, whole)


@pytest.fixture
def small_drive(tmp_path):
    """A drive of 64 KB, which is too small for the grid."""
    folder = tmp_path / "drive"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a small drive needs privileges that this process lacks")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder, option):
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


@pytest.fixture
def joblib_may_lose_a_task(monkeypatch):
    """When a run is aborted, joblib's own thread may look up a task that was just taken back; nothing waits for it."""
    report = threading.excepthook

    def hook(args):
        if not (args.exc_type is KeyError and args.thread.name == "ExecutorManagerThread"):
            report(args)

    monkeypatch.setattr(threading, "excepthook", hook)


@pytest.mark.usefixtures("joblib_may_lose_a_task")
def test_a_full_drive_loses_nothing(whole, small_drive):
    with pytest.raises(OSError, match=r"the store .* must take a record of \d+ bytes: No space left on device"):
        run_grid(GRID, store=small_drive, workers=2)
    before = stored(small_drive)
    assert 0 < len(before) < len(GRID)
    assert list(small_drive.glob(".*.part")) == []
    assert len(RecordStore(small_drive).missing(GRID)) == len(GRID) - len(before)
    remount(small_drive, "size=16m")
    assert_resumes(small_drive, whole, before)


def test_a_read_only_store_is_read_and_refuses_to_train(whole, small_drive):
    part = Grid(**FACTORS | {"seed": [0]})
    remount(small_drive, "size=16m")
    run_grid(part, store=small_drive, workers=1)
    remount(small_drive, "ro")
    table = run_grid(part, store=small_drive, workers=1)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole[whole["seed"] == 0].reset_index(drop=True))
    with pytest.raises(OSError, match=r"the store .* must be writable: Read-only file system"):
        run_grid(GRID, store=small_drive, workers=1)
    states = RecordStore(small_drive).table(GRID)["state"]
    assert states.value_counts()["missing"] == len(GRID) - len(part)
    remount(small_drive, "rw")


def test_damaged_and_foreign_records_are_named_and_trained_again(whole, tmp_path):
    folder = tmp_path / "store"
    run_grid(GRID, store=folder, workers=2)
    names = sorted(stored(folder))
    flipped, cut, empty, foreign, other = (folder / names[i] for i in (0, 30, 60, 90, 105))
    position = random.Random(SEED).randrange(flipped.stat().st_size)
    content = bytearray(flipped.read_bytes())
    content[position] ^= 1 << random.Random(SEED).randrange(8)
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-200])
    empty.write_bytes(b"")
    foreign.write_text('{"accuracy": 1.0}\n')
    other.write_bytes((folder / names[1]).read_bytes())  # a sound record under another cell's name
    damaged = {flipped.name, cut.name, empty.name, foreign.name, other.name}
    before = {name: stamp for name, stamp in stored(folder).items() if name not in damaged}
    with pytest.warns(RecordWarning) as warned:
        assert_resumes(folder, whole, before)
    said = [str(w.message) for w in warned]
    assert {name for name in damaged if any(line.startswith(name) for line in said)} == damaged
    assert len(said) == 5
    assert sum("cut short or changed" in line for line in said) + sum("so it is foreign" in line for line in said) == 4
    assert sum("it is the record of cell" in line for line in said) == 1
