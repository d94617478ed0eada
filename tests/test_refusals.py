"""What the loaders refuse, one case each, with the message: `python -m pytest tests/test_refusals.py -rP` shows all.

Each message names the file, what was expected, what came, and what to do. Further cases are in the tests of the
loaders.
"""

import os
import pickle

import numpy as np
import pytest
import torch
from image_files import cifar_contents, plant_cifar, python2_pickle, write_cifar, write_clothing, write_image_folder
from torchvision import datasets

from nls import image_sets, load_dataset
from nls.human import load_human_labels

SIZES = (200, 50)
CASES = {}


def case(*parts):
    """Register a function of a folder and a monkeypatch that is refused with a message that holds these parts."""

    def register(function):
        CASES[function.__name__.replace("_", " ")] = function, parts
        return function

    return register


def plant(patch, name="cifar10", sizes=SIZES, change=lambda contents: None):
    """Return class, contents and archive of a small CIFAR, whose sums torchvision then names."""
    origin, num_classes = {"cifar10": (datasets.CIFAR10, 10), "cifar100": (datasets.CIFAR100, 100)}[name]
    patch.setitem(image_sets._RELEASES, name, image_sets._RELEASES[name]._replace(counts=sizes))
    contents = cifar_contents(origin, sizes, num_classes)
    change(contents)
    return origin, contents, plant_cifar(patch, origin, contents)


@case("cifar-10-python.tar.gz must have the MD5 ", ", got ", "delete it and get it again")
def truncated_archive(folder, patch):
    origin, _, archive = plant(patch)
    (folder / origin.filename).write_bytes(archive[:-1000])
    load_dataset("cifar10", folder)


@case("data_batch_4 must have the MD5 ", ", got ", "delete it and get it again")
def wrong_checksum(folder, patch):
    origin, contents, _ = plant(patch)
    place = write_cifar(folder, origin, contents)
    (place / "data_batch_4").write_bytes(contents["data_batch_3"])
    load_dataset("cifar10", folder)


@case("the train split in ", "must hold 200 images of 32x32x3 and as many labels, got (161, 32, 32, 3)", "get it again")
def wrong_number_of_images(folder, patch):
    table = {"data": np.zeros((1, 3072), np.uint8), "labels": [0]}
    origin, contents, _ = plant(patch, change=lambda contents: contents.update(data_batch_5=python2_pickle(table)))
    write_cifar(folder, origin, contents)
    load_dataset("cifar10", folder)


@case("cifar100: the train split in ", "must have labels in [0, 99], got 100 (5 beyond)", "get it again")
def cifar100_with_101_classes(folder, patch):
    def change(contents):
        table = pickle.loads(contents["train"], encoding="latin1")
        table["fine_labels"][::200] = [100] * 5
        contents["train"] = python2_pickle(table)

    origin, contents, _ = plant(patch, "cifar100", (1000, 200), change)
    write_cifar(folder, origin, contents)
    load_dataset("cifar100", folder)


