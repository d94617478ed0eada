"""The repository's address, and the copies of the notebooks that open on Colab.

The address is one setting, the environment variable NLS_REPOSITORY_URL. Without it, what GitHub Actions says of
itself is used; without that too, the book is built with no launch buttons.

A build writes the copies and pushes nothing. The buttons open the branch LAUNCH_BRANCH, so they work once the copies
have been pushed there; the last line of a build with buttons says so.
"""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import nbformat
from parameters import BookError, read_notebook

LAUNCH_BRANCH = "launch"  # what the Colab buttons open; you push the launch copies there
COLAB = "https://colab.research.google.com"

CONTENT = "/content"  # where Colab's files are; a drive is mounted below it

# What a chapter needs that Colab lacks, beside what nls itself needs.
PACKAGES = {"01_smooth_rate": ["timm"], "31_graphs": ["torch_geometric"], "40_your_rate": ["cleanlab"]}

# What a launch copy does first. Colab fetches one commit, so that the code is the one that built the page, and
# installs what is missing under constraints that hold what is there, for a replaced torch breaks the runtime.
SETUP = """\
# Set-up for Colab: fetches the book's code at the commit that built this page. Elsewhere it does nothing.
DRIVE = ""  # "{content}/drive/MyDrive/nls" keeps there what studies train; after a disconnect, run all: they go on
REPOSITORY = "{url}"
COMMIT = "{commit}"

import importlib
import os
import subprocess
import sys
from importlib.metadata import version

if "google.colab" in sys.modules:
    folder, held = "{content}/{name}", "{content}/held.txt"
    with open(held, "w") as file:
        file.writelines(f"{{name}}=={{version(name)}}\\n" for name in ("torch", "torchvision", "numpy", "scipy"))
    for command in (
        ["git", "init", "--quiet", folder],
        ["git", "-C", folder, "fetch", "--quiet", "--depth", "1", REPOSITORY, COMMIT],
        ["git", "-C", folder, "checkout", "--quiet", COMMIT],
        [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", held, {packages}],
    ):
        subprocess.run(command, check=True)
    importlib.invalidate_caches()
    os.chdir(folder + "/book/notebooks")
    if DRIVE:
        from google.colab import drive

        drive.mount("{content}/drive")
        os.environ["NLS_STORE"] = DRIVE
    import torch

    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    print(f"GPU: {{gpu}}" if gpu else "No GPU: all runs on the CPU. For one: Runtime, Change runtime type, T4 GPU.")"""


def repository_url(environment: Mapping[str, str]) -> str | None:
    """Find the repository's address.

    Args:
        environment: Environment variables. NLS_REPOSITORY_URL wins, also when it is empty, which means none.

    Returns:
        The address without a trailing slash or .git, or None.

    Raises:
        BookError: If it is not https://HOST/OWNER/NAME.
    """
    url = environment.get("NLS_REPOSITORY_URL")
    if url is None:
        server, repository = environment.get("GITHUB_SERVER_URL"), environment.get("GITHUB_REPOSITORY")
        url = f"{server}/{repository}" if server and repository else ""
    url = url.strip().rstrip("/").removesuffix(".git")
    if url and not re.fullmatch(r"https://[\w.:-]+/[\w.-]+/[\w.-]+", url):
        raise BookError(f"NLS_REPOSITORY_URL: expected https://HOST/OWNER/NAME, got {url}")
    return url or None


def source_commit(root: Path, environment: Mapping[str, str]) -> str:
    """Find the commit that is being built.

    Args:
        root: The checkout.
        environment: Environment variables; GITHUB_SHA wins.

    Returns:
        The full hash.

    Raises:
        BookError: If there is none: a launch copy must name the code that it runs.
    """
    sha = environment.get("GITHUB_SHA")
    if not sha:
        command = ["git", "-C", str(root), "rev-parse", "--verify", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        sha = answer.stdout.strip() if answer.returncode == 0 else ""
    if not sha:
        raise BookError("launch copies need a commit: build in a git checkout that has one, or set GITHUB_SHA")
    return sha


def launch_settings(url: str | None) -> dict:
    """Return what the address adds to the book's configuration.

    Args:
        url: The repository's address or None.

    Returns:
        Keys of _config.yml; no button without an address, nor for a host that Colab cannot open.
    """
    # With neither key, Jupyter Book falls back to its own repository's address, and a reader could end up there.
    if url is None or not url.startswith("https://github.com/"):
        return {"repository": {"url": url or ""}, "launch_buttons": {}}
    return {
        "repository": {"url": url, "path_to_book": "book", "branch": LAUNCH_BRANCH},
        "launch_buttons": {"notebook_interface": "jupyterlab", "colab_url": COLAB},
    }


def write_launch_copies(source: Path, out: Path, url: str, commit: str, content: str = CONTENT) -> list[Path]:
    """Write the notebooks as Colab opens them: no outputs, a set-up cell first.

    Args:
        source: The book's folder.
        out: Where to write; the copies land in out/book/notebooks, as the buttons expect.
        url: The repository's address.
        commit: The commit to fetch.
        content: Where Colab's files are.

    Returns:
        The files written.
    """
    target = out / "book" / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted((source / "notebooks").glob("*.ipynb")):
        notebook = read_notebook(path)
        packages = ", ".join(["folder", *(f'"{name}"' for name in PACKAGES.get(path.stem, []))])
        setup = SETUP.format(url=url, commit=commit, name=url.rsplit("/", 1)[1], content=content, packages=packages)
        cell = nbformat.v4.new_code_cell(setup, id="launch-setup", metadata={"tags": ["hide-input"]})
        notebook.cells.insert(0, cell)
        nbformat.write(notebook, target / path.name)
        written.append(target / path.name)
    return written
