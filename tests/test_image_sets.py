import gzip
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from image_files import cifar_contents, idx, md5, mnist_arrays, plant_cifar, python2_pickle, write_cifar, write_mnist
from torchvision import datasets

from nls import image_sets
from nls.data import dataset_names, load_dataset

SIZES = (200, 50)
CIFAR = {"cifar10": (datasets.CIFAR10, 10, SIZES), "cifar100": (datasets.CIFAR100, 100, (1000, 200))}
MNIST = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """No test touches the network or a folder of the person who runs it; the sets are small."""

    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.delenv("NLS_DATA", raising=False)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for name, release in image_sets._RELEASES.items():
        counts = CIFAR[name][2] if name in CIFAR else SIZES
        monkeypatch.setitem(image_sets._RELEASES, name, release._replace(counts=counts))


def plant(name, monkeypatch, change=lambda contents: None):
    origin, num_classes, sizes = CIFAR[name]
    contents = cifar_contents(origin, sizes, num_classes)
    change(contents)
    return origin, contents, plant_cifar(monkeypatch, origin, contents)


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_is_what_torchvision_reads(tmp_path, monkeypatch, name, packed):
    origin, contents, archive = plant(name, monkeypatch)
    place = write_cifar(tmp_path, origin, contents)
    train, test = (origin(tmp_path, train=split) for split in (True, False))
    if packed:
        # Half unpacked, as an interruption leaves it.
        (place / origin.train_list[0][0]).unlink()
        (tmp_path / origin.filename).write_bytes(archive)
    data = load_dataset(name, tmp_path, seed=3)
    n = len(train.data)
    assert data.card.split_sizes == (n * 9 // 10, n // 10, len(test.data))
    for split, theirs in (("train", train), ("validation", train), ("test", test)):
        rows = getattr(data, f"{split}_indices")
        features = getattr(data, f"{split}_features")
        assert features.dtype == torch.uint8
        np.testing.assert_array_equal(features.permute(0, 2, 3, 1), theirs.data[rows])
        assert getattr(data, f"{split}_labels").tolist() == [theirs.targets[row] for row in rows]
    assert data.class_names == tuple(train.classes)
    assert ("tar.gz" if packed else f"the files in {origin.base_folder}/") in data.card.description
    assert "Krizhevsky 2009" in data.card.source
    assert str(tmp_path) not in str(data.card)


@pytest.mark.parametrize("name", MNIST)
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_what_torchvision_reads(tmp_path, monkeypatch, name, packed):
    origin, contents = MNIST[name], [idx(array) for array in mnist_arrays(SIZES)]
    place = write_mnist(tmp_path, monkeypatch, origin, contents)
    for path in list(place.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    train, test = (origin(tmp_path, train=split) for split in (True, False))
    for path in list(place.iterdir()):
        if (path.suffix == ".gz") != packed:
            path.unlink()
    data = load_dataset(name, tmp_path, seed=3, num_examples=150)
    assert data.card.split_sizes == (135, 15, 50)
    for split, theirs in (("train", train), ("validation", train), ("test", test)):
        rows = getattr(data, f"{split}_indices")
        np.testing.assert_array_equal(getattr(data, f"{split}_features")[:, 0], theirs.data[rows])
        assert torch.equal(getattr(data, f"{split}_labels"), theirs.targets[rows])
    assert data.class_names[0] == {"mnist": "0", "fashion_mnist": "T-shirt/top"}[name]
    assert ("MD5" if packed else "no checksum for train-images-idx3-ubyte") in data.card.description


def test_the_releases_have_the_sums_that_torchvision_names():
    """The sums are read from torchvision when a set is read; here only that they are the real ones."""
    assert datasets.CIFAR10.tgz_md5 == "c58f30108f718f92721af3b95e74349a"
    assert datasets.CIFAR100.tgz_md5 == "eb9058c3a382ffc7106e4002c42a8d85"
    assert set(image_sets._RELEASES) <= set(dataset_names())


def test_your_own_file_comes_before_the_files_of_torchvision(tmp_path, monkeypatch):
    origin, contents, _ = plant("cifar10", monkeypatch)
    write_cifar(tmp_path, origin, contents)
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "cifar10.npz",
        train_images=generator.integers(256, size=(40, 4, 4, 3), dtype=np.uint8),
        train_labels=np.arange(40) % 2,
        test_images=generator.integers(256, size=(6, 4, 4, 3), dtype=np.uint8),
        test_labels=np.arange(6) % 2,
    )
    assert load_dataset("cifar10", tmp_path).train_features.shape == (36, 3, 4, 4)
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    assert load_dataset("cifar10").card.source == "your own file"
    (tmp_path / "cifar10.npz").unlink()
    assert load_dataset("cifar10").train_features.shape == (180, 3, 32, 32)


def labels_of(file, key, value):
    """Change the labels in a file of CIFAR."""

    def change(contents):
        table = pickle.loads(contents[file], encoding="latin1")
        table[key] = value(table[key])
        contents[file] = python2_pickle(table)

    return change


WRONG = {
    "a label too many in number": (
        "cifar100", labels_of("train", "fine_labels", lambda x: [100, *x[1:]]),
        r"cifar100: the train split in .* must have labels in \[0, 99\], got 100 \(1 beyond\); .*get it again",
    ),
    "a label below 0": ("cifar10", labels_of("test_batch", "labels", lambda x: [-1, *x[1:]]), r"\[0, 9\], got -1"),
    "too few labels": (
        "cifar10", labels_of("data_batch_2", "labels", lambda x: x[1:]),
        r"data_batch_2 must hold an integer label for each of its 40 images, got int64 of shape \(39,\)",
    ),
    "no labels": ("cifar10", labels_of("data_batch_2", "labels", lambda x: None), r"got object of shape \(\)"),
    "too few images": (
        "cifar10",
        lambda c: c.update(test_batch=python2_pickle({"data": np.zeros((9, 3072), np.uint8), "labels": [0] * 9})),
        r"cifar10: the test split in .* must hold 50 images of 32x32x3 .*, got \(9, 32, 32, 3\) and \(9,\)",
    ),
    "floats": (
        "cifar10", labels_of("data_batch_1", "data", lambda x: x / 255),
        r"'data' must hold uint8 .*, got float64 \(40, 3072\)",
    ),
    "no images": ("cifar10", labels_of("data_batch_1", "data", lambda x: "text"), r"'data' must hold .*, got str"),
    "a list": ("cifar10", lambda c: c.update(data_batch_1=python2_pickle([])), "must hold a dictionary, got list"),
    "a class name too few": (
        "cifar10", lambda c: c.update({"batches.meta": python2_pickle({"label_names": list("abcdefghi")})}),
        "cifar10: expected 10 class names, got 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_files_with_the_right_sum_and_wrong_content_are_refused(tmp_path, monkeypatch, case):
    name, change, message = WRONG[case]
    origin, contents, _ = plant(name, monkeypatch, change)
    write_cifar(tmp_path, origin, contents)
    with pytest.raises(ValueError, match=message):
        load_dataset(name, tmp_path)


def test_a_wrong_sum_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    origin, contents, archive = plant("cifar10", monkeypatch)
    place = write_cifar(tmp_path, origin, contents)
    path, whole = place / "data_batch_3", contents["data_batch_3"]
    path.write_bytes(whole[:-1])
    message = rf"data_batch_3 must have the MD5 {md5(whole)}, got {md5(whole[:-1])} for its {len(whole) - 1} bytes; .*"
    with pytest.raises(ValueError, match=message + "delete it and get it again"):
        load_dataset("cifar10", tmp_path)
    path.unlink()
    for content in (archive[:-10], archive[:200], b""):
        (tmp_path / origin.filename).write_bytes(content)
        with pytest.raises(ValueError, match=rf"tar\.gz must have the MD5 {md5(archive)}, got {md5(content)}"):
            load_dataset("cifar10", tmp_path)
    # Were such an archive the one that torchvision names, it would still be refused.
    for content in (archive[: len(archive) // 2], archive[:200], b"no archive"):
        (tmp_path / origin.filename).write_bytes(content)
        monkeypatch.setattr(origin, "tgz_md5", md5(content))
        with pytest.raises(ValueError, match=r"tar\.gz must hold cifar-10-batches-py/data_batch_1 and its like, got: "):
            load_dataset("cifar10", tmp_path)


class Bomb:
    """Unpickling this would leave a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("place", ["data", "labels", "beside"])
def test_a_pickle_with_code_is_never_executed(tmp_path, monkeypatch, place):
    """Neither with a wrong sum nor with the right one."""
    trace = tmp_path / "executed"

    def change(contents):
        table = pickle.loads(contents["data_batch_2"], encoding="latin1")
        contents["data_batch_2"] = pickle.dumps(table | {place: Bomb(trace)}, protocol=2)

    whole = cifar_contents(datasets.CIFAR10, SIZES, 10)
    origin, contents, _ = plant("cifar10", monkeypatch, change)
    write_cifar(tmp_path, origin, contents)
    with pytest.raises(
        ValueError, match=r"data_batch_2 is refused: it asks to call \S+, which images and labels do not"
    ):
        load_dataset("cifar10", tmp_path)
    plant_cifar(monkeypatch, origin, whole)
    with pytest.raises(ValueError, match="data_batch_2 must have the MD5"):
        load_dataset("cifar10", tmp_path)
    assert not trace.exists()
    pickle.loads(contents["data_batch_2"])
    assert trace.exists(), "the bomb must be live for this test to mean anything"


def test_damaged_pickles_are_refused_or_read_as_they_were(tmp_path, monkeypatch):
    origin, contents, _ = plant("cifar10", monkeypatch)
    place = write_cifar(tmp_path, origin, contents)
    whole, generator = contents["test_batch"], np.random.default_rng(0)
    cuts = [whole[:length] for length in generator.integers(len(whole), size=20)]
    # Near its ends, where the structure is and not the pixels.
    places = np.r_[0:150, len(whole) - 150 : len(whole)]
    flips = [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in generator.choice(places, 60, replace=False)]
    refused = 0
    for content in cuts + flips:
        (place / "test_batch").write_bytes(content)
        monkeypatch.setattr(origin, "test_list", [["test_batch", md5(content)]])
        try:
            data = load_dataset("cifar10", tmp_path)
        except ValueError:
            refused += 1
        else:
            assert data.test_features.shape == (50, 3, 32, 32)
    assert refused >= len(cuts) + 20


IDX = {
    "images cut": (0, lambda x: x[:-1], "must hold {n} bytes for sizes \\[200, 28, 28\\], got {short}; "),
    "images longer": (2, lambda x: x + b"\0", "for sizes \\[50, 28, 28\\], got"),
    "labels for images": (0, lambda x: idx(np.zeros(9, np.uint8)), "00 00 08 03 and 3 sizes, got 00 00 08 01"),
    "empty": (1, lambda x: b"", "labels-idx1-ubyte.gz must start with 00 00 08 01 and 1 sizes, got nothing"),
    "header cut": (1, lambda x: x[:5], "must hold 8 bytes for sizes \\[0\\], got 5"),
    "sizes beyond memory": (0, lambda x: x[:4] + b"\xff" * 12 + x[16:], "must hold 792281.* bytes for sizes"),
    "fewer labels": (1, lambda x: idx(np.zeros(199, np.uint8)), "as many labels, got .* and \\(199,\\)"),
    "other images": (2, lambda x: idx(np.zeros((50, 28, 27), np.uint8)), "50 images of 28x28x1 .* got \\(50, 28, 27, "),
    "label 10": (1, lambda x: x[:-1] + b"\x0a", "must have labels in \\[0, 9\\], got 10"),
}  # fmt: skip


@pytest.mark.parametrize("case", IDX)
def test_damaged_files_of_mnist_are_refused(tmp_path, monkeypatch, case):
    file, change, message = IDX[case]
    contents = [idx(array) for array in mnist_arrays(SIZES)]
    message = message.format(n=len(contents[0]), short=len(contents[0]) - 1)
    contents[file] = change(contents[file])
    write_mnist(tmp_path, monkeypatch, datasets.MNIST, contents)
    with pytest.raises(ValueError, match=message):
        load_dataset("mnist", tmp_path)


def test_an_archive_of_mnist_cut_short_is_refused(tmp_path, monkeypatch):
    place = write_mnist(tmp_path, monkeypatch, datasets.MNIST, [idx(array) for array in mnist_arrays(SIZES)])
    path = place / datasets.MNIST.resources[0][0]
    short = path.read_bytes()[:-30]
    path.write_bytes(short)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz must have the MD5 \w+, got"):
        load_dataset("mnist", tmp_path)
    resources = [(path.name, md5(short)), *datasets.MNIST.resources[1:]]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz must be a whole gzip file, got"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "address"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz", "mnist/train-images-idx3-ubyte.gz"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte.gz", "amazonaws.com/train-images-idx3-ubyte.gz"),
        ("cifar10", "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
    ],
)
def test_a_missing_set_comes_with_the_steps(tmp_path, monkeypatch, name, file, address):
    steps = rf"To get it: 1\. .* download .*{address} \(MD5 \w{{32}}\) as {file}.*2\. .*3\. .*root.*NLS_DATA"
    with pytest.raises(ValueError, match=rf"{name} is not at hand: no folder is named\. {steps}"):
        load_dataset(name)
    with pytest.raises(ValueError, match=rf"{name} is not at hand: \S+ holds none of .*{file}.* {steps}"):
        load_dataset(name, tmp_path)
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"downloading {file} failed \(.*no route to host.*\)\. {steps}"):
        load_dataset(name)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_download_lands_in_the_folder_of_the_environment_only(tmp_path, monkeypatch):
    origin, contents, archive = plant("cifar10", monkeypatch)
    asked = []

    def fetch(url, root, filename, md5):
        asked.append((url, md5))
        (Path(root) / filename).write_bytes(archive)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    with pytest.raises(ValueError, match="is not at hand"):
        load_dataset("cifar10", tmp_path)
    assert not asked
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    assert load_dataset("cifar10").card.split_sizes == (180, 20, 50)
    assert [path.name for path in tmp_path.iterdir()] == [origin.filename]
    # What is there is not asked for again, packed or not.
    load_dataset("cifar10")
    (tmp_path / origin.filename).unlink()
    write_cifar(tmp_path, origin, contents)
    load_dataset("cifar10")
    assert asked == [(origin.url, origin.tgz_md5)]


def test_mnist_is_downloaded_file_by_file_from_the_first_mirror_that_answers(tmp_path, monkeypatch):
    contents = [idx(array) for array in mnist_arrays(SIZES)]
    (tmp_path / "there").mkdir()
    place = write_mnist(tmp_path / "there", monkeypatch, datasets.MNIST, contents)
    asked = []

    def fetch(url, root, filename, md5):
        asked.append(url)
        if url.startswith(datasets.MNIST.mirrors[0]):
            raise URLError("gone")
        (Path(root) / filename).write_bytes((place / filename).read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    home = tmp_path / "home"
    (home / "MNIST" / "raw").mkdir(parents=True)
    (home / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(contents[3])
    monkeypatch.setenv("NLS_DATA", str(home))
    assert load_dataset("mnist").card.split_sizes == (180, 20, 50)
    assert len(asked) == 6
    assert sorted(path.suffix for path in (home / "MNIST" / "raw").iterdir()) == ["", ".gz", ".gz", ".gz"]


def test_without_torchvision_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(ValueError, match=r"cifar10 needs torchvision.*: pip install 'nls\[images\]'"):
        load_dataset("cifar10", tmp_path)
