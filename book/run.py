"""Build the book: check parameters, execute the notebooks in parallel, stage, render, check.

    python book/run.py --profile NAME [--jobs N] [--only GLOB] [--set NOTEBOOK.PARAMETER=VALUE] [--out DIR]

Everything lands in one folder, `_build` unless --out says otherwise:

    stage/      the book as it is rendered: sources, executed notebooks, derived configuration
    run.json    what each notebook ran with, and for how long
    html/       the site; replaced only by a complete one that passed every check
    launch/     the notebooks as Colab opens them; only where the repository's address is known
"""

import argparse
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import files
from pathlib import Path

import check_site
import joblib
import yaml
from cite import citation_settings
from execute import ANSI, child_environment, run_notebooks
from launch import LAUNCH_BRANCH, launch_settings, repository_url, source_commit, write_launch_copies
from parameters import BookError, plan_runs, read_cell_timeout
from recipe_tables import write_recipes
from statements import check_ledger, write_statements
from teaching import write_teaching

ROOT = Path(__file__).resolve().parents[1]


def stage_sources(root: Path, out: Path) -> Path:
    """Copy the book's sources to the stage, and MathJax beside them.

    Args:
        root: The folder of _config.yml and book/.
        out: The build folder.

    Returns:
        The staged book. Notebooks executed by an earlier run stay as they are; sources of notebooks never enter.
    """
    source, stage = root / "book", out / "stage" / "book"
    kept = {path.name: path.read_bytes() for path in (stage / "notebooks").glob("*.ipynb")}
    shutil.rmtree(out / "stage", ignore_errors=True)
    skipped = shutil.ignore_patterns(
        "*.ipynb", "__pycache__", "_build", ".ipynb_checkpoints", "profiles.yml", "objectives.yml"
    )
    scripts = {path.name for path in source.glob("*.py")}
    shutil.copytree(
        source, stage, ignore=lambda at, names: skipped(at, names) | (scripts if Path(at) == source else set())
    )
    (stage / "notebooks").mkdir(exist_ok=True)
    for name, content in kept.items():
        if (source / "notebooks" / name).exists():
            (stage / "notebooks" / name).write_bytes(content)
    vendor_mathjax(stage / "_web" / "mathjax")
    return stage


def vendor_mathjax(target: Path) -> None:
    """Copy the one script and the fonts that the pages need, so that maths shows without a network.

    Args:
        target: Where they go.

    Raises:
        BookError: If the Python package that carries MathJax has other contents than expected.
    """
    count = 0
    for file in files("sphinx-mathjax-offline"):
        if "mathjax" not in file.parts:
            continue
        relative = Path(*file.parts[file.parts.index("mathjax") + 1 :])
        if relative.name == "tex-chtml.js" or "woff-v2" in relative.parts:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), target / relative)
            count += 1
    if count < 2:
        raise BookError("sphinx-mathjax-offline: MathJax's files are not where they were; see requirements.txt")


def read_record(out: Path) -> dict[str, dict]:
    """Read what the last run left in run.json, if anything.

    Args:
        out: The build folder.

    Returns:
        Notebook -> its parameters, source hash and times; empty where there is no usable record.
    """
    try:
        return check_site.read_record(out)
    except BookError:
        return {}


def fresh_results(record: dict[str, dict], wanted: dict[str, dict], folder: Path) -> dict[str, dict]:
    """Pick the results of earlier runs that still hold.

    Args:
        record: Notebook -> entry of run.json.
        wanted: Notebook -> the parameters and the source hash that it would run with now.
        folder: The staged notebooks.

    Returns:
        The entries of the notebooks that need not run again.
    """
    return {
        name: record[name]
        for name, now in wanted.items()
        if name in record and record[name] == record[name] | now and (folder / f"{name}.ipynb").exists()
    }


