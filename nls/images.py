"""Image data sets as uint8 tensors [n, C, H, W]: scikit-learn's digits, your own NPZ files, and what all share."""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nls import _checks
from nls.data import DataCard, Dataset, split_rows
from nls.tables import open_npz

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_SPLITS = ("train", "validation", "test")
_VALIDATION_SHARE = 0.1
_FEWEST_PER_CLASS = 10
_MOST_CHANNELS = 4


class Images(NamedTuple):
    """Images [n, H, W, C], uint8, their labels [n], int64, and their rows in the source, 0, 1, ... if None."""

    pixels: np.ndarray
    labels: np.ndarray
    rows: np.ndarray | None = None


class Texts(NamedTuple):
    """What the card of an image set says; how its labels and its pixels came about is part of the preparation."""

    source: str
    licence: str
    description: str
    labels: str = "Labels are as they come: you add the noise."
    pixels: str = "Pixels are as they come, 0..255; nothing is standardised."


def is_image_file(path: Path) -> bool:
    """Return whether an NPZ file holds arrays of an image set; only its list of contents is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    # Not a whole archive: the reader of plain features says so.
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return bool(names.intersection(_ARRAYS)) and "features" not in names


def load_images(name: str, path: Path | None, seed: int, num_examples: int | None) -> Dataset:
    """Return an image set, split and with its card.

    Args:
        name: Its name.
        path: The NPZ file it is in, or None for one that is bundled.
        seed: Seed of the split, at least 0.
        num_examples: How many of its images to take (of a file: of its training images), at least 10 for each class;
            all if None. Classes keep their shares, and what a smaller number takes a larger one takes too.

    Returns:
        The data set.

    Raises:
        TypeError: If ``num_examples`` is not an integer.
        ValueError: If the file is not fit, or ``num_examples`` out of range.

    Examples:
        >>> data = load_images("digits_images", None, seed=0, num_examples=None)
        >>> data.train_features.shape, data.train_features.dtype
        (torch.Size([1078, 1, 8, 8]), torch.uint8)
    """
    return _digits(name, seed, num_examples) if path is None else _from_file(name, path, seed, num_examples)


def _digits(name: str, seed: int, num_examples: int | None) -> Dataset:
    """Return scikit-learn's digits, in the split of the data set ``digits``."""
    import sklearn
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = np.sort(take(bunch.target, num_examples, np.random.default_rng(seed)))
    generator = np.random.default_rng(seed)
    split, duplicates = split_rows(bunch.data[rows], bunch.target[rows], generator)
    order = generator.permutation(len(split))
    parts = [rows[order[split[order] == index]] for index in range(len(_SPLITS))]
    # 17 grey values stay 17: the step of 255 / 16 is far above the rounding.
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    description = f"The copy bundled with scikit-learn {sklearn.__version__}, as images of 8x8 grey pixels."
    preparation = (
        f"Split 60/20/20 by seed {seed}, stratified by class, equal images in one split. Labels are clean in all "
        "splits. A grey value v of 0..16 becomes 255 v / 16, rounded; nothing is standardised."
    )
    texts = ("UCI Machine Learning Repository, bundled with scikit-learn", "CC BY 4.0 (UCI)", description, preparation)
    class_names = tuple(str(digit) for digit in bunch.target_names)
    digits = Images(images, bunch.target)
    return join_splits(name, class_names, texts, duplicates, [(digits, part) for part in parts])


def _from_file(name: str, path: Path, seed: int, num_examples: int | None) -> Dataset:
    """Return the set in an NPZ file: its test images as they are, and a tenth of its training images to validate."""
    arrays = open_npz(path, path)
    train, test = _read_split(path, arrays, "train"), _read_split(path, arrays, "test")
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        sizes = f"{train.pixels.shape} and {test.pixels.shape}"
        raise ValueError(f"{path}: training and test images must agree in size, got {sizes}")
    class_names = _class_names(path, arrays.get("class_names"), train.labels, test.labels)
    with path.open("rb") as file:
        version = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    description = (
        f"File {path.name}, {describe_counts(train, test)}, SHA-256 {version}. "
        "A set of this name from another source may be another version."
    )
    texts = Texts("your own file", "yours to know", description)
    return hold_out_validation(name, class_names, texts, train, test, seed, num_examples)


def describe_counts(train: Images, test: Images) -> str:
    """Return how many images there are of which size."""
    size = "x".join(map(str, train.pixels.shape[1:]))
    return f"{len(train.pixels)} training and {len(test.pixels)} test images of {size}"


