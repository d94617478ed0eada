"""Image data sets as uint8 tensors [n, C, H, W]: scikit-learn's digits, and your own NPZ files."""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from pathlib import Path

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
    rows = np.sort(_take(bunch.target, num_examples, np.random.default_rng(seed)))
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
    return _dataset(name, class_names, texts, duplicates, [(images, bunch.target, part) for part in parts])


def _from_file(name: str, path: Path, seed: int, num_examples: int | None) -> Dataset:
    """Return the set in an NPZ file: its test images as they are, and a tenth of its training images to validate."""
    arrays = open_npz(path, path)
    train, labels = _read_split(path, arrays, "train")
    test, test_labels = _read_split(path, arrays, "test")
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"{path}: training and test images must agree in size, got {train.shape} and {test.shape}")
    class_names = _class_names(path, arrays.get("class_names"), labels, test_labels)
    generator = np.random.default_rng(seed)
    kept = _take(labels, num_examples, generator)
    prints = [_fingerprint(train[row]) for row in kept]
    copies = Counter(prints)
    # An image that is there twice is not validated on, so that no copy of it is trained on.
    alone = kept[[copies[found] == 1 for found in prints]]
    validation = alone[len(alone) - round(_VALIDATION_SHARE * len(kept)) :]
    parts = [generator.permutation(np.setdiff1d(kept, validation)), generator.permutation(validation)]
    duplicates = len(kept) + len(test) - len(copies.keys() | {_fingerprint(image) for image in test})
    with path.open("rb") as file:
        version = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    size = "x".join(map(str, train.shape[1:]))
    description = (
        f"File {path.name}, {len(train)} training and {len(test)} test images of {size}, SHA-256 {version}. "
        "A set of this name from another source may be another version."
    )
    preparation = (
        f"Of {len(kept)} training images a tenth, stratified by class and drawn by seed {seed}, validates; the test "
        "split is the file's. Labels are as in the file: you add the noise. Pixels are as in the file, 0..255; nothing "
        "is standardised. Images that occur twice in training are not validated on; copies across training and test "
        "images are counted only."
    )
    splits = [(train, labels, part) for part in parts] + [(test, test_labels, np.arange(len(test)))]
    return _dataset(name, class_names, ("your own file", "yours to know", description, preparation), duplicates, splits)


def _dataset(
    name: str,
    class_names: tuple[str, ...],
    texts: tuple[str, ...],
    duplicates: int,
    splits: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Dataset:
    """Return the data set of three splits, each given as images [n, H, W, C], labels and the rows to take of them."""
    tensors, sizes = {}, tuple(len(rows) for *_, rows in splits)
    for split, (images, labels, rows) in zip(_SPLITS, splits, strict=True):
        missing = np.setdiff1d(np.arange(len(class_names)), labels[rows])
        if len(missing):
            lacking = class_names[missing[0]]
            raise ValueError(f"data set {name!r}: class {lacking!r} does not occur in the {split} split of {len(rows)}")
        # A view with channels before rows; in memory they stay last, as convolutions prefer.
        tensors[f"{split}_features"] = torch.from_numpy(images)[torch.from_numpy(rows)].permute(0, 3, 1, 2)
        tensors[f"{split}_labels"] = torch.from_numpy(labels[rows].astype(np.int64))
        tensors[f"{split}_indices"] = torch.from_numpy(rows)
    shape = (sum(sizes), splits[0][0][0].size, len(class_names), duplicates, sizes)
    return Dataset(name, class_names, DataCard(name, *texts, *shape), **tensors)


def _take(labels: np.ndarray, num_examples: int | None, generator: np.random.Generator) -> np.ndarray:
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


def _read_split(path: Path, arrays: dict[str, np.ndarray], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return checked images [n, H, W, C] and labels [n] of one split in a file."""
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
    return np.ascontiguousarray(images_4d), labels.astype(np.int64)


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
