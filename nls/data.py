"""Data sets as tensors with a data card: generated, bundled, downloaded, or your own folder."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from nls import _checks
from nls.generators import RECIPES, RawData, draw

_ENVIRONMENT = "NLS_DATA"
_DEFAULT_NUM_EXAMPLES = 3000
# Classes are drawn, so that a small sample can lack one: of 100, one of three has below 5 with probability 2e-12.
_FEWEST_EXAMPLES = 100
_SPLITS = ("train", "validation", "test")
_LARGEST = float(np.finfo(np.float32).max)
_BUNDLED = ("breast_cancer", "digits", "wine")
_BUNDLED_IMAGES = ("digits_images",)
# Our name -> name and version on OpenML.
_OPENML = {
    "banana": ("banana", 1),
    "diabetes": ("diabetes", 1),
    "german": ("credit-g", 1),
    "heart": ("heart-statlog", 1),
    "image": ("segment", 1),
    "splice": ("splice", 1),
}


@dataclass(frozen=True)
class DataCard:
    """What a data set is, where it comes from and how it was prepared."""

    name: str
    source: str
    licence: str
    description: str
    preparation: str
    num_examples: int
    num_features: int
    num_classes: int
    duplicates: int
    split_sizes: tuple[int, int, int]

    def _rows(self) -> list[tuple[str, str]]:
        """Return the card as pairs of label and text."""
        sizes = ", ".join(f"{split} {size}" for split, size in zip(_SPLITS, self.split_sizes, strict=True))
        shown = {field.name: str(getattr(self, field.name)) for field in fields(self)} | {"split_sizes": sizes}
        shown["duplicates"] = f"{self.duplicates} rows repeat the features of an earlier row"
        return [(key.replace("_", " "), text) for key, text in shown.items()]

    def __str__(self) -> str:
        return "\n".join(f"{key}: {text}" for key, text in self._rows())

    def to_markdown(self) -> str:
        """Return the card as a Markdown table of two columns.

        Returns:
            The table, one row per entry of the card.

        Examples:
            >>> print(load_dataset("wine").card.to_markdown().splitlines()[2])
            | name | wine |
        """
        cells = [(key, " ".join(text.split()).replace("|", "\\|")) for key, text in self._rows()]
        return "\n".join(["| data card | |", "| --- | --- |", *(f"| {key} | {text} |" for key, text in cells)])

    # What a notebook shows.
    _repr_markdown_ = to_markdown


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set in three splits: features, clean labels and, where known, true posteriors.

    Attributes:
        name: The name it was asked for.
        class_names: One name per class; label k means ``class_names[k]``.
        card: Source, licence, version, sizes and preparation.
        train_features: Standardised features [n, d], float32, or images [n, C, H, W], uint8; the same for validation
            and test.
        train_labels: Clean labels [n], int64; the same for validation and test.
        train_posterior: True posteriors P(y | x) [n, K], float64, or None where unknown; the same for validation
            and test.
        train_indices: Rows [n] of the source that the examples are, int64, for images; None for plain features. They
            pair the examples with labels from elsewhere. The same for validation and test.
    """

    name: str
    class_names: tuple[str, ...]
    card: DataCard
    train_features: torch.Tensor
    validation_features: torch.Tensor
    test_features: torch.Tensor
    train_labels: torch.Tensor
    validation_labels: torch.Tensor
    test_labels: torch.Tensor
    train_posterior: torch.Tensor | None = None
    validation_posterior: torch.Tensor | None = None
    test_posterior: torch.Tensor | None = None
    train_indices: torch.Tensor | None = None
    validation_indices: torch.Tensor | None = None
    test_indices: torch.Tensor | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def num_features(self) -> int:
        """Number of features d; of pixel values C H W for images."""
        return self.train_features[0].numel()

    def __repr__(self) -> str:
        sizes = "/".join(map(str, self.card.split_sizes))
        return f"Dataset({self.name!r}: {sizes} examples, {self.num_features} features, {self.num_classes} classes)"


