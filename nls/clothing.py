r"""Clothing1M in the layout that its licensees have: a million images with noisy labels, and a few checked by hand.

The labels come from the text around the images. The data are for research only and may not be passed on, so nothing
here downloads them.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from nls import _checks
from nls.data import Dataset
from nls.image_folders import IMAGE_SIZE, LARGEST_SIZE, check_memory, decode, describe_pixels
from nls.images import Images, Texts, count_duplicates, describe_counts, hold_out_validation, join_splits, take

NUM_CLASSES = 14
"""Kinds of clothes."""

PUBLISHED = {"noisy_train": 1_000_000, "clean_train": 47_570, "clean_val": 14_313, "clean_test": 10_526}
"""List of the release to the number of its images."""

_LABELLED = {"noisy_label_kv.txt": 1_037_497, "clean_label_kv.txt": 72_409}

_FOLDERS = ("clothing1m", "clothing1M", "Clothing1M", "")
_LICENCE = "non-commercial research and education, no redistribution"
_STEPS = (
    "To get it: 1. open github.com/Cysu/noisy_label and write to the authors as its README says, which is agreeing to "
    f"their terms ({_LICENCE}); 2. unpack the images below <root>/clothing1m/images/ (folders 0 to 9) and the texts "
    "into <root>/clothing1m/ or <root>/clothing1m/annotations/; 3. pass <root> as root, or set the environment "
    "variable NLS_DATA to it"
)


class ClothingLists(NamedTuple):
    """The texts of the release: folder of the set, class names, key of an image to its label, keys of each list."""

    folder: Path
    class_names: tuple[str, ...]
    noisy: dict[str, int]
    clean: dict[str, int]
    keys: dict[str, list[str]]


def load_clothing(
    name: str, folder: Path | None, seed: int, num_examples: int | None = None, *, image_size: int = IMAGE_SIZE
) -> Dataset:
    r"""Return Clothing1M, whose training labels are noisy already.

    ``clothing1m`` trains on the noisy list and validates on a tenth of it, with noisy labels as everywhere in the
    book. ``clothing1m_clean`` has the lists that were checked by hand: clean_train, clean_val and clean_test. Both have
    the same test split.

    Args:
        name: ``clothing1m`` or ``clothing1m_clean``.
        folder: The folder with ``clothing1m/`` in it, or that folder itself; None for none.
        seed: Seed of the held-out tenth, at least 0.
        num_examples: How many training images to take, at least 10 for each class; all if None. Of the training
            images only these are decoded.
        image_size: Height and width, 1 to 4096. All images lie in memory, n x 3 x image_size^2 bytes and twice that
            while they are split: 2 x 12 GB for the whole at 64.

    Returns:
        The data set, pixels uint8; indices count the lines of the list that a split is from.

    Raises:
        TypeError: If ``num_examples`` or ``image_size`` is not an integer.
        ValueError: If files are missing (with the steps to get them) or not what they should be.

    References:
        Xiao et al., 2015, Learning from massive noisy labeled data for image classification, CVPR.
    """
    size = _checks.integer(image_size, "image_size", low=1, high=LARGEST_SIZE)
    lists = read_lists(folder)
    chosen = "noisy_train" if name == "clothing1m" else "clean_train"
    labels = {key: np.array([_kind(lists, key)[image] for image in images]) for key, images in lists.keys.items()}
    rows = {key: np.arange(len(labels[key])) for key in ("clean_val", "clean_test")}
    rows[chosen] = np.sort(take(labels[chosen], num_examples, np.random.default_rng(seed)))
    if chosen == "noisy_train":
        del rows["clean_val"]
    check_memory(name, sum(map(len, rows.values())), size)
    images = {}
    for key, places in rows.items():
        paths = _image_paths(lists.folder, [lists.keys[key][place] for place in places])
        images[key] = Images(decode(paths, size), labels[key][places], places)
    train, test = images[chosen], images["clean_test"]
    labelled = "Labels are noisy as collected in training and validation, checked by hand in the test split: add none."
    if chosen == "clean_train":
        labelled = "All labels were checked by hand."
    released = _counts(lists) == PUBLISHED
    texts = Texts(
        "Clothing1M, Xiao et al. 2015, CVPR" if released else "your own folder, in the layout of Clothing1M",
        _LICENCE if released else "yours to know",
        f"{describe_lists(lists)} Taken: {describe_counts(train, test)}.",
        labelled,
        describe_pixels(size),
    )
    if chosen == "noisy_train":
        return hold_out_validation(name, lists.class_names, texts, train, test, seed)
    splits = [images[key] for key in ("clean_train", "clean_val", "clean_test")]
    everything = [(part, np.arange(len(part.pixels))) for part in splits]
    preparation = f"The lists clean_train, clean_val and clean_test of the release. {texts.labels} {texts.pixels}"
    return join_splits(name, lists.class_names, (*texts[:3], preparation), count_duplicates(splits), everything)


def read_lists(folder: Path | None) -> ClothingLists:
    """Return the checked texts of the release; no image is opened.

    Args:
        folder: As for :func:`load_clothing`.

    Returns:
        Class names, labels and lists of images.

    Raises:
        ValueError: If a file is missing (with the steps to get it) or not what it should be.
    """
    place, texts = _find(folder)
    class_names = tuple(line.strip() for line in _lines(texts / "category_names_eng.txt"))
    if len(class_names) != NUM_CLASSES or len(set(class_names)) != NUM_CLASSES:
        raise ValueError(
            f"{texts / 'category_names_eng.txt'} must hold {NUM_CLASSES} distinct names, one a line, got "
            f"{len(class_names)}: {', '.join(class_names)}; get it again"
        )
    noisy, clean = (_read_labels(texts / f"{kind}_label_kv.txt") for kind in ("noisy", "clean"))
    keys = {
        key: _read_keys(texts / f"{key}_key_list.txt", noisy if key == "noisy_train" else clean) for key in PUBLISHED
    }
    tested = set(keys["clean_test"])
    for key in ("noisy_train", "clean_train", "clean_val"):
        if shared := tested.intersection(keys[key]):
            raise ValueError(
                f"{texts / f'{key}_key_list.txt'} must hold no image of clean_test_key_list.txt, got {len(shared)}, "
                f"the first {min(shared)!r}; get both again"
            )
    return ClothingLists(place, class_names, noisy, clean, keys)


def describe_lists(lists: ClothingLists) -> str:
    """Return how many images the lists hold, whether these are the published numbers, and the share of wrong labels."""
    counts = _counts(lists)
    text = ", ".join(f"{key} {count}" for key, count in counts.items())
    expected = ", ".join(f"{key} {count}" for key, count in PUBLISHED.items())
    note = "as published" if counts == PUBLISHED else f"NOT the published lists ({expected})"
    pairs = label_counts(lists)
    total = int(pairs.sum())
    if not total:
        return f"Lists: {text}, {note}. No image of clean_train has both labels."
    wrong = 1 - pairs.diagonal().sum().item() / total
    return f"Lists: {text}, {note}. {total} images of clean_train have both labels, which differ in {wrong:.1%}."


def label_counts(lists: ClothingLists) -> torch.Tensor:
    r"""Return how often clean label i met noisy label j among the images of clean_train that have both.

    Images to validate or test on are left out, so that what is estimated from the counts has not seen them.

    Args:
        lists: As :func:`read_lists` returns them.

    Returns:
        Counts [14, 14], int64; all zero if no image has both labels.
    """
    pairs = [(lists.clean[key], lists.noisy[key]) for key in lists.keys["clean_train"] if key in lists.noisy]
    counts = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.int64)
    if pairs:
        counts.index_put_(tuple(torch.tensor(pairs).T), torch.ones(len(pairs), dtype=torch.int64), accumulate=True)
    return counts


def _counts(lists: ClothingLists) -> dict[str, int]:
    """Return the number of images in each list."""
    return {key: len(images) for key, images in lists.keys.items()}


def _kind(lists: ClothingLists, key: str) -> dict[str, int]:
    """Return the labels that a list goes with."""
    return lists.noisy if key == "noisy_train" else lists.clean


def _find(folder: Path | None) -> tuple[Path, Path]:
    """Return the folder of the set and the folder of its texts."""
    places = [] if folder is None else [folder / inner for inner in _FOLDERS]
    for place in places:
        for texts in (place / "annotations", place):
            if (texts / "noisy_label_kv.txt").is_file():
                return place, texts
    state = "no folder is named" if folder is None else f"{folder} holds no clothing1m/ with noisy_label_kv.txt"
    raise ValueError(f"clothing1m is not at hand: {state}. {_STEPS}")


def _lines(path: Path) -> list[str]:
    """Return the lines of a text of the release."""
    if not path.is_file():
        raise ValueError(f"{path} is missing, one of the texts of the release. {_STEPS}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text in UTF-8, got: {error}; get it again") from error
    return text.splitlines(keepends=True)


def _read_labels(path: Path) -> dict[str, int]:
    """Return key to label of a file with lines ``key label``."""
    labels, lines = {}, _lines(path)
    for number, line in enumerate(lines, 1):
        match line.split():
            case [key, label] if label.isdecimal() and int(label) < NUM_CLASSES:
                labels[key] = int(label)
            case _:
                expected = f"an image and a label in [0, {NUM_CLASSES - 1}]"
                raise ValueError(f"{path}, line {number}: expected {expected}, got {line.strip()!r}; get it again")
    # Cut inside its last label, a file would still have whole lines: "12" becomes "1".
    if len(lines) != _LABELLED[path.name] and not (lines and lines[-1].endswith("\n")):
        got = f"{len(lines)} lines, the last {lines[-1] if lines else ''!r}"
        raise ValueError(
            f"{path} must have {_LABELLED[path.name]} lines or end with a line break, got {got}; get it again"
        )
    return labels


def _read_keys(path: Path, labels: dict[str, int]) -> list[str]:
    """Return the keys of a list, each of which must have a label and lie below the folder."""
    keys = [line.strip() for line in _lines(path)]
    seen = set()
    for number, key in enumerate(keys, 1):
        where = f"{path}, line {number}"
        if key not in labels:
            raise ValueError(f"{where}: {key!r} has no label in the file of labels; get both again")
        if key in seen:
            raise ValueError(f"{where}: {key!r} is listed twice; get it again")
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise ValueError(f"{where}: expected a path below the folder, got {key!r}")
        seen.add(key)
    if not keys:
        raise ValueError(f"{path} must list images, got none; get it again")
    return keys


def _image_paths(folder: Path, keys: list[str]) -> list[Path]:
    """Return where the images are: at their key, which starts with images/, or without that."""
    bare = keys[0].removeprefix("images/")
    if not (folder / keys[0]).is_file() and (folder / bare).is_file():
        return [folder / key.removeprefix("images/") for key in keys]
    return [folder / key for key in keys]
