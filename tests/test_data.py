import gzip
import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from nls import data
from nls.data import Dataset, dataset_names, load_dataset
from nls.generators import RECIPES, draw

SPLITS = ("train", "validation", "test")
BUNDLED = {"breast_cancer": (569, 30, 2), "wine": (178, 13, 3), "digits": (1797, 64, 10)}
DRAWN = {
    "twonorm": (3000, 20, 2),
    "ringnorm": (3000, 20, 2),
    "waveform": (3000, 21, 3),
    "three_gaussians": (3000, 2, 3),
    "two_moons": (3000, 2, 2),
    "circles": (3000, 2, 2),
    "spirals": (3000, 2, 3),
    "checkerboard": (3000, 2, 2),
}
UCI = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "uci"
needs_uci = pytest.mark.skipif(not UCI.is_dir(), reason="no folder of UCI sets beside the checkout")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test touches the network or a folder of the person who runs it."""

    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.delenv("NLS_DATA", raising=False)
    monkeypatch.setattr("sklearn.datasets._openml.urlopen", refuse)
    monkeypatch.setattr("sklearn.datasets._openml.time.sleep", lambda _: None)


def parts(dataset, key):
    return [getattr(dataset, f"{split}_{key}") for split in SPLITS]


def write_csv(folder, rows, header="a,b,target", name="toy"):
    path = folder / f"{name}.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def toy_rows(n=20, labels=("0", "1")):
    return [f"{index},{index**2 % 7}.5,{labels[index % len(labels)]}" for index in range(n)]


def write_npz(folder, name="toy", **arrays):
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return path


def toy_arrays(n=20):
    generator = np.random.default_rng(0)
    return {"features": generator.standard_normal((n, 3)), "labels": np.arange(n) % 2}


# What every data set promises.


@pytest.mark.parametrize("name", [*RECIPES, *BUNDLED])
def test_shapes_types_and_card(name):
    dataset = load_dataset(name, seed=3)
    card = dataset.card
    assert isinstance(dataset, Dataset)
    n, d, num_classes = (DRAWN | BUNDLED)[name]
    assert (card.num_examples, card.num_features, card.num_classes) == (n, d, num_classes)
    assert (dataset.name, dataset.num_features, dataset.num_classes) == (name, d, num_classes)
    assert len(dataset.class_names) == num_classes
    assert all(type(class_name) is str for class_name in dataset.class_names)
    sizes = tuple(len(labels) for labels in parts(dataset, "labels"))
    assert card.split_sizes == sizes
    assert sum(sizes) == n
    np.testing.assert_allclose(np.array(sizes) / n, (0.6, 0.2, 0.2), atol=1.01 / n)
    for features, labels, posterior in zip(
        *(parts(dataset, k) for k in ("features", "labels", "posterior")), strict=True
    ):
        assert features.shape == (len(labels), d)
        assert features.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels.unique().tolist() == list(range(num_classes))
        assert features.isfinite().all()
        if name in RECIPES:
            assert posterior.shape == (len(labels), num_classes)
            assert posterior.dtype == torch.float64
            torch.testing.assert_close(posterior.sum(1), torch.ones(len(labels), dtype=torch.float64))
        else:
            assert posterior is None


@pytest.mark.parametrize("name", ["waveform", "digits"])
def test_splits_are_stratified(name):
    dataset = load_dataset(name, seed=1)
    counts = np.stack([np.bincount(labels, minlength=dataset.num_classes) for labels in parts(dataset, "labels")])
    expected = counts.sum(0) * np.array([[0.6], [0.2], [0.2]])
    assert np.abs(counts - expected).max() <= 2


def test_rows_keep_their_labels_and_are_all_there():
    """Undoing the standardisation gives back scikit-learn's rows, each once, each with its label."""
    from sklearn.datasets import load_wine

    raw = load_wine()
    dataset = load_dataset("wine", seed=2)
    scaled = torch.cat(parts(dataset, "features")).double().numpy()
    labels = torch.cat(parts(dataset, "labels")).numpy()
    # The standardisation is affine per column, so both tables agree once each is standardised as a whole.
    ours, theirs = ((table - table.mean(0)) / table.std(0) for table in (scaled, raw.data))
    distance = np.abs(ours[:, None] - theirs[None]).max(2)
    match = distance.argmin(1)
    assert distance.min(1).max() < 1e-5
    assert sorted(match) == list(range(len(theirs)))
    np.testing.assert_array_equal(labels, raw.target[match])


