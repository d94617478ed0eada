"""Data sets as tensors with a data card: generated, bundled, downloaded, or your own folder."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from nls import _checks
from nls.generators import RECIPES, RawData, draw
from nls.tables import BUNDLED, OPENML, check_finite, download, files_of, names_in, read_bundled, read_local

_ENVIRONMENT = "NLS_DATA"
_DEFAULT_NUM_EXAMPLES = 3000
# Classes are drawn, so that a small sample can lack one: of 100, one of three has below 5 with probability 2e-12.
_FEWEST_EXAMPLES = 100
_SPLITS = ("train", "validation", "test")
_BUNDLED_IMAGES = ("digits_images",)
# Sets with a reader of their own: name -> module and function(name, folder, seed, num_examples), imported when asked
# for. The folder is root, or else the one in NLS_DATA, or None.
_READERS = {
    **dict.fromkeys(("mnist", "fashion_mnist", "cifar10", "cifar100"), ("nls.image_sets", "load_image_set")),
    **dict.fromkeys(("clothing1m", "clothing1m_clean"), ("nls.clothing", "load_clothing")),
    **dict.fromkeys(("ag_news", "ag_news_tokens"), ("nls.text", "load_text")),
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
    """A data set in three splits: features, labels and, where known, true posteriors.

    Attributes:
        name: The name it was asked for.
        class_names: One name per class; label k means ``class_names[k]``.
        card: Source, licence, version, sizes and preparation.
        train_features: Standardised features [n, d], float32, or images [n, C, H, W], uint8; the same for validation
            and test.
        train_labels: Clean labels [n], int64, or noisy ones where the card says so; the same for validation and test.
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
    """Return the names of the data sets that are generated, bundled, downloaded, or read in their usual layout.

    Returns:
        The names, sorted; files in your own folder come on top.

    Examples:
        >>> "twonorm" in dataset_names()
        True
    """
    return tuple(sorted({*RECIPES, *BUNDLED, *_BUNDLED_IMAGES, *_READERS, *OPENML}))


