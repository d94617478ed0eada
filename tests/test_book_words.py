"""The book's names are the code's, its scale is what it says, and its one figure is that of the stored results."""

import ast
import dataclasses
import inspect
import math
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import nls
import nls.grid

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"


def known_names():
    """Names in nls, of its arguments, and of the fields of its classes."""
    names = set(nls.__all__)
    for name in nls.__all__:
        thing = getattr(nls, name)
        if inspect.isfunction(thing) or dataclasses.is_dataclass(thing):
            names |= set(inspect.signature(thing).parameters)
    return names


def test_every_name_on_the_notation_page_exists():
    text = (BOOK / "notation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", text)) - {"nls"}
    assert len(named) > 15
    assert named - known_names() == set()


def test_every_public_name_has_a_docstring_and_an_api_page():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (BOOK / "api").glob("*.md"))
    assert len(nls.__all__) <= 45
    assert nls.__all__ == sorted(nls.__all__)
    for name in nls.__all__:
        thing = getattr(nls, name)
        assert f"automodule:: {thing.__module__}\n" in pages, name
        assert len(inspect.getdoc(thing) or "") > 40, name


@pytest.mark.parametrize("path", sorted((BOOK / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_claims_name_tests_and_figures_that_exist(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for file, name in re.findall(r"(test_\w+\.py)::(\w+)", text):
        tests = [node.name for node in ast.parse((ROOT / "tests" / file).read_text()).body if hasattr(node, "name")]
        assert name in tests, f"{file} has no {name}"
    drawn = {cell.metadata.mystnb.figure.name for cell in cells if "mystnb" in cell.metadata}
    assert set(re.findall(r'"(fig-[\w-]+)"', text)) <= drawn
    if path.stem < "10":  # each statement of the theory has a test and a figure
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        given = [{key.arg for key in call.keywords} for call in calls if ast.unparse(call.func).endswith("Claim")]
        assert given
        assert all({"test", "figure"} <= names for names in given)


def test_the_default_profile_trains_at_least_what_the_page_promises():
    profile = yaml.safe_load((BOOK / "profiles.yml").read_text(encoding="utf-8"))["profiles"]["book"]
    chapter = profile["notebooks"]["11_uci"]
    sets = set(chapter["live_sets"])
    assert sets <= {"twonorm", "ringnorm", "waveform", "breast_cancer", "wine", "digits"}  # nothing to download
    assert len(sets) >= 4
    assert chapter["num_seeds"] >= 10
    assert chapter["plenty_examples"] >= 60_000
    assert chapter["strict"] is True


def test_stored_studies_have_the_scale_that_their_cards_state():
    uci = nls.load_results("uci")
    assert uci["id"].is_unique
    assert uci.groupby("dataset").size().to_dict() == dict.fromkeys(
        ["banana", "breast", "diabetes", "german", "heart", "image", "splice", "thyroid", "twonorm", "waveform"], 1100
    )
    assert uci.groupby(["dataset", "noise_rate", "smooth_rate"]).size().eq(20).all()
    controls = nls.load_results("uci_controls")
    assert sorted(controls["dataset"].unique()) == ["splice", "twonorm"]
    assert set(controls["optimizer"]) == {"adam", "sgd"}


def test_stored_ids_are_those_of_their_factors():
    """A stored row that no longer has the id of its factors was made by another engine."""
    factors = [field.name for field in dataclasses.fields(nls.Cell)]
    for study in ("uci", "uci_controls", "uci_posterior"):
        for row in nls.load_results(study).sample(100, random_state=0).to_dict("records"):
            given = {name: row[name] for name in factors if name in row}  # factors added later are at their default
            given["hidden"] = () if row["hidden"] == "linear" else (int(row["hidden"]),)
            missing = [name for name in given if isinstance(given[name], float) and math.isnan(given[name])]
            given |= dict.fromkeys(missing)  # an empty field is None
            given["num_examples"] = given["num_examples"] and int(given["num_examples"])
            assert nls.Cell(**given).id == row["id"], study


def test_the_one_figure_is_drawn_from_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(BOOK)
    import headline

    drawn = headline.draw()
    assert drawn == headline.TARGET.read_text(encoding="utf-8"), "run: python book/headline.py"


@pytest.mark.shared_data
def test_stored_rows_come_out_again():
    """Train two cells of the stored study again, on the data set it names, where the files are at hand."""
    folder = ROOT.parent / "shared" / "data" / "uci"
    if not folder.is_dir():
        pytest.skip("needs the UCI files beside the checkout")
    stored = nls.load_results("uci").set_index("id")
    grid = nls.Grid(dataset="heart", from_root=True, noise_rate=0.4, smooth_rate=[0.0, -8.0], seed=3, min_steps=900)
    for row in nls.run_grid(grid, root=folder, workers=1).to_dict("records"):
        same = stored.loc[row["id"]]
        assert row["realised_noise_rate"] == pytest.approx(same["realised_noise_rate"], rel=1e-5)
        assert (
            abs(row["accuracy_last"] - same["accuracy_last"]) < 0.04
        )  # two of 61 test rows: processors round differently


def test_nls_imports_without_the_packages_of_the_book():
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'matplotlib', 'seaborn', 'torchvision', 'papermill', 'sklearn'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import nls\n"
        "print(len(nls.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(nls.__all__)
