"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 from the files that torchvision names, checked, and read without code.

File names, folders, addresses and MD5 sums are those of torchvision's classes. A file is read after its sum matched,
and a pickle by a reader that lets in nothing but what rebuilds an array.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nls.data import Dataset
from nls.images import Images, Texts, describe_counts, hold_out_validation

_SPLITS = ("train", "test")


class _Release(NamedTuple):
    """Name of torchvision's class, numbers of training and test images, classes, shape [H, W, C], citation, licence."""

    torchvision: str
    counts: tuple[int, int]
    num_classes: int
    shape: tuple[int, int, int]
    source: str
    licence: str


# What torchvision's classes do not say about the sets.
# What torchvision's classes do not say about the sets.
_RELEASES = {
    "mnist": _Release(
        "MNIST", (60_000, 10_000), 10, (28, 28, 1),
        "MNIST, LeCun, Cortes and Burges 1998, the files of torchvision", "CC BY-SA 3.0",
    ),
    "fashion_mnist": _Release(
        "FashionMNIST", (60_000, 10_000), 10, (28, 28, 1),
        "Fashion-MNIST, Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, the files of torchvision", "MIT",
    ),
    "cifar10": _Release(
        "CIFAR10", (50_000, 10_000), 10, (32, 32, 3),
        "CIFAR-10, Krizhevsky 2009, the files of torchvision", "not stated by its author",
    ),
    "cifar100": _Release(
        "CIFAR100", (50_000, 10_000), 100, (32, 32, 3),
        "CIFAR-100, Krizhevsky 2009, the files of torchvision, fine labels", "not stated by its author",
    ),
}  # fmt: skip


def load_image_set(
    name: str, folder: Path | None, seed: int, num_examples: int | None = None, *, download: bool = False
) -> Dataset:
    """Return one of the sets, a tenth of its training images held out to validate on.

    Layout in the folder, as torchvision leaves it: ``MNIST/raw/`` and ``FashionMNIST/raw/`` with the ``.gz`` files or
    the files in them, ``cifar-10-batches-py/`` or ``cifar-10-python.tar.gz``, ``cifar-100-python/`` or
    ``cifar-100-python.tar.gz``; of two, the first named is read if it is whole. Training images come in torchvision's
    order.

    Args:
        name: One of ``mnist``, ``fashion_mnist``, ``cifar10``, ``cifar100``.
        folder: Where the files are, or None for none.
        seed: Seed of the split, at least 0.
        num_examples: How many training images to take, at least 10 for each class; all if None.
        download: Whether torchvision's addresses are asked for what is not there.

    Returns:
        The data set, pixels uint8.

    Raises:
        TypeError: If ``num_examples`` is not an integer.
        ValueError: If torchvision or a file is missing (with the steps to get it), or a file is damaged, unsafe, or
            not what it should be.

    References:
        LeCun et al., 1998; Xiao et al., 2017, arXiv:1708.07747; Krizhevsky, 2009.
    """
    if download and folder is not None:
        download_image_set(name, folder)
    release = _RELEASES[name]
    read = _read_mnist if release.shape[2] == 1 else _read_cifar
    train, test, class_names, note = read(name, folder)
    for split, part, count in zip(_SPLITS, (train, test), release.counts, strict=True):
        where = f"{name}: the {split} split in {folder}"
        if part.pixels.shape != (count, *release.shape) or part.labels.shape != (count,):
            expected = f"{count} images of {'x'.join(map(str, release.shape))} and as many labels"
            raise ValueError(f"{where} must hold {expected}, got {part.pixels.shape} and {part.labels.shape}; {_AGAIN}")
        wrong = part.labels[(part.labels < 0) | (part.labels >= release.num_classes)]
        if len(wrong):
            top = release.num_classes - 1
            raise ValueError(f"{where} must have labels in [0, {top}], got {wrong[0]} ({len(wrong)} beyond); {_AGAIN}")
    if len(class_names) != release.num_classes:
        raise ValueError(f"{name}: expected {release.num_classes} class names, got {len(class_names)}; {_AGAIN}")
    texts = Texts(release.source, release.licence, f"{describe_counts(train, test)}. {note}")
    return hold_out_validation(name, class_names, texts, train, test, seed, num_examples)


