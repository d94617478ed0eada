"""The drift check: what did not change passes, and what did is found."""

import doctest
import json
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

import nls
from nls import stack

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))  # the pipeline is a folder of scripts, not a package

import again  # noqa: E402
import drift  # noqa: E402
import expected  # noqa: E402
from expected import Drift, Value  # noqa: E402
from parameters import BookError  # noqa: E402

GLUED = {
    "one-accuracy": "0.8123",
    "one-count": "12",
    "one-interval": "'+0.045 [+0.031, +0.059] (n=10)'",
    "one-status": "'trained, 20 of 20 sets'",
}
PROFILES = "profiles:\n  book:\n    description: all\n    notebooks:\n      01_one: {seed: 3}\n"


def glued(name, text):
    metadata = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
    return new_output("display_data", data={expected.GLUE: text}, metadata=metadata)


def claimed(**verdicts):
    claims = [{"name": name, "verdict": verdict} for name, verdict in verdicts.items()]
    return new_output("display_data", data={"text/plain": "a table"}, metadata={"nls_claims": claims})


def write_build(out, glue=GLUED, verdict="holds", parameters=None, source="x"):
    """A build of one notebook, as book/run.py leaves it."""
    folder = out / "stage" / "book" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [glued(name, text) for name, text in glue.items()] + [claimed(signs=verdict)]
    nbformat.write(new_notebook(cells=[new_code_cell("1", outputs=outputs)]), folder / "01_one.ipynb")
    entry = {"parameters": {"seed": 3} if parameters is None else parameters, "source": source, "cell_seconds": 1.0}
    (out / "run.json").write_text(json.dumps({"profile": "book", "notebooks": {"01_one": entry}}))
    return out


@pytest.fixture
def book(tmp_path):
    """A book of one notebook, its build in _build, and the numbers of that build as the expected ones."""
    (tmp_path / "book" / "notebooks").mkdir(parents=True)
    cells = [new_code_cell("seed = 0", metadata={"tags": ["parameters"]})]
    nbformat.write(new_notebook(cells=cells), tmp_path / "book" / "notebooks" / "01_one.ipynb")
    (tmp_path / "book" / "profiles.yml").write_text(PROFILES)
    write_build(tmp_path / "_build")
    drift.write(tmp_path, tmp_path / "_build", [])
    return tmp_path


def check(book):
    return drift.check_build(book, book / "_build")


def rewrite(book, old, new):
    """Change the stored numbers by hand."""
    path = book / "book" / "expected" / "book.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_examples():
    assert doctest.testmod(expected).attempted > 2
    assert doctest.testmod(expected).failed == 0


def test_an_unchanged_build_passes(book):
    drifts, notes = check(book)
    assert drifts == []
    assert notes == ["profile book: 5 numbers and verdicts compared"]


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("0.8123", "0.9923", "one-accuracy"),
        ("number,12", "number,15", "one-count"),
        ("+0.045 [", "+0.065 [", "one-interval"),
        ("n=10", "n=12", "one-interval"),
        ("20 of 20 sets", "17 of 20 sets", "one-status"),
        ("trained,", "stored,", "one-status"),
        ("verdict,holds", "verdict,fails", "claim signs"),
    ],
)
def test_an_expected_number_changed_by_hand_is_found(book, old, new, name):
    rewrite(book, old, new)
    drifts, _ = check(book)
    assert [(d.where, d.what) for d in drifts] == [("01_one", name)]


@pytest.mark.parametrize(
    ("glue", "verdict", "name", "said"),
    [
        (GLUED | {"one-accuracy": "0.6"}, "holds", "one-accuracy", ("0.8123", "0.6")),
        (GLUED | {"one-accuracy": "nan"}, "holds", "one-accuracy", ("0.8123", "nan")),
        (GLUED | {"one-accuracy": "'0.8123'"}, "holds", "one-accuracy", ("0.8123", "0.8123")),
        (GLUED, "fails", "claim signs", ("holds", "fails")),
        ({k: v for k, v in GLUED.items() if k != "one-count"}, "holds", "one-count", ("12", "missing")),
        (GLUED | {"one-new": "1"}, "holds", "one-new", ("not stored", "1")),
    ],
)
def test_a_build_with_another_number_is_found(book, glue, verdict, name, said):
    write_build(book / "_build", glue, verdict)
    drifts, _ = check(book)
    assert [(d.what, d.expected, d.found) for d in drifts] == [(name, *said)]