@pytest.mark.parametrize("name", [*RECIPES, *BUNDLED])
def test_standardised_by_the_training_split(name):
    dataset = load_dataset(name, seed=4)
    train = dataset.train_features.double()
    constant = train.min(0).values == train.max(0).values
    assert train.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(
        train.std(0, correction=0)[~constant], torch.ones(int((~constant).sum())).double(), rtol=1e-5, atol=0
    )
    assert (train[:, constant] == 0).all()
    rest = dataset.test_features.double()
    assert rest.mean(0).abs().max() > 1e-3, "the test split must not be standardised by itself"
    assert bool(constant.any()) == (name == "digits")


def test_the_posterior_is_that_of_the_raw_features():
    """Split and sample are redone by hand from the same seed."""
    dataset = load_dataset("twonorm", seed=5, num_examples=200)
    raw = draw("twonorm", 200, np.random.default_rng(5))
    posterior = torch.cat(parts(dataset, "posterior"))
    labels = torch.cat(parts(dataset, "labels")).numpy()
    scaled = torch.cat(parts(dataset, "features")).double().numpy()
    match = [int((raw.posterior - row).abs().sum(1).argmin()) for row in posterior]
    assert sorted(match) == list(range(200))
    assert torch.equal(posterior, raw.posterior[match])
    np.testing.assert_array_equal(labels, raw.labels[match])
    features = raw.features[match]
    train = features[: dataset.card.split_sizes[0]]
    np.testing.assert_allclose(scaled, (features - train.mean(0)) / train.std(0), atol=1e-5)


@pytest.mark.parametrize("name", ["twonorm", "waveform", "wine"])
def test_same_seed_same_everything_other_seed_other_split(name):
    first, again, other = load_dataset(name, seed=0), load_dataset(name, seed=0), load_dataset(name, seed=1)
    assert first.card == again.card
    for key in ("features", "labels", "posterior"):
        for left, right in zip(parts(first, key), parts(again, key), strict=True):
            assert (left is None and right is None) or torch.equal(left, right)
    # Sorted, as the rows of an equal split in another order would not do.
    left, right = (dataset.train_features[:, 0].sort().values for dataset in (first, other))
    assert left.shape != right.shape or not torch.equal(left, right)


def test_another_seed_draws_another_sample():
    first, other = load_dataset("twonorm", seed=0), load_dataset("twonorm", seed=1)
    rows = {float(value) for value in torch.cat(parts(first, "posterior"))[:, 0]}
    assert not rows & {float(value) for value in torch.cat(parts(other, "posterior"))[:, 0]}
    assert "the seed also draws the sample" in first.card.preparation
    assert "the seed also draws" not in load_dataset("wine").card.preparation


def test_num_examples():
    assert load_dataset("waveform", num_examples=500).card.split_sizes == (300, 100, 100)
    assert load_dataset("ringnorm").card.split_sizes == (1800, 600, 600)


@pytest.mark.parametrize("name", RECIPES)
def test_the_least_num_examples_is_enough_for_every_seed(name):
    for seed in range(100):
        assert load_dataset(name, seed=seed, num_examples=100).card.split_sizes == (60, 20, 20)


def test_rows_within_a_split_are_mixed(tmp_path):
    """A file sorted by class does not come back sorted by class."""
    write_csv(tmp_path, [f"{index},1,{int(index >= 100)}" for index in range(200)])
    for labels in parts(load_dataset("toy", tmp_path), "labels"):
        assert (labels[1:] != labels[:-1]).sum() > 5


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_stay_within_one_split(tmp_path, seed):
    """Also when the copies disagree on the label, and when they differ by the sign of zero."""
    generator = np.random.default_rng(seed)
    distinct = np.concatenate([generator.standard_normal((60, 2)), [[0.0, 1.0], [-0.0, 1.0]]])
    pick = np.concatenate([np.arange(62), generator.integers(62, size=90)])
    labels = generator.integers(2, size=len(pick))
    write_npz(tmp_path, features=distinct[pick], labels=labels)
    dataset = load_dataset("toy", tmp_path, seed=seed)
    rows = [{tuple(row) for row in (features + 0.0).tolist()} for features in parts(dataset, "features")]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    assert sum(map(len, rows)) == 61
    assert dataset.card.duplicates == 152 - 61


def test_constant_columns_are_centred_only(tmp_path):
    """0.1 has no exact mean in floats: dividing by its tiny deviation would give ones."""
    generator = np.random.default_rng(0)
    features = np.stack([np.full(50, 0.1), np.full(50, 1e9), generator.standard_normal(50)], 1)
    write_npz(tmp_path, features=features, labels=np.arange(50) % 2)
    values = torch.cat(parts(load_dataset("toy", tmp_path), "features"))
    assert (values[:, :2] == 0).all()
    assert values[:, 2].std() > 0.5


