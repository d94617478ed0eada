"""The book as a whole: each notebook is in its canonical form, and all parts of the book know each other."""

import ast
import io
import json
import re
import sys
import tokenize
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK))  # the pipeline is a folder of scripts, not a package

import check_site  # noqa: E402
import parameters  # noqa: E402

NOTEBOOKS = sorted((BOOK / "notebooks").glob("*.ipynb"))
PROFILES = ("smoke", "book", "laptop", "paper")
TAGS = {"parameters", "claims"} | {f"{do}-{what}" for do in ("hide", "remove") for what in ("input", "output", "cell")}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    """Each notebook of the book."""
    return parameters.read_notebook(request.param)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def find_calls(source, name):
    """The calls of a function, as name(...) or module.name(...)."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).split(".")[-1] == name]


def test_there_are_notebooks():
    assert NOTEBOOKS
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) for path in NOTEBOOKS)


def test_format(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_have_unique_names(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]  # nbformat would mend them in silence
    identifiers = [cell["id"] for cell in cells]
    assert len(set(identifiers)) == len(identifiers)


def test_no_traces_of_a_run(notebook):
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert not {"papermill", "execution", "collapsed"} & set(cell.metadata)


def test_tags(notebook):
    tags = {tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    assert tags <= TAGS, "a tag that nothing reads is a misspelt one"


def test_each_parameter_has_a_comment(notebook):
    (cell,) = tagged(notebook, "parameters")
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT and len(token.string) > 5}
    bare = [ast.unparse(n) for n in ast.parse(cell.source).body if not commented & {n.lineno, n.end_lineno}]
    assert not bare, f"a comment is missing beside {bare}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_sees_the_same_parameters(path):
    defaults = parameters.read_defaults(parameters.read_notebook(path), path.name)
    assert set(papermill.inspect_notebook(str(path))) == set(defaults)


def test_claims(notebook):
    cells = tagged(notebook, "claims")
    assert cells
    for cell in cells:
        assert find_calls(cell.source, "check_claims"), "a table of claims alone stops no build"


def test_figures_have_caption_and_alt_text(notebook):
    figures = [cell.metadata.mystnb for cell in notebook.cells if "mystnb" in cell.metadata]
    assert figures
    for figure in figures:
        assert len(figure["image"]["alt"].strip()) > 20
        assert len(figure["figure"]["caption"].strip()) > 20
        assert figure["figure"]["name"].startswith("fig-")
    names = [figure["figure"]["name"] for figure in figures]
    assert len(set(names)) == len(names)


def test_code_keeps_the_house_rules(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)  # hence no magics and no shell commands
            assert not re.search(
                r"sys\.path|filterwarnings|simplefilter|urlopen|urlretrieve|requests\.get", cell.source
            )
        assert "colab.research.google.com" not in cell.source, "sources carry no address"


def test_profiles():
    profiles = parameters.read_profiles(BOOK / "profiles.yml")
    assert tuple(profiles) == PROFILES
    for name in PROFILES:
        assert set(parameters.plan_runs(BOOK, name)) == {path.stem for path in NOTEBOOKS}


def test_each_value_of_a_profile_has_a_reason():
    lines = (BOOK / "profiles.yml").read_text().splitlines()
    start = lines.index("profiles:")
    values = [line for line in lines[start:] if re.match(r" {8,}\w+: *\S", line)]
    assert [line for line in values if "#" not in line] == []


def test_table_of_contents():
    check_site.check_toc(BOOK)
    parts = yaml.safe_load((BOOK / "_toc.yml").read_text())["parts"]
    for part in parts:
        holds_notebooks = any(page["file"].startswith("notebooks/") for page in part["chapters"])
        assert part.get("numbered", False) == holds_notebooks, part["caption"]


def test_the_configuration_names_no_address():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["repository"]["url"] == ""
    assert config["launch_buttons"] == {}
    assert config["execute"] == {"execute_notebooks": "off", "stderr_output": "remove-warn"}


FIRST = BOOK / "notebooks" / "11_uci.ipynb"


def test_the_first_page_stays_above_the_floor():
    """The floor is 4 sets x 55 cells x 10 seeds; the cells are the paper's."""
    notebook = parameters.read_notebook(FIRST)
    values = parameters.read_defaults(notebook, FIRST.name) | parameters.plan_runs(BOOK, "book")[FIRST.stem]
    assert len(set(values["live_sets"])) >= 4
    assert values["num_seeds"] >= 10
    (settings,) = (cell.source for cell in notebook.cells if cell.id == "settings")
    assigned = {ast.unparse(n.targets[0]): n.value for n in ast.parse(settings).body if isinstance(n, ast.Assign)}
    for name, count in (("rates", 11), ("noise_rates", 5)):
        levels = ast.literal_eval(assigned[name])
        assert len(levels) == len(set(levels)) == count, name
    assert ast.unparse(assigned["seeds"]) == "list(range(seed, seed + num_seeds))"


def test_the_first_page_trains_the_whole_grid_and_says_so():
    cells = [cell for cell in parameters.read_notebook(FIRST).cells if cell.cell_type == "code"]
    (place,) = (number for number, cell in enumerate(cells) if cell.id == "grid")
    nodes = [node for cell in cells[: place + 1] for node in ast.walk(ast.parse(cell.source))]
    stored = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    for name in ("live_sets", "num_seeds", "rates", "noise_rates", "seeds", "cells", "live"):
        assert stored.count(name) == 1, f"{name} is not what it was set to first"
    source = cells[place].source
    (training,), (grid,) = find_calls(source, "run_grid"), find_calls(source, "Grid")
    assert f"\nlive = {ast.unparse(training)}\n" in "\n" + ast.unparse(ast.parse(source))
    assert ast.unparse(training.args[0]) == ast.unparse(grid)
    passed = {keyword.arg: ast.unparse(keyword.value) for keyword in grid.keywords}
    axes = {"dataset": "live_sets", "noise_rate": "noise_rates", "smooth_rate": "rates", "seed": "seeds"}
    assert passed == passed | axes
    assert "\ncells = len(rates) * len(noise_rates)\n" in source
    said = "Trained in this build: {len(live_sets)} sets x {cells} cells x {num_seeds} seeds"
    assert any(ast.unparse(call.args[0])[2:].startswith(said) for call in find_calls(source, "print"))
    assert not {"hide-output", "remove-output", "hide-cell", "remove-cell"} & set(cells[place].metadata.get("tags", []))


def read_pins(name):
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line]


def test_pins():
    wanted, brought = read_pins("requirements.txt"), read_pins("constraints.txt")
    for line in wanted + brought:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"{line}: a plain exact pin is needed, without +cpu"
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in wanted + brought]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton", "nls"))]


def test_continuous_integration_calls_make_targets_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    called = [step["run"].split() for step in workflow["jobs"]["build"]["steps"] if "run" in step]
    script = (ROOT / ".ci" / "run").read_text()
    called += [["make", name] for name in re.findall(r"^\s*(?:step )?make ([\w-]+)", script, re.MULTILINE)]
    assert {"book", "test", "lint"} <= {words[1] for words in called}
    assert all(words[0] == "make" and words[1] in targets for words in called), called