def test_a_number_moves_as_far_as_it_was_seen_to(book):
    """The allowance is a multiple of the measured movement, and what never moved must stay."""
    write_build(book / "other", GLUED | {"one-accuracy": "0.8133", "one-count": "12"})
    said = drift.write(book, book / "_build", [book / "other"])
    assert said == "book/expected/book.csv: 5 numbers and verdicts of 1 notebooks, 0 never measured"
    stored = expected.read_expected(book / "book" / "expected" / "book.csv")["01_one"]
    assert stored["one-accuracy"].moved == (pytest.approx(0.001),)
    assert stored["one-count"].moved == (0.0,)
    assert stored["one-interval"].moved == (0.0,) * 4
    near, far = 0.8123 * (1 + expected.SHARE) + 0.0039, 0.8123 * (1 + expected.SHARE) + 0.0042
    write_build(book / "_build", GLUED | {"one-accuracy": repr(near)})
    assert check(book)[0] == []
    write_build(book / "_build", GLUED | {"one-accuracy": repr(far)})
    assert [d.what for d in check(book)[0]] == ["one-accuracy"]
    write_build(book / "_build", GLUED | {"one-count": "13"})
    assert [d.what for d in check(book)[0]] == ["one-count"]


def test_a_verdict_that_other_kernels_change_may_be_either(book):
    write_build(book / "other", verdict="fails")
    drift.write(book, book / "_build", [book / "other"])
    drift.write(book, book / "_build", [])  # keeps what was seen
    stored = expected.read_expected(book / "book" / "expected" / "book.csv")["01_one"]
    assert (stored["claim signs"].shown, stored["claim signs"].also) == ("holds", ("fails",))
    for verdict, drifted in (("holds", []), ("fails", []), ("not tested", ["claim signs"])):
        write_build(book / "_build", verdict=verdict)
        assert [d.what for d in check(book)[0]] == drifted
    write_build(book / "_build", verdict="fails")
    drift.write(book, book / "_build", [])  # on the other kernels: what was expected before is still seen
    stored = expected.read_expected(book / "book" / "expected" / "book.csv")["01_one"]
    assert (stored["claim signs"].shown, stored["claim signs"].also) == ("fails", ("holds",))


def test_no_verdict_of_the_book_depends_on_the_kernels():
    stored = {name: expected.read_expected(ROOT / "book" / "expected" / f"{name}.csv") for name in ("book", "smoke")}
    either = {
        profile: {key for values in notebooks.values() for key, value in values.items() if value.also}
        for profile, notebooks in stored.items()
    }
    assert either["book"] == set()
    # Samples are small there; one more needs a reason here.
    assert either["smoke"] == {
        "claim not-the-step", "claim positive-hurts", "claim negative-teacher-with-noise",
    }  # fmt: skip


def test_a_notebook_that_never_moved_has_no_room():
    values = {"a": Value("number", "0.5", (0.0,))}
    assert expected.compare_values("n", values, {"a": Value("number", "0.500004")}) == []
    assert len(expected.compare_values("n", values, {"a": Value("number", "0.50001")})) == 1


def test_rounding_does_not_make_a_notebook_lively():
    still = {"a": Value("number", "0.5", (1e-9,)), "b": Value("text", "0.50 [0.40, 0.60]", (0.0, 0.0, 0.0))}
    assert expected.allowances(still["b"], expected.is_lively(still)) == pytest.approx([0.01] * 3, rel=1e-3)
    lively = still | {"a": Value("number", "0.5", (1e-3,))}
    assert expected.allowances(still["b"], expected.is_lively(lively)) == pytest.approx([0.045, 0.043, 0.047], rel=1e-3)


def test_clocks_only_have_to_be_there():
    clock = min(expected.CLOCKS)
    values = {clock: Value("number", "1.0", (0.0,))}
    stored = expected.read_expected(ROOT / "book" / "expected" / "book.csv")
    assert set().union(*stored.values()) >= expected.CLOCKS
    assert expected.compare_values("n", values, {clock: Value("number", "9.0")}) == []
    assert expected.compare_values("n", values, {}) == [Drift("n", clock, "1.0", "missing")]


def test_movement_is_measured_on_the_same_sources_only(book):
    write_build(book / "other", GLUED | {"one-accuracy": "0.9"}, source="y")
    assert drift.write(book, book / "_build", [book / "other"]).endswith("4 never measured")