_AGAIN = "it is damaged or another set: delete it and get it again"


def download_image_set(name: str, folder: Path) -> None:
    """Let torchvision fetch the archives of a set that are not in a folder; they are not unpacked.

    Args:
        name: As for :func:`load_image_set`.
        folder: An existing folder.

    Raises:
        ValueError: If torchvision is missing, or no address answers with the right file (with the steps by hand).
    """
    origin = _origin(name)
    from torchvision.datasets.utils import download_url

    for archive, md5, addresses in _archives(origin):
        target, unpacked = folder / archive, folder / getattr(origin, "base_folder", archive.removesuffix(".gz"))
        if target.exists() or unpacked.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        errors = []
        for address in addresses:
            # Beside its place and moved there when whole, so that another process never reads a part of it.
            with tempfile.TemporaryDirectory(dir=target.parent) as place:
                try:
                    download_url(address, place, target.name, md5)
                    os.replace(Path(place) / target.name, target)
                    break
                # Offline, refused, and a file with another sum raise errors of many kinds.
                except Exception as error:
                    errors.append(f"{address}: {error}")
        else:
            raise ValueError(f"downloading {archive} failed ({'; '.join(errors)}). {_steps(name, folder)}")


def _origin(name: str) -> type:
    """Return torchvision's class of a set."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ValueError(f"{name} needs torchvision, which names its files: pip install 'nls[images]'") from error
    return getattr(datasets, _RELEASES[name].torchvision)


def _archives(origin: type) -> list[tuple[str, str, list[str]]]:
    """Return path in the folder, MD5 and addresses of each archive of a set."""
    if hasattr(origin, "tgz_md5"):
        return [(origin.filename, origin.tgz_md5, [origin.url])]
    raw = f"{origin.__name__}/raw"
    return [(f"{raw}/{file}", md5, [mirror + file for mirror in origin.mirrors]) for file, md5 in origin.resources]


def _steps(name: str, folder: Path | None) -> str:
    """Return how to get a set by hand."""
    wanted = [f"{addresses[0]} (MD5 {md5}) as {path}" for path, md5, addresses in _archives(_origin(name))]
    place = "a folder of data sets" if folder is None else str(folder)
    return (
        f"To get it: 1. where there is a network, download {', '.join(wanted)}; 2. put this into {place}; 3. pass that "
        f"folder as root, or set the environment variable NLS_DATA to it. With NLS_DATA set and no root, a missing set "
        f"is downloaded into its folder. A file {name}.npz with train_images, train_labels, test_images and "
        "test_labels is read instead where there is one"
    )


def _find(name: str, folder: Path | None, candidates: list[str]) -> Path:
    """Return the first of the candidates that exists below the folder."""
    for candidate in candidates:
        if folder is not None and (folder / candidate).is_file():
            return folder / candidate
    state = "no folder is named" if folder is None else f"{folder} holds none of {', '.join(candidates)}"
    raise ValueError(f"{name} is not at hand: {state}. {_steps(name, folder)}")


def _checked(path: Path | str, content: bytes, md5: str) -> bytes:
    """Return the content if its MD5 is the one that torchvision names."""
    got = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if got != md5:
        raise ValueError(f"{path} must have the MD5 {md5}, got {got} for its {len(content)} bytes; {_AGAIN}")
    return content


def _read_mnist(name: str, folder: Path | None) -> tuple[Images, Images, tuple[str, ...], str]:
    """Return training and test images, class names and a note on the files in the format of MNIST."""
    origin, release = _origin(name), _RELEASES[name]
    arrays, unchecked = [], []
    for archive, md5, _ in _archives(origin):
        path = _find(name, folder, [archive, archive.removesuffix(".gz")])
        content = path.read_bytes()
        if path.suffix == ".gz":
            try:
                content = gzip.decompress(_checked(path, content, md5))
            except (OSError, EOFError) as error:
                raise ValueError(f"{path} must be a whole gzip file, got one that ends with: {error}") from error
        else:
            unchecked.append(path.name)
        arrays.append(_parse_idx(path, content, dimensions=3 if "idx3" in archive else 1))
    images = [array[..., None] for array in arrays[::2]]
    train, test = (Images(pixels, labels.astype(np.int64)) for pixels, labels in zip(images, arrays[1::2], strict=True))
    note = "Each archive has the MD5 that torchvision names."
    if unchecked:
        note = f"Without the archive there is no checksum for {', '.join(unchecked)}: size and labels were checked."
    return train, test, tuple(label.split(" - ")[0] for label in origin.classes)[: release.num_classes], note


def _parse_idx(path: Path, content: bytes, dimensions: int) -> np.ndarray:
    """Return the array of unsigned bytes in a file of type IDX: a magic number, the sizes, big-endian, the values."""
    start = 4 * (dimensions + 1)
    magic, header = 0x0800 + dimensions, np.frombuffer(content[:start].ljust(start, b"\0"), dtype=">u4")
    if header[0] != magic:
        got = f"{content[:4].hex(' ') or 'nothing'}; {_AGAIN}"
        raise ValueError(f"{path} must start with {magic.to_bytes(4).hex(' ')} and {dimensions} sizes, got {got}")
    sizes = [int(size) for size in header[1:]]
    expected = start + int(np.prod(sizes, dtype=object))
    if len(content) != expected:
        raise ValueError(f"{path} must hold {expected} bytes for sizes {sizes}, got {len(content)}; {_AGAIN}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(sizes).copy()


def _read_cifar(name: str, folder: Path | None) -> tuple[Images, Images, tuple[str, ...], str]:
    """Return training and test images, class names and a note on the files in the format of CIFAR."""
    origin = _origin(name)
    sums = [*origin.train_list, *origin.test_list, (origin.meta["filename"], origin.meta["md5"])]
    base, where = origin.base_folder, f"the files in {origin.base_folder}/"
    missing = [f"{base}/{file}" for file, _ in sums if folder is None or not (folder / base / file).is_file()]
    if missing:
        where, archive = origin.filename, _find(name, folder, [missing[0], origin.filename])
        contents = _unpack(archive, _checked(archive, archive.read_bytes(), origin.tgz_md5), base, [f for f, _ in sums])
    else:
        contents = {file: (folder / base / file).read_bytes() for file, _ in sums}
    tables = {}
    for file, md5 in sums:
        path = f"{folder / base / file}"
        tables[file] = _unpickle(path, _checked(path, contents[file], md5))
    train = [_batch(str(folder / base / file), tables[file]) for file, _ in origin.train_list]
    test = [_batch(str(folder / base / file), tables[file]) for file, _ in origin.test_list]
    joined = (Images(*map(np.concatenate, zip(*part, strict=True))) for part in (train, test))
    class_names = tables[origin.meta["filename"]].get(origin.meta["key"], [])
    return *joined, tuple(map(str, class_names)), f"Read from {where}; each file has the MD5 that torchvision names."


def _unpack(path: Path, content: bytes, base: str, files: list[str]) -> dict[str, bytes]:
    """Return the wanted members of an archive; nothing is written."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            return {file: archive.extractfile(f"{base}/{file}").read() for file in files}
    # Cut, not gzip, no such member, a member that is a link: errors of many kinds.
    except Exception as error:
        raise ValueError(f"{path} must hold {base}/{files[0]} and its like, got: {error}; {_AGAIN}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Lets in what rebuilds a NumPy array, and no other name."""

    def find_class(self, module: str, name: str) -> object:
        """Return what a name stands for, or refuse it."""
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks to call {module}.{name}, which images and labels do not need")


def _unpickle(path: str, content: bytes) -> dict:
    """Return the dictionary in a pickle of the years of Python 2."""
    try:
        table = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        raise ValueError(f"{path} is refused: {error}; {_AGAIN}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} must hold a dictionary, got {type(table).__name__}; {_AGAIN}")
    return table


def _batch(path: str, table: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the images [n, H, W, C] and the labels [n] of one file."""
    pixels, labels = table.get("data"), np.asarray(table.get("labels", table.get("fine_labels")))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * 32 * 32,):
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"{path}: 'data' must hold uint8 [n, 3072], got {got}; {_AGAIN}")
    if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "ui":
        raise ValueError(
            f"{path} must hold an integer label for each of its {len(pixels)} images, got {labels.dtype} of shape "
            f"{labels.shape}; {_AGAIN}"
        )
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels.astype(np.int64)
