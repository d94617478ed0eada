"""Tables of plain features: CSV and NPZ files of your own, sets bundled with scikit-learn, and OpenML."""

from __future__ import annotations

import csv
import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nls.generators import RawData

BUNDLED = ("breast_cancer", "digits", "wine")
"""Names of the sets that come with scikit-learn."""

OPENML = {
    "banana": ("banana", 1),
    "diabetes": ("diabetes", 1),
    "german": ("credit-g", 1),
    "heart": ("heart-statlog", 1),
    "image": ("segment", 1),
    "splice": ("splice", 1),
}
"""Our name to name and version on OpenML."""

_LARGEST = float(np.finfo(np.float32).max)


def read_bundled(name: str) -> RawData:
    """Return a set that comes with scikit-learn."""
    import sklearn
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    description = f"The copy bundled with scikit-learn {sklearn.__version__}, labels as there."
    source = "UCI Machine Learning Repository, bundled with scikit-learn"
    class_names = tuple(str(class_name) for class_name in bunch.target_names)
    return RawData(bunch.data.astype(np.float64), bunch.target, class_names, source, "CC BY 4.0 (UCI)", description)


def names_in(folder: Path) -> list[str]:
    """Return the names of the tables, the image files and the folders of images in a folder."""
    files = {path.stem for path in folder.iterdir() if path.suffix in (".csv", ".npz")}
    return sorted(files | {path.parent.name for path in folder.glob("*/train") if path.is_dir()})


def files_of(name: str, folder: Path) -> list[Path]:
    """Return your own files of a name that are there."""
    return [path for suffix in ("csv", "npz") if (path := folder / f"{name}.{suffix}").is_file()]


def read_local(name: str, folder: Path) -> RawData | None:
    """Return the set in ``<name>.csv`` or ``<name>.npz``, or None if there is neither."""
    paths = files_of(name, folder)
    if not paths:
        return None
    if len(paths) > 1:
        raise ValueError(f"{folder} holds both {name}.csv and {name}.npz; one name must mean one data set")
    path, content = paths[0], paths[0].read_bytes()
    if not content:
        raise ValueError(f"{path} is empty")
    features, labels, class_names = (_read_csv if path.suffix == ".csv" else _read_npz)(path, content)
    digest = hashlib.sha256(content).hexdigest()[:12]
    version = f"File {path.name}, {len(features)} rows, SHA-256 {digest}."
    description = f"{version} A set of this name from another source may be another version."
    return RawData(features, labels, class_names, "your own file", "yours to know", description)