def test_movement_is_kept_when_numbers_are_written_again(book):
    write_build(book / "other", GLUED | {"one-accuracy": "0.8133"})
    drift.write(book, book / "_build", [book / "other"])
    write_build(book / "_build", GLUED | {"one-accuracy": "0.6"})
    assert drift.write(book, book / "_build", []).endswith("0 never measured")
    stored = expected.read_expected(book / "book" / "expected" / "book.csv")["01_one"]
    assert (stored["one-accuracy"].shown, stored["one-accuracy"].moved) == ("0.6", (pytest.approx(0.001),))


def test_missing_and_new_notebooks_are_found(book):
    shutil.copy(book / "book" / "notebooks" / "01_one.ipynb", book / "book" / "notebooks" / "02_two.ipynb")
    assert [(d.where, d.found) for d in check(book)[0]] == [("02_two", "the notebook")]
    with pytest.raises(BookError, match="not a whole build of the profile book: 02_two"):
        drift.write(book, book / "_build", [])
    rewrite(book, "\n01_one", "\n00_none")
    assert [(d.where, d.expected) for d in check(book)[0]] == [
        ("01_one", "no numbers stored"), ("02_two", "no numbers stored"), ("00_none", "its numbers"),
    ]  # fmt: skip


def test_a_run_with_other_parameters_is_not_compared(book):
    write_build(book / "_build", GLUED | {"one-accuracy": "0.1"}, parameters={"seed": 4})
    drifts, notes = check(book)
    assert drifts == []
    assert notes[1] == "not compared, as they ran with other parameters than the profile's: 01_one"


def test_a_page_on_the_text_of_another_python_is_not_compared(book, monkeypatch):
    monkeypatch.setattr(expected, "OF_PYTHON", {"01_one"})
    path = book / "_build" / "stage" / "book" / "notebooks" / "01_one.ipynb"

    def built_with(version, accuracy):
        write_build(book / "_build", GLUED | {"one-accuracy": accuracy})
        notebook = nbformat.read(path, 4)
        notebook.metadata.language_info = {"name": "python", "version": version}
        nbformat.write(notebook, path)

    built_with("3.11.7", "0.8123")
    drift.write(book, book / "_build", [])
    built_with("3.11.8", "0.5")
    assert check(book) == (
        [],
        [
            "profile book: 0 numbers and verdicts compared",
            "not compared, as the text that comes with Python was another: 01_one (Python 3.11.8)",
        ],
    )
    built_with("3.11.7", "0.5")
    assert [d.what for d in check(book)[0]] == ["one-accuracy"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebook,key\n", "expected the columns notebook, key, kind, value, moved, got"),
        ("notebook,key,kind,value,moved\n01_one,a,number,x,\n", "row 2: expected a value and a distance"),
        ("notebook,key,kind,value,moved\n01_one,a,thing,1,\n", "row 2: expected a value and a distance"),
        ("notebook,key,kind,value,moved\n01_one,a,number,1.5,0.1 0.2\n", "row 2: expected a value and a distance"),
        ("notebook,key,kind,value,moved\n01_one,a\n", "row 2: expected a value and a distance"),
    ],
)
def test_damaged_expected_numbers(book, text, message):
    (book / "book" / "expected" / "book.csv").write_text(text)
    with pytest.raises(BookError, match=message):
        check(book)


def test_nothing_to_compare(book, tmp_path):
    with pytest.raises(BookError, match=r"no finished build"):
        drift.check_build(book, tmp_path / "nowhere")
    (book / "book" / "expected" / "book.csv").unlink()
    with pytest.raises(BookError, match="`make expected` writes it from a build of this profile"):
        check(book)
    (book / "_build" / "stage" / "book" / "notebooks" / "01_one.ipynb").unlink()
    with pytest.raises(BookError, match=r"01_one\.ipynb: no such file; build again"):
        check(book)


def test_a_glued_object_is_refused(book):
    write_build(book / "_build", {"one-object": "<object at 0x7f>"})
    with pytest.raises(BookError, match="01_one: expected a glued number or text, got <object"):
        check(book)


# The report and the command


def test_report():
    text = drift.markdown([Drift("01_one", "a|b", "`x` " + "y" * 200, "2", "0.1")], ["1 compared"])
    assert text.startswith("# Drift: 1 numbers are not what was expected\n\n- 1 compared\n- Python ")
    assert "| 01_one | a\\|b | 'x' " + "y" * 93 + "... | 2 | 0.1 |\n" in text
    assert "make expected" in text
    assert drift.markdown([], []).startswith("# No drift\n")
    many = drift.markdown([Drift("n", str(i), "1", "2") for i in range(500)], [])
    assert "300 more are left out." in many
    assert len(many) < 65_536


