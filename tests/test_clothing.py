import shutil

import numpy as np
import pytest
import torch
from image_files import CLOTHES, write_clothing
from PIL import Image

from nls import clothing
from nls.clothing import label_counts, read_lists
from nls.data import load_dataset

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("NLS_DATA", raising=False)


def pixels(place, key):
    return np.asarray(Image.open(place / key))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_noisy_training_with_a_noisy_tenth_held_out(tmp_path, flat, bare):
    """Texts in annotations/ or beside the images, images below images/ or not, as both are found."""
    place, _, noisy, clean, lists = write_clothing(tmp_path, flat=flat)
    expected = {name: [pixels(place, key) for key in lists[name]] for name in ("noisy_train", "clean_test")}
    if bare:
        for folder in (place / "images").iterdir():
            folder.rename(place / folder.name)
        shutil.rmtree(place / "images")
    data = load_dataset("clothing1m", tmp_path, seed=4, image_size=6)
    assert data.class_names == CLOTHES
    assert data.card.split_sizes == (151, 17, 28)
    for split in SPLITS:
        name = "clean_test" if split == "test" else "noisy_train"
        labels = clean if split == "test" else noisy
        rows = getattr(data, f"{split}_indices")
        np.testing.assert_array_equal(
            getattr(data, f"{split}_features").permute(0, 2, 3, 1), np.stack([expected[name][row] for row in rows])
        )
        assert getattr(data, f"{split}_labels").tolist() == [labels[lists[name][row]] for row in rows]
    held = torch.cat([data.train_indices, data.validation_indices])
    assert held.sort().values.tolist() == list(range(168))
    wrong = (data.validation_labels != data.validation_indices % 14).double().mean()
    assert 0.1 < wrong < 0.6, "validation labels are noisy"
    assert "noisy as collected in training and validation" in data.card.preparation
    assert (data.card.source, data.card.licence) == ("your own folder, in the layout of Clothing1M", "yours to know")
    assert str(tmp_path) not in str(data.card)


def test_the_clean_lists(tmp_path):
    place, _, _, clean, lists = write_clothing(tmp_path)
    data = load_dataset("clothing1m_clean", tmp_path, image_size=6, seed=1)
    assert data.card.split_sizes == (42, 28, 28)
    for split, name in zip(SPLITS, ("clean_train", "clean_val", "clean_test"), strict=True):
        rows = getattr(data, f"{split}_indices")
        assert rows.tolist() == list(range(len(lists[name])))
        assert getattr(data, f"{split}_labels").tolist() == [clean[key] for key in lists[name]]
        np.testing.assert_array_equal(
            getattr(data, f"{split}_features")[5].permute(1, 2, 0), pixels(place, lists[name][5])
        )
    noisy = load_dataset("clothing1m", tmp_path, image_size=6)
    assert torch.equal(noisy.test_features, data.test_features)
    assert "checked by hand" in data.card.preparation


def test_num_examples_takes_a_stratified_part_of_the_chosen_list_only(tmp_path, monkeypatch):
    decoded = []
    real = clothing.decode
    monkeypatch.setattr(clothing, "decode", lambda paths, size: decoded.append(len(paths)) or real(paths, size))
    write_clothing(tmp_path, counts=(420, 280, 28, 28))
    noisy = load_dataset("clothing1m", tmp_path, num_examples=280, image_size=4)
    clean = load_dataset("clothing1m_clean", tmp_path, num_examples=140, image_size=4)
    assert noisy.card.split_sizes == (252, 28, 28)
    assert clean.card.split_sizes == (140, 28, 28)
    assert sorted(decoded) == [28, 28, 28, 140, 280]
    assert clean.train_labels.bincount().tolist() == [10] * 14
    for name in ("clothing1m", "clothing1m_clean"):
        with pytest.raises(ValueError, match="num_examples must be at least 140, got 139"):
            load_dataset(name, tmp_path, num_examples=139)


