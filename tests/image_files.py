"""Small files in the exact formats of image sets, so that loaders are tested where the sets are not at hand."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
from PIL import Image


def md5(content):
    return hashlib.md5(content).hexdigest()


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, in which the files of CIFAR were made."""

    def save_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {str: save_string, bytes: save_string}


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_contents(origin, sizes, num_classes, seed=0):
    """Return file name to content of a set like CIFAR, with these numbers of training and test images."""
    generator = np.random.default_rng(seed)
    key = "labels" if num_classes == 10 else "fine_labels"
    contents, start = {}, 0
    for files, size in ((origin.train_list, sizes[0]), (origin.test_list, sizes[1])):
        for file, part in zip([name for name, _ in files], np.array_split(np.arange(size), len(files)), strict=True):
            labels = [int(row) for row in (part + start) % num_classes]
            pixels = generator.integers(256, size=(len(part), 3072), dtype=np.uint8)
            contents[file] = python2_pickle({"data": pixels, key: labels, "batch_label": "a part"})
    names = [f"kind {label}" for label in range(num_classes)]
    contents[origin.meta["filename"]] = python2_pickle({origin.meta["key"]: names})
    return contents


def plant_cifar(patch, origin, contents):
    """Let torchvision name the sums of these contents; returns the archive of them, whose sum it names too."""
    for name in ("train_list", "test_list"):
        patch.setattr(origin, name, [[file, md5(contents[file])] for file, _ in getattr(origin, name)])
    patch.setattr(origin, "meta", origin.meta | {"md5": md5(contents[origin.meta["filename"]])})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for file, content in contents.items():
            member = tarfile.TarInfo(f"{origin.base_folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    patch.setattr(origin, "tgz_md5", md5(packed.getvalue()))
    return packed.getvalue()


def write_cifar(folder, origin, contents):
    place = folder / origin.base_folder
    place.mkdir()
    for file, content in contents.items():
        (place / file).write_bytes(content)
    return place


def idx(array):
    """Return an array of bytes in the format of MNIST."""
    return struct.pack(f">{array.ndim + 1}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def mnist_arrays(sizes, seed=0):
    """Return images and labels of both splits, as in the four files of MNIST."""
    generator = np.random.default_rng(seed)
    arrays = []
    for size in sizes:
        arrays += [
            generator.integers(256, size=(size, 28, 28), dtype=np.uint8),
            (np.arange(size) % 10).astype(np.uint8),
        ]
    return arrays


def write_mnist(folder, patch, origin, contents):
    """Write the four archives, whose sums torchvision then names; returns their folder."""
    place = folder / origin.__name__ / "raw"
    place.mkdir(parents=True)
    resources = []
    for (file, _), content in zip(origin.resources, contents, strict=True):
        packed = gzip.compress(content)
        (place / file).write_bytes(packed)
        resources.append((file, md5(packed)))
    patch.setattr(origin, "resources", resources)
    return place


def image_bytes(pixels, kind="png"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_image_folder(place, counts=(12, 3), class_names=("ant", "bee"), size=(9, 7), kind="png", seed=0):
    """Write train/<class>/ and test/<class>/ with so many images each; returns path to pixels."""
    generator = np.random.default_rng(seed)
    written = {}
    for split, count in zip(("train", "test"), counts, strict=True):
        for class_name in class_names:
            folder = place / split / class_name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(256, size=(*size, 3), dtype=np.uint8)
                path = folder / f"{index:03}.{kind}"
                path.write_bytes(image_bytes(pixels, "jpeg" if kind == "jpg" else kind))
                written[path] = pixels
    return written


CLOTHES = (
    *("T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker"),
    *("Jacket", "Downcoat", "Suit", "Shawl", "Dress", "Vest", "Underwear"),
)


def write_clothing(root, counts=(168, 42, 28, 28), flat=False, size=(6, 6), seed=0):
    """Write a set in the layout of Clothing1M: so many images in noisy_train, clean_train, clean_val, clean_test.

    Noisy labels are one more than the clean ones for every third image; half of the clean images have both labels.
    """
    generator = np.random.default_rng(seed)
    place = root / "clothing1m"
    texts = place if flat else place / "annotations"
    texts.mkdir(parents=True)
    noisy, clean, lists = {}, {}, {}
    for name, count in zip(("noisy_train", "clean_train", "clean_val", "clean_test"), counts, strict=True):
        lists[name] = []
        for index in range(count):
            key = f"images/{index % 10}/{index % 7}/{name[-4:]}{name[0]}{index:04},1.jpg"
            path = place / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(generator.integers(256, size=(*size, 3), dtype=np.uint8), "jpeg"))
            label = index % 14
            if name != "noisy_train":
                clean[key] = label
            if name == "noisy_train" or index % 2:
                noisy[key] = (label + (index % 3 == 0)) % 14
            lists[name].append(key)
    for name, keys in lists.items():
        (texts / f"{name}_key_list.txt").write_text("".join(f"{key}\n" for key in keys))
    for name, labels in (("noisy", noisy), ("clean", clean)):
        (texts / f"{name}_label_kv.txt").write_text("".join(f"{key} {label}\n" for key, label in labels.items()))
    (texts / "category_names_eng.txt").write_text("".join(f"{name}\n" for name in CLOTHES))
    return place, texts, noisy, clean, lists
