"""Compare the numbers of a build with the expected ones, and the stored studies with a run of some of their cells.

    python book/drift.py [--out DIR] [--without-build]
    python book/drift.py [--out DIR] --write [--also DIR ...]

The first exits with 1 where anything drifted, prints what, and writes it to DIR/drift.md, a report for an issue; the
numbers of the build go to DIR/numbers.csv. The second makes the numbers of a build the expected ones; builds of the
same sources on other kernels or versions, named with --also, measure how far each number moves.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from again import RERUNS, ROOT, check_digests, check_rerun, digests, write_digests
from check_site import read_record
from expected import (
    PYTHON,
    Drift,
    Value,
    compare_values,
    read_expected,
    read_values,
    same_python,
    with_moves,
    write_expected,
)
from parameters import BookError, plan_runs

REPORTED = 200  # rows of the report: an issue holds 65,536 characters


def read_build(out: Path) -> dict[str, dict[str, Value]]:
    """Read the values of every notebook that the last build executed.

    Args:
        out: The build folder.

    Returns:
        Notebook -> name -> value.

    Raises:
        BookError: If there is no build, or a notebook of its record is gone.
    """
    folder, values = out / "stage" / "book" / "notebooks", {}
    for name in read_record(out):
        if not (folder / f"{name}.ipynb").is_file():
            raise BookError(f"{folder / name}.ipynb: no such file; build again")
        values[name] = read_values(folder / f"{name}.ipynb")
    return values


def profile_of(out: Path) -> str:
    """Return the profile of the last build.

    Raises:
        BookError: If its record does not say.
    """
    profile = json.loads((out / "run.json").read_text(encoding="utf-8")).get("profile")
    if not isinstance(profile, str):
        raise BookError(f"{out / 'run.json'}: expected the name of a profile, got {profile!r}")
    return profile


def check_build(root: Path, out: Path) -> tuple[list[Drift], list[str]]:
    """Compare the values of a build with those that are expected of its profile.

    Args:
        root: The folder of book/.
        out: The build folder.

    Returns:
        What drifted, and what was compared or left out, in words.

    Raises:
        BookError: If there is no build, or no expected numbers of its profile.
    """
    record, profile = read_record(out), profile_of(out)
    found, planned = read_build(out), plan_runs(root / "book", profile)
    expected = read_expected(root / "book" / "expected" / f"{profile}.csv")
    drifts, compared, other, texts = [], 0, [], []
    for name in sorted(planned):
        if name in record and record[name]["parameters"] != planned[name]:
            other.append(name)
        elif name not in found or name not in expected:
            said = ("its numbers", "no run in the build") if name in expected else ("no numbers stored", "the notebook")
            drifts.append(Drift(name, "all", *said))
        elif not same_python(expected[name], found[name]):
            texts.append(f"{name} (Python {found[name][PYTHON].shown})")
        else:
            drifts += compare_values(name, expected[name], found[name])
            compared += len(expected[name])
    drifts += [
        Drift(name, "all", "its numbers", "no such notebook") for name in sorted(expected.keys() - planned.keys())
    ]
    notes = [f"profile {profile}: {compared} numbers and verdicts compared"]
    notes += [f"not compared, as they ran with other parameters than the profile's: {', '.join(other)}"] * bool(other)
    notes += [f"not compared, as the text that comes with Python was another: {', '.join(texts)}"] * bool(texts)
    return drifts, notes


def check_studies(results: Path) -> tuple[list[Drift], list[str]]:
    """Compare the files of the stored studies with their digests, and run a few of their cells again.

    Args:
        results: The folder of the studies.

    Returns:
        As :func:`check_build`.
    """
    drifts, notes = check_digests(results), [f"{len(digests(results))} files of stored studies compared by digest"]
    for rerun in RERUNS:
        start = time.perf_counter()
        drifts += check_rerun(rerun)
        notes.append(f"{rerun.study}: cells run again in {time.perf_counter() - start:.1f} s")
    return drifts, notes


def markdown(drifts: list[Drift], notes: list[str]) -> str:
    """Write the report.

    Args:
        drifts: What drifted.
        notes: What was compared.

    Returns:
        Markdown: what was compared, where, and a table.
    """

    def cell(text: str) -> str:
        short = text if len(text) <= 100 else text[:97] + "..."
        return " ".join(short.split()).replace("|", "\\|").replace("`", "'")

    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn"))
    commit = os.environ.get("GITHUB_SHA", "")[:12]
    lines = [f"# Drift: {len(drifts)} numbers are not what was expected" if drifts else "# No drift", ""]
    lines += [f"- {note}" for note in notes]
    lines += [f"- Python {platform.python_version()}, {libraries}; {platform.machine()}, {platform.system()}"]
    lines += [f"- commit {commit}"] * bool(commit)
    if drifts:
        lines += ["", "| where | what | expected | found | may move by |", "|---|---|---|---|---|"]
        rows = [(d.where, d.what, d.expected, d.found, d.allowed) for d in drifts[:REPORTED]]
        lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
        lines += ["", f"{len(drifts) - REPORTED} more are left out."] * (len(drifts) > REPORTED)
        lines += ["", "If the change is meant, `make expected` stores the numbers of the build in `_build`."]
    return "\n".join(lines) + "\n"


def write(root: Path, out: Path, others: list[Path]) -> str:
    """Make the numbers of a build the expected ones.

    Args:
        root: The folder of book/.
        out: The build folder.
        others: Other builds, which measure how far numbers move; notebooks of other sources or parameters are ignored.

    Returns:
        What was written, in words.

    Raises:
        BookError: If a notebook of the book is not in the build, or ran with other parameters than the profile's.
    """
    record, profile = read_record(out), profile_of(out)
    planned, path = plan_runs(root / "book", profile), root / "book" / "expected" / f"{profile}.csv"
    wrong = sorted(n for n in planned if n not in record or record[n]["parameters"] != planned[n])
    if wrong:
        raise BookError(f"{out}: not a whole build of the profile {profile}: {', '.join(wrong)}")
    stored = read_expected(path) if path.exists() else {}
    found = {name: values for name, values in read_build(out).items() if name in planned}
    measured: dict[str, list[dict[str, Value]]] = {name: [] for name in found}
    for other in others:
        again, values = read_record(other), read_build(other)
        for name in found.keys() & again.keys():
            same = all(again[name].get(key) == record[name].get(key) for key in ("source", "parameters"))
            if same and same_python(found[name], values[name]):
                measured[name].append(values[name])
    moved = {
        name: {
            key: with_moves(value, [v[key] for v in measured[name] if key in v], stored.get(name, {}).get(key))
            for key, value in values.items()
        }
        for name, values in found.items()
    }
    count = write_expected(path, moved)
    unmeasured = sum(value.moved is None for values in moved.values() for value in values.values())
    return (
        f"{path.relative_to(root)}: {count} numbers and verdicts of {len(moved)} notebooks, {unmeasured} never measured"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the command line says, and return the exit status."""
    results = ROOT / "book" / "results"
    if args.write:
        if not args.without_build:
            print(write(ROOT, args.out, args.also))
        print(f"{results.relative_to(ROOT)}: digests of {write_digests(results)} files")
        return 0
    drifts, notes = check_studies(results)
    if not args.without_build:
        found, said = check_build(ROOT, args.out)
        drifts, notes = drifts + found, notes + said
        write_expected(args.out / "numbers.csv", read_build(args.out))
    args.out.mkdir(parents=True, exist_ok=True)
    report = markdown(drifts, notes)
    (args.out / "drift.md").write_text(report, encoding="utf-8")
    print(report, end="")
    return 1 if drifts else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; those of the process by default.

    Returns:
        The exit status: 0, 1 where something drifted, 2 where nothing could be compared.
    """
    parser = argparse.ArgumentParser(
        description="Compare a build's numbers with the expected ones.", allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=ROOT / "_build", help="build folder (default: _build)")
    parser.add_argument("--without-build", action="store_true", help="the stored studies only")
    parser.add_argument("--write", action="store_true", help="store the numbers of the build instead of comparing them")
    parser.add_argument("--also", type=Path, nargs="*", default=[], metavar="DIR", help="builds that measure movement")
    try:
        return run(parser.parse_args(arguments))
    except BookError as error:
        for finding in error.findings:
            print("drift:", finding, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