def dataset_names() -> tuple[str, ...]:
    """Return the names of the generated, bundled and downloadable data sets.

    Returns:
        The names, sorted; files in your own folder come on top.

    Examples:
        >>> "twonorm" in dataset_names()
        True
    """
    return tuple(sorted({*RECIPES, *_BUNDLED, *_BUNDLED_IMAGES, *_OPENML}))


def load_dataset(
    name: str, root: str | os.PathLike[str] | None = None, seed: int = 0, *, num_examples: int | None = None
) -> Dataset:
    r"""Load a data set by name, split 60/20/20 and standardised.

    With the mean and the standard deviation of the training split, each feature becomes

    .. math:: (x_j - \mu_j) / \sigma_j,

    and a column that is constant there is only centred.
    The split is stratified by class, and rows with equal features stay within one split.
    Labels are clean in all splits: you add the noise.
    True posteriors, where known, are those of the raw features.

    A name is looked up among the generated sets, then the sets bundled with scikit-learn, then in the folder named by
    the environment variable ``NLS_DATA``, then on OpenML (cached in that folder if it is set).
    A ``root`` is the only place that is looked at.
    One name, one data set: versions differ between sources (a local waveform.csv may be binary where the generator
    has three classes), and the card says which one you have.

    Images are uint8 [n, C, H, W] and not standardised. ``digits_images`` are scikit-learn's digits with their grey
    values 0..16 scaled to 0..255, split as ``digits``. A file with images has a test split of its own, which is kept;
    a tenth of its training images, stratified by class, is the validation split.

    Args:
        name: Name of the data set.
        root: Folder with ``<name>.csv`` (header line, last column ``target``, a line break at the end of the file) or
            ``<name>.npz`` (arrays ``features`` [n, d], ``labels`` [n] and optionally ``class_names`` [K]; or, for
            images, ``train_images`` uint8 [n, H, W] or [n, H, W, C], ``train_labels`` integers [n], ``test_images``,
            ``test_labels`` and optionally ``class_names`` [K]).
        seed: Seed of the split, at least 0; for a generated set it also draws the sample.
        num_examples: Size of a generated set, at least 100; 3000 if None. For images, how many to take of those that
            are not a file's test images, at least 10 for each class, classes in equal shares as before; all if None.

    Returns:
        The data set with its card; the same arguments give the same tensors.

    Raises:
        TypeError: If ``name``, ``root``, ``seed`` or ``num_examples`` has another type.
        ValueError: If the data set is unknown, cannot be read or downloaded, or is not fit for classification.

    Examples:
        >>> load_dataset("wine")
        Dataset('wine': 107/35/36 examples, 13 features, 3 classes)
        >>> load_dataset("twonorm", num_examples=100).train_posterior.shape
        torch.Size([60, 2])
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {_checks.describe(name)}")
    if not re.fullmatch(r"\w[\w .+-]{0,99}", name):
        raise ValueError(f"name must be the plain name of a data set, without folders, got {name!r}")
    generator = np.random.default_rng(_checks.integer(seed, "seed"))
    images, path = _find_images(name, root)
    if images:
        from nls.images import load_images

        return load_images(name, path, seed, num_examples)
    drawn = root is None and name in RECIPES
    if num_examples is not None and not drawn:
        known = ", ".join(RECIPES)
        raise ValueError(f"num_examples is for generated sets ({known}) without root and for images, not for {name!r}")
    if drawn:
        size = _DEFAULT_NUM_EXAMPLES if num_examples is None else num_examples
        raw = draw(name, _checks.integer(size, "num_examples", low=_FEWEST_EXAMPLES), generator)
    elif root is not None:
        folder = _folder(root, "root")
        raw = _read_local(name, folder)
        if raw is None:
            found = ", ".join(_names_in(folder)) or "no data sets"
            raise ValueError(f"root has no {name}.csv or {name}.npz; {folder} holds: {found}")
    elif name in _BUNDLED:
        raw = _read_bundled(name)
    else:
        raw = _look_up(name)
    return _prepare(name, raw, seed, generator, drawn)


def _find_images(name: str, root: object) -> tuple[bool, Path | None]:
    """Return whether a name means an image set here, and its file unless it is bundled."""
    if root is None and (name in _BUNDLED_IMAGES or name in (*RECIPES, *_BUNDLED)):
        return name in _BUNDLED_IMAGES, None
    origin = _ENVIRONMENT if root is None else "root"
    value = os.environ.get(_ENVIRONMENT) or None if root is None else root
    path = None if value is None else _folder(value, origin) / f"{name}.npz"
    # With a CSV file beside it, the name is refused further on.
    if path is None or not path.is_file() or path.with_suffix(".csv").is_file():
        return False, None
    from nls.images import is_image_file

    return is_image_file(path), path


def _read_bundled(name: str) -> RawData:
    """Return a set that comes with scikit-learn."""
    import sklearn
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    description = f"The copy bundled with scikit-learn {sklearn.__version__}, labels as there."
    source = "UCI Machine Learning Repository, bundled with scikit-learn"
    class_names = tuple(str(class_name) for class_name in bunch.target_names)
    return RawData(bunch.data.astype(np.float64), bunch.target, class_names, source, "CC BY 4.0 (UCI)", description)


def _look_up(name: str) -> RawData:
    """Return a set from the folder in the environment variable, else from OpenML."""
    folder = _folder(os.environ[_ENVIRONMENT], _ENVIRONMENT) if os.environ.get(_ENVIRONMENT) else None
    if folder and (raw := _read_local(name, folder)):
        return raw
    if name in _OPENML:
        return _download(name, folder)
    found = f"; in {_ENVIRONMENT}: {', '.join(_names_in(folder)) or 'nothing'}" if folder else ""
    raise ValueError(
        f"unknown data set {name!r}; known: {', '.join(dataset_names())}{found}; for your own data put {name}.csv or "
        f"{name}.npz into a folder and name the folder in root= or in the environment variable {_ENVIRONMENT}"
    )


def _folder(value: object, origin: str) -> Path:
    """Return ``value`` as an existing folder."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{origin} must be the path of a folder, got {_checks.describe(value)}")
    folder = Path(os.path.expanduser(value))
    # Path("") would be the current folder.
    if not os.fspath(value) or not folder.is_dir():
        state = "it is a file" if folder.is_file() else "it does not exist"
        raise ValueError(f"{origin} must name an existing folder, got {os.fspath(value)!r}: {state}")
    return folder


