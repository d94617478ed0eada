"""Folders of image files: one folder per class, decoded to one size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from nls import _checks
from nls.data import Dataset
from nls.images import Images, Texts, describe_counts, hold_out_validation, take

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of the files that are taken for images; those of torchvision's ``ImageFolder``."""

IMAGE_SIZE = 64
"""Height and width if you name none."""

LARGEST_SIZE = 4096
"""Largest height and width."""

_SPLITS = ("train", "test")
# Work handed to the threads at once: a million pending results would need memory of their own.
_BLOCK = 4096


def load_image_folder(
    name: str, folder: Path, seed: int, num_examples: int | None = None, *, image_size: int = IMAGE_SIZE
) -> Dataset:
    """Return the images in ``train/<class>/`` and ``test/<class>/``, a tenth of the training images held out.

    Class names are the names of the folders, sorted; a name that starts with a dot is left out. Images may lie deeper
    below their class. Every image becomes RGB of one size: its middle square (the longer side is cut), resized.

    Args:
        name: Its name.
        folder: The folder with ``train`` and ``test``.
        seed: Seed of the split, at least 0.
        num_examples: How many training images to take, at least 10 for each class; all if None. Only these are
            decoded.
        image_size: Height and width, 1 to 4096. All images lie in memory, n x 3 x image_size^2 bytes, and twice
            that while they are split.

    Returns:
        The data set, pixels uint8; its indices count the files of a split, sorted by class and path.

    Raises:
        TypeError: If ``num_examples`` or ``image_size`` is not an integer.
        ValueError: If a folder is missing, a class is empty, classes differ between the splits, a file cannot be
            read, or memory is too small.
    """
    size = _checks.integer(image_size, "image_size", low=1, high=LARGEST_SIZE)
    files = {split: _list_classes(folder / split) for split in _SPLITS}
    class_names = tuple(files["train"])
    if class_names != tuple(files["test"]):
        here, there = (sorted(set(files[a]).difference(files[b])) for a, b in (_SPLITS, _SPLITS[::-1]))
        raise ValueError(
            f"{folder}: train and test must have the same classes, got {here} only in train and {there} only in test"
        )
    if len(class_names) < 2:
        raise ValueError(f"{folder / 'train'} must hold at least 2 classes, one folder each, got {list(class_names)}")
    paths = {split: [path for images, _ in files[split].values() for path in images] for split in _SPLITS}
    labels = {
        split: np.repeat(np.arange(len(class_names)), [len(images) for images, _ in files[split].values()])
        for split in _SPLITS
    }
    ignored = sum(others for split in _SPLITS for _, others in files[split].values())
    rows = np.sort(take(labels["train"], num_examples, np.random.default_rng(seed)))
    check_memory(name, len(rows) + len(paths["test"]), size)
    train = Images(decode([paths["train"][row] for row in rows], size), labels["train"][rows], rows)
    test = Images(decode(paths["test"], size), labels["test"])
    left_out = f" {ignored} files with other endings than {' '.join(ENDINGS)} are left out." if ignored else ""
    description = f"Folder {folder.name} of image files; {describe_counts(train, test)} decoded.{left_out}"
    texts = Texts("your own folder", "yours to know", description, pixels=describe_pixels(size))
    return hold_out_validation(name, class_names, texts, train, test, seed)


def describe_pixels(image_size: int) -> str:
    """Return how pixels come about, for the card."""
    return (
        f"Pixels: RGB, the middle square of an image resized to {image_size}x{image_size}, 0..255; nothing is "
        "standardised."
    )


def _list_classes(folder: Path) -> dict[str, tuple[list[Path], int]]:
    """Return, for each class, its image files, sorted, and the number of other files."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} must be a folder with one folder of images per class, it does not exist; make it, or name the "
            "folder that holds it in root="
        )
    classes = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
        images = [path for path in found if path.suffix.lower() in ENDINGS]
        if not images:
            raise ValueError(
                f"{place} is an empty class: expected files that end in {' '.join(ENDINGS)}, got {len(found)} other "
                "files; add images, or take the folder out of train and test"
            )
        classes[place.name] = images, len(found) - len(images)
    return classes


def check_memory(name: str, count: int, image_size: int) -> None:
    """Refuse images that memory cannot hold twice, as it must while they are split."""
    needed, there = 2 * count * 3 * image_size**2, physical_memory()
    if there is not None and needed > there:
        size = f"{image_size}x{image_size}"
        raise ValueError(
            f"{name}: {count} images of {size} need {needed / 1e9:.1f} GB while they are split, this machine has "
            f"{there / 1e9:.1f} GB; name a smaller image_size or num_examples"
        )


def physical_memory() -> int | None:
    """Return the bytes of memory of this machine, None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def decode(paths: Sequence[Path], image_size: int) -> np.ndarray:
    """Return image files as uint8 [n, image_size, image_size, 3], decoded by as many threads as torch uses."""
    pixels = np.empty((len(paths), image_size, image_size, 3), np.uint8)

    def fill(place: int) -> None:
        pixels[place] = _read_image(paths[place], image_size)

    workers = torch.get_num_threads()
    if workers == 1:
        for place in range(len(paths)):
            fill(place)
        return pixels
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), _BLOCK):
            # list() raises the error of the first file in order.
            list(pool.map(fill, range(start, min(start + _BLOCK, len(paths)))))
    return pixels


def _read_image(path: Path, image_size: int) -> np.ndarray:
    """Return the middle square of an image file, resized."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still large enough: several times as fast.
            image.draft("RGB", (image_size, image_size))
            return np.asarray(ImageOps.fit(image.convert("RGB"), (image_size, image_size), Image.Resampling.BILINEAR))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: get it again, or take it out of the list") from None
    # A damaged file can raise nearly anything.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {error}; get it again, or take it out") from error