def load_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    *,
    num_examples: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    r"""Load a data set by name, split 60/20/20 and standardised.

    With the mean and the standard deviation of the training split, each feature becomes

    .. math:: (x_j - \mu_j) / \sigma_j,

    and a column that is constant there is only centred.
    The split is stratified by class, and rows with equal features stay within one split.
    Labels are clean in all splits, and you add the noise; but those of ``clothing1m`` come noisy, and those of your own
    files are as they are: if they are wrong, so is what a grid calls ``clean_test``.
    True posteriors, where known, are those of the raw features.

    A name is looked up among the generated sets, then the sets bundled with scikit-learn, then in the folder named by
    the environment variable ``NLS_DATA``, then on OpenML (cached in that folder if it is set).
    A ``root`` is the only place that is looked at.
    One name, one data set: versions differ between sources (a local waveform.csv may be binary where the generator
    has three classes), and the card says which one you have.

    Images are uint8 [n, C, H, W] and not standardised. ``digits_images`` are scikit-learn's digits with their grey
    values 0..16 scaled to 0..255, split as ``digits``. All other images come with a test split, which is kept; a tenth
    of the training images, stratified by class, is the validation split.

    In a folder, ``<name>.csv`` or ``<name>.npz`` comes first. Then ``mnist``, ``fashion_mnist``, ``cifar10`` and
    ``cifar100`` are read from torchvision's files (:func:`nls.image_sets.load_image_set`), which are downloaded into
    the folder of ``NLS_DATA`` if they are not there; ``clothing1m`` and ``clothing1m_clean`` from the files of their
    release (:func:`nls.clothing.load_clothing`); and any other name from ``<name>/train/<class>/`` and
    ``<name>/test/<class>/`` (:func:`nls.image_folders.load_image_folder`).

    Args:
        name: Name of the data set.
        root: Folder with ``<name>.csv`` (header line, last column ``target``, a line break at the end of the file) or
            ``<name>.npz`` (arrays ``features`` [n, d], ``labels`` [n] and optionally ``class_names`` [K]; or, for
            images, ``train_images`` uint8 [n, H, W] or [n, H, W, C], ``train_labels`` integers [n], ``test_images``,
            ``test_labels`` and optionally ``class_names`` [K]).
        seed: Seed of the split, at least 0; for a generated set it also draws the sample.
        num_examples: Size of a generated set, at least 100; 3000 if None. For images, how many to take of those that
            are not test images, at least 10 for each class, classes in equal shares as before; all if None.
        image_size: Height and width to which a folder of images, ``clothing1m`` or ``clothing1m_clean`` is resized; 64
            if None.

    Returns:
        The data set with its card; the same arguments give the same tensors.

    Raises:
        TypeError: If an argument has another type.
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
    built_in = root is None and name in (*RECIPES, *BUNDLED, *_BUNDLED_IMAGES)
    folder = None if built_in else _search_folder(root)
    reader = _find_reader(name, folder, built_in, download=root is None)
    if image_size is not None and not (reader and "image_size" in inspect.signature(reader).parameters):
        raise ValueError(
            f"image_size is for folders of images and for clothing1m, whose files are decoded, not for {name!r}"
        )
    if reader is not None:
        return reader(seed, num_examples, **({} if image_size is None else {"image_size": image_size}))
    drawn = built_in and name in RECIPES
    if num_examples is not None and not drawn:
        known = ", ".join(RECIPES)
        raise ValueError(f"num_examples is for generated sets ({known}) without root and for images, not for {name!r}")
    if drawn:
        size = _DEFAULT_NUM_EXAMPLES if num_examples is None else num_examples
        raw = draw(name, _checks.integer(size, "num_examples", low=_FEWEST_EXAMPLES), generator)
    elif built_in:
        raw = read_bundled(name)
    else:
        raw = _look_up(name, folder, only=root is not None)
    return _prepare(name, raw, seed, generator, drawn)


def _find_reader(name: str, folder: Path | None, built_in: bool, download: bool) -> Callable[..., Dataset] | None:
    """Return the function of seed and size that reads the set, or None for a table of plain features."""
    if built_in:
        return partial(import_module("nls.images").load_images, name, None) if name in _BUNDLED_IMAGES else None
    of_images = folder is not None and name not in _READERS and (folder / name / "train").is_dir()
    if folder is not None and (files := files_of(name, folder)):
        if of_images:
            raise ValueError(f"{folder} holds both {files[0].name} and {name}/train; one name must mean one data set")
        # Two files of one name are refused further on.
        images = import_module("nls.images") if [path.suffix for path in files] == [".npz"] else None
        return partial(images.load_images, name, files[0]) if images and images.is_image_file(files[0]) else None
    if name in _READERS:
        module, function = _READERS[name]
        options = {"download": download} if module == "nls.image_sets" else {}
        return partial(getattr(import_module(module), function), name, folder, **options)
    if of_images or (folder is not None and name not in OPENML and (folder / name).is_dir()):
        return partial(import_module("nls.image_folders").load_image_folder, name, folder / name)
    return None


def _look_up(name: str, folder: Path | None, only: bool) -> RawData:
    """Return a set from the folder, else from OpenML unless the folder is the only place."""
    if folder and (raw := read_local(name, folder)):
        return raw
    if only:
        found = ", ".join(names_in(folder)) or "no data sets"
        raise ValueError(f"root has no {name}.csv, {name}.npz or folder {name}; {folder} holds: {found}")
    if name in OPENML:
        return download(name, folder)
    found = f"; in {_ENVIRONMENT}: {', '.join(names_in(folder)) or 'nothing'}" if folder else ""
    raise ValueError(
        f"unknown data set {name!r}; known: {', '.join(dataset_names())}{found}; for your own data put {name}.csv, "
        f"{name}.npz, or a folder {name} with train/<class>/ and test/<class>/ into a folder and name that in root= or "
        f"in the environment variable {_ENVIRONMENT}"
    )


def _search_folder(root: object) -> Path | None:
    """Return the folder to search: ``root``, else the one in the environment variable, else none."""
    if root is not None:
        return _folder(root, "root")
    value = os.environ.get(_ENVIRONMENT)
    return _folder(value, _ENVIRONMENT) if value else None


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
    check_finite(standardised, lambda row, column: f"data set {name!r}, standardised row {row}, feature {column}")
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
