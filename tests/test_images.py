import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nls import images
from nls.batches import channel_statistics
from nls.data import dataset_names, load_dataset

SPLITS = ("train", "validation", "test")
PACKED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "cifar10_jpeg.npz"


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("NLS_DATA", raising=False)


def parts(dataset, key):
    return [getattr(dataset, f"{split}_{key}") for split in SPLITS]


def toy_arrays(n=200, num_classes=4, height=5, width=6, channels=3):
    """Images that all differ, of classes in unequal shares, sorted by class."""
    generator = np.random.default_rng(0)
    labels = np.sort(np.arange(n) % (num_classes + 1) % num_classes)
    shape = (height, width, channels) if channels else (height, width)
    return {
        "train_images": generator.integers(256, size=(n, *shape), dtype=np.uint8),
        "train_labels": labels,
        "test_images": generator.integers(256, size=(n // 4, *shape), dtype=np.uint8),
        "test_labels": np.arange(n // 4) % num_classes,
    }


def write(folder, name="toy", **arrays):
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return path


# Digits.


def test_digits_are_the_raw_images_in_the_split_of_the_plain_digits():
    from sklearn.datasets import load_digits

    raw = load_digits()
    data, plain = load_dataset("digits_images", seed=3), load_dataset("digits", seed=3)
    assert sum(data.card.split_sizes) == 1797
    for features, labels, rows, plain_labels in zip(
        *(parts(data, key) for key in ("features", "labels", "indices")), parts(plain, "labels"), strict=True
    ):
        assert features.dtype == torch.uint8
        assert features.shape == (len(labels), 1, 8, 8)
        assert torch.equal(labels, plain_labels)
        np.testing.assert_array_equal(labels, raw.target[rows])
        # Exact: 17 values, the ends at 0 and 255, back to the old ones.
        np.testing.assert_array_equal(np.rint(features[:, 0].numpy() * (16 / 255)), raw.images[rows])
    assert torch.cat(parts(data, "features")).unique().tolist() == [round(255 * v / 16) for v in range(17)]
    assert torch.cat(parts(data, "indices")).sort().values.tolist() == list(range(1797))
    raw_rows = torch.from_numpy(raw.data)[data.train_indices]
    constant = raw_rows.min(0).values == raw_rows.max(0).values
    scaled = (raw_rows - raw_rows.mean(0)) / raw_rows.std(0, correction=0).masked_fill(constant, 1)
    torch.testing.assert_close(plain.train_features.double(), scaled, rtol=1e-5, atol=1e-5)


def test_digits_describe_themselves():
    data = load_dataset("digits_images")
    card = data.card
    assert (card.num_examples, card.num_features, card.num_classes) == (1797, 64, 10)
    assert data.num_features == 64
    assert data.class_names == tuple("0123456789")
    assert repr(data) == "Dataset('digits_images': 1078/360/359 examples, 64 features, 10 classes)"
    assert "0..16 becomes 255 v / 16, rounded" in card.preparation
    assert card.duplicates == load_dataset("digits").card.duplicates
    assert "digits_images" in dataset_names()


def test_fewer_digits():
    data = load_dataset("digits_images", num_examples=200, seed=1)
    assert data.card.split_sizes == (120, 40, 40)
    counts = torch.cat(parts(data, "labels")).bincount()
    assert counts.min() >= 19
    assert counts.max() <= 21


# Your own file.


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_a_file_comes_back_as_it_is(tmp_path, channels):
    arrays = toy_arrays(channels=channels)
    write(tmp_path, **arrays)
    data = load_dataset("toy", tmp_path, seed=1)
    for split, source in zip(SPLITS, ("train", "train", "test"), strict=True):
        features, labels, rows = (getattr(data, f"{split}_{key}") for key in ("features", "labels", "indices"))
        original = arrays[f"{source}_images"][rows].reshape(len(rows), 5, 6, max(channels, 1))
        assert features.dtype == torch.uint8
        assert labels.dtype == rows.dtype == torch.int64
        np.testing.assert_array_equal(features.permute(0, 2, 3, 1), original)
        np.testing.assert_array_equal(labels, arrays[f"{source}_labels"][rows])
    assert data.card.split_sizes == (180, 20, 50)
    assert torch.equal(data.test_indices, torch.arange(50))
    both = torch.cat([data.train_indices, data.validation_indices])
    assert both.sort().values.tolist() == list(range(200))
    assert data.num_features == 30 * max(channels, 1)
    assert data.class_names == ("0", "1", "2", "3")


def test_validation_is_a_stratified_tenth_and_mixed(tmp_path):
    arrays = toy_arrays(1000)
    write(tmp_path, **arrays)
    data = load_dataset("toy", tmp_path)
    whole = np.bincount(arrays["train_labels"])
    assert whole.tolist() == [400, 200, 200, 200]
    assert np.abs(data.validation_labels.bincount().numpy() - whole / 10).max() <= 1
    for labels in (data.train_labels, data.validation_labels):
        assert (labels[1:] != labels[:-1]).float().mean() > 0.5
    other = load_dataset("toy", tmp_path, seed=1)
    shared = set(data.validation_indices.tolist()) & set(other.validation_indices.tolist())
    assert len(shared) < 30
    again = load_dataset("toy", tmp_path)
    assert torch.equal(again.train_indices, data.train_indices)
    assert torch.equal(again.validation_indices, data.validation_indices)


def test_num_examples_takes_a_stratified_part_of_training_only(tmp_path):
    arrays = toy_arrays(1000)
    write(tmp_path, **arrays)
    few, more = (load_dataset("toy", tmp_path, num_examples=size) for size in (100, 300))
    assert few.card.split_sizes == (90, 10, 250)
    assert more.card.split_sizes == (270, 30, 250)
    rows = [set(torch.cat([d.train_indices, d.validation_indices]).tolist()) for d in (few, more)]
    assert rows[0] < rows[1]
    taken = torch.cat([few.train_labels, few.validation_labels]).bincount()
    assert (taken - torch.tensor([40, 20, 20, 20])).abs().max() <= 1


def test_repeated_images_are_counted_and_never_validated_on(tmp_path):
    arrays = toy_arrays(400)
    arrays["train_images"][100:180] = arrays["train_images"][20:100]
    arrays["test_images"][:3] = arrays["train_images"][:3]
    arrays["test_images"][4] = arrays["test_images"][5]
    write(tmp_path, **arrays)
    for seed in range(5):
        data = load_dataset("toy", tmp_path, seed=seed)
        assert data.card.duplicates == 80 + 3 + 1
        assert data.card.split_sizes == (360, 40, 100)
        held = data.validation_indices
        assert not ((held >= 20) & (held < 180)).any()


def test_class_names_and_card(tmp_path):
    path = write(tmp_path, **toy_arrays(), class_names=np.array(["ant", "bee", "cat", "dog"]))
    data = load_dataset("toy", tmp_path, seed=2)
    assert data.class_names == ("ant", "bee", "cat", "dog")
    card = data.card
    assert (card.num_examples, card.num_features, card.num_classes, card.duplicates) == (250, 90, 4, 0)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert card.description.startswith(f"File toy.npz, 200 training and 50 test images of 5x6x3, SHA-256 {digest}.")
    assert "seed 2" in card.preparation
    assert str(tmp_path) not in str(card)


def test_a_folder_in_the_environment_is_searched_but_bundled_names_come_first(tmp_path, monkeypatch):
    for name in ("toy", "wine"):
        write(tmp_path, name=name, **toy_arrays())
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    assert load_dataset("toy").train_features.shape == (180, 3, 5, 6)
    assert load_dataset("wine").train_features.shape == (107, 13)
    assert load_dataset("wine", tmp_path).train_features.shape == (180, 3, 5, 6)
    with pytest.raises(ValueError, match="root has no digits_images"):
        load_dataset("digits_images", tmp_path)


def test_a_file_of_plain_features_is_still_one(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {"features": generator.standard_normal((20, 3)), "labels": np.arange(20) % 2}
    write(tmp_path, **arrays, test_labels=np.zeros(3))
    data = load_dataset("toy", tmp_path)
    assert data.train_features.shape == (12, 3)
    assert data.train_indices is None
    (tmp_path / "toy.csv").write_text("a,target\n1,0\n")
    with pytest.raises(ValueError, match=r"holds both toy\.csv and toy\.npz"):
        load_dataset("toy", tmp_path)


def without(key):
    return lambda a: a.pop(key)


def put(key, value):
    return lambda a: a.update({key: value(a[key]) if callable(value) else value})


BAD = {
    "no training images": (without("train_images"), "toy.npz has no array 'train_images', found: train_labels"),
    "no training labels": (without("train_labels"), "has no array 'train_labels'"),
    "no test images": (without("test_images"), "has no array 'test_images'"),
    "no test labels": (without("test_labels"), "has no array 'test_labels'"),
    "floats": (put("train_images", lambda x: x / 255), "'train_images' must hold pixels 0..255 as uint8, got float64"),
    "signed": (put("test_images", lambda x: x.astype(np.int16)), "'test_images' must hold pixels .* got int16"),
    "channels first": (
        put("train_images", lambda x: x.transpose(0, 3, 1, 2)), r"channels last, .* got \(200, 3, 5, 6\)"
    ),
    "flat": (put("train_images", lambda x: x.reshape(200, -1)), r"must have shape \[n, H, W\] .* got \(200, 90\)"),
    "empty": (put("test_images", lambda x: x[:0]), r"none empty, got \(0, 5, 6, 3\)"),
    "no height": (put("train_images", lambda x: x[:, :0]), r"none empty, got \(200, 0, 6, 3\)"),
    "other size": (put("test_images", lambda x: x[:, 1:]), "training and test images must agree in size"),
    "labels short": (put("train_labels", lambda x: x[1:]), r"one for each of the 200 images, got int64 \(199,\)"),
    "labels of floats": (put("test_labels", lambda x: x * 1.0), "'test_labels' must hold integers.* got float64"),
    "labels of texts": (put("test_labels", lambda x: x.astype(str)), "'test_labels' must hold integers"),
    "label below 0": (put("train_labels", lambda x: x - 1), "'train_labels' must be classes 0, 1, .* got -1"),
    "label huge": (
        put("train_labels", lambda x: np.where(x == 3, 2**64 - 1, x.astype(np.uint64))), "got 18446744073709551615"
    ),
    "class not in training": (put("train_labels", lambda x: x % 3), "class '3' does not occur in the train split"),
    "class not in test": (put("test_labels", lambda x: x % 3), "class '3' does not occur in the test split of 50"),
    "class skipped": (put("train_labels", lambda x: np.where(x == 2, 3, x)), "class '2' does not occur in the train"),
    "class too rare": (
        put("train_labels", lambda x: np.where(np.arange(200) < 2, 3, x % 3)), "class '3' does not occur in the valid"
    ),
    "one class": (
        lambda a: a.update(train_labels=np.zeros(200, int), test_labels=np.zeros(50, int)), "class '1' does not occur"
    ),
    "names too few": (put("class_names", np.array(["a", "b"])), r"labels must lie in \[0, 1\].* got 3"),
    "names too many": (put("class_names", np.array(list("abcde"))), "class 'e' does not occur in the train split"),
    "names twice": (put("class_names", np.array(list("aabc"))), "'class_names' must hold at least 2 distinct texts"),
    "names of numbers": (put("class_names", np.arange(4)), "'class_names' must hold at least 2 distinct texts"),
    "one name": (put("class_names", np.array(["a"])), "'class_names' must hold at least 2 distinct texts"),
    "pickled names": (put("class_names", np.array(list("abcd"), object)), r"holds Python objects \(pickle\)"),
    "pickled images": (put("train_images", np.full(200, None)), r"holds Python objects \(pickle\), which are refused"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_what_is_wrong(tmp_path, case):
    change, message = BAD[case]
    arrays = toy_arrays() | ({"class_names": None} if "name" in case else {})
    change(arrays)
    write(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        load_dataset("toy", tmp_path)


@pytest.mark.parametrize(
    ("name", "size", "error", "message"),
    [
        ("toy", 39, ValueError, "num_examples must be at least 40, got 39"),
        ("toy", 201, ValueError, "num_examples must be at most 200, got 201"),
        ("toy", 50.0, TypeError, "num_examples must be an integer"),
        ("digits_images", 99, ValueError, "num_examples must be at least 100"),
        ("digits_images", 1798, ValueError, "num_examples must be at most 1797"),
    ],
)
def test_bad_sizes_are_refused(tmp_path, name, size, error, message):
    write(tmp_path, **toy_arrays())
    with pytest.raises(error, match=message):
        load_dataset(name, tmp_path if name == "toy" else None, num_examples=size)


class Bomb:
    """Unpickling this would leave a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickles_are_never_executed(tmp_path):
    trace = tmp_path / "executed"
    write(tmp_path, **toy_arrays() | {"train_labels": np.array([Bomb(trace)] * 200, dtype=object)})
    with pytest.raises(ValueError, match=r"toy\.npz holds Python objects \(pickle\), which are refused"):
        load_dataset("toy", tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists(), "the bomb must be live for this test to mean anything"


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files(tmp_path, compressed):
    """Cut anywhere it is refused; with one bit flipped it is refused, or reads as it was."""
    path, arrays = tmp_path / "toy.npz", toy_arrays(60, height=3, width=3, channels=0)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    content, whole = path.read_bytes(), load_dataset("toy", tmp_path)
    for length in range(1, len(content), 61):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"toy\.npz (is not a complete NPZ file|holds Python objects)"):
            load_dataset("toy", tmp_path)
    refused = 0
    for position in np.random.default_rng(0).integers(len(content), size=150):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            data = load_dataset("toy", tmp_path)
        except ValueError:
            refused += 1
        else:
            assert torch.equal(data.train_features, whole.train_features)
            assert torch.equal(data.test_labels, whole.test_labels)
    assert refused > 50


def test_an_image_file_is_told_apart_without_reading_it(tmp_path):
    path = write(tmp_path, **toy_arrays())
    assert images.is_image_file(path)
    assert not images.is_image_file(tmp_path)
    (tmp_path / "text.npz").write_text("no archive")
    assert not images.is_image_file(tmp_path / "text.npz")


# Real images, where they lie beside the checkout.


def real_images(packed, first, last):
    """Some of the images, which are packed as JPEG with one header for all."""
    header, scan, offset = packed["header"].tobytes(), packed["scan"], packed["offset"]
    files = (io.BytesIO(header + scan[offset[i] : offset[i + 1]].tobytes()) for i in range(first, last))
    return np.stack([np.asarray(Image.open(file)) for file in files])


@pytest.mark.shared_data
@pytest.mark.skipif(not PACKED.is_file(), reason="no CIFAR-10 beside the checkout")
def test_cifar10(tmp_path):
    with np.load(PACKED) as packed:
        arrays = {
            "train_images": real_images(packed, 0, 3000), "train_labels": packed["train_labels"][:3000],
            "test_images": real_images(packed, 50_000, 51_000), "test_labels": packed["test_labels"][:1000],
            "class_names": packed["class_names"],
        }  # fmt: skip
    write(tmp_path, name="cifar10", **arrays)
    data = load_dataset("cifar10", tmp_path)
    assert data.card.split_sizes == (2700, 300, 1000)
    assert data.train_features.shape == (2700, 3, 32, 32)
    assert (data.class_names[0], data.class_names[9]) == ("airplane", "truck")
    row = int(data.train_indices[7])
    np.testing.assert_array_equal(data.train_features[7].permute(1, 2, 0), arrays["train_images"][row])
    mean, std = channel_statistics(data.train_features)
    # What everyone uses, of all training images: five standard errors of a mean over 2700 images, whose own
    # brightness spreads by about 0.1, and the loss of JPEG.
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]).double(), rtol=0, atol=0.01)