class Bomb:
    """Unpickling this would leave a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@case("data_batch_2 is refused: it asks to call ", ".mkdir, which images and labels do not need", "get it again")
def pickle_with_code_in_it(folder, patch):
    bomb = pickle.dumps({"data": Bomb(folder / "executed")}, protocol=2)
    origin, contents, _ = plant(patch, change=lambda contents: contents.update(data_batch_2=bomb))
    write_cifar(folder, origin, contents)
    load_dataset("cifar10", folder)


@case("CIFAR-10_human.pt is refused: it asks to call ", ".mkdir, which labels do not need")
def human_labels_with_code_in_them(folder, patch):
    torch.save({"clean_label": Bomb(folder / "executed")}, folder / "CIFAR-10_human.pt")
    load_human_labels("cifar10n", folder)


def human_labels(folder, shuffled=()):
    """Write labels in the form of CIFAR-10N, some sets of them in another order than the clean ones."""
    generator = np.random.default_rng(0)
    clean = generator.permutation(np.arange(50_000) % 10)
    keys = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")
    flips = {key: (generator.random(50_000) < 0.3) * generator.integers(1, 10, 50_000) for key in keys}
    sets = {key: (clean + flip) % 10 for key, flip in flips.items()}
    for key in shuffled:
        sets[key] = generator.permutation(sets[key])
    torch.save({"clean_label": clean} | sets, folder / "CIFAR-10_human.pt")
    return torch.from_numpy(clean)


@case("CIFAR-10_human.pt: worse_label must be in the order of clean_label, it agrees in 10.", "% of the places")
def shuffled_order_within_the_file_of_cifar10n(folder, patch):
    human_labels(folder, shuffled=["worse_label"])
    load_human_labels("cifar10n", folder)


@case("clean_labels must be those of cifar10n: ", "differ, the first at place", "another order than torchvision's")
def shuffled_order_between_cifar10n_and_your_images(folder, patch):
    clean = human_labels(folder)
    load_human_labels("cifar10n", folder).check_order(clean.flip(0))


@case("cifar10 is not at hand: ", "To get it: 1. where there is a network, download https://", "(MD5 ", "NLS_DATA")
def missing_files_of_a_set(folder, patch):
    load_dataset("cifar10", folder)


@case("mine/test must be a folder with one folder of images per class, it does not exist", "make it")
def missing_folder(folder, patch):
    write_image_folder(folder / "mine")
    (folder / "mine" / "test").rename(folder / "mine" / "val")
    load_dataset("mine", folder)


@case("root must name an existing folder, got ", "it does not exist")
def missing_root(folder, patch):
    load_dataset("cifar10", folder / "nowhere")


@case("train/cat is an empty class: expected files that end in .jpg", "got 0 other files; add images, or take")
def empty_class(folder, patch):
    write_image_folder(folder / "mine")
    (folder / "mine" / "train" / "cat").mkdir()
    load_dataset("mine", folder)


@case("train and test must have the same classes, got ['cat'] only in train and [] only in test")
def different_classes_in_train_and_test(folder, patch):
    write_image_folder(folder / "mine")
    (folder / "mine" / "train" / "bee").rename(folder / "mine" / "train" / "cat")
    (folder / "mine" / "test" / "bee").rename(folder / "mine" / "test" / "ant2")
    (folder / "mine" / "train" / "ant2").mkdir()
    (folder / "mine" / "train" / "cat" / "000.png").rename(folder / "mine" / "train" / "ant2" / "000.png")
    load_dataset("mine", folder)


@case("test/bee/001.png cannot be read as an image: ", "get it again, or take it out")
def unreadable_image(folder, patch):
    write_image_folder(folder / "mine")
    (folder / "mine" / "test" / "bee" / "001.png").write_bytes(b"no image")
    load_dataset("mine", folder)


@case("clothing1m is not at hand: ", "To get it: 1. open github.com/Cysu/noisy_label", "non-commercial", "NLS_DATA")
def missing_clothing1m(folder, patch):
    load_dataset("clothing1m", folder)


@case("noisy_label_kv.txt, line 3: expected an image and a label in [0, 13], got ", " 14'; get it again")
def clothing1m_with_15_classes(folder, patch):
    _, texts, *_ = write_clothing(folder)
    path = texts / "noisy_label_kv.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], f"{lines[2].split()[0]} 14", *lines[3:], ""]))
    load_dataset("clothing1m", folder)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_said(name, tmp_path, monkeypatch):
    monkeypatch.delenv("NLS_DATA", raising=False)
    function, parts = CASES[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts of the message are compared below
        function(tmp_path, monkeypatch)
    message = str(caught.value)
    print(f"{name}: {message.replace(str(tmp_path), 'FOLDER')}")
    place = 0
    for part in parts:
        assert part in message[place:]
        place = message.index(part, place) + len(part)
    assert not (tmp_path / "executed").exists()


def test_the_bombs_are_live(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed"), protocol=2))
    assert (tmp_path / "executed").exists()