def _read_csv(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return features, labels and class names of a CSV file."""
    try:
        text = content.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""))
        lines = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    header = [column.strip() for column in lines[0][1]] if lines else []
    if "target" not in header:
        raise ValueError(f"{path} must start with a header line whose last column is 'target', got {header[-3:]}")
    if header[-1] != "target" or len(header) < 2:
        raise ValueError(f"{path} must have 'target' as its last column, after at least one feature, got {header[-3:]}")
    if len(lines) == 1:
        raise ValueError(f"{path} has a header line but no rows")
    # Cut inside its last value, a file would still have whole rows: "11" becomes "1".
    if not text.endswith(("\n", "\r")):
        raise ValueError(f"{path}, line {lines[-1][0]}: expected a line break at its end; the file may be cut short")
    body = lines[1:]
    features = np.array([_parse_row(path, line, row, header) for line, row in body])
    check_finite(features, lambda row, column: f"{path}, line {body[row][0]}, column {header[column]!r}")
    labels, class_names = _encode([row[-1].strip() for _, row in body], lambda row: f"{path}, line {body[row][0]}")
    return features, labels, class_names


def _parse_row(path: Path, line: int, row: list[str], header: list[str]) -> list[float]:
    """Return the features of one line of a CSV file."""
    if len(row) != len(header):
        raise ValueError(f"{path}, line {line}: expected {len(header)} columns, got {len(row)}; is the file truncated?")
    values = [_number(value) for value in row[:-1]]
    if None in values:
        column = values.index(None)
        raise ValueError(f"{path}, line {line}, column {header[column]!r}: expected a number, got {row[column]!r}")
    return values


def _number(text: str) -> float | None:
    """Return ``text`` as a float, or None if it is no number ('1_000' is none, though ``float`` reads it)."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def check_finite(features: np.ndarray, where: Callable[[int, int], str]) -> None:
    """Refuse values that are NaN, infinite or beyond float32."""
    wrong = np.argwhere(~(np.abs(features) <= _LARGEST))
    if len(wrong):
        row, column = (int(index) for index in wrong[0])
        raise ValueError(f"{where(row, column)}: expected a finite float32 number, got {features[row, column]}")


def _encode(texts: list[str], where: Callable[[int], str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels and class names, sorted as numbers if all are numbers, else alphabetically."""
    numbers = [_number(text) for text in texts]
    for row, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        if not text or (number is not None and not np.isfinite(number)):
            raise ValueError(f"{where(row)}: expected a label, got {text!r}")
    # As numbers, so that 1 and 1.0 are one class.
    values = texts if None in numbers else numbers
    classes = sorted(set(values))
    labels = {value: index for index, value in enumerate(classes)}
    names = (str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in classes)
    return np.array([labels[value] for value in values]), tuple(names)


def _read_npz(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return features, labels and class names of an NPZ file."""
    arrays = open_npz(path, io.BytesIO(content))
    for key in ("features", "labels"):
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}, found: {', '.join(arrays) or 'none'}")
    features, labels = arrays["features"], arrays["labels"]
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "buif":
        raise ValueError(f"{path}: 'features' must hold real numbers [n, d], got {features.dtype} {features.shape}")
    if labels.shape != features.shape[:1] or labels.dtype.kind not in "buifU":
        expected = f"numbers or texts, one for each of the {len(features)} rows of 'features'"
        raise ValueError(f"{path}: 'labels' must hold {expected}, got {labels.dtype} {labels.shape}")
    features = features.astype(np.float64)
    check_finite(features, lambda row, column: f"{path}, features[{row}, {column}]")
    if "class_names" in arrays:
        return features, *_named(path, labels, arrays["class_names"])
    return features, *_encode([str(label) for label in labels.tolist()], lambda row: f"{path}, labels[{row}]")


def open_npz(path: Path, file: Path | io.BytesIO) -> dict[str, np.ndarray]:
    """Return the arrays of an NPZ file; nothing in it is executed."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    # A damaged file can raise nearly anything, from BadZipFile and zlib.error to EOFError and SyntaxError.
    except Exception as error:
        if "pickle" in str(error):
            raise ValueError(f"{path} holds Python objects (pickle), which are refused: save plain arrays") from error
        raise ValueError(f"{path} is not a complete NPZ file: {type(error).__name__}: {error}") from error


def _named(path: Path, labels: np.ndarray, class_names: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels and class names if the labels are indices into the names."""
    if class_names.ndim != 1 or class_names.dtype.kind != "U" or len(set(class_names.tolist())) != len(class_names):
        raise ValueError(f"{path}: 'class_names' must hold distinct texts [K], got {class_names.dtype} {class_names}")
    if labels.dtype.kind not in "ui" or labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(f"{path}: 'labels' must be integers in [0, {len(class_names) - 1}] as 'class_names' is given")
    return labels.astype(np.int64), tuple(class_names.tolist())


def download(name: str, folder: Path | None) -> RawData:
    """Return a set from OpenML, one-hot where it is categorical."""
    import pandas as pd
    from sklearn.datasets import fetch_openml

    openml_name, version = OPENML[name]
    label = f"OpenML {openml_name!r} version {version}"
    try:
        # Retries and inactive versions warn; the error and the card say so instead.
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            # The faster parser fails on whole-number categories under pandas 3.1 (scikit-learn issue 34892).
            options = {"as_frame": True, "parser": "liac-arff", "data_home": folder, "n_retries": 1}
            bunch = fetch_openml(openml_name, version=version, **options)
    # Offline, blocked, a damaged cache and a changed answer raise errors of many kinds.
    except Exception as error:
        raise ValueError(
            f"downloading data set {name!r} ({label}) failed: {error}; offline, put {name}.csv or {name}.npz into a "
            f"folder and name the folder in root= or in the environment variable NLS_DATA"
        ) from error
    missing = [str(column) for column in bunch.frame.columns[bunch.frame.isna().any()]]
    if missing:
        raise ValueError(f"{label} has missing values in: {', '.join(missing)}; fill them and use root=")
    frame = pd.get_dummies(bunch.data, dtype=np.float64)
    features = frame.to_numpy(np.float64)
    check_finite(features, lambda row, column: f"{label}, row {row}, column {frame.columns[column]!r}")
    labels, class_names = _encode([str(value) for value in bunch.target], lambda row: f"{label}, row {row}")
    status = bunch.details.get("status", "active")
    note = "" if status == "active" else f" OpenML marks this version as {status}."
    description = f"{label}, categorical columns one-hot. Versions on OpenML may differ from other copies.{note}"
    licence = str(bunch.details.get("licence", "not stated"))
    return RawData(features, labels, class_names, "OpenML", licence, description)