def test_a_column_constant_in_training_only_keeps_its_unit(tmp_path):
    features = np.stack([np.full(50, 0.1), np.arange(50.0)], 1)
    features[7, 0] = 1.0
    write_npz(tmp_path, features=features, labels=np.arange(50) % 2)
    outside = 0
    for seed in range(10):
        train, *rest = (part[:, 0] for part in parts(load_dataset("toy", tmp_path, seed), "features"))
        if (train == 0).all():
            outside += 1
            assert sorted(torch.cat(rest).tolist()) == pytest.approx([0.0] * 19 + [0.9])
    assert outside > 0


def test_a_dataset_is_frozen_and_readable():
    dataset = load_dataset("wine")
    with pytest.raises(FrozenInstanceError):
        dataset.name = "other"
    with pytest.raises(FrozenInstanceError):
        dataset.card.name = "other"
    assert repr(dataset) == "Dataset('wine': 107/35/36 examples, 13 features, 3 classes)"
    assert "split sizes: train 107, validation 35, test 36" in str(dataset.card)
    assert "licence: CC BY 4.0" in str(dataset.card)


def test_markdown_card_is_a_table():
    card = load_dataset("ringnorm", num_examples=100).card
    lines = card.to_markdown().splitlines()
    assert lines[:3] == ["| data card | |", "| --- | --- |", "| name | ringnorm |"]
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)
    for word in ("Breiman", "2/sqrt(20)", "1.24 %", "60/20/20", "raw features", "clean", "MIT", "train 60"):
        assert word in card.to_markdown()
    assert card._repr_markdown_() == card.to_markdown()
    piped = data.DataCard("a|b", "x\ny", *["|"] * 3, 1, 1, 1, 0, (1, 0, 0)).to_markdown()
    assert "| name | a\\|b |" in piped
    assert "| source | x y |" in piped


def test_dataset_names():
    assert dataset_names() == tuple(sorted(dataset_names()))
    assert set(RECIPES) == set(DRAWN)
    assert {*RECIPES, *BUNDLED, "splice"} <= set(dataset_names())


def test_import_leaves_scikit_learn_and_pandas_out():
    """The module alone: a bare package stands in, so that what its other modules import does not count."""
    code = (
        "import sys, types; package = sys.modules['nls'] = types.ModuleType('nls'); package.__path__ = ['nls']; "
        "import nls.data; sys.exit(', '.join({'sklearn', 'pandas', 'scipy'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


# Your own folder.


@pytest.mark.parametrize("as_text", [True, False])
def test_csv_round_trip(tmp_path, as_text):
    path = write_csv(tmp_path, toy_rows(30))
    dataset = load_dataset("toy", str(tmp_path) if as_text else tmp_path)
    assert dataset.card.split_sizes == (18, 6, 6)
    assert dataset.class_names == ("0", "1")
    card = dataset.card
    assert card.source == "your own file"
    assert card.licence == "yours to know"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert card.description.startswith(f"File toy.csv, 30 rows, SHA-256 {digest}.")
    assert str(tmp_path) not in str(card)


def test_csv_values_and_labels_are_read_as_written(tmp_path):
    write_csv(tmp_path, [f"{index},{-index}e-1,{'cat' if index % 3 else 'ant'}" for index in range(30)])
    dataset = load_dataset("toy", tmp_path)
    assert dataset.class_names == ("ant", "cat")
    features, labels = torch.cat(parts(dataset, "features")), torch.cat(parts(dataset, "labels"))
    position = features[:, 0].argsort()
    assert labels[position].tolist() == [int(index % 3 > 0) for index in range(30)]
    torch.testing.assert_close(features[:, 0], -features[:, 1])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("1.0", "0.0"), ("0", "1")),
        (("0.5", "0.25"), ("0.25", "0.5")),
        (("10", "9", "x"), ("10", "9", "x")),
        (("1_0", "2_0"), ("1_0", "2_0")),
        ((" b ", "a"), ("a", "b")),
    ],
)
def test_class_names_sort_as_numbers_if_all_are_numbers(tmp_path, labels, names):
    write_csv(tmp_path, toy_rows(30, labels))
    assert load_dataset("toy", tmp_path).class_names == names


def test_one_and_one_point_zero_are_one_class(tmp_path):
    write_csv(tmp_path, toy_rows(30, ("1", "1.0", "2")))
    dataset = load_dataset("toy", tmp_path)
    assert dataset.class_names == ("1", "2")
    assert torch.cat(parts(dataset, "labels")).bincount().tolist() == [20, 10]


