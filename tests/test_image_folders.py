import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import image_bytes, write_image_folder
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import center_crop, resize

from nls import image_folders
from nls.data import load_dataset

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("NLS_DATA", raising=False)


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_a_folder_comes_back_as_it_is(tmp_path, kind):
    """Square images at their own size are not touched; order and labels are those of torchvision's ImageFolder."""
    write_image_folder(tmp_path / "mine", counts=(20, 3), class_names=("bee", "ant", "cat"), size=(8, 8), kind=kind)
    data = load_dataset("mine", tmp_path, seed=1, image_size=8)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.card.split_sizes == (54, 6, 9)
    for split in SPLITS:
        theirs = ImageFolder(tmp_path / "mine" / ("test" if split == "test" else "train"))
        features, labels, rows = (getattr(data, f"{split}_{key}") for key in ("features", "labels", "indices"))
        assert features.dtype == torch.uint8
        for image, label, row in zip(features, labels, rows, strict=True):
            pixels, target = theirs[int(row)]
            np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(pixels))
            assert int(label) == target
    assert "resized to 8x8" in data.card.preparation
    assert data.card.description.startswith("Folder mine of image files; 60 training and 9 test images of 8x8x3")
    assert str(tmp_path) not in str(data.card)


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (33, 32), (5, 9)])
def test_the_middle_square_is_resized(tmp_path, size):
    """As torchvision resizes the shorter side and cuts the middle, but for the grey levels of another filter."""
    height, width = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    pixels = (255 * np.stack([height, width, (height + width) / 2], axis=-1)).astype(np.uint8)
    path = tmp_path / "image.png"
    path.write_bytes(image_bytes(pixels))
    ours = torch.from_numpy(image_folders.decode([path], 16)[0]).permute(2, 0, 1)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)
    theirs = center_crop(resize(whole, 16, antialias=True), [16, 16])
    # The cut of the middle may differ by one pixel of the smaller image.
    step = 255 / (16 * max(size) / min(size))
    assert (ours.int() - theirs.int()).abs().max() <= step + 2


def test_large_jpegs_are_decoded_smaller_and_nearly_the_same(tmp_path):
    height, width = np.meshgrid(np.linspace(0, 9, 256), np.linspace(0, 7, 256), indexing="ij")
    pixels = (127 + 127 * np.stack([np.sin(height), np.cos(width), np.sin(height + width)], -1)).astype(np.uint8)
    path, plain = tmp_path / "image.jpg", tmp_path / "image.png"
    path.write_bytes(image_bytes(pixels, "jpeg"))
    plain.write_bytes(image_bytes(np.asarray(Image.open(path))))
    ours, whole = image_folders.decode([path, plain], 32).astype(int)
    assert abs(ours - whole).mean() < 2
    assert abs(ours - whole).max() < 16


