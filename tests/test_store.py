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
    "no rows": (lambda root: broken(root, "dataset,seed\n"), "a header and at least one row"),
    "other columns": (lambda root: broken(root, "dataset,other\na,0\n"), r"differ in \['other', 'seed'\]"),
    "comma": (lambda root: save_results(TABLE.assign(hidden="8,4"), "study"), "a comma or a line break"),
    "no column": (lambda root: save_results(TABLE, "study", by="set"), "by must be a column of the table, got 'set'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_name(case, root):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(root)


def test_a_missing_root_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("NLS_RESULTS", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="gone"):
        results_root()