def test_csv_dialects(tmp_path):
    """Byte-order mark, Windows line ends, blank lines, quotes and spaces are all read."""
    rows = [f'"{index}", {index % 5} ,{"ab"[index % 2]}' for index in range(20)]
    text = "\r\n".join(['"a", b , target', *rows[:10], "", *rows[10:], "", ""])
    (tmp_path / "toy.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_dataset("toy", tmp_path).card.num_examples == 20


def test_npz_round_trip(tmp_path):
    arrays = toy_arrays(40)
    path = write_npz(tmp_path, **arrays, class_names=np.array(["zebra", "ant"]))
    dataset = load_dataset("toy", tmp_path)
    assert dataset.class_names == ("zebra", "ant")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert f"File toy.npz, 40 rows, SHA-256 {digest}." in dataset.card.description
    for dtype in (np.float32, np.int16, np.uint8, bool):
        write_npz(tmp_path, features=np.eye(40, dtype=dtype), labels=arrays["labels"])
        assert load_dataset("toy", tmp_path).class_names == ("0", "1")
    for labels, names in (
        (np.array(["b", "a"] * 20), ("a", "b")),
        (np.array([2.0, 10.0] * 20), ("2", "10")),
        (np.array([True, False] * 20), ("False", "True")),
    ):
        write_npz(tmp_path, features=arrays["features"], labels=labels)
        dataset = load_dataset("toy", tmp_path)
        assert dataset.class_names == names
        assert torch.cat(parts(dataset, "labels")).bincount().tolist() == [20, 20]


def test_both_formats_hold_the_same(tmp_path):
    rows = toy_rows(30)
    table = np.array([[float(value) for value in row.split(",")] for row in rows])
    write_csv(tmp_path, rows, name="one")
    write_npz(tmp_path, name="two", features=table[:, :2], labels=table[:, 2].astype(int))
    one, two = load_dataset("one", tmp_path, seed=9), load_dataset("two", tmp_path, seed=9)
    for key in ("features", "labels"):
        assert all(map(torch.equal, parts(one, key), parts(two, key)))


def test_precedence(tmp_path, monkeypatch):
    for name in ("wine", "twonorm", "german", "mine"):
        write_csv(tmp_path, toy_rows(), name=name)
    # An explicit root means only that folder.
    assert load_dataset("wine", tmp_path).card.source == "your own file"
    assert load_dataset("twonorm", tmp_path).train_posterior is None
    with pytest.raises(
        ValueError, match=r"root has no digits.csv, digits.npz or folder digits; .* holds: german, mine, twonorm, wine"
    ):
        load_dataset("digits", tmp_path)
    # The environment variable comes after generated and bundled names and before OpenML.
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    assert "Breiman" in load_dataset("twonorm").card.source
    assert "scikit-learn" in load_dataset("wine").card.source
    assert "File german.csv" in load_dataset("german").card.description
    assert "File mine.csv" in load_dataset("mine").card.description
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"root has no mine.csv, .* holds: no data sets"):
        load_dataset("mine", tmp_path / "empty")
    with pytest.raises(
        ValueError, match=r"unknown data set 'yours'; known: .*; in NLS_DATA: german, mine, twonorm, wine"
    ):
        load_dataset("yours")


def test_an_empty_environment_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("NLS_DATA", "")
    with pytest.raises(ValueError, match="unknown data set 'mine'"):
        load_dataset("mine")


def test_home_is_expanded(tmp_path, monkeypatch):
    write_csv(tmp_path, toy_rows())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_dataset("toy", "~").card.num_examples == 20


