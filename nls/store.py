"""Result tables on disk: one folder for each study, one CSV for each data set, and a data card."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pandas as pd

# Columns of texts that may look like numbers.
_TEXTS = ("file", "hidden", "id", "layer")


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
        ValueError: If the study or its data card is missing, or a file is empty, cut short, not in UTF-8, or has
            other columns or a text among the numbers of a column.

    Examples:
        >>> table = load_results("paper_uci")
        >>> float(table.query("dataset == 'splice' and noise_rate == 0.4")["accuracy"].max())
        0.845
    """
    folder = results_root() / _plain(study, "study")
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
    table = pd.concat([t.assign(file=p.name) for p, t in zip(files, tables, strict=True)])
    _check_numbers(table)
    return table.reset_index(drop=True)


def _plain(name: object, argument: str) -> str:
    """Return a name that cannot leave the folder of results."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", str(name)):
        allowed = "letters, digits, '_', '-' and '.', and must not start with '.'"
        raise ValueError(f"{argument} must be made of {allowed}, got {str(name)!r}")
    return str(name)


def _check_numbers(table: pd.DataFrame) -> None:
    """Refuse a text in a column that mostly holds numbers; the index counts the rows of each file from 0."""
    for column in table.select_dtypes(exclude=["number", "bool"]).columns.difference(_TEXTS):
        values = table[[column, "file"]].dropna()
        wrong = values[pd.to_numeric(values[column], errors="coerce").isna()]
        if 0 < 2 * len(wrong) < len(values):
            text, file = wrong.iloc[0]
            raise ValueError(f"{file}, line {wrong.index[0] + 2}: {column} must be a number, got {text!r}")


def _read(path: Path) -> pd.DataFrame:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} must be in UTF-8: {error}") from error
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
        study: The folder's name, of letters, digits, "_", "-" and "."; made if missing.
        by: The column whose values name the files, made of the same.

    Returns:
        The paths, in the order of the values.

    Raises:
        ValueError: If the table is empty, ``by`` is not a column or misses a value, a name is not plain, or a value
            or a column's name holds a comma or a line break.
    """
    if by not in table:
        raise ValueError(f"by must be a column of the table, got {by!r}")
    if table.empty:
        raise ValueError("table must have at least one row, got none")
    if table[by].isna().any():
        raise ValueError(f"by must be a column without missing values, got {table[by].isna().sum()} in {by!r}")
    text = table.select_dtypes(exclude="number")
    if any(map(_splits, table.columns)) or text.map(_splits).any(axis=None):
        raise ValueError("table must not hold a comma or a line break in a value or in the name of a column")
    folder = results_root() / _plain(study, "study")
    parts = [(_plain(name, by), rows) for name, rows in table.groupby(by, sort=True)]
    folder.mkdir(exist_ok=True)
    paths = []
    for name, rows in parts:
        paths.append(folder / f"{name}.csv")
        _write(paths[-1], rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return paths


def _splits(value: object) -> bool:
    """Return whether a value would break a line or a column of a CSV file."""
    return any(mark in str(value) for mark in ",\n\r")


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
