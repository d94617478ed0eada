"""Result tables on disk: one folder for each study, one CSV for each data set, and a data card."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pandas as pd


def results_root() -> Path:
    """Return the folder that holds the studies.

    That is the environment variable ``NLS_RESULTS``, else ``book/results`` of the checkout that ``nls`` is imported
    from, else ``../results`` beside the notebooks.

    Raises:
        ValueError: If none of them is a folder.

    Examples:
        >>> results_root().name
        'results'
    """
    named = os.environ.get("NLS_RESULTS")
    beside = [Path(__file__).parents[1] / "book" / "results", Path("../results")]
    for folder in [Path(named)] if named else beside:
        if folder.is_dir():
            return folder.resolve()
    raise ValueError(
        f"the folder of results must exist, got {named or ', '.join(map(str, beside))}; set the "
        "environment variable NLS_RESULTS"
    )


def load_results(study: str) -> pd.DataFrame:
    """Return the stored table of a study: its CSV files, one below the other, in the order of their names.

    Args:
        study: The folder's name, such as ``"uci"``.

    Returns:
        The rows, with a column ``file`` that names the CSV each comes from.

    Raises:
        ValueError: If the study or its data card is missing, or a file is empty, cut short or has other columns.

    Examples:
        >>> table = load_results("paper_uci")
        >>> float(table.query("dataset == 'splice' and noise_rate == 0.4")["accuracy"].max())
        0.845
    """
    folder = results_root() / study
    files = sorted(folder.glob("*.csv"))
    if not files:
        known = ", ".join(sorted(p.name for p in results_root().iterdir() if p.is_dir()))
        raise ValueError(f"study must be a folder of results with CSV files, got {study!r}; known: {known}")
    if not (folder / "README.md").is_file():
        raise ValueError(f"study {study!r} must have a data card README.md, got none")
    tables = [_read(path) for path in files]
    for path, table in zip(files, tables, strict=True):
        other = set(table.columns) ^ set(tables[0].columns)
        if other:
            raise ValueError(f"{path.name} must have the columns of {files[0].name}, they differ in {sorted(other)}")
    return pd.concat([t.assign(file=p.name) for p, t in zip(files, tables, strict=True)], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise ValueError(f"{path.name} must end with a line break, it was cut short at line {text.count(chr(10)) + 1}")
    widths = [line.count(",") for line in text.splitlines()]
    for number, width in enumerate(widths, 1):
        if width != widths[0]:
            raise ValueError(f"{path.name}, line {number}: expected {widths[0] + 1} values, got {width + 1}")
    if len(widths) < 2:
        raise ValueError(f"{path.name} must have a header and at least one row, got {len(widths)} lines")
    return pd.read_csv(path)


def save_results(table: pd.DataFrame, study: str, by: str = "dataset") -> list[Path]:
    """Write a table into a study's folder, one CSV for each value of ``by``, with six significant digits.

    Each file is written beside its place and moved there in one step, so that no reader sees half of it.

    Args:
        table: Rows of :func:`nls.run_grid`; values must not hold commas.
        study: The folder's name; made if missing.
        by: The column whose values name the files.

    Returns:
        The paths, in the order of the values.

    Raises:
        ValueError: If ``by`` is not a column, or a value holds a comma or a line break.
    """
    if by not in table:
        raise ValueError(f"by must be a column of the table, got {by!r}")
    text = table.select_dtypes(exclude="number")
    if text.map(lambda value: any(mark in str(value) for mark in ",\n")).any(axis=None):
        raise ValueError("table must not hold a comma or a line break in a value")
    folder = results_root() / study
    folder.mkdir(exist_ok=True)
    paths = []
    for name, rows in table.groupby(by, sort=True):
        paths.append(folder / f"{name}.csv")
        _write(paths[-1], rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return paths


def _write(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old text or the new one, and a crash leaves no part behind."""
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