# What is refused.


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown data set 'twonrm'; known: .*splice.*twonorm.*root=.*NLS_DATA"):
        load_dataset("twonrm")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", ".", "", "/etc/passwd", "a\\b", ".hidden", "x\0", "x\n", "a" * 200]
)
def test_names_with_folders_are_refused(tmp_path, monkeypatch, name):
    write_csv(tmp_path, toy_rows(), name="x")
    (tmp_path / "inner").mkdir()
    for root in (None, tmp_path / "inner"):
        with pytest.raises(ValueError, match="name must be the plain name of a data set, without folders"):
            load_dataset(name, root)
    monkeypatch.setenv("NLS_DATA", str(tmp_path / "inner"))
    with pytest.raises(ValueError, match="name must be the plain name"):
        load_dataset(name)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": 3}, TypeError, r"name must be a string, got 3 \(int\)"),
        ({"name": None}, TypeError, "name must be a string"),
        ({"name": "wine", "seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"name": "wine", "seed": "0"}, TypeError, "seed must be an integer"),
        ({"name": "wine", "seed": True}, TypeError, "seed must be an integer"),
        ({"name": "wine", "seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"name": "twonorm", "num_examples": 99}, ValueError, "num_examples must be at least 100, got 99"),
        ({"name": "twonorm", "num_examples": 50.0}, TypeError, "num_examples must be an integer"),
        ({"name": "wine", "num_examples": 50}, ValueError, r"num_examples is for generated sets .* not for 'wine'"),
        ({"name": "twonorm", "root": ".", "num_examples": 50}, ValueError, "num_examples is for .* without root"),
        ({"name": "wine", "image_size": 8}, ValueError, "image_size is for folders of images .* not for 'wine'"),
        ({"name": "digits_images", "image_size": 8}, ValueError, "image_size is .* not for 'digits_images'"),
        ({"name": "cifar10", "root": ".", "image_size": 8}, ValueError, "image_size is .* not for 'cifar10'"),
        ({"name": "toy", "root": 3}, TypeError, r"root must be the path of a folder, got 3 \(int\)"),
        ({"name": "toy", "root": ""}, ValueError, "root must name an existing folder, got ''"),
        ({"name": "toy", "root": "a\0b"}, ValueError, "root must name an existing folder"),
        ({"name": "toy", "root": "no/such/folder"}, ValueError, "got 'no/such/folder': it does not exist"),
        ({"name": "toy", "root": __file__}, ValueError, r"root must name an existing folder, .*it is a file"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        load_dataset(**arguments)


def test_a_missing_environment_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("NLS_DATA", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"NLS_DATA must name an existing folder, got .*gone': it does not exist"):
        load_dataset("german")
    assert load_dataset("wine").name == "wine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"toy\.csv is empty"),
        (b"\n\n", r"toy\.csv must start with a header line whose last column is 'target'"),
        (b"a,b,target\n", r"toy\.csv has a header line but no rows"),
        (b"a,b,label\n1,2,0\n", r"toy\.csv must start with a header line .*'target', got \['a', 'b', 'label'\]"),
        (b"1,2,0\n3,4,1\n", r"toy\.csv must start with a header line"),
        (b"target,a\n0,1\n1,2\n", r"toy\.csv must have 'target' as its last column"),
        (b"target\n0\n1\n", r"'target' as its last column, after at least one feature"),
        (b"a,b,target\n1,2,0\n1,x2,1\n", r"toy\.csv, line 3, column 'b': expected a number, got 'x2'"),
        (b"a,b,target\n1,2,0\n\n1,1_0,1\n", r"toy\.csv, line 4, column 'b': expected a number, got '1_0'"),
        (b"a,b,target\n,2,0\n", r"toy\.csv, line 2, column 'a': expected a number, got ''"),
        (b"\xef\xbb\xbfa,b,target\n-,2,0\n", r"toy\.csv, line 2, column 'a': expected a number, got '-'"),
        (b"a,b,target\n1,2,0\n1,2\n", r"toy\.csv, line 3: expected 3 columns, got 2; is the file truncated"),
        (b"a,b,target\n1,2,3,0\n", r"toy\.csv, line 2: expected 3 columns, got 4"),
        (b"a,b,target\n1,2,0\n3,nan,1\n", r"toy\.csv, line 3, column 'b': expected a finite float32 number, got nan"),
        (b"a,b,target\n-inf,2,0\n", r"toy\.csv, line 2, column 'a': expected a finite float32 number, got -inf"),
        (b"a,b,target\n1,1e39,0\n", r"toy\.csv, line 2, column 'b': expected a finite float32 number, got 1e\+39"),
        (b"a,b,target\n1,2,0\n1,2,\n", r"toy\.csv, line 3: expected a label, got ''"),
        (b"a,b,target\n1,2,NaN\n1,2,1\n", r"toy\.csv, line 2: expected a label, got 'NaN'"),
        (b"a,b,target\n\xff\xfe,2,0\n", r"toy\.csv is not a CSV file in UTF-8"),
        (b"a,b,target\n" + b"1" * 200_000 + b",2,0\n", r"toy\.csv is not a CSV file in UTF-8: field larger"),
    ],
)
def test_bad_csv_files(tmp_path, content, message):
    (tmp_path / "toy.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_dataset("toy", tmp_path)


def test_classes_that_cannot_be_split(tmp_path):
    write_csv(tmp_path, toy_rows(30, ("7",)))
    with pytest.raises(ValueError, match=r"data set 'toy' has one class only \('7'\)"):
        load_dataset("toy", tmp_path)
    write_csv(tmp_path, [*toy_rows(30), "99,99,rare", "98,98,rare"])
    with pytest.raises(
        ValueError, match="class 'rare' has 2 rows, too few to appear in each of train, validation, test"
    ):
        load_dataset("toy", tmp_path)
    write_csv(tmp_path, [*toy_rows(30), *["99,99,copies"] * 9])
    with pytest.raises(ValueError, match=r"class 'copies' has 9 rows, .*at least 5 rows with distinct features"):
        load_dataset("toy", tmp_path)
    arrays = toy_arrays()
    write_npz(tmp_path, name="named", **arrays, class_names=np.array(["a", "b", "absent"]))
    with pytest.raises(ValueError, match="class 'absent' has 0 rows"):
        load_dataset("named", tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_five_distinct_rows_per_class_are_enough(tmp_path, seed):
    write_npz(tmp_path, features=np.arange(35.0)[:, None], labels=np.arange(35) % 7)
    assert load_dataset("toy", tmp_path, seed).card.split_sizes == (21, 7, 7)
    write_npz(tmp_path, features=np.arange(1005.0)[:, None], labels=(np.arange(1005) >= 1000).astype(int))
    assert [int(labels.sum()) for labels in parts(load_dataset("toy", tmp_path, seed), "labels")] == [3, 1, 1]


def test_both_files_of_one_name_are_refused(tmp_path):
    write_csv(tmp_path, toy_rows())
    write_npz(tmp_path, **toy_arrays())
    with pytest.raises(ValueError, match=r"holds both toy\.csv and toy\.npz; one name must mean one data set"):
        load_dataset("toy", tmp_path)


NAN_FEATURES = np.where(np.eye(20, 3) > 0, np.nan, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": None}, r"toy\.npz has no array 'features', found: labels"),
        ({"labels": None}, r"toy\.npz has no array 'labels', found: features"),
        ({"features": np.zeros(20)}, r"'features' must hold real numbers \[n, d\], got float64 \(20,\)"),
        ({"features": np.zeros((20, 0))}, r"'features' must hold real numbers \[n, d\]"),
        ({"features": np.zeros((0, 3)), "labels": np.zeros(0)}, r"'features' must hold real numbers .*\(0, 3\)"),
        ({"features": np.zeros((20, 3), complex)}, r"'features' must hold real numbers \[n, d\], got complex128"),
        ({"features": np.full((20, 3), "x")}, r"'features' must hold real numbers"),
        ({"features": NAN_FEATURES}, r"toy\.npz, features\[0, 0\]: expected a finite float32 number, got nan"),
        ({"features": np.where(np.isnan(NAN_FEATURES), np.inf, 1)}, r"features\[0, 0\]: .* got inf"),
        ({"labels": np.arange(19)}, r"'labels' must hold .* each of the 20 rows of 'features', got int64 \(19,\)"),
        ({"labels": np.zeros((20, 1))}, r"'labels' must hold .* got float64 \(20, 1\)"),
        ({"labels": np.zeros(20, complex)}, r"'labels' must hold numbers or texts, .* got complex128"),
        ({"labels": np.array([np.nan, 1] * 10)}, r"toy\.npz, labels\[0\]: expected a label, got 'nan'"),
        ({"features": np.full((20, 3), None)}, r"toy\.npz holds Python objects \(pickle\), which are refused"),
        ({"class_names": np.array(["a", "b"], dtype=object)}, r"holds Python objects \(pickle\)"),
        ({"class_names": np.array([["a", "b"]])}, r"'class_names' must hold distinct texts \[K\]"),
        ({"class_names": np.array(["a", "a"])}, r"'class_names' must hold distinct texts"),
        ({"class_names": np.array([1, 2])}, r"'class_names' must hold distinct texts"),
        ({"class_names": np.array(["a"])}, r"'labels' must be integers in \[0, 0\]"),
        (
            {"class_names": np.array(["a", "b"]), "labels": np.array([-1, 1] * 10)},
            r"'labels' must be integers in \[0, 1\]",
        ),
        ({"class_names": np.array(["a", "b"]), "labels": np.zeros(20)}, r"'labels' must be integers in \[0, 1\]"),
    ],
)
def test_bad_npz_files(tmp_path, change, message):
    arrays = {key: value for key, value in (toy_arrays() | change).items() if value is not None}
    write_npz(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        load_dataset("toy", tmp_path)


class Bomb:
    """Unpickling this would leave a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickles_are_never_executed(tmp_path):
    trace = tmp_path / "executed"
    bomb = Bomb(trace)
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(bomb))
    write_npz(tmp_path, name="object", features=np.array([[bomb]], dtype=object), labels=np.zeros(1))
    for name in ("plain", "object"):
        with pytest.raises(ValueError, match=rf"{name}\.npz holds Python objects \(pickle\), which are refused"):
            load_dataset(name, tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(bomb))
    assert trace.exists(), "the bomb must be live for this test to mean anything"


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_npz_files(tmp_path, compressed):
    """Cut or flipped anywhere, a file raises ValueError or still reads."""
    path = tmp_path / "toy.npz"
    (np.savez_compressed if compressed else np.savez)(path, **toy_arrays())
    content = path.read_bytes()
    for length in range(1, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"toy\.npz (is not a complete NPZ file|holds Python objects)"):
            load_dataset("toy", tmp_path)
    generator = np.random.default_rng(0)
    refused = 0
    for position in generator.integers(len(content), size=200):
        damaged = bytearray(content)
        damaged[position] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            load_dataset("toy", tmp_path)
        except ValueError:
            refused += 1
    assert refused > 50


def test_a_single_array_is_no_npz(tmp_path):
    with (tmp_path / "toy.npz").open("wb") as file:
        np.save(file, np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"toy\.npz is not a complete NPZ file"):
        load_dataset("toy", tmp_path)


def test_truncated_csv_files(tmp_path):
    """Wherever it is cut, also inside or just after its last value, a file gives ValueError or whole rows."""
    content = write_csv(tmp_path, toy_rows(40, ("1", "11"))).read_bytes()
    read = 0
    for length in range(len(content)):
        (tmp_path / "toy.csv").write_bytes(content[:length])
        if _loads("toy", tmp_path):
            read += 1
            assert content[length - 1 : length] == b"\n"
            assert load_dataset("toy", tmp_path).card.num_examples == content[:length].count(b"\n") - 1
    assert 20 < read <= 40


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_csv_file_cut_in_its_last_value_is_named_with_its_line(tmp_path, cut):
    path = write_csv(tmp_path, toy_rows(40, ("1", "11")))
    path.write_bytes(path.read_bytes()[:-cut])
    message = r"toy\.csv, line 41: expected a line break at its end; the file may be cut short"
    with pytest.raises(ValueError, match=message):
        load_dataset("toy", tmp_path)


def test_a_spread_beyond_float32_is_refused(tmp_path):
    """The column is all but constant in training and huge elsewhere."""
    features = np.arange(20.0)[:, None] * [[1.0, 1e-30]]
    features[0, 1] = 1e38
    write_npz(tmp_path, features=features, labels=np.arange(20) % 2)
    seeds = [seed for seed in range(20) if not _loads("toy", tmp_path, seed)]
    assert 0 < len(seeds) < 20
    with pytest.raises(ValueError, match=r"data set 'toy', standardised row 0, feature 1: expected a finite float32"):
        load_dataset("toy", tmp_path, seeds[0])


def _loads(*arguments):
    try:
        load_dataset(*arguments)
    except ValueError:
        return False
    return True


# OpenML, on a recorded answer.

COLUMNS = [("id", "string"), ("age", "numeric"), ("colour", "nominal"), ("size", "nominal"), ("class", "nominal")]
NOMINAL = {"colour": ["red", "green", "dark blue"], "size": ["1", "2"], "class": ["good", "bad"]}


def openml_rows(n=30, missing=None):
    rows = [
        [
            f"'row {index}'",
            str(20 + index),
            ("red", "green", "'dark blue'")[index % 3],
            "12"[index % 2],
            ("good", "bad")[index // 2 % 2],
        ]
        for index in range(n)
    ]
    if missing is not None:
        rows[4][missing] = "?"
    return rows


def record_openml(home, rows, name="credit-g", missing=None, status="active"):
    """Write what OpenML would answer for one data set where scikit-learn caches it."""
    types = {"string": "STRING", "numeric": "NUMERIC"}
    header = []
    for column, kind in COLUMNS:
        values = ",".join(f"'{value}'" if " " in value else value for value in NOMINAL.get(column, []))
        header.append(f"@ATTRIBUTE {column} {types.get(kind) or '{' + values + '}'}")
    arff = "\n".join(["@RELATION toy", *header, "@DATA", *map(",".join, rows), ""]).encode()
    features = [
        {
            "index": str(index),
            "name": column,
            "data_type": kind,
            "is_target": str(column == "class").lower(),
            "is_ignore": "false",
            "is_row_identifier": str(column == "id").lower(),
            "number_of_missing_values": str(int(index == missing)),
        }
        | ({"nominal_value": NOMINAL[column]} if column in NOMINAL else {})
        for index, (column, kind) in enumerate(COLUMNS)
    ]
    description = {
        "id": "7",
        "name": name,
        "version": "1",
        "description": "A toy.",
        "format": "ARFF",
        "licence": "Public",
        "status": status,
        "file_id": "9",
        "url": "https://www.openml.org/data/v1/download/9",
        "default_target_attribute": "class",
        "md5_checksum": hashlib.md5(arff).hexdigest(),
    }
    found = {"did": 7, "name": name, "version": 1, "status": status, "format": "ARFF", "file_id": 9}
    answers = {
        f"api/v1/json/data/list/data_name/{name}/limit/2/data_version/1": {"data": {"dataset": [found]}},
        "api/v1/json/data/7": {"data_set_description": description},
        "api/v1/json/data/features/7": {"data_features": {"feature": features}},
        "api/v1/json/data/qualities/7": {
            "data_qualities": {"quality": [{"name": "NumberOfInstances", "value": str(len(rows))}]}
        },
    }
    contents = {address: json.dumps(answer).encode() for address, answer in answers.items()}
    for address, content in (contents | {"data/v1/download/9": arff}).items():
        path = home / "openml" / "openml.org" / f"{address}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content))
    return path


def test_openml_answer(tmp_path, monkeypatch):
    record_openml(tmp_path, openml_rows())
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    dataset = load_dataset("german")
    # The identifier is left out: age, three colours, two sizes.
    assert (dataset.card.num_features, dataset.card.num_examples) == (6, 30)
    assert dataset.class_names == ("bad", "good")
    assert dataset.card.source == "OpenML"
    assert dataset.card.licence == "Public"
    assert dataset.card.description.startswith("OpenML 'credit-g' version 1, categorical columns one-hot.")
    features, labels = torch.cat(parts(dataset, "features")), torch.cat(parts(dataset, "labels"))
    position = features[:, 0].argsort()
    assert labels[position].tolist() == [1 - index // 2 % 2 for index in range(30)]
    colours = features[position][:, 1:4]
    colour = (colours > colours.mean(0)).int()
    assert colour.sum(1).tolist() == [1] * 30
    assert all(torch.equal(colour[index], colour[index % 3]) for index in range(30))
    sizes = features[position][:, 4:]
    assert all(torch.equal(sizes[index], sizes[index % 2]) for index in range(30))


def test_openml_inactive_version_is_said_in_the_card(tmp_path, monkeypatch):
    record_openml(tmp_path, openml_rows(), status="deactivated")
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    assert "OpenML marks this version as deactivated." in load_dataset("german").card.description


@pytest.mark.parametrize(("missing", "column"), [(1, "age"), (2, "colour")])
def test_openml_missing_values_are_refused(tmp_path, monkeypatch, missing, column):
    record_openml(tmp_path, openml_rows(missing=missing), missing=missing)
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"OpenML 'credit-g' version 1 has missing values in: {column};"):
        load_dataset("german")


def test_openml_damaged_cache(tmp_path, monkeypatch):
    path = record_openml(tmp_path, openml_rows())
    path.write_bytes(path.read_bytes()[:50])
    monkeypatch.setenv("NLS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"downloading data set 'german' .* failed"):
        load_dataset("german")


@pytest.mark.parametrize("with_folder", [False, True])
def test_offline(tmp_path, monkeypatch, with_folder):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "default"))
    if with_folder:
        monkeypatch.setenv("NLS_DATA", str(tmp_path))
    message = r"downloading data set 'splice' \(OpenML 'splice' version 1\) failed: .*no route.*root= or in .*NLS_DATA"
    with pytest.raises(ValueError, match=message):
        load_dataset("splice")


# Real sets, where a folder of them lies beside the checkout.


@pytest.mark.shared_data
@needs_uci
@pytest.mark.parametrize(
    ("name", "rows", "features", "duplicates"),
    [
        ("banana", 5300, 2, 0),
        ("breast", 569, 30, 0),
        ("diabetes", 768, 8, 0),
        ("german", 1000, 24, 0),
        ("heart", 303, 23, 1),
        ("image", 2310, 18, 224),
        ("splice", 3175, 240, 185),
        ("thyroid", 215, 5, 0),
        ("twonorm", 7400, 20, 0),
        ("waveform", 5000, 21, 0),
    ],
)
def test_uci_sets(name, rows, features, duplicates):
    dataset = load_dataset(name, UCI)
    card = dataset.card
    assert (card.num_examples, card.num_features, card.duplicates) == (rows, features, duplicates)
    assert dataset.class_names == ("0", "1")
    seen = [{row.tobytes() for row in part.numpy() + 0.0} for part in parts(dataset, "features")]
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert sum(map(len, seen)) == rows - duplicates


@pytest.mark.shared_data
@needs_uci
def test_one_name_can_be_two_versions(monkeypatch):
    """A local waveform is binary and a local breast has scikit-learn's labels inverted: the card tells them apart."""
    assert load_dataset("waveform", UCI).num_classes == 2
    assert load_dataset("waveform").num_classes == 3
    local, bundled = load_dataset("breast", UCI), load_dataset("breast_cancer")
    counts = [torch.cat(parts(dataset, "labels")).bincount().tolist() for dataset in (local, bundled)]
    assert counts == [[357, 212], [212, 357]]
    assert "File breast.csv" in local.card.description
    monkeypatch.setenv("NLS_DATA", str(UCI))
    assert "File splice.csv, 3175 rows" in load_dataset("splice").card.description