def test_command(book, monkeypatch, capsys):
    results = book / "book" / "results"
    (results / "study").mkdir(parents=True)
    (results / "study" / "a.csv").write_text("x\n1\n")
    monkeypatch.setattr(drift, "ROOT", book)
    monkeypatch.setattr(drift, "RERUNS", ())
    out = ["--out", str(book / "_build")]
    assert drift.main(out) == 2
    assert "SHA256SUMS: no such file; `make expected` writes it" in capsys.readouterr().err
    assert drift.main([*out, "--write"]) == 0
    assert "digests of 1 files" in capsys.readouterr().out
    assert drift.main(["--out", str(book / "elsewhere")]) == 2
    assert "elsewhere: no finished build; run `make book`" in capsys.readouterr().err
    assert drift.main(out) == 0
    assert (book / "_build" / "drift.md").read_text().startswith("# No drift\n")
    (results / "study" / "a.csv").write_text("x\n2\n")
    write_build(book / "_build", verdict="fails")
    assert drift.main(out) == 1
    report = (book / "_build" / "drift.md").read_text()
    assert "| results/study/a.csv | SHA-256 | " in report
    assert "| 01_one | claim signs | holds | fails |" in report
    assert drift.main([*out, "--without-build"]) == 1
    assert "claim signs" not in (book / "_build" / "drift.md").read_text()


# The stored studies


def test_stored_studies_fit_their_digests():
    """A number changed by hand in book/results stops here; `make digests` accepts a change that is meant."""
    assert again.check_digests(ROOT / "book" / "results") == [], "a stored study changed; if it is meant: make digests"


def test_a_stored_number_changed_by_hand_is_found(tmp_path):
    shutil.copytree(ROOT / "book" / "results" / "paper_uci", tmp_path / "paper_uci")
    assert again.write_digests(tmp_path) == 1
    assert again.check_digests(tmp_path) == []
    path = tmp_path / "paper_uci" / "table1.csv"
    path.write_text(path.read_text().replace("0.845", "0.855", 1))
    assert [d.where for d in again.check_digests(tmp_path)] == ["results/paper_uci/table1.csv"]
    path.rename(path.with_name("table2.csv"))
    found = {d.where: (d.expected, d.found) for d in again.check_digests(tmp_path)}
    assert found["results/paper_uci/table1.csv"][1] == "no such file"
    assert found["results/paper_uci/table2.csv"][0] == "not listed"
    (tmp_path / again.SUMS).write_text("damaged\n")
    with pytest.raises(BookError, match="expected lines of a SHA-256"):
        again.check_digests(tmp_path)


RERUNS = {rerun.study: rerun for rerun in again.RERUNS}


@pytest.mark.parametrize("study", ["conformance", "uci_posterior"])
def test_cells_run_again_are_as_stored(study):
    assert again.check_rerun(RERUNS[study]) == []


def test_a_loss_that_ignores_the_sign_is_found(monkeypatch):
    exact = nls.losses.gls_loss
    monkeypatch.setattr(nls.losses, "gls_loss", lambda z, y, rate, **options: exact(z, y, abs(rate), **options))
    assert {d.where for d in again.check_rerun(RERUNS["conformance"])} == {"results/conformance"}


def test_training_that_ignores_the_sign_is_found(monkeypatch):
    exact = stack.target_values
    monkeypatch.setattr(stack, "target_values", lambda rate, count: exact(rate.abs(), count))
    drifts = again.check_rerun(RERUNS["uci_posterior"])
    assert any(d.what.startswith("kl_last of ") for d in drifts)


@pytest.mark.parametrize("study", RERUNS)
def test_keys_tell_rows_apart(study):
    stored = nls.load_results(study)
    assert not stored.duplicated(list(RERUNS[study].keys)).any()
    assert RERUNS[study].limit("seconds", 1.0) < 1


def test_rows_that_are_not_stored_are_found(monkeypatch):
    rerun = RERUNS["uci_posterior"]
    made = again.Rerun("uci_posterior", ("id",), lambda: pd.DataFrame({"id": ["none"], "kl_last": [1.0]}))
    (found,) = again.check_rerun(made)
    assert (found.what, found.found) == ("rows", "1 of them not stored, 1 columns")
    stored = nls.load_results("uci_posterior")[:2]
    made = again.Rerun("uci_posterior", ("id",), lambda: stored[["id"]].assign(kl_last=[stored["kl_last"][0], None]))
    assert [d.found for d in again.check_rerun(made)] == ["nan"]
    assert rerun.limit("kl_last", 2.0) == pytest.approx(rerun.allowed[""] + 2 * rerun.share)