def test_images_with_both_labels_tell_the_noise(tmp_path):
    place, _, noisy, clean, lists = write_clothing(tmp_path, counts=(168, 420, 28, 28))
    found = read_lists(tmp_path)
    counts = label_counts(found)
    both = [key for key in lists["clean_train"] if key in noisy]
    assert int(counts.sum()) == len(both) == 210
    for i in range(14):
        for j in range(14):
            assert int(counts[i, j]) == sum(clean[key] == i and noisy[key] == j for key in both)
    wrong = sum(clean[key] != noisy[key] for key in both) / len(both)
    text = clothing.describe_lists(found)
    assert f"210 images of clean_train have both labels, which differ in {wrong:.1%}." in text
    assert "noisy_train 168, clean_train 420, clean_val 28, clean_test 28, NOT the published lists" in text
    # Of validation and test images the labels do not count.
    for key in [*lists["clean_val"], *lists["clean_test"]]:
        found.noisy[key] = (found.clean[key] + 5) % 14
    assert torch.equal(label_counts(found), counts)
    for key in both:
        del found.noisy[key]
    assert label_counts(found).sum() == 0
    assert "No image of clean_train has both labels." in clothing.describe_lists(found)
    assert place.name == found.folder.name


def test_the_published_numbers_are_recognised(tmp_path, monkeypatch):
    write_clothing(tmp_path)
    monkeypatch.setattr(
        clothing, "PUBLISHED", {"noisy_train": 168, "clean_train": 42, "clean_val": 28, "clean_test": 28}
    )
    card = load_dataset("clothing1m", tmp_path, image_size=4).card
    assert "clean_test 28, as published" in card.description
    assert "Xiao et al. 2015" in card.source
    assert "no redistribution" in card.licence


def test_the_folder_of_the_set_itself_and_the_one_in_the_environment(tmp_path, monkeypatch):
    place, *_ = write_clothing(tmp_path)
    whole = load_dataset("clothing1m", tmp_path, image_size=4)
    assert torch.equal(load_dataset("clothing1m", place, image_size=4).train_features, whole.train_features)
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    assert torch.equal(load_dataset("clothing1m", image_size=4).train_features, whole.train_features)
    for name in ("clothing1M", "Clothing1M"):
        place = place.rename(tmp_path / name)
        assert load_dataset("clothing1m", image_size=4).card.split_sizes == whole.card.split_sizes
    assert whole.train_features.shape[1:] == (3, 4, 4)


# What is refused.

STEPS = r"To get it: 1\. open github\.com/Cysu/noisy_label .* terms \(non-commercial .*2\. unpack .*3\. pass <root>"


def test_the_steps_to_get_it(tmp_path):
    for name in ("clothing1m", "clothing1m_clean"):
        with pytest.raises(ValueError, match=rf"clothing1m is not at hand: no folder is named\. {STEPS}"):
            load_dataset(name)
        with pytest.raises(ValueError, match=rf"clothing1m is not at hand: \S+ holds no clothing1m/ .*\. {STEPS}"):
            load_dataset(name, tmp_path)


@pytest.mark.parametrize("file", ["clean_label_kv", "noisy_train_key_list", "clean_val_key_list", "category_names_eng"])
def test_a_missing_text_is_named(tmp_path, file):
    _, texts, *_ = write_clothing(tmp_path)
    (texts / f"{file}.txt").unlink()
    with pytest.raises(ValueError, match=rf"{file}\.txt is missing, one of the texts of the release\. {STEPS}"):
        load_dataset("clothing1m", tmp_path)


def lines(change):
    """Change a text as a list of lines."""
    return lambda text: "".join(change(text.splitlines(keepends=True)))