def execute_book(root: Path, out: Path, runs: dict[str, dict], args: argparse.Namespace) -> list[str]:
    """Execute the notebooks, all or those that --only names, and record how it went.

    Args:
        root: The folder of _config.yml and book/.
        out: The build folder.
        runs: Notebook -> parameter -> value, of the whole book.
        args: The command line.

    Returns:
        The notebooks that have no up-to-date result because --only left them out.

    Raises:
        BookError: If --only matches nothing, or a notebook fails; all others have run by then.
    """
    source = root / "book" / "notebooks"
    hashes = {name: hashlib.sha256((source / f"{name}.ipynb").read_bytes()).hexdigest() for name in runs}
    chosen = {name: values for name, values in runs.items() if fnmatch.fnmatch(name, args.only)}
    if not chosen:
        raise BookError(f"--only {args.only}: no such notebook; known: {', '.join(runs)}")
    stage = stage_sources(root, out)
    left_out = {name: {"parameters": runs[name], "source": hashes[name]} for name in runs.keys() - chosen.keys()}
    record = fresh_results(read_record(out), left_out, stage / "notebooks")

    cores = joblib.cpu_count()
    jobs = min(args.jobs or cores, len(chosen))
    workers = max(1, cores // jobs)
    print(
        f"profile {args.profile}: {len(chosen)} notebooks, {jobs} at once, {workers} of {cores} cores each", flush=True
    )
    environment = child_environment(root, workers, os.environ)
    timeout = args.cell_timeout or read_cell_timeout(root / "book" / "profiles.yml", args.profile)
    failures = []
    for done, outcome in enumerate(run_notebooks(source, stage / "notebooks", chosen, jobs, environment, timeout), 1):
        print(f"[{done}/{len(chosen)}] {outcome}", flush=True)
        if outcome.error:
            failures.append(f"notebooks/{outcome.name}.ipynb: " + outcome.error)
        else:
            times = {"seconds": round(outcome.seconds, 3), "cell_seconds": round(outcome.cell_seconds, 3)}
            record[outcome.name] = {"parameters": runs[outcome.name], "source": hashes[outcome.name], **times}
    (out / "run.json").write_text(
        json.dumps({"profile": args.profile, "notebooks": dict(sorted(record.items()))}, indent=1) + "\n"
    )
    print(f"{len(chosen) - len(failures)} passed, {len(failures)} failed", flush=True)
    if failures:
        raise BookError(failures)
    return sorted(runs.keys() - record.keys())


def render(root: Path, out: Path, url: str | None, commit: str = "") -> Path:
    """Render the stage with Jupyter Book; any warning is an error.

    Args:
        root: The folder of _config.yml and book/.
        out: The build folder.
        url: The repository's address or None.
        commit: The commit that is built, if known: pages say it where they say how to cite them.

    Returns:
        The rendered site, not yet in its place.

    Raises:
        BookError: With every warning.
    """
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")) | launch_settings(url)
    citation = citation_settings(root, config["copyright"], commit, url)
    config["sphinx"]["config"]["html_context"]["citation"] = citation
    (out / "stage" / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    target = out / "render"
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [str(out / "stage" / "book"), "--config", str(out / "stage" / "_config.yml")]
    command += ["--path-output", str(target), "-W", "--keep-going", "-n"]
    environment = child_environment(root, 1, os.environ)
    answer = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    log = ANSI.sub("", answer.stdout).replace(str(out / "stage") + os.sep, "")
    (out / "render.log").write_text(log, encoding="utf-8")
    lines = [line for line in log.splitlines() if line.strip()]
    warnings = [line for line in lines if re.search(r"\b(WARNING|ERROR|SEVERE|CRITICAL):", line)]
    html = target / "_build" / "html"
    if answer.returncode or warnings or not (html / "index.html").exists():
        raise BookError(warnings or lines[-15:])
    (html / ".nojekyll").touch()  # GitHub Pages would otherwise drop the folders whose names start with _
    return html


def replace_site(new: Path, site: Path) -> None:
    """Put a complete new site in the place of the old one.

    Args:
        new: The rendered site.
        site: Where readers look.
    """
    old = site.with_name(site.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if site.exists():
        site.rename(old)
    new.rename(site)
    shutil.rmtree(old, ignore_errors=True)


def known_commit(root: Path, url: str | None) -> str:
    """Find the commit that is built, which only a book with an address must have.

    Args:
        root: The checkout.
        url: The repository's address or None.

    Returns:
        The full hash, or an empty string.

    Raises:
        BookError: If there is an address and no commit.
    """
    try:
        return source_commit(root, os.environ)
    except BookError:
        if url:
            raise
        return ""


def build(args: argparse.Namespace) -> None:
    """Build the book as the command line says.

    Args:
        args: The command line.

    Raises:
        BookError: With every finding of the step that failed.
    """
    start = time.monotonic()
    root, out = args.root.resolve(), (args.out or args.root / "_build").resolve()
    url = repository_url(os.environ)
    commit = known_commit(root, url)
    runs = plan_runs(root / "book", args.profile, args.set)
    check_site.check_toc(root / "book")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BookError(f"--out {out}: expected a folder, or a place for a new one: {error.strerror}") from None
    missing = execute_book(root, out, runs, args)
    if missing:
        print(f"with outputs, to be opened in Jupyter: {out / 'stage' / 'book' / 'notebooks'}")
        print(f"not rendered: no up-to-date run of {', '.join(missing)}; build without --only first")
        return
    record = read_record(out)
    seconds = {name: entry["seconds"] for name, entry in record.items()}
    source = f"{url}/blob/{commit}/tests" if url else ""
    if stated := write_statements(out / "stage" / "book", root / "tests", seconds, source):
        print(f"{stated} claims collected", flush=True)
    if trained := write_teaching(root / "book", out / "stage" / "book"):
        print(f"{trained} objectives listed", flush=True)
    write_recipes(out / "stage" / "book")
    html = render(root, out, url, commit)
    print(f"rendered {len(list(html.rglob('*.html')))} pages, 0 warnings", flush=True)
    findings = check_site.check(html, out / "stage" / "book", record, [str(root), sys.prefix]) + check_ledger(html)
    if findings:
        print(f"refused: {html}", flush=True)
        raise BookError(findings)
    replace_site(html, out / "html")
    shutil.rmtree(out / "render", ignore_errors=True)
    shutil.rmtree(out / "launch", ignore_errors=True)
    if url:
        write_launch_copies(root / "book", out / "launch", url, commit)
    size = sum(path.stat().st_size for path in (out / "html").rglob("*") if path.is_file()) / 2**20
    print(f"{time.monotonic() - start:.0f} s, {size:.1f} MB: {out / 'html' / 'index.html'}")
    if launch_settings(url)["launch_buttons"]:
        print(
            f"launch copies of {commit[:12]}: {out / 'launch'}; push what it holds to the branch {LAUNCH_BRANCH} of "
            f"{url}: until then the Colab buttons open nothing"
        )


def positive(text: str) -> int:
    """Read a whole number above zero, for argparse.

    Args:
        text: What was typed.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is anything else.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above zero, got {text}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; those of the process by default.

    Returns:
        The exit status: 0, or 1 where anything failed.
    """
    parser = argparse.ArgumentParser(description="Build the book.", allow_abbrev=False)
    parser.add_argument("--profile", default="book", help="a profile of book/profiles.yml (default: book)")
    parser.add_argument("--jobs", type=positive, help="notebooks that run at once (default: one per core)")
    parser.add_argument(
        "--only", default="*", metavar="GLOB", help="execute only these; render if the others are fresh"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NOTEBOOK.PARAMETER=VALUE", help="override")
    parser.add_argument("--cell-timeout", type=positive, help="seconds a cell may take (default: the profile's)")
    parser.add_argument("--out", type=Path, help="build folder (default: _build)")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of _config.yml and book/ (default: this one)")
    try:
        build(parser.parse_args(arguments))
    except BookError as error:
        for finding in error.findings:
            print("book:", finding, file=sys.stderr)
        print(f"book: NOT built, {len(error.findings)} findings; an earlier site stays as it was", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
