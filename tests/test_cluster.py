"""A grid on a real local dask cluster of three worker processes, one of which is killed."""

import logging
import os
import signal
import threading
import time

import joblib
import pandas as pd
import pytest

from nls.engine import run_grid
from nls.grid import Grid

distributed = pytest.importorskip("distributed", reason="needs the extra nls[cluster]")
# The library's own noise while a worker dies and a cluster closes.
pytestmark = pytest.mark.filterwarnings("ignore")

GRID = {
    "dataset": "digits", "noise_rate": [0.0, 0.4], "smooth_rate": [0.4, 0.0, -0.4, -1.0], "seed": range(6),
    "hidden": (32, 32), "epochs": 60, "optimizer": "sgd", "learning_rate": 0.02, "max_update_norm": 1.0,
}  # fmt: skip


class LogStarts(distributed.WorkerPlugin):
    """Appends what ``nls.engine`` logs in a worker to a file: which process trains which cells."""

    def __init__(self, path):
        self.path = path

    def setup(self, worker):
        logger = logging.getLogger("nls.engine")
        logger.disabled = False
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.FileHandler(self.path))


def starts(path):
    """Return (process, cells) of every chunk that was begun."""
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(words[1]), tuple(words[3:])) for words in lines]


def kill_one(path, killed):
    """Kill the worker that began the fourth chunk, as soon as it has."""
    deadline = time.monotonic() + 60
    while len(begun := starts(path)) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(begun[3][0], signal.SIGKILL)
    killed.append(begun[3][0])


def test_a_killed_worker_of_a_cluster_costs_its_chunks_only(tmp_path, capsys):
    local = run_grid(Grid(**GRID), workers=1)
    log, killed = tmp_path / "starts.log", []
    options = {"n_workers": 3, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, cluster.get_client() as client:
        client.register_plugin(LogStarts(log))
        workers = set(client.run(os.getpid).values())
        killer = threading.Thread(target=kill_one, args=(log, killed), daemon=True)
        killer.start()
        with joblib.parallel_config(backend="dask"):
            table = run_grid(Grid(**GRID), store=tmp_path / "store")
        killer.join(timeout=60)
    begun = starts(log)
    chunks = [ids for _, ids in begun]
    retried = {ids for ids in chunks if chunks.count(ids) > 1}
    with capsys.disabled():
        cells = sum(map(len, retried))
        print(f"\n3 workers {sorted(workers)}, killed {killed[0]}; {cells} cells trained again: {sorted(retried)}")
    assert len(workers) == 3
    assert killed[0] in workers
    assert len({pid for pid, _ in begun} & workers) == 3
    assert retried, "the killed worker was idle: nothing had to be trained again"
    assert all((killed[0], ids) in begun for ids in retried)  # and nothing of the other workers
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), local.drop(columns="seconds"))
