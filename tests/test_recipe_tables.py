"""The page of recipes shows each file, marks the lines that change, and has its tables from stored results."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import nls

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))  # the pipeline is a folder of scripts, not a package

import recipe_tables  # noqa: E402
from parameters import BookError  # noqa: E402

FOLDER = ROOT / "book" / "recipes"
PAGE = (ROOT / "book" / "recipes.md").read_text(encoding="utf-8")
RECIPES = {"plain_torch": "torch", "timm_mixup": "timm", "lightning_module": "lightning", "hf_trainer": "transformers"}


def test_the_page_shows_each_recipe_and_marks_the_line_that_changes():
    shown = dict(re.findall(r"\{literalinclude\} recipes/(\w+)\.py\n((?::.*\n)+)", PAGE))
    assert set(shown) == {path.stem for path in FOLDER.glob("*.py")} == {*RECIPES, "shapes"}
    for name in RECIPES:
        lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()
        marked = [lines[int(n) - 1] for n in re.search(r":emphasize-lines: (.*)", shown[name])[1].split(",")]
        assert any("GLSLoss(0.0" in line and "# was: " in line for line in marked), name
        assert any("smooth_rate = " in line for line in marked), name
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["recipes"]
    assert set(RECIPES.values()) - {"torch"} <= {re.match(r"\w+", wanted)[0] for wanted in extra}


def test_the_tables_of_the_page_are_filled_from_stored_results(tmp_path):
    recipe_tables.write_recipes(tmp_path)  # a book without that page
    assert not list(tmp_path.iterdir())
    (tmp_path / "results").symlink_to(ROOT / "book" / "results")
    (tmp_path / "recipes.md").write_text(PAGE, encoding="utf-8")
    recipe_tables.write_recipes(tmp_path)
    filled = (tmp_path / "recipes.md").read_text(encoding="utf-8")
    stored = nls.load_results("recipes").set_index("recipe")
    assert set(stored.index) == {*RECIPES, "shapes"}
    for name, row in stored.iterrows():
        versions = (
            f"{row['library']} {row['version']}, " * (row["library"] != "torch") + f"torch {row['torch']}, Python"
        )
        found = f" {row['accuracy']:.2f}, {row['log_loss']:.2f} nats " if row["accuracy"] > 0 else "  "
        pattern = rf"^\| `{name}.py` \| {re.escape(versions)} [^|]* \| {row['rate']:.2f} \|{found}\| \d+ \|$"
        assert re.search(pattern, filled, re.MULTILINE), name
    answers = re.findall(r"^\| `(\w+)` ([\d.]+) \| `(\w+)`.*\| (.*) \|$", filled, re.MULTILINE)
    said = {(library, call): verdict for library, _, call, verdict in answers}
    assert said["torch", "CrossEntropyLoss"] == "**cross entropy, without a word**"
    assert said["transformers", "Trainer"] == said["timm", "LabelSmoothingCrossEntropy"] == "the loss at that rate"
    assert said["timm", "PolyCrossEntropy"] == "an error"
    assert "`the rows`" not in filled  # rows smoothed by hand are on another page
    assert "on probabilities, `label_smoothing` | the loss at that rate, while no probability is clipped" in filled
    (tmp_path / "recipes.md").write_text("no place for a table", encoding="utf-8")
    with pytest.raises(BookError, match="expected one line <!-- libraries -->"):
        recipe_tables.write_recipes(tmp_path)
