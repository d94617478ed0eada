"""Execute notebooks with papermill, several at once, and tidy what comes back.

Each notebook runs in a process of its own by the same command that a reader would type, with kernels of linear
algebra on one thread. A notebook that wants more cores starts workers, as many as NLS_WORKERS says.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Outcome:
    """How one notebook went.

    Attributes:
        name: The notebook, without .ipynb.
        error: What failed, or an empty string.
        seconds: Wall time of the process.
        cpu_seconds: Processor time of the process and its kernel.
        peak_mb: Memory of the largest single process.
        cell_seconds: Time spent in cells.
    """

    name: str
    error: str
    seconds: float
    cpu_seconds: float
    peak_mb: float
    cell_seconds: float

    def __str__(self) -> str:
        """Return the progress line."""
        state = "FAILED" if self.error else "ok"
        return (
            f"{self.name:<28} {state:<6} {self.seconds:7.1f} s   processor {self.cpu_seconds:7.1f} s   "
            f"peak {self.peak_mb:6.0f} MB"
        )


def child_environment(root: Path, workers: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Build the environment of a notebook.

    Args:
        root: The checkout, put on PYTHONPATH so that an uninstalled one works.
        workers: How many cores the notebook may use, at least 1.
        environment: What to start from.

    Returns:
        A new mapping.
    """
    paths = [str(root), environment.get("PYTHONPATH", "")]
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NLS_WORKERS": str(workers),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # silences a debugger warning on stderr
    }


def describe_failure(source: nbformat.NotebookNode, executed: Path, stderr: str, timeout: int) -> str:
    """Say which cell failed, and how.

    Args:
        source: The notebook before it ran.
        executed: What papermill wrote; may be missing.
        stderr: What papermill printed.
        timeout: Seconds a cell may take.

    Returns:
        The cell, the error and the end of its traceback.
    """
    tail = [line for line in ANSI.sub("", stderr).splitlines() if line.strip()][-8:]
    if not executed.exists():
        return "\n".join(["did not start", *tail])
    cells = [
        c for c in nbformat.read(executed, 4).cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])
    ]
    started = [c for c in cells if c.cell_type == "code" and c.metadata.get("papermill", {}).get("duration")]
    errors = [(c, o) for c in started for o in c.outputs if o.output_type == "error"]
    cell = errors[0][0] if errors else started[-1] if started else None
    if cell is None:
        return "\n".join(["no cell was run", *tail])
    numbers = {c.id: number for number, c in enumerate(source.cells, 1)}
    where = f"cell {numbers[cell.id]}" if cell.id in numbers else "the injected parameters"
    tags = ", ".join(cell.metadata.get("tags", []))
    first = next(iter(cell.source.strip().splitlines()), "")
    place = f"{where} (id {cell.id}{'; ' + tags if tags else ''}), which starts `{first}`"
    if "CellTimeoutError" in stderr:
        return f"{place}\ntook longer than the {timeout} s a cell may take (--cell-timeout)"
    if not errors:
        return "\n".join([place, *tail])
    error = errors[0][1]
    frames = [line for line in ANSI.sub("", "\n".join(error.traceback)).splitlines() if line.strip()]
    return "\n".join([place, f"{error.ename}: {error.evalue}", *("  " + line for line in frames[-12:-1])])


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs between two runs that computed the same: times, paths, random ids, chunks of a stream.

    Args:
        notebook: An executed notebook; changed in place.

    Returns:
        The same notebook.
    """
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
            cell.metadata.tags = ["injected-parameters", "hide-input"]
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]  # papermill adds an empty list
        merged = []
        for output in cell.get("outputs", []):
            if merged and output.output_type == merged[-1].output_type == "stream" and output.name == merged[-1].name:
                merged[-1].text += output.text
            else:
                merged.append(output)
        if cell.cell_type == "code":
            cell.outputs = merged
    return notebook


def run_notebook(source: Path, target: Path, parameters: dict, environment: dict[str, str], timeout: int) -> Outcome:
    """Execute one notebook.

    Args:
        source: The notebook.
        target: Where the executed one goes; written only if every cell ran.
        parameters: Parameter -> value, already checked.
        environment: From `child_environment`.
        timeout: Seconds a cell may take.

    Returns:
        How it went.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "stderr"), "w+") as stderr:
        executed = Path(folder, source.name)
        command = [sys.executable, "-m", "papermill", str(source), str(executed), "--cwd", str(source.parent)]
        command += ["--kernel", "python3", "--no-progress-bar", "--execution-timeout", str(timeout)]
        if parameters:
            command += ["--parameters_yaml", yaml.safe_dump(parameters)]
        # A reader's own IPython start-up files must not change a page.
        environment = {**environment, "IPYTHONDIR": os.path.join(folder, "ipython")}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        printed, error, cell_seconds = stderr.read(), "", 0.0
        if process.returncode:
            error = describe_failure(nbformat.read(source, 4), executed, printed, timeout)
        else:
            notebook = nbformat.read(executed, 4)
            cell_seconds = sum(c.metadata.get("papermill", {}).get("duration") or 0 for c in notebook.cells)
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(tidy(notebook), target)
    return Outcome(
        name=source.stem,
        error=error,
        seconds=time.monotonic() - start,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        cell_seconds=cell_seconds,
    )


def run_notebooks(
    source: Path, target: Path, runs: dict[str, dict], jobs: int, environment: dict[str, str], timeout: int
) -> Iterator[Outcome]:
    """Execute notebooks, `jobs` at once, and yield each as it ends.

    Args:
        source: The folder of the notebooks.
        target: The folder for the executed ones.
        runs: Notebook -> parameter -> value.
        jobs: How many run at once.
        environment: From `child_environment`.
        timeout: Seconds a cell may take.

    Yields:
        One outcome per notebook, in the order they end.
    """
    with ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(run_notebook, source / f"{n}.ipynb", target / f"{n}.ipynb", p, environment, timeout)
            for n, p in runs.items()
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # on Ctrl-C, start no more
            for future in futures:
                future.cancel()