def hold_out_validation(
    name: str,
    class_names: tuple[str, ...],
    texts: Texts,
    train: Images,
    test: Images,
    seed: int,
    num_examples: int | None = None,
) -> Dataset:
    """Return the set with a tenth of its training images held out to validate on, and its test images as they are.

    Args:
        name: Its name.
        class_names: One name per class; each class must reach all three splits.
        texts: For the card.
        train: Training images.
        test: Test images of the same size.
        seed: Seed of the split, at least 0.
        num_examples: How many training images to take, as for :func:`load_images`.

    Returns:
        The data set; its indices are rows of the source.

    Raises:
        TypeError: If ``num_examples`` is not an integer.
        ValueError: If ``num_examples`` is out of range, or a class does not reach a split.
    """
    generator = np.random.default_rng(seed)
    kept = take(train.labels, num_examples, generator)
    prints = [_fingerprint(train.pixels[row]) for row in kept]
    copies = Counter(prints)
    # An image that is there twice is not validated on, so that no copy of it is trained on.
    alone = kept[[copies[found] == 1 for found in prints]]
    validation = alone[len(alone) - round(_VALIDATION_SHARE * len(kept)) :]
    parts = [generator.permutation(np.setdiff1d(kept, validation)), generator.permutation(validation)]
    duplicates = len(kept) + len(test.pixels) - len(copies.keys() | {_fingerprint(image) for image in test.pixels})
    preparation = (
        f"Of {len(kept)} training images a tenth, stratified by class and drawn by seed {seed}, validates; the test "
        f"split is its own. {texts.labels} {texts.pixels} Images that occur twice in training are not validated on; "
        "copies across training and test images are counted only."
    )
    splits = [(train, part) for part in parts] + [(test, np.arange(len(test.pixels)))]
    return join_splits(name, class_names, (*texts[:3], preparation), duplicates, splits)


def join_splits(
    name: str,
    class_names: tuple[str, ...],
    texts: tuple[str, ...],
    duplicates: int,
    splits: list[tuple[Images, np.ndarray]],
) -> Dataset:
    """Return the data set of three splits, each given as images and the places to take of them."""
    tensors, sizes = {}, tuple(len(places) for _, places in splits)
    for split, ((pixels, labels, rows), places) in zip(_SPLITS, splits, strict=True):
        missing = np.setdiff1d(np.arange(len(class_names)), labels[places])
        if len(missing):
            lacking = class_names[missing[0]]
            raise ValueError(
                f"data set {name!r}: class {lacking!r} does not occur in the {split} split of {len(places)}"
            )
        # A view with channels before rows; in memory they stay last, as convolutions prefer.
        tensors[f"{split}_features"] = torch.from_numpy(pixels)[torch.from_numpy(places)].permute(0, 3, 1, 2)
        tensors[f"{split}_labels"] = torch.from_numpy(labels[places].astype(np.int64))
        tensors[f"{split}_indices"] = torch.from_numpy(places if rows is None else rows[places])
    shape = (sum(sizes), splits[0][0].pixels[0].size, len(class_names), duplicates, sizes)
    return Dataset(name, class_names, DataCard(name, *texts, *shape), **tensors)


def take(labels: np.ndarray, num_examples: int | None, generator: np.random.Generator) -> np.ndarray:
    """Return rows in a random order that interleaves the classes evenly, cut to ``num_examples``."""
    order = generator.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = order[np.argsort(place[order], kind="stable")]
    if num_examples is None:
        return ranked
    fewest = _FEWEST_PER_CLASS * len(np.unique(labels))
    return ranked[: _checks.integer(num_examples, "num_examples", low=fewest, high=len(labels))]


def _fingerprint(image: np.ndarray) -> bytes:
    """Return 16 bytes that two images share if they are equal, and otherwise with no chance worth counting."""
    return hashlib.blake2b(image, digest_size=16).digest()


def count_duplicates(parts: list[Images]) -> int:
    """Return how many images repeat an earlier one."""
    return sum(len(part.pixels) for part in parts) - len({_fingerprint(p) for part in parts for p in part.pixels})


def _read_split(path: Path, arrays: dict[str, np.ndarray], split: str) -> Images:
    """Return the checked images of one split in a file."""
    for key in (f"{split}_images", f"{split}_labels"):
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}, found: {', '.join(arrays) or 'none'}")
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    if images.dtype != np.uint8:
        raise ValueError(f"{path}: '{split}_images' must hold pixels 0..255 as uint8, got {images.dtype}")
    images_4d = images[..., None] if images.ndim == 3 else images
    if images_4d.ndim != 4 or not images.size or images_4d.shape[3] > _MOST_CHANNELS:
        expected = f"[n, H, W] or [n, H, W, C], channels last, at most {_MOST_CHANNELS} of them and none empty"
        raise ValueError(f"{path}: '{split}_images' must have shape {expected}, got {images.shape}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "ui":
        expected = f"integers, one for each of the {len(images)} images"
        raise ValueError(f"{path}: '{split}_labels' must hold {expected}, got {labels.dtype} {labels.shape}")
    # Every class occurs, so that there cannot be more classes than images.
    if labels.min() < 0 or labels.max() >= len(images):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{path}: '{split}_labels' must be classes 0, 1, ..., all of which occur, got {wrong}")
    return Images(np.ascontiguousarray(images_4d), labels.astype(np.int64))


def _class_names(path: Path, names: np.ndarray | None, *labels: np.ndarray) -> tuple[str, ...]:
    """Return one name per class, the number where the file has none."""
    largest = max(int(part.max()) for part in labels)
    if names is None:
        names = np.arange(max(largest + 1, 2)).astype(str)
    if names.ndim != 1 or names.dtype.kind != "U" or not 2 <= len(names) == len(set(names.tolist())):
        raise ValueError(f"{path}: 'class_names' must hold at least 2 distinct texts [K], got {names.dtype} {names}")
    if largest >= len(names):
        raise ValueError(f"{path}: labels must lie in [0, {len(names) - 1}] as 'class_names' is given, got {largest}")
    return tuple(names.tolist())
