"""Run the launch copies as Colab does: a fresh machine for each, its set-up cell as it is, then the other cells.

    python .ci/colab.py [--only GLOB] [--first-figure] [--resume NOTEBOOK]

The environment that runs this stands for Colab's. A machine is an empty virtual environment on top of it, so that what
a set-up cell installs is seen, and is gone with the machine. The code is that of the last commit.
"""

import argparse
import fnmatch
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import venv
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))  # the pipeline is a folder of scripts, not a package

from launch import source_commit, write_launch_copies  # noqa: E402
from parameters import plan_runs  # noqa: E402

FIGURES = {"image/png", "image/svg+xml"}
FIRST_FIGURE = 120.0  # seconds that a reader waits at most, set-up included
TIMEOUT = 900  # seconds that a cell may take
FEW = 20  # runs on the drive, at which the machine is taken away


class FigureSeen(Exception):  # noqa: N818
    """Ends a run that has shown its first figure."""


@dataclass
class Run:
    """How one copy went.

    Attributes:
        setup: Seconds until the set-up cell was done, the start of the kernel included.
        figure: Seconds until the first figure, or None without one.
        processor: Seconds of processor until the first figure, or in all without one.
        seconds: Seconds in all.
        added: What the set-up cell installed.
        error: What failed, or an empty string.
    """

    setup: float = 0.0
    figure: float | None = None
    processor: float = 0.0
    seconds: float = 0.0
    added: list[str] = field(default_factory=list)
    error: str = ""

    def __str__(self) -> str:
        """Return the times."""
        figure = "no figure" if self.figure is None else f"first figure {self.figure:5.1f} s"
        return f"{self.seconds:6.1f} s   set-up {self.setup:5.1f} s   {figure}, processor {self.processor:5.1f} s"


def installed(path: list[str] | None = None) -> dict[str, str]:
    """Return the versions of what is installed, by name."""
    found = distributions(**({"path": path} if path else {}))
    return {re.sub("[-_.]+", "-", one.metadata["Name"]).lower(): one.version for one in found}