BAD = {
    "label 14": (
        "noisy_label_kv", lines(lambda x: [x[0][:-2] + "14\n", *x[1:]]),
        r"line 1: expected an image and a label in \[0, 13\], got '.* 14'",
    ),
    "label -1": (
        "clean_label_kv", lines(lambda x: [x[0], x[1][:-2] + "-1\n", *x[2:]]),
        r"clean_label_kv\.txt, line 2: expected .*got '.* -1'",
    ),
    "no label": (
        "clean_label_kv", lines(lambda x: [x[0].split()[0] + "\n", *x[1:]]),
        r"line 1: expected an image and a label .*jpg'; get it again",
    ),
    "cut in its last label": (
        "noisy_label_kv", lambda x: x[:-1],
        r"noisy_label_kv\.txt must have 1037497 lines or end with a line break, got \d+ lines, the last '.* \d+'",
    ),
    "empty labels": (
        "noisy_label_kv", lambda x: "", "must have 1037497 lines or end with a line break, got 0 lines, the last ''"
    ),
    "labels cut": (
        "noisy_label_kv", lines(lambda x: x[1:]), r"noisy_train_key_list\.txt, line 1: '\S+' has no label in the file"
    ),
    "list cut in a key": (
        "clean_test_key_list", lambda x: x[:-5], r"clean_test_key_list\.txt, line 28: '\S+' has no label"
    ),
    "empty list": ("clean_val_key_list", lambda x: "", r"clean_val_key_list\.txt must list images, got none"),
    "a key twice": ("clean_train_key_list", lines(lambda x: [*x, x[3]]), r"line 43: '\S+' is listed twice"),
    "names short": (
        "category_names_eng", lines(lambda x: x[:-1]), "hold 14 distinct names, one a line, got 13: T-Shirt, Shirt"
    ),
    "names twice": ("category_names_eng", lines(lambda x: [*x[:-1], x[0]]), "must hold 14 distinct names"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_texts_are_refused(tmp_path, case):
    file, change, message = BAD[case]
    _, texts, *_ = write_clothing(tmp_path)
    path = texts / f"{file}.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        load_dataset("clothing1m", tmp_path)


def test_a_whole_file_of_labels_may_lack_its_last_line_break(tmp_path, monkeypatch):
    _, texts, noisy, *_ = write_clothing(tmp_path)
    path = texts / "noisy_label_kv.txt"
    path.write_text(path.read_text().rstrip())
    monkeypatch.setitem(clothing._LABELLED, path.name, len(noisy))
    assert load_dataset("clothing1m", tmp_path, image_size=4).card.num_classes == 14


@pytest.mark.parametrize("name", ["noisy_train", "clean_train", "clean_val"])
def test_a_test_image_in_another_list_is_refused(tmp_path, name):
    _, texts, noisy, _, lists = write_clothing(tmp_path)
    key = next(key for key in lists["clean_test"] if key in noisy)
    with (texts / f"{name}_key_list.txt").open("a") as file:
        file.write(f"{key}\n")
    with pytest.raises(
        ValueError, match=rf"{name}_key_list\.txt must hold no image of clean_test_key_list\.txt, got 1"
    ):
        load_dataset("clothing1m", tmp_path)


@pytest.mark.parametrize("key", ["../outside.jpg", "/etc/outside.jpg", "images/../../outside.jpg"])
def test_keys_stay_below_the_folder(tmp_path, key):
    _, texts, *_ = write_clothing(tmp_path)
    for file, line in (("noisy_label_kv", f"{key} 3\n"), ("noisy_train_key_list", f"{key}\n")):
        with (texts / f"{file}.txt").open("a") as text:
            text.write(line)
    with pytest.raises(ValueError, match=r"line 169: expected a path below the folder, got"):
        load_dataset("clothing1m", tmp_path)


def test_missing_and_damaged_images_are_named(tmp_path):
    place, _, _, _, lists = write_clothing(tmp_path)
    path = place / lists["noisy_train"][7]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read as an image"):
        load_dataset("clothing1m", tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name} is missing"):
        load_dataset("clothing1m", tmp_path)


def test_not_utf8(tmp_path):
    _, texts, *_ = write_clothing(tmp_path)
    (texts / "category_names_eng.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"category_names_eng\.txt must be a text in UTF-8, got"):
        load_dataset("clothing1m", tmp_path)


def test_memory_is_said(tmp_path, monkeypatch):
    write_clothing(tmp_path)
    monkeypatch.setattr("nls.image_folders.physical_memory", lambda: 10_000)
    with pytest.raises(ValueError, match=r"clothing1m: 196 images of 64x64 need 0\.0 GB .*; name a smaller image_size"):
        load_dataset("clothing1m", tmp_path)


def test_image_size_is_checked_before_files(tmp_path):
    with pytest.raises(TypeError, match=r"image_size must be an integer, got 4.0"):
        load_dataset("clothing1m", tmp_path, image_size=4.0)
