"""Label files are fakes of the released form; the real ones are read where they lie beside the checkout."""

import os
import pickle
import sys
import zipfile
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch

from nls import human
from nls.human import class_names, human_counts, load_human_labels

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT / ".." / "shared" / "data"
needs_labels = pytest.mark.skipif(
    not (SHARED / "CIFAR-10_human.pt").is_file(), reason="no human labels beside the checkout"
)
TEN = ("clean_label", "aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("NLS_DATA", raising=False)


def make_arrays(num_classes=10, keys=TEN, rate=0.3):
    rng = np.random.default_rng(0)
    clean = rng.permutation(np.arange(50_000) % num_classes)
    flips = [(rng.random(50_000) < rate) * rng.integers(1, num_classes, 50_000) for _ in keys[1:]]
    return dict(zip(keys, [clean, *((clean + flip) % num_classes for flip in flips)], strict=True))


@pytest.fixture(scope="module")
def arrays():
    return make_arrays()


@pytest.fixture(scope="module")
def folder(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels")
    torch.save(arrays, path / "CIFAR-10_human.pt")
    return path


def write(folder, content, name="CIFAR-10_human.pt", **options):
    torch.save(content, folder / name, **options)
    return folder


# What is read.


def test_labels_are_those_of_the_file(folder, arrays):
    labels = load_human_labels("cifar10n", folder)
    keys = {"aggregate": "aggre_label", "worst": "worse_label"} | {f"random{i}": f"random_label{i}" for i in (1, 2, 3)}
    assert set(labels.label_sets) == set(keys)
    assert labels.clean_labels.dtype == torch.int64
    np.testing.assert_array_equal(labels.clean_labels, arrays["clean_label"])
    for label_set, key in keys.items():
        np.testing.assert_array_equal(labels.label_sets[label_set], arrays[key])
    assert labels.num_classes == len(labels.class_names) == 10
    assert "non-commercial" in labels.licence
    assert "2110.12088" in labels.source
    assert len(labels.digest) == 12
    assert repr(labels).startswith("HumanLabels('cifar10n': 50000 examples, sets aggregate")


def test_labels_cannot_be_changed_by_accident(folder):
    labels = load_human_labels("cifar10n", folder)
    with pytest.raises(FrozenInstanceError):
        labels.name = "other"
    with pytest.raises(TypeError):
        labels.label_sets["worst"] = labels.clean_labels


def test_counts_equal_a_loop_over_the_labels(folder, arrays):
    labels = load_human_labels("cifar10n", folder)
    single, double = np.zeros((10, 10), int), np.zeros((10, 10, 10), int)
    first, second = arrays["random_label1"], arrays["random_label3"]
    for y, j, k in zip(arrays["clean_label"].tolist(), first.tolist(), second.tolist(), strict=True):
        single[y, j] += 1
        double[y, j, k] += 1
    np.testing.assert_array_equal(labels.counts("random1"), single)
    np.testing.assert_array_equal(labels.counts("random1", "random3"), double)
    transition = labels.transition("random1")
    np.testing.assert_allclose(transition, single / single.sum(1, keepdims=True), rtol=1e-15)
    assert float((transition.sum(1) - 1).abs().max()) < 1e-12
    with pytest.raises(ValueError, match=r"label_set must be one of 'aggregate', .*got 'random4'"):
        labels.counts("random4")
    with pytest.raises(ValueError, match="at least one of aggregate"):
        labels.counts()


def test_the_folder_may_be_named_by_the_environment(folder, monkeypatch):
    monkeypatch.setenv("NLS_DATA", str(folder))
    assert load_human_labels("cifar10n").name == "cifar10n"


def test_a_file_that_names_the_old_or_the_new_place_of_numpy_is_read(folder, tmp_path, arrays):
    with zipfile.ZipFile(folder / "CIFAR-10_human.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    place = b"numpy._core.multiarray" if b"numpy._core.multiarray" in members[pickled] else b"numpy.core.multiarray"
    for core in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        with zipfile.ZipFile(tmp_path / "CIFAR-10_human.pt", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content.replace(place, core) if name == pickled else content)
        labels = load_human_labels("cifar10n", tmp_path)
        np.testing.assert_array_equal(labels.clean_labels, arrays["clean_label"])


def test_lists_and_the_coarse_labels_are_read(tmp_path):
    fine = make_arrays(100, ("clean_label", "noisy_label"))
    coarse = make_arrays(20, ("clean_coarse_label", "noisy_coarse_label"))
    content = fine | {key: values.tolist() for key, values in coarse.items()}
    write(tmp_path, content, "CIFAR-100_human.pt")
    labels = load_human_labels("cifar100n_coarse", tmp_path)
    assert labels.num_classes == 20
    np.testing.assert_array_equal(labels.label_sets["coarse"], coarse["noisy_coarse_label"])
    assert load_human_labels("cifar100n", tmp_path).num_classes == 100
    # An early release held wrong superclasses, 12 of them.
    content["clean_coarse_label"] = (coarse["clean_coarse_label"] % 12).tolist()
    write(tmp_path, content, "CIFAR-100_human.pt")
    with pytest.raises(ValueError, match="clean_coarse_label must hold each class equally often"):
        load_human_labels("cifar100n_coarse", tmp_path)


# What is refused, and never run.


class Code:
    """An object whose unpickling makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def inside_an_array(code):
    hidden = np.empty(1, dtype=object)
    hidden[0] = code
    return hidden


@pytest.mark.parametrize("wrap", [lambda code: code, inside_an_array, lambda code: [code]])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_a_file_with_code_is_refused_and_the_code_never_runs(form, wrap, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "CIFAR-10_human.pt"
    content = {"clean_label": wrap(Code(trace))}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"refused: it asks to call \w+\.mkdir|damaged"):
        load_human_labels("cifar10n", tmp_path)
    assert not trace.exists()
    # The file is live: a loader that trusts it does run the code.
    if form == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trace.is_dir()


def test_code_is_named_in_the_refusal(tmp_path):
    write(tmp_path, {"clean_label": Code(tmp_path / "trace")})
    with pytest.raises(ValueError, match=r"CIFAR-10_human.pt is refused: it asks to call \w+\.mkdir, which labels do"):
        load_human_labels("cifar10n", tmp_path)


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile", "os.system"])
def test_other_functions_are_refused_also_those_of_numpy(name, tmp_path):
    module, function = name.rsplit(".", 1)
    stream = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"X\x01\x00\x00\x00x\x85R."
    with zipfile.ZipFile(tmp_path / "CIFAR-10_human.pt", "w") as archive:
        archive.writestr("archive/data.pkl", stream)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(ValueError, match="is refused: it asks to call"):
        load_human_labels("cifar10n", tmp_path)


def test_what_torch_was_told_to_trust_stays_as_it_was(folder):
    with torch.serialization.safe_globals([np.ndarray]):
        before = set(torch.serialization.get_safe_globals())
        load_human_labels("cifar10n", folder)
        assert set(torch.serialization.get_safe_globals()) == before
    before = set(torch.serialization.get_safe_globals())
    load_human_labels("cifar10n", folder)
    assert set(torch.serialization.get_safe_globals()) == before


# What is damaged or not what it should be.


def test_a_truncated_file_is_named(folder, tmp_path):
    content = (folder / "CIFAR-10_human.pt").read_bytes()
    path = tmp_path / "CIFAR-10_human.pt"
    for part in (content[: len(content) // 2], content[:-100], content[:10], b"", b"<html>not found</html>"):
        path.write_bytes(part)
        with pytest.raises(
            ValueError, match=rf"{len(part)} bytes\) must hold .* cut short, download it again"
        ) as caught:
            load_human_labels("cifar10n", tmp_path)
        assert "weights_only" not in str(caught.value)  # torch advises to turn it off


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("worse_label"), r"must hold 'worse_label', got 'clean_label', 'aggre_label'"),
        (
            lambda a: a.update(random_label2=a["random_label2"][:-1]),
            r"50000 integers, got int64 of shape \(49999,\)",
        ),
        (lambda a: a.update(random_label2=a["random_label2"] * 1.0), r"must hold pickled arrays of integers"),
        (lambda a: a.update(random_label2=a["random_label2"] > 3), r"must hold pickled arrays of integers"),
        (lambda a: a.update(random_label2=[[1], [1, 2]]), r"50000 integers, got object"),
        (lambda a: a.update(random_label2="text"), r"50000 integers, got <U4"),
        (lambda a: a.update(worse_label=a["worse_label"] + 1), r"worse_label must lie in \[0, 9\], got .* 1 to 10"),
        (lambda a: a.update(worse_label=a["worse_label"] - 1), r"got values from -1 to 8"),
        (lambda a: a.update(clean_label=np.maximum(a["clean_label"], 1)), r"each class equally often"),
        (lambda a: a.update(random_label3=a["random_label3"][::-1].copy()), r"random_label3 must be in the order of"),
    ],
)
def test_arrays_that_are_not_the_labels_are_named(arrays, tmp_path, change, message):
    content = dict(arrays)
    change(content)
    with pytest.raises(ValueError, match=message):
        load_human_labels("cifar10n", write(tmp_path, content))


def test_a_file_without_a_dictionary_is_named(tmp_path):
    with pytest.raises(ValueError, match="must hold a dictionary of arrays, got Tensor"):
        load_human_labels("cifar10n", write(tmp_path, torch.zeros(3)))


def test_a_missing_file_tells_the_steps(tmp_path, monkeypatch):
    message = (
        r"CIFAR-10_human.pt must be in .*1\. open the CIFAR-N project page, noisylabels.com.*2\. download "
        r"data/CIFAR-10_human.pt .*non-commercial.*3\. put it .*4\. pass that folder as root"
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_human_labels("cifar10n")
    assert "NLS_DATA names no folder" in str(caught.value)
    with pytest.raises(ValueError, match=message) as caught:
        load_human_labels("cifar10n", tmp_path)
    assert "holds no such file" in str(caught.value)
    monkeypatch.setenv("NLS_DATA", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"NLS_DATA names .*absent', which is no folder"):
        load_human_labels("cifar100n")


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of 'cifar10n', .*got 'cifar10'"):
        load_human_labels("cifar10", tmp_path)
    with pytest.raises(TypeError, match="root must be the path of a folder, got 3"):
        load_human_labels("cifar10n", 3)


# The order of your data set.


def test_check_order(folder):
    labels = load_human_labels("cifar10n", folder)
    clean = labels.clean_labels
    labels.check_order(clean)
    rows = torch.tensor([5, 3, 49_999])
    labels.check_order(clean[rows].int(), rows)
    with pytest.raises(ValueError, match=r"those of cifar10n: \d+ of 50000 differ, the first at .*another order than"):
        labels.check_order(clean.flip(0))
    other = clean.clone()
    other[7] = (other[7] + 1) % 10
    with pytest.raises(
        ValueError, match=rf"1 of 50000 differ, .* place 7, where {int(clean[7])} was expected"
    ) as caught:
        labels.check_order(other)
    assert "another order" not in str(caught.value)
    with pytest.raises(ValueError, match=r"shape \(50000,\), got \(3,\)"):
        labels.check_order(clean[:3])
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 49999\]"):
        labels.check_order(clean[:1], torch.tensor([50_000]))
    with pytest.raises(TypeError, match="clean_labels must hold integer"):
        labels.check_order(clean.double())


# The counts that the book keeps.


def test_stored_counts_are_whole():
    for name, label_sets, size in (
        ("cifar10n", ("aggregate", "random1", "random2", "random3", "worst"), 5000),
        ("cifar100n", ("fine",), 500),
        ("cifar100n_coarse", ("coarse",), 2500),
    ):
        for label_set in label_sets:
            counts = human_counts(name, label_set)
            assert counts.shape == (50_000 // size,) * 2
            assert counts.sum(1).eq(size).all()
    for first, second in (("random1", "random2"), ("random1", "random3"), ("random2", "random3")):
        joint = human_counts("cifar10n", first, second)
        assert joint.sum(2).equal(human_counts("cifar10n", first))
        assert joint.sum(1).equal(human_counts("cifar10n", second))


@pytest.mark.parametrize("label_sets", [(), ("fine",), ("random2", "random1"), ("random1", "random2", "random3")])
def test_counts_that_are_not_stored_are_named(label_sets):
    with pytest.raises(ValueError, match=r"label_sets must be stored for 'cifar10n', got .*; known: "):
        human_counts("cifar10n", *label_sets)
    with pytest.raises(ValueError, match="name must be one of"):
        human_counts("mnist", "fine")


def test_class_names_are_sorted_and_distinct():
    for name, size in (("cifar10n", 10), ("cifar100n", 100), ("cifar100n_coarse", 20)):
        names = class_names(name)
        assert len(set(names)) == size
        assert sorted(names) == list(names)
    with pytest.raises(ValueError, match="name must be one of"):
        class_names("cifar")


def test_the_command_counts_what_it_reads(folder, tmp_path, monkeypatch, capsys):
    fine, coarse = make_arrays(100, ("clean_label", "noisy_label")), make_arrays(20, ("a", "b"))
    content = fine | {"clean_coarse_label": coarse["a"], "noisy_coarse_label": coarse["b"]}
    write(folder, content, "CIFAR-100_human.pt")
    for study in ("cifar_n", "cifar_n_pairs"):
        (tmp_path / study).mkdir()
        (tmp_path / study / "README.md").write_text("card\n")
    monkeypatch.setenv("NLS_RESULTS", str(tmp_path))
    monkeypatch.syspath_prepend(ROOT / "book")
    monkeypatch.setattr(sys, "argv", ["human_counts.py", "--root", str(folder)])
    import human_counts as command

    command.main()
    assert "cifar10n.csv" in capsys.readouterr().out
    labels = load_human_labels("cifar10n", folder)
    assert human_counts("cifar10n", "worst").equal(labels.counts("worst"))
    assert human_counts("cifar10n", "random2", "random3").equal(labels.counts("random2", "random3"))
    assert human_counts("cifar100n", "fine").equal(load_human_labels("cifar100n", folder).counts("fine"))


# The released files, where they lie beside the checkout.


@pytest.mark.shared_data
@needs_labels
def test_the_released_files_give_the_stored_counts():
    ten = load_human_labels("cifar10n", SHARED)
    for label_set in ten.label_sets:
        assert ten.counts(label_set).equal(human_counts("cifar10n", label_set))
    for pair in (("random1", "random2"), ("random1", "random3"), ("random2", "random3")):
        assert ten.counts(*pair).equal(human_counts("cifar10n", *pair))
    card = (ROOT / "book" / "results" / "cifar_n" / "README.md").read_text()
    assert ten.digest in card
    for name, label_set in (("cifar100n", "fine"), ("cifar100n_coarse", "coarse")):
        labels = load_human_labels(name, SHARED)
        assert labels.counts(label_set).equal(human_counts(name, label_set))
        assert labels.digest in card


@pytest.mark.shared_data
@needs_labels
def test_the_label_sets_of_cifar10n_are_what_the_card_says():
    labels = load_human_labels("cifar10n", SHARED)
    clean, sets = labels.clean_labels, labels.label_sets
    three = torch.stack([sets[f"random{i}"] for i in (1, 2, 3)])
    votes = torch.nn.functional.one_hot(three, 10).sum(0)
    majority = votes.max(1).values >= 2
    assert sets["aggregate"][majority].equal(votes.argmax(1)[majority])
    assert (three == sets["aggregate"]).any(0).all()
    assert (three == sets["worst"]).any(0).all()
    assert (sets["worst"] != clean).equal((three != clean).any(0))


@pytest.mark.shared_data
@needs_labels
def test_superclasses_are_a_function_of_the_classes_and_the_names_fit():
    fine, coarse = (load_human_labels(name, SHARED) for name in ("cifar100n", "cifar100n_coarse"))
    above = torch.full((100,), -1)
    above[fine.clean_labels] = coarse.clean_labels
    assert above[fine.clean_labels].equal(coarse.clean_labels)
    assert above[fine.label_sets["fine"]].equal(coarse.label_sets["coarse"])
    assert above.bincount().eq(5).all()
    trees = {class_names("cifar100n")[i] for i in (above == class_names("cifar100n_coarse").index("trees")).nonzero()}
    assert trees == {"maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"}


@pytest.mark.shared_data
@needs_labels
@pytest.mark.skipif(not (SHARED / "cifar10_jpeg.npz").is_file(), reason="no CIFAR-10 beside the checkout")
def test_the_labels_are_in_the_order_of_cifar10():
    with np.load(SHARED / "cifar10_jpeg.npz") as packed:
        clean = torch.from_numpy(packed["train_labels"].astype(np.int64))
        names = tuple(packed["class_names"].tolist())
    labels = load_human_labels("cifar10n", SHARED)
    labels.check_order(clean)
    assert labels.class_names == names
    with pytest.raises(ValueError, match="another order"):
        labels.check_order(clean.roll(1))


def test_no_label_file_is_kept_in_the_project():
    assert not list((ROOT / "book").rglob("*_human.pt"))
    assert human.NUM_EXAMPLES == 50_000
