"""Commands for people without a notebook: python -m nls advise labels.csv probabilities.npy [--json]."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nls.advise import suggest_smooth_rate


def read_labels(path: Path, column: str | None = None, classes: Sequence[str] | None = None) -> torch.Tensor:
    r"""Read labels from a CSV file, or integers [n] from a ``.npy`` file.

    Args:
        path: A CSV file with a header, or with a single column without one; or a ``.npy`` file, without pickles.
        column: Name of the column of a CSV file; by default the only one, or the one named ``label``.
        classes: Names of the classes in the order of the columns of the probabilities, for labels that are names.

    Returns:
        Class indices [n].

    Raises:
        ValueError: If the file has no such column or a value is no class; the line, or the row, is named.

    Examples:
        >>> path = getfixture("tmp_path") / "labels.csv"
        >>> _ = path.write_text("name,label\na,cat\nb,dog\n")
        >>> read_labels(path, classes=["dog", "cat"])
        tensor([1, 0])
    """
    cells = _array_cells(path, column) if path.suffix == ".npy" else _csv_cells(path, column, classes)
    if not cells:
        raise ValueError(f"{path.name} must hold labels, got none")
    return torch.tensor([_class(f"{path.name}, {place}", text, classes) for place, text in cells])


def _array_cells(path: Path, column: str | None) -> list[tuple[str, str]]:
    """Return the place and the text of each label of a .npy file."""
    labels = _load(path, "integer labels [n]")
    if column is not None:
        raise ValueError(f"{path.name} must be a CSV file for --column, got --column {column}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path.name} must hold integer labels [n], got {labels.dtype} of shape {labels.shape}; names go "
            "into a CSV file"
        )
    return [(f"row {row}, counted from 0", str(label)) for row, label in enumerate(labels.tolist())]


def _csv_cells(path: Path, column: str | None, classes: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return the place and the text of each label of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"{path.name} is no text; labels are a CSV file, or a .npy file of integers") from None
    if not rows:
        return []
    head, place, first = rows[0][1], 0, 1
    if column is None and len(head) == 1:
        first = 0 if _is_number(head[0]) or head[0].strip() in (classes or ()) else 1
    elif (column or "label") in head:
        place = head.index(column or "label")
    else:
        got = ", ".join(head) + ("" if column else "; name the one with the labels: --column NAME")
        raise ValueError(f"{path.name} must have a column {column or 'label'!r}, got {got}")
    return [(f"line {line}", row[place].strip() if place < len(row) else "") for line, row in rows[first:]]


def _class(place: str, text: str, classes: Sequence[str] | None) -> int:
    if classes is not None:
        if text in classes:
            return list(classes).index(text)
        raise ValueError(f"{place}: expected one of the classes {', '.join(classes)}, got {text!r}")
    if not _is_number(text) or float(text) != int(float(text)) or not 0 <= float(text) < 2**53:
        raise ValueError(
            f"{place}: expected a class index from 0, got {text!r}; names need --classes, in the order of the columns "
            "of the probabilities, which is sorted if scikit-learn made them"
        )
    return int(float(text))


def _load(path: Path, wanted: str) -> np.ndarray:
    """Return the array of a .npy file, without pickled objects."""
    try:
        table = np.load(path, allow_pickle=False)
        if not isinstance(table, np.ndarray):
            raise ValueError("got an archive of arrays")
        return table
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path.name} must hold {wanted}: {error}") from error


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _header(path: Path) -> list[str] | None:
    """Return the cells of the first line of a CSV file if it is a header."""
    if path.suffix == ".npy":
        return None
    with path.open(newline="", encoding="utf-8-sig") as file:
        cells = [text.strip() for text in next(csv.reader(file), [])]
    cells[:1] = [text.removeprefix("#").strip() for text in cells[:1]]  # as numpy.savetxt marks a header
    counted = len(cells) > 2 and cells == [str(k) for k in range(len(cells))]  # pandas numbers columns without a name
    return cells if counted or not all(_is_number(text) for text in cells) else None


def read_probabilities(path: Path) -> torch.Tensor:
    """Read probabilities [n, K] from a ``.npy`` file, or from a CSV file with or without a header.

    A first column without a name in the header is the index that pandas writes, and is left out.

    Args:
        path: The file; pickled objects are refused.

    Returns:
        The probabilities, float64; float16 if the file has them, whose rows sum to one less exactly.

    Raises:
        ValueError: If the file is no table of finite numbers; the row and column of one that is not finite are named.

    Examples:
        >>> path = getfixture("tmp_path") / "p.npy"
        >>> np.save(path, np.array([[0.25, 0.75]]))
        >>> read_probabilities(path)
        tensor([[0.2500, 0.7500]], dtype=torch.float64)
    """
    wanted = "a table of numbers [n, K]"
    table = _load(path, wanted) if path.suffix == ".npy" else _csv_table(path, wanted)
    if table.ndim != 2 or not len(table) or table.dtype.kind not in "fiub":
        raise ValueError(f"{path.name} must hold {wanted}, got {table.dtype} of shape {table.shape}")
    table = table.astype(np.float16 if table.dtype == np.float16 else np.float64)
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(
            f"{path.name} must hold {wanted}, got {table[row, column]} in row {row}, column {column}, counted from 0"
        )
    return torch.from_numpy(table)


def _csv_table(path: Path, wanted: str) -> np.ndarray:
    """Return the numbers of a CSV file."""
    try:
        header = _header(path)
        columns = range(1, len(header)) if header and not header[0] else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")  # the caller refuses such a table
            return np.loadtxt(
                path, delimiter=",", skiprows=int(header is not None), usecols=columns, ndmin=2, encoding="utf-8-sig"
            )
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path.name} must hold {wanted}: {error}") from error


def _read(given: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and probabilities of two files, if they fit each other."""
    probabilities = read_probabilities(given.probabilities)
    header = _header(given.probabilities) or []
    names = header[1:] if header[:1] == [""] else header
    numbers = [_is_number(name) for name in names]
    counted = all(numbers) and [float(name) for name in names] == list(range(len(names)))
    named = len(names) == probabilities.shape[1] and not counted
    classes = [name.strip() for name in given.classes.split(",")] if given.classes else None
    if classes and len(set(classes)) < len(classes):
        raise ValueError(f"--classes must name each class once, got {given.classes}")
    if classes and named and classes != names and sorted(classes) == sorted(names):
        raise ValueError(
            f"{given.probabilities.name} has its columns in another order than --classes: {','.join(names)}"
        )
    if classes and len(classes) != probabilities.shape[1]:
        raise ValueError(
            f"{given.probabilities.name} has {probabilities.shape[1]} columns, --classes {len(classes)} names"
        )
    if named and any(numbers):  # labels are such numbers, and no places of columns
        classes = classes or names
    try:
        labels = read_labels(given.labels, given.column, classes)
    except ValueError as error:
        if classes or not named:
            raise
        try:
            labels = read_labels(given.labels, given.column, names)
        except ValueError:
            raise error from None
    if len(labels) != len(probabilities):
        raise ValueError(
            f"{given.labels.name} holds {len(labels)} labels, {given.probabilities.name} {len(probabilities)} rows of "
            "probabilities; a header that is a number is read as a row"
        )
    if int(labels.max()) >= probabilities.shape[1]:
        raise ValueError(
            f"{given.labels.name} holds the label {int(labels.max())}, {given.probabilities.name} "
            f"{probabilities.shape[1]} columns; classes count from 0"
        )
    return labels, probabilities


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Those of the command line.

    Returns:
        0, or 2 after bad input.
    """
    parser = argparse.ArgumentParser(prog="python -m nls", description="Label smoothing under noisy labels.")
    commands = parser.add_subparsers(dest="command", required=True)
    advise = commands.add_parser("advise", help="which smooth rate for these noisy labels?")
    advise.add_argument(
        "labels", type=Path, help="CSV file with one label for each example, or .npy file of integers [n]"
    )
    advise.add_argument("probabilities", type=Path, help=".npy or CSV file [n, K] of out-of-sample probabilities")
    advise.add_argument("--column", help="name of the column of a CSV file that holds the labels, by default label")
    advise.add_argument(
        "--classes",
        help="names of the classes, apart by commas only, in the order of the probabilities; sorted, if scikit-learn "
        "made them; without it, those in the header of a CSV file of probabilities",
    )
    advise.add_argument("--out-of-sample", action="store_true", help="no model saw the label that it predicts")
    advise.add_argument("--level", type=float, default=0.9, help="level of the intervals")
    advise.add_argument("--seed", type=int, default=0, help="draws the resamples")
    advise.add_argument("--json", action="store_true", help="print all numbers as JSON")
    given = parser.parse_args(arguments)
    try:
        found = suggest_smooth_rate(
            *_read(given), level=given.level, seed=given.seed, out_of_sample=given.out_of_sample
        )
    except (OSError, ValueError, TypeError) as error:
        print(f"nls advise: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found.to_dict(), indent=2) if given.json else found.advice)
    return 0


if __name__ == "__main__":
    sys.exit(main())