def new_machine(folder: Path) -> Path:
    """Make a machine that has what this environment has.

    Args:
        folder: Where; emptied first.

    Returns:
        The folder in which it installs packages.
    """
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "colab.pth").write_text("\n".join(here) + "\n")
    spec = folder / "share" / "jupyter" / "kernels" / "colab"
    spec.mkdir(parents=True)
    command = [str(folder / "env" / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    environment = {"PYTHONPATH": str(ROOT / ".ci" / "colab"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "colab", "env": environment}))
    os.environ["JUPYTER_PATH"] = str(folder / "share" / "jupyter")
    return packages


def run_copy(path: Path, parameters: dict, content: Path, until_figure: bool = False, kill_when=None) -> Run:
    """Run a launch copy on a new machine.

    Args:
        path: The copy.
        parameters: What is typed in place of the notebook's own parameters.
        content: What Colab calls /content; emptied but for a drive.
        until_figure: Whether the first figure is enough.
        kill_when: Called again and again; once it is true, the machine is taken away.

    Returns:
        How it went.
    """
    shutil.rmtree(content / ROOT.name, ignore_errors=True)
    packages, run, start = new_machine(content.with_name("machine")), Run(), time.monotonic()
    notebook = nbformat.read(path, 4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    typed = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(typed))
    client = NotebookClient(notebook, kernel_name="colab", timeout=TIMEOUT, resources={"metadata": {"path": content}})
    client.on_cell_executed = lambda cell, **_: look(cell)

    def look(cell: nbformat.NotebookNode) -> None:
        run.setup = run.setup or time.monotonic() - start  # the first cell is the set-up
        if run.figure is None:
            run.processor = processor_seconds(client)
            if any(FIGURES & output.get("data", {}).keys() for output in cell.get("outputs", [])):
                run.figure = time.monotonic() - start
                if until_figure:
                    raise FigureSeen

    if kill_when:
        threading.Thread(target=take_away, args=(client, kill_when), daemon=True).start()
    try:
        client.execute()
    except FigureSeen:
        pass
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        run.error = f"{type(error).__name__}: {str(error)[-3000:]}"
    run.seconds, run.added = time.monotonic() - start, sorted(installed([str(packages)]))
    run.error += find_fault(notebook.cells[0], run.added)
    return run


def find_fault(setup: nbformat.NotebookNode, added: list[str]) -> str:
    """Say what a set-up cell did that it must not, or did not do that it must.

    Args:
        setup: The cell, executed.
        added: What it installed.

    Returns:
        A text that ends in a line break, or an empty one.
    """
    said, fault = "".join(output.get("text", "") for output in setup.outputs), ""
    if replaced := sorted(installed().keys() & added):
        fault += f"set-up replaced what was there: {', '.join(replaced)}\n"
    if "GPU" not in said:
        fault += f"set-up did not say whether there is a GPU, but {said!r}\n"
    return fault


def kernel_id(client: NotebookClient) -> int:
    """Return the kernel's process id, whatever the version of jupyter_client."""
    return (getattr(client.km, "provisioner", None) or client.km.kernel).pid


def processor_seconds(client: NotebookClient) -> float:
    """Return what the kernel and all that it started have used."""
    kernel = psutil.Process(kernel_id(client))
    alive = sum(sum(one.cpu_times()[:2]) for one in kernel.children(recursive=True))
    return alive + sum(kernel.cpu_times()[:4])  # its own, and of those that have ended


def take_away(client: NotebookClient, when) -> None:
    """Kill the kernel and all that it started, once it is time."""
    while not when():
        time.sleep(0.05)
    os.killpg(kernel_id(client), signal.SIGKILL)


def check_resume(path: Path, parameters: dict, content: Path) -> str:
    """Take the machine away while a copy trains, run it again on a new one, and see what was kept.

    Args:
        path: The copy.
        parameters: What is typed in place of the notebook's own parameters.
        content: What Colab calls /content.

    Returns:
        What failed, or an empty string.
    """
    store = content / "drive" / "MyDrive" / "nls"
    text = path.read_text()
    copy = path.with_name("resumed.ipynb")
    copy.write_text(text.replace('DRIVE = \\"\\"', f'DRIVE = \\"{store}\\"'))

    def records() -> dict[str, tuple[int, bytes]]:
        return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in store.glob("*.json")}

    first = run_copy(copy, parameters, content, kill_when=lambda: len(list(store.glob("*.json"))) >= FEW)
    kept = records()
    second = run_copy(copy, parameters, content)
    after = records()
    third = run_copy(copy, parameters, content)
    print(f"taken away after {first.seconds:.0f} s with {len(kept)} of {len(after)} runs on the drive;", end=" ")
    print(f"again {second.seconds:.0f} s, once more {third.seconds:.0f} s", flush=True)
    if "DeadKernelError" not in first.error:
        return f"{path.stem} was not taken away: {first.error}"
    if second.error or third.error:
        return second.error or third.error
    if not 0 < len(kept) < len(after):
        return f"{len(kept)} runs were on the drive, {len(after)} at the end: nothing was left to resume"
    if any(after[name] != record for name, record in kept.items()) or records() != after:
        return "a run that was on the drive was trained again"
    return ""


def main() -> int:
    """Run what the command line names; 1 if anything fails."""
    parser = argparse.ArgumentParser(description="Run the launch copies as Colab does.")
    parser.add_argument("--only", default="*", metavar="GLOB", help="these notebooks")
    parser.add_argument("--first-figure", action="store_true", help="only until the first figure, with the defaults")
    parser.add_argument("--resume", metavar="NOTEBOOK", help="take the machine away in this one, and resume it")
    args = parser.parse_args()
    there = installed()
    shown = ", ".join(f"{name} {there[name]}" for name in ("torch", "torchvision", "numpy", "pandas", "ipykernel"))
    print(f"Python {sys.version.split()[0]}, {shown}", flush=True)
    runs = plan_runs(ROOT / "book", "smoke", [])
    failed = passed = 0
    with tempfile.TemporaryDirectory() as name:
        content, commit = Path(name) / "content", source_commit(ROOT, {})
        content.mkdir()
        written = write_launch_copies(ROOT / "book", Path(name) / "launch", str(ROOT), commit, str(content))
        for path in written:
            if args.resume or not fnmatch.fnmatch(path.stem, args.only):
                continue
            run = run_copy(path, {} if args.first_figure else runs[path.stem], content, args.first_figure)
            if args.first_figure and run.figure is not None and run.figure > FIRST_FIGURE:
                run.error += f"the first figure took longer than {FIRST_FIGURE:.0f} s\n"
            failed, passed = failed + bool(run.error), passed + (not run.error)
            print(f"{path.stem:<22} {'FAILED' if run.error else 'ok':<6} {run}   + {' '.join(run.added)}", flush=True)
            print(run.error, end="", flush=True)
        if args.resume:
            error = check_resume(written[0].with_stem(args.resume), runs[args.resume], content)
            failed, passed = int(bool(error)), int(not error)
            print(error or "nothing that was on the drive was trained again")
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main())