def test_every_kind_of_pixels_becomes_rgb(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    kinds = {"L": grey, "RGB": np.stack([grey] * 3, -1), "RGBA": np.stack([grey] * 3 + [grey * 0 + 255], -1)}
    paths = []
    for kind, pixels in kinds.items():
        paths.append(tmp_path / f"{kind}.png")
        Image.fromarray(pixels).save(paths[-1])
    paths.append(tmp_path / "P.png")
    Image.fromarray(kinds["RGB"]).quantize(64).save(paths[-1])
    for decoded in image_folders.decode(paths, 8):
        np.testing.assert_array_equal(decoded, kinds["RGB"])


def test_only_what_is_taken_is_decoded(tmp_path):
    write_image_folder(tmp_path / "mine", counts=(40, 2))
    few = load_dataset("mine", tmp_path, num_examples=20, seed=2)
    more = load_dataset("mine", tmp_path, num_examples=40, seed=2)
    assert few.card.split_sizes == (18, 2, 4)
    assert few.train_features.shape == (18, 3, 64, 64)
    taken, larger = (set(torch.cat([d.train_indices, d.validation_indices]).tolist()) for d in (few, more))
    assert taken < larger
    for row in set(range(80)) - taken:
        (tmp_path / "mine" / "train" / ("ant", "bee")[row // 40] / f"{row % 40:03}.png").write_bytes(b"no image")
    again = load_dataset("mine", tmp_path, num_examples=20, seed=2)
    assert torch.equal(again.train_features, few.train_features)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        load_dataset("mine", tmp_path, num_examples=40, seed=2)


def test_images_may_lie_deeper_and_other_files_are_counted(tmp_path):
    write_image_folder(tmp_path / "mine")
    inner = tmp_path / "mine" / "train" / "ant" / "more"
    inner.mkdir()
    (tmp_path / "mine" / "train" / "ant" / "000.png").rename(inner / "x.PNG")
    (inner / "notes.txt").write_text("text")
    (inner / ".hidden.png").write_text("text")
    (tmp_path / "mine" / "train" / ".cache").mkdir()
    (tmp_path / "mine" / "train" / "readme.txt").write_text("text")
    card = load_dataset("mine", tmp_path, image_size=4).card
    assert sum(card.split_sizes) == 30
    assert "1 files with other endings than .jpg" in card.description


def test_repeated_images_are_never_validated_on(tmp_path):
    written = write_image_folder(tmp_path / "mine", counts=(30, 3))
    for path in written:
        if path.parent.name == "ant" and path.parts[-3] == "train" and int(path.stem) < 10:
            path.write_bytes((path.parent / "029.png").read_bytes())
    data = load_dataset("mine", tmp_path, image_size=4)
    assert data.card.duplicates == 10
    assert not set(data.validation_indices.tolist()) & {*range(10), 29}


def test_a_folder_in_the_environment_is_found_last(tmp_path, monkeypatch):
    for name in ("mine", "wine", "image"):
        write_image_folder(tmp_path / name)
    (tmp_path / "splice").mkdir()
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    assert load_dataset("mine").train_features.shape[1:] == (3, 64, 64)
    assert load_dataset("image").card.source == "your own folder"
    assert load_dataset("wine").train_features.shape == (107, 13)
    with pytest.raises(ValueError, match=r"unknown data set 'yours'; known: .*; in NLS_DATA: image, mine, wine; for"):
        load_dataset("yours")
    (tmp_path / "mine.csv").write_text("a,target\n1,0\n")
    with pytest.raises(ValueError, match=r"holds both mine\.csv and mine/train; one name must mean one data set"):
        load_dataset("mine")


def test_memory_is_asked_for_before_anything_is_decoded(tmp_path, monkeypatch):
    write_image_folder(tmp_path / "mine")
    monkeypatch.setattr(image_folders, "physical_memory", lambda: 1_000_000)
    with pytest.raises(ValueError, match=r"mine: 30 images of 100x100 need 0\.0 GB .* has 0\.0 GB; name a smaller"):
        load_dataset("mine", tmp_path, image_size=100)
    assert load_dataset("mine", tmp_path, image_size=50).num_features == 7500
    monkeypatch.setattr(image_folders, "physical_memory", lambda: None)
    assert load_dataset("mine", tmp_path, image_size=100).num_features == 30_000


def test_physical_memory(monkeypatch):
    assert image_folders.physical_memory() > 2**28
    monkeypatch.delattr("os.sysconf")
    assert image_folders.physical_memory() is None


def test_endings_are_those_of_torchvision():
    assert set(image_folders.ENDINGS) == set(IMG_EXTENSIONS)


def test_import_leaves_pillow_and_torchvision_out():
    code = (
        "import sys, types; package = sys.modules['nls'] = types.ModuleType('nls'); package.__path__ = ['nls']; "
        "import nls.image_folders, nls.image_sets, nls.clothing; "
        "sys.exit(', '.join({'PIL', 'torchvision', 'sklearn'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


# What is refused.


def test_missing_folders(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(
        ValueError, match=r"mine/train must be a folder with one folder of images per class, it does not"
    ):
        load_dataset("mine", tmp_path)
    write_image_folder(tmp_path / "yours")
    (tmp_path / "yours" / "test").rename(tmp_path / "yours" / "val")
    with pytest.raises(ValueError, match=r"yours/test must be a folder with one folder of images per class"):
        load_dataset("yours", tmp_path)
    with pytest.raises(ValueError, match=r"root has no theirs\.csv, theirs\.npz or folder theirs; .* holds: yours"):
        load_dataset("theirs", tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_and_different_classes(tmp_path, split):
    write_image_folder(tmp_path / "mine")
    extra = tmp_path / "mine" / split / "cat"
    extra.mkdir()
    (extra / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match=rf"{split}/cat is an empty class: expected files that end in .*, got 1 other"):
        load_dataset("mine", tmp_path)
    (extra / "a.png").write_bytes(image_bytes(np.zeros((4, 4), np.uint8)))
    only = {"train": r"\['cat'\] only in train and \[\] only in test", "test": r"\[\] only in train and \['cat'\]"}
    with pytest.raises(ValueError, match=rf"train and test must have the same classes, got {only[split]}"):
        load_dataset("mine", tmp_path)


def test_one_class(tmp_path):
    write_image_folder(tmp_path / "mine", class_names=("ant",))
    with pytest.raises(ValueError, match=r"train must hold at least 2 classes, one folder each, got \['ant'\]"):
        load_dataset("mine", tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_unreadable_images(tmp_path, kind):
    written = write_image_folder(tmp_path / "mine", kind=kind, size=(40, 40))
    path = sorted(written)[-1]
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"bee/011\.{kind} cannot be read as an image: .*; get it again, or take"):
            load_dataset("mine", tmp_path)


def test_an_image_that_is_gone_while_it_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png is missing: get it again"):
        image_folders.decode([tmp_path / "gone.png"], 8)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_unreadable_image_is_the_one_that_is_named(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(image_folders, "_BLOCK", 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    paths = [tmp_path / f"{index}.png" for index in range(10)]
    for path in paths:
        path.write_bytes(image_bytes(np.full((4, 4), int(path.stem), np.uint8)))
    assert image_folders.decode(paths, 4)[:, 0, 0, 0].tolist() == list(range(10))
    for index in (9, 5, 4):
        paths[index].write_bytes(b"text")
    with pytest.raises(ValueError, match=r"4\.png cannot be read"):
        image_folders.decode(paths, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 0}, ValueError, "image_size must be at least 1, got 0"),
        ({"image_size": 5000}, ValueError, "image_size must be at most 4096, got 5000"),
        ({"image_size": 8.0}, TypeError, "image_size must be an integer"),
        ({"num_examples": 19}, ValueError, "num_examples must be at least 20, got 19"),
        ({"num_examples": 25}, ValueError, "num_examples must be at most 24, got 25"),
    ],
)
def test_bad_sizes(tmp_path, options, error, message):
    write_image_folder(tmp_path / "mine")
    with pytest.raises(error, match=message):
        load_dataset("mine", tmp_path, **options)


def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path):
    """A small file can name a size that memory cannot hold."""
    write_image_folder(tmp_path / "mine")
    path = tmp_path / "mine" / "test" / "ant" / "000.png"
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png")
    path.write_bytes(file.getvalue())
    with pytest.raises(ValueError, match=r"ant/000\.png cannot be read as an image: Image size \(400000000 pixels\)"):
        load_dataset("mine", tmp_path)