def _names_in(folder: Path) -> list[str]:
    """Return the names of the data sets in a folder."""
    return sorted({path.stem for path in folder.iterdir() if path.suffix in (".csv", ".npz")})


def _read_local(name: str, folder: Path) -> RawData | None:
    """Return the set in ``<name>.csv`` or ``<name>.npz``, or None if there is neither."""
    paths = [path for suffix in ("csv", "npz") if (path := folder / f"{name}.{suffix}").is_file()]
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
    _check_finite(features, lambda row, column: f"{path}, line {body[row][0]}, column {header[column]!r}")
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


def _check_finite(features: np.ndarray, where: Callable[[int, int], str]) -> None:
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
    _check_finite(features, lambda row, column: f"{path}, features[{row}, {column}]")
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


def _download(name: str, folder: Path | None) -> RawData:
    """Return a set from OpenML, one-hot where it is categorical."""
    import pandas as pd
    from sklearn.datasets import fetch_openml

    openml_name, version = _OPENML[name]
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
            f"folder and name the folder in root= or in the environment variable {_ENVIRONMENT}"
        ) from error
    missing = [str(column) for column in bunch.frame.columns[bunch.frame.isna().any()]]
    if missing:
        raise ValueError(f"{label} has missing values in: {', '.join(missing)}; fill them and use root=")
    frame = pd.get_dummies(bunch.data, dtype=np.float64)
    features = frame.to_numpy(np.float64)
    _check_finite(features, lambda row, column: f"{label}, row {row}, column {frame.columns[column]!r}")
    labels, class_names = _encode([str(value) for value in bunch.target], lambda row: f"{label}, row {row}")
    status = bunch.details.get("status", "active")
    note = "" if status == "active" else f" OpenML marks this version as {status}."
    description = f"{label}, categorical columns one-hot. Versions on OpenML may differ from other copies.{note}"
    licence = str(bunch.details.get("licence", "not stated"))
    return RawData(features, labels, class_names, "OpenML", licence, description)


