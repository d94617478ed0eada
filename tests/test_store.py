import pandas as pd
import pytest

import nls.store
from nls.store import load_results, results_root, save_results


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NLS_RESULTS", str(tmp_path))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "README.md").write_text("# Data card\n")
    return tmp_path


TABLE = pd.DataFrame(
    {
        "dataset": ["b", "a", "b"],
        "seed": [0, 0, 1],
        "accuracy": [0.123456789, 0.5, None],
        "hidden": ["32", "linear", "8x4"],
    }
)


def test_what_is_saved_comes_back_with_six_digits(root):
    paths = save_results(TABLE, "study")
    assert [p.name for p in paths] == ["a.csv", "b.csv"]
    back = load_results("study")
    assert back["dataset"].tolist() == ["a", "b", "b"]
    assert back["accuracy"].tolist()[:2] == [0.5, 0.123457]
    assert pd.isna(back["accuracy"][2])
    assert back["file"].tolist() == ["a.csv", "b.csv", "b.csv"]


def test_saving_replaces_one_file_and_leaves_no_part_behind(root):
    save_results(TABLE, "study")
    save_results(TABLE[TABLE["dataset"] == "b"].assign(seed=7), "study")
    assert load_results("study").query("dataset == 'b'")["seed"].tolist() == [7, 7]
    assert sorted(p.name for p in (root / "study").iterdir()) == ["README.md", "a.csv", "b.csv"]


def test_a_crash_while_writing_keeps_the_old_file_and_leaves_no_part(root, monkeypatch):
    save_results(TABLE, "study")
    before = (root / "study" / "a.csv").read_text()
    monkeypatch.setattr(nls.store.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_results(TABLE.assign(seed=9), "study")
    assert (root / "study" / "a.csv").read_text() == before
    assert not list((root / "study").glob("*.part"))


def test_every_stored_study_of_the_book_loads_and_has_a_card():
    studies = [p.name for p in results_root().iterdir() if p.is_dir()]
    assert {"paper_uci", "uci", "uci_controls"} <= set(studies)
    for study in studies:
        assert len(load_results(study)) > 0


def test_the_published_table_is_whole():
    table = load_results("paper_uci")
    assert table.groupby(["dataset", "noise_rate"]).size().tolist() == [11] * 10
    assert table["accuracy"].between(0.5, 1).all()


def broken(root, text):
    (root / "study" / "a.csv").write_text(text)
    (root / "study" / "b.csv").write_text("dataset,seed\nb,0\n")
    return load_results("study")


BAD = {
    "unknown study": (lambda root: load_results("nothing"), "got 'nothing'; known: study"),
    "no card": (lambda root: (root / "study" / "README.md").unlink() or broken(root, "x\n"), "data card README.md"),
    "cut short": (lambda root: broken(root, "dataset,seed\na,0\na,1"), "a.csv must end with a line break, .* line 3"),
    "a line too short": (
        lambda root: broken(root, "dataset,seed\na,0\na\n"),
        "a.csv, line 3: expected 2 values, got 1",
    ),
    "not UTF-8": (
        lambda root: (root / "study" / "c.csv").write_bytes(b"dataset\n\xff\n") and broken(root, "dataset,seed\na,0\n"),
        r"c\.csv must be in UTF-8: .*0xff",
    ),
    "text among numbers": (
        lambda root: broken(root, "dataset,seed\na,0.7\na,0.9x\na,\n"),
        r"a\.csv, line 3: seed must be a number, got '0\.9x'",
    ),
    "study above": (
        lambda root: load_results(".."),
        r"study must be made of letters, .* not start with '\.', got '\.\.'",
    ),
    "study elsewhere": (lambda root: load_results(str(root / "study")), "study must be made of letters, .*, got '/"),
    "no rows": (lambda root: broken(root, "dataset,seed\n"), "a header and at least one row"),
    "other columns": (lambda root: broken(root, "dataset,other\na,0\n"), r"differ in \['other', 'seed'\]"),
    "comma": (lambda root: save_results(TABLE.assign(hidden="8,4"), "study"), "a comma or a line break"),
    "comma in a column": (
        lambda root: save_results(TABLE.assign(**{"a,b": 0}), "study"),
        "must not hold a comma or a line break .* name of a column",
    ),
    "carriage return": (lambda root: save_results(TABLE.assign(hidden="8\r4"), "study"), "a comma or a line break"),
    "empty table": (lambda root: save_results(TABLE[:0], "study"), "table must have at least one row, got none"),
    "missing name": (
        lambda root: save_results(TABLE, "study", by="accuracy"),
        "by must be a column without missing values, got 1 in 'accuracy'",
    ),
    "saved above": (lambda root: save_results(TABLE, "../evil"), r"study must be made of letters, .*, got '\.\./evil'"),
    "saved hidden": (lambda root: save_results(TABLE, ".study"), r"study must .* not start with '\.', got '\.study'"),
    "file above": (
        lambda root: save_results(TABLE.assign(dataset=["a", "b", "../evil"]), "study"),
        r"dataset must be made of letters, .*, got '\.\./evil'",
    ),
    "file elsewhere": (
        lambda root: save_results(TABLE.assign(dataset=str(root / "evil")), "study"),
        "dataset must be made of letters, .*, got '/",
    ),
    "no column": (lambda root: save_results(TABLE, "study", by="set"), "by must be a column of the table, got 'set'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_name(case, root):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(root)
    assert not [*root.parent.glob("*evil*"), *root.rglob("*evil*"), *root.glob(".study")]


def test_refused_names_write_nothing(root):
    with pytest.raises(ValueError, match="dataset must be made of letters"):
        save_results(TABLE.assign(dataset=["a", "b", "~c"]), "new")
    assert [path.name for path in root.iterdir()] == ["study"]


def test_a_text_is_found_among_the_numbers_of_other_files(root):
    (root / "study" / "c.csv").write_text("dataset,seed\nc,0\nc,1\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 2: seed must be a number, got '1o'"):
        broken(root, "dataset,seed\na,1o\n")


def test_texts_that_look_like_numbers_are_kept(root):
    rows = {
        "id": ["12", "3e4", "5", "ab"],
        "hidden": ["32", "32", "32", "8x4"],
        "layer": ["0.3", "1", "2.2", "output"],
        "normalized": [True, False, True, None],
    }
    save_results(pd.DataFrame({"dataset": ["a", "b", "c", "d"]} | rows), "study")
    back = load_results("study")
    assert back["hidden"].astype(str).tolist() == rows["hidden"]
    assert back["layer"].astype(str).tolist() == rows["layer"]
    assert back.index.tolist() == [0, 1, 2, 3]


def test_a_missing_root_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("NLS_RESULTS", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="gone"):
        results_root()