def split_rows(features: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return the split (0, 1, 2) of each row, and the number of rows that repeat an earlier one."""
    seen: dict[bytes, int] = {}
    # + 0.0 turns -0.0 into 0.0, which are equal but not as bytes.
    groups = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in features + 0.0])
    sizes = np.bincount(groups)
    _, first = np.unique(groups, return_index=True)
    order = generator.permutation(len(sizes))
    # Each group gets its place in (0, 1) within its class; sorting all groups by place interleaves the classes evenly.
    place = np.empty(len(sizes))
    for label in np.unique(labels):
        members = order[labels[first[order]] == label]
        place[members] = _middles(sizes[members])
    ranked = order[np.argsort(place[order], kind="stable")]
    split = np.empty(len(sizes), dtype=np.int64)
    split[ranked] = np.digitize(_middles(sizes[ranked]), [0.6, 0.8])
    return split[groups], len(features) - len(sizes)


def _middles(sizes: np.ndarray) -> np.ndarray:
    """Return the middles of intervals with these lengths, laid end to end and scaled to [0, 1]."""
    return (np.cumsum(sizes) - sizes / 2) / sizes.sum()


def _check_classes(name: str, raw: RawData, split: np.ndarray) -> None:
    """Refuse a set where a class does not reach all splits."""
    for label, class_name in enumerate(raw.class_names):
        rows = raw.labels == label
        if len(np.unique(split[rows])) < len(_SPLITS):
            raise ValueError(
                f"data set {name!r}: class {class_name!r} has {rows.sum()} rows, too few to appear in each of "
                f"{', '.join(_SPLITS)}; every class needs at least 5 rows with distinct features"
            )


def _standardise(name: str, features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return float32 features with mean 0 and deviation 1 over the rows ``train``."""
    rows = features[train]
    mean, scale = rows.mean(0), rows.std(0)
    # The mean of equal values can miss them by a rounding error, which a tiny deviation would blow up to 1.
    constant = rows.min(0) == rows.max(0)
    standardised = (features - np.where(constant, rows[0], mean)) / np.where(constant | (scale == 0), 1, scale)
    _check_finite(standardised, lambda row, column: f"data set {name!r}, standardised row {row}, feature {column}")
    return standardised.astype(np.float32)


def _prepare(name: str, raw: RawData, seed: int, generator: np.random.Generator, drawn: bool) -> Dataset:
    """Return the data set split, standardised and with its card."""
    if len(raw.class_names) < 2:
        raise ValueError(f"data set {name!r} has one class only ({raw.class_names[0]!r}); at least 2 are needed")
    split, duplicates = split_rows(raw.features, raw.labels, generator)
    _check_classes(name, raw, split)
    features = torch.from_numpy(_standardise(name, raw.features, split == 0))
    # Files are often sorted by class; a random order within each split keeps batches mixed.
    order = generator.permutation(len(split))
    rows = [torch.from_numpy(order[split[order] == index]) for index in range(len(_SPLITS))]
    columns = {"features": features, "labels": torch.from_numpy(raw.labels.astype(np.int64))}
    if raw.posterior is not None:
        columns["posterior"] = raw.posterior
    sizes = tuple(len(index) for index in rows)
    sample = "; the seed also draws the sample, and posteriors are those of the raw features" if drawn else ""
    preparation = (
        f"Split 60/20/20 by seed {seed}, stratified by class, rows with equal features in one split{sample}. Labels "
        "are clean in all splits. Features are standardised by mean and standard deviation of the training split "
        "(constant columns only centred)."
    )
    shape = (*raw.features.shape, len(raw.class_names))
    card = DataCard(name, raw.source, raw.licence, raw.description, preparation, *shape, duplicates, sizes)
    parts = list(zip(_SPLITS, rows, strict=True))
    tensors = {f"{part}_{key}": values[index] for part, index in parts for key, values in columns.items()}
    return Dataset(name, raw.class_names, card, **tensors)
