"""The pipeline, on a tiny book: what it refuses, how it fails, what it leaves behind."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))  # the pipeline is a folder of scripts, not a package

import browse_site  # noqa: E402
import check_site  # noqa: E402
import execute  # noqa: E402
import launch  # noqa: E402
import parameters  # noqa: E402
import run  # noqa: E402

URL = "https://github.com/someone/some-book"
# One pixel, drawn without matplotlib, which takes a second to import.
DRAW = """\
import base64, time
from IPython.display import Image
time.sleep(0.15)
print("a", flush=True)
print("b", flush=True)
Image(base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="))"""
FIGURE = {
    "image": {"alt": "A picture of one pixel, which rises."},
    "figure": {"caption": "The finding.", "name": "fig-pixel"},
}
DEFAULTS = (
    "seed = 0  # everything random\nrate = 0.5  # smooth rate\nrates = [0.0, 0.5]  # grid\nname = 'a'  # data set"
)
PROFILES = """\
profiles:
  smoke:
    description: seconds
    notebooks:
      01_one: {seed: 3}  # as good as any
  book:
    description: the default
    notebooks:
"""


def write_notebook(path, *sources, tags=(), mystnb=None):
    """A notebook with a title, a parameters cell and code cells; `tags` and `mystnb` go to the last one."""
    cells = [new_markdown_cell("# A question", id="title")]
    cells.append(new_code_cell(DEFAULTS, id="parameters", metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source, id=f"code-{number}") for number, source in enumerate(sources)]
    cells[-1].metadata["tags"] = list(tags) or cells[-1].metadata.get("tags", [])
    if mystnb:
        cells[-1].metadata["mystnb"] = mystnb
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def write_book(root, names=("01_one",)):
    """The smallest book, with the real configuration and extension."""
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, root)
    (root / "book" / "notebooks").mkdir(parents=True)
    for name in ("_ext", "_templates", "_web"):
        shutil.copytree(ROOT / "book" / name, root / "book" / name)
    pages = "".join(f"      - file: notebooks/{name}\n" for name in names)
    toc = f"format: jb-book\nroot: index\nparts:\n  - caption: Part\n    numbered: true\n    chapters:\n{pages}"
    (root / "book" / "_toc.yml").write_text(toc)
    (root / "book" / "index.md").write_text("# A book\n\nMaths $r < 0$, and {doc}`notebooks/01_one`.\n")
    (root / "book" / "references.bib").write_text("")
    (root / "book" / "profiles.yml").write_text(PROFILES)
    for name in names:
        write_notebook(root / "book" / "notebooks" / f"{name}.ipynb", DRAW, mystnb=FIGURE)
    return root


@pytest.fixture
def book(tmp_path):
    """The sources of a tiny book."""
    return write_book(tmp_path)


@pytest.fixture(autouse=True)
def _no_address(monkeypatch):
    monkeypatch.setenv("NLS_REPOSITORY_URL", "")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A tiny book, built once; tests that change anything take `copy`."""
    root = write_book(tmp_path_factory.mktemp("built"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLS_REPOSITORY_URL", "")
        assert run.main(["--root", str(root), "--profile", "smoke"]) == 0
    return root


@pytest.fixture
def copy(built, tmp_path):
    """A copy of the built book."""
    return shutil.copytree(built, tmp_path / "copy")


def site_bytes(root):
    """The landing page, to see whether a build replaced the site."""
    return (root / "_build" / "html" / "index.html").read_bytes()


# What is refused before anything runs


def plan(book, profile="smoke", *settings):
    return parameters.plan_runs(book / "book", profile, settings)


def test_values_come_from_profile_then_settings(book):
    assert plan(book) == {"01_one": {"seed": 3}}
    assert plan(book, "book") == {"01_one": {}}
    assert plan(book, "smoke", "01_one.seed=5", "01_one.rates=[1, 2.5]") == {"01_one": {"seed": 5, "rates": [1.0, 2.5]}}


def test_whole_numbers_become_the_floats_they_replace(book):
    values = plan(book, "smoke", "01_one.rate=-8", "01_one.rates=[-8, 0]")["01_one"]
    assert type(values["rate"]) is float
    assert [type(item) for item in values["rates"]] == [float, float]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("01_one.sede=1", "no parameter named sede; did you mean seed. known: seed, rate, rates, name"),
        ("01_one.seed=1.5", r"seed: expected int \(the default is 0\), got float 1.5"),
        ("01_one.seed=true", "seed: expected int .* got bool True"),
        ("01_one.seed='1'", "seed: expected int .* got str '1'"),
        ("01_one.rate=1e-3", "rate: expected float .* write 1.0e-3"),
        ("01_one.rates=0.5", "rates: expected list of float or int .* got float 0.5"),
        ("01_one.rates=[a]", r"rates: expected list of float or int .* got list \['a'\]"),
        ("01_one.name=no", "name: expected str .* got bool False"),
        ("02_two.seed=1", "no notebook named 02_two; known: 01_one"),
        ("seed=1", "--set seed=1: expected NOTEBOOK.PARAMETER=VALUE"),
        ("01_one.seed=[", "the value is not valid YAML"),
        ("01_one.seed=2020-99-99", "the value is not valid YAML"),
    ],
)
def test_settings_refused(book, setting, message):
    with pytest.raises(parameters.BookError, match=message):
        plan(book, "smoke", setting)


def test_unknown_profile_lists_the_known(book, capsys):
    assert run.main(["--root", str(book), "--profile", "smok"]) == 1
    assert "unknown profile smok; known: smoke, book" in capsys.readouterr().err
    assert not (book / "_build").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profiles:\n  smoke: {description: d, notebooks: {01_one: {sede: 1}}}", "profile smoke, 01_one: no parameter"),
        ("profiles:\n  smoke: {description: d, notebooks: {09: {}}}", "profile smoke: no notebook named 09"),
        ("profiles:\n  smoke: {description: d, notebooks: {01_one: 3}}", "01_one: expected parameter: value, got 3"),
        ("profiles:\n  smoke: {description: d, notebooks: {01_one: 0}}", "smoke, 01_one: expected .*value, got 0"),
        ("profiles:\n  smoke: {description: d, notebooks: {01_one: no}}", "smoke, 01_one: expected .*value, got False"),
        ("profiles:\n  smoke: {description: d, notebooks: {01_one: []}}", r"smoke, 01_one: expected .*value, got \[\]"),
        (
            "profiles:\n  smoke: {description: d, notebooks: [01_one]}",
            r"profiles.yml: profile smoke, notebooks: expected notebook: parameters, got \['01_one'\]",
        ),
        ("profiles:\n  smoke: {description: d, notebooks: 01_one}", "smoke, notebooks: expected .* got '01_one'"),
        ("profiles:\n  smoke: {description: d, notebooks: no}", "smoke, notebooks: expected .* got False"),
        (
            "profiles:\n  1: {description: d, notebooks: {}}",
            "profiles.yml: profile 1: expected a name that is text, got int",
        ),
        ("profiles: {smoke: 2020-99-99}", "profiles.yml: not valid YAML: month must be in 1..12"),
        ("profiles:\n  smoke: {notebooks: {}}", "smoke: expected the keys .* got {'notebooks'"),
        ("profiles:\n  smoke: {description: d, notebooks: {}, jobs: 2}", "smoke: expected the keys .* got {'descrip"),
        (
            "profiles:\n  smoke: {description: d, notebooks: {}, cell_timeout: 1h}",
            "profile smoke, cell_timeout: expected whole seconds, at least 1, got '1h'",
        ),
        ("profiles:\n  smoke: {description: d, notebooks: {}, cell_timeout: 0}", "cell_timeout: .* got 0"),
        ("smoke: {}", "expected one top-level key, profiles"),
        ("profiles:\n  smoke:\n  smoke:\n", "line 3: smoke is given twice"),
        ("profiles: [", "not valid YAML"),
    ],
)
def test_profiles_refused(book, text, message):
    (book / "book" / "profiles.yml").write_text(text)
    with pytest.raises(parameters.BookError, match=message):
        plan(book)


def test_missing_profiles(book):
    (book / "book" / "profiles.yml").unlink()
    with pytest.raises(parameters.BookError, match=r"profiles\.yml: no such file"):
        plan(book)


@pytest.mark.parametrize("name", ["profiles.yml", "notebooks/01_one.ipynb"])
def test_other_encodings_are_refused(book, name):
    path = book / "book" / name
    path.write_bytes(path.read_bytes().replace(b"a", "ä".encode("latin-1"), 1))
    message = rf"{path.name}: .*expected text in UTF-8, got byte 0xe4 at position \d+"
    with pytest.raises(parameters.BookError, match=message):
        plan(book)


def change_notebook(book, change):
    path = book / "book" / "notebooks" / "01_one.ipynb"
    notebook = nbformat.read(path, 4)
    change(notebook)
    nbformat.write(notebook, path)


def set_parameters(source):
    def change(notebook):
        notebook.cells[1].source = source

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nb: nb.cells.pop(1), r"01_one.ipynb: expected one cell tagged parameters, found 0"),
        (lambda nb: nb.cells[2].metadata.update(tags=["parameters"]), "expected one cell tagged parameters, found 2"),
        (lambda nb: nb.cells[2].outputs.append(new_output("stream", text="x")), "outputs are stored in cell 3"),
        (lambda nb: nb.cells[2].update(execution_count=1), "outputs are stored in cell 3"),
        (set_parameters("seed = int(3)"), r"cell 2.*line 1: expected `name = literal` .*got `seed = int\(3\)`"),
        (set_parameters("seed = 1\nimport os"), "line 2: expected `name = literal` .*got `import os`"),
        (set_parameters("a = b = 1"), "expected `name = literal` .*got `a = b = 1`"),
        (set_parameters("a = {'b': 1}"), "expected `name = literal`"),
        (set_parameters("a: int"), "expected `name = literal`"),
        (set_parameters("seed = "), "the parameters cell .* is not valid Python"),
    ],
)
def test_notebooks_refused(book, change, message):
    change_notebook(book, change)
    with pytest.raises(parameters.BookError, match=message):
        plan(book, "book")


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"cells": 3}',
        '{"cells": [], "metadata": {}, "nbformat": 99, "nbformat_minor": 0}',
        '{"cells": [{"cell_type": "raw", "id": "a", "source": "", "metadata": {"tags": null}}], "metadata": {}, '
        '"nbformat": 4, "nbformat_minor": 5}',
    ],
)
def test_no_notebook(book, text):
    path = book / "book" / "notebooks" / "01_one.ipynb"
    path.write_text(text)
    with pytest.raises(parameters.BookError, match=r"01_one\.ipynb: not a notebook: \S"):
        plan(book)


def test_no_notebooks(book):
    path = book / "book" / "notebooks" / "01_one.ipynb"
    path.unlink()
    with pytest.raises(parameters.BookError, match="no notebooks"):
        plan(book)


def test_annotated_and_empty_defaults(book):
    change_notebook(book, set_parameters("seed: int = -2\nroot = None\nnames = []"))
    assert plan(book, "book", "01_one.root=a", "01_one.names=[a, 1]")["01_one"] == {"root": "a", "names": ["a", 1]}
    with pytest.raises(parameters.BookError, match="root: expected str or None"):
        plan(book, "book", "01_one.root=3")


def test_toc_and_files_must_agree(book, capsys):
    write_notebook(book / "book" / "notebooks" / "02_two.ipynb", "1")
    (book / "book" / "index.md").unlink()
    assert run.main(["--root", str(book), "--profile", "smoke"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("book: _toc.yml: index: no such file\nbook: notebooks/02_two.ipynb: not in _toc.yml\n")
    assert not out  # found before anything ran


@pytest.mark.parametrize(
    "arguments", [["--jobs", "0"], ["--jobs", "x"], ["--cell-timeout", "-1"], ["--profil", "smoke"]]
)
def test_bad_command_line(book, arguments, capsys):
    with pytest.raises(SystemExit):
        run.main(["--root", str(book), *arguments])
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[", "[]", "format: [jb-book]\nroot: index", "root: 2020-99-99"])
def test_malformed_table_of_contents(book, text, capsys):
    (book / "book" / "_toc.yml").write_text(text)
    assert run.main(["--root", str(book), "--profile", "smoke"]) == 1
    assert re.match(r"book: \S+/book/_toc\.yml: not a table of contents: \w", capsys.readouterr().err)


@pytest.mark.parametrize(("below", "reason"), [("", "File exists"), ("/deeper", "Not a directory")])
def test_out_that_is_a_file(book, below, reason, capsys):
    out = book / "taken"
    out.write_text("mine")
    assert run.main(["--root", str(book), "--profile", "smoke", "--out", f"{out}{below}"]) == 1
    expected = f"book: --out {out}{below}: expected a folder, or a place for a new one: {reason}\n"
    assert capsys.readouterr().err.startswith(expected)
    assert out.read_text() == "mine"


def test_only_without_match(book, capsys):
    assert run.main(["--root", str(book), "--profile", "smoke", "--only", "x*"]) == 1
    assert "--only x*: no such notebook; known: 01_one" in capsys.readouterr().err


# What a failure says


def test_failures_name_notebook_cell_and_error(tmp_path, capsys):
    names = ("01_raises", "02_claim", "03_slow", "04_dies", "05_good")
    root = write_book(tmp_path, names)
    # With a value to inject, the cells that papermill adds must not shift the numbers that are reported.
    (root / "book" / "profiles.yml").write_text("profiles: {book: {description: d, notebooks: {01_raises: {seed: 2}}}}")
    notebooks = root / "book" / "notebooks"
    write_notebook(notebooks / "01_raises.ipynb", "x = 1", "y = x / (seed * 0)")
    write_notebook(notebooks / "02_claim.ipynb", "assert rate > 1, 'the rate is above one'", tags=["claims"])
    write_notebook(notebooks / "03_slow.ipynb", "import time\ntime.sleep(60)", "2")
    write_notebook(notebooks / "04_dies.ipynb", "1", "import os\nos._exit(1)")
    assert run.main(["--root", str(root), "--cell-timeout", "2", "--jobs", "2"]) == 1
    out, err = capsys.readouterr()
    assert "notebooks/01_raises.ipynb: cell 4 (id code-1), which starts `y = x / (seed * 0)`\nZeroDivisionError" in err
    assert "notebooks/02_claim.ipynb: cell 3 (id code-0; claims)" in err
    assert "AssertionError: the rate is above one" in err
    assert "notebooks/03_slow.ipynb: cell 3 (id code-0), which starts `import time`\ntook longer than the 2 s" in err
    assert "notebooks/04_dies.ipynb: cell 4 (id code-1), which starts `import os`" in err
    assert "DeadKernelError" in err
    assert "1 passed, 4 failed" in out
    assert len(re.findall(r"^\[\d/5\] 0\d_\w+ +(ok|FAILED) +\d+\.\d s", out, re.MULTILINE)) == 5
    assert not (root / "_build" / "html").exists()
    assert not (root / "_build" / "stage" / "book" / "notebooks" / "01_raises.ipynb").exists()


@pytest.mark.parametrize(
    ("profile", "flag", "seconds"),
    [("", [], 900), (", cell_timeout: 7", [], 7), (", cell_timeout: 7", ["--cell-timeout", "5"], 5)],
)
def test_the_flag_or_else_the_profile_says_how_long_a_cell_may_take(book, monkeypatch, profile, flag, seconds):
    text = f"profiles: {{book: {{description: d, notebooks: {{}}{profile}}}}}"
    (book / "book" / "profiles.yml").write_text(text)
    seen = []
    monkeypatch.setattr(run, "run_notebooks", lambda *given: seen.append(given[-1]) or [])
    with contextlib.suppress(Exception):  # without results there is nothing to render
        run.main(["--root", str(book), *flag])
    assert seen == [seconds]


# What a build leaves


def test_build_without_an_address(built):
    html = built / "_build" / "html"
    text = "".join(path.read_text() for path in html.rglob("*.html"))
    assert "colab" not in text.lower()
    assert "executablebooks" not in text
    assert "thebe.js" not in text
    assert (html / ".nojekyll").exists()
    assert (html / "_static" / "mathjax" / "tex-chtml.js").exists()
    assert not (built / "_build" / "launch").exists()
    assert not (built / "_build" / "render").exists()
    page = BeautifulSoup((html / "notebooks" / "01_one.html").read_text(), "html.parser")
    assert page.find("figcaption").get_text().strip().startswith("Fig. 1.1 The finding.")
    assert page.find("details", class_="hide") or page.select(".tag_hide-input")
    assert "seed = 3" in page.get_text()


def test_pages_are_light_named_and_say_how_to_cite_them(built):
    html = built / "_build" / "html"
    first, page = (html / "index.html").read_text(), (html / "notebooks" / "01_one.html").read_text()
    for text in (first, page):
        assert "fontawesome" in text
        assert "all.min.js" not in text
        assert text.count('<nav aria-label="Home">') == 1
        assert re.search(r'role="search".*search-button-field search-button__button" title', text, re.DOTALL)
        assert 'aria-label="Toggle hidden content"' not in text
    assert "mathjax/tex-chtml" in first  # it has a formula
    assert "mathjax/tex-chtml" not in page
    assert "js/rate.js" not in first + page
    cited = re.search(r'<details class="nls-cite">.*?</details>', page, re.DOTALL)[0]
    assert "Cite this page" in cited
    assert "The contributors (2026). A question. In Label smoothing under noisy labels, version" in cited
    assert "@misc{label-smoothing-under-noisy-labels:01_one," in cited
    assert "Cite this book" in first
    assert "nls-cite" not in (html / "genindex.html").read_text()


def test_staged_notebook_is_tidy_and_checked(built):
    path = built / "_build" / "stage" / "book" / "notebooks" / "01_one.ipynb"
    text = path.read_text()
    notebook = nbformat.reads(text, 4)
    nbformat.validate(notebook)
    assert "papermill" not in text
    assert str(built) not in text
    assert notebook.cells[2].id == "injected-parameters"
    assert notebook.cells[2].metadata.tags == ["injected-parameters", "hide-input"]
    assert [o.text for o in notebook.cells[3].outputs if o.output_type == "stream"] == ["a\nb\n"]
    entry = run.read_record(built / "_build")["01_one"]
    assert entry["parameters"] == {"seed": 3}
    assert entry["cell_seconds"] > 0.15
    assert check_site.check_ran(path, entry) == []


def test_broken_link_keeps_the_old_site_and_runs_are_identical(copy, capsys):
    stage = copy / "_build" / "stage" / "book" / "notebooks" / "01_one.ipynb"
    before, site, page = stage.read_bytes(), site_bytes(copy), copy / "book" / "index.md"
    page.write_text(page.read_text() + '\n<a href="nowhere.html">gone</a>\n')
    assert run.main(["--root", str(copy), "--profile", "smoke", "--only", "01*"]) == 1
    assert stage.read_bytes() == before
    # Sphinx does not look into raw HTML; the checker does.
    assert "index.html: broken link: nowhere.html" in capsys.readouterr().err
    assert site_bytes(copy) == site


def test_warnings_are_errors(copy):
    page, site = copy / "_build" / "stage" / "book" / "index.md", site_bytes(copy)
    page.write_text(page.read_text() + "\n[gone](nowhere.md) and {ref}`nothing`\n")
    with pytest.raises(parameters.BookError) as caught:
        run.render(copy, copy / "_build", None)
    findings = "\n".join(caught.value.findings)
    assert re.search(r"book/index.md:\d+: WARNING: .*nowhere", findings)
    assert re.search(r"book/index.md:\d+: WARNING: undefined label: 'nothing'", findings)
    assert site_bytes(copy) == site


def test_build_with_an_address_has_colab_buttons(copy, capsys, monkeypatch):
    out, config, html = copy / "_build", (copy / "_config.yml").read_bytes(), copy / "_build" / "html"
    monkeypatch.setenv("NLS_REPOSITORY_URL", URL)
    monkeypatch.setenv("GITHUB_SHA", "0123456789abcdef")
    monkeypatch.setattr(run, "execute_book", lambda *_: [])  # what `built` executed still holds
    assert run.main(["--root", str(copy), "--profile", "smoke"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"launch copies of 0123456789ab: {out / 'launch'}; push what it holds to the branch launch ")
    assert [path.name for path in (out / "launch" / "book" / "notebooks").iterdir()] == ["01_one.ipynb"]
    page = BeautifulSoup((html / "notebooks" / "01_one.html").read_text(), "html.parser")
    links = {tag["href"] for tag in page.find_all("a", href=True) if "colab" in tag["href"]}
    assert links == {
        "https://colab.research.google.com/github/someone/some-book/blob/launch/book/notebooks/01_one.ipynb"
    }
    assert check_site.check(html, out / "stage" / "book", run.read_record(out), [str(copy)]) == []
    assert (copy / "_config.yml").read_bytes() == config


def test_stale_results_are_not_rendered(book, capsys):
    toc = book / "book" / "_toc.yml"
    toc.write_text(toc.read_text() + "      - file: notebooks/02_two\n")
    write_notebook(book / "book" / "notebooks" / "02_two.ipynb", "1 + 1")
    assert run.main(["--root", str(book), "--profile", "smoke", "--only", "02*"]) == 0
    out = capsys.readouterr().out
    assert "profile smoke: 1 notebooks, 1 at once" in out
    assert "not rendered: no up-to-date run of 01_one" in out
    assert f"with outputs, to be opened in Jupyter: {book / '_build' / 'stage' / 'book' / 'notebooks'}" in out
    assert not (book / "_build" / "html").exists()
    assert [path.stem for path in (book / "_build" / "stage").rglob("*.ipynb")] == ["02_two"]


def test_fresh_results(tmp_path):
    (tmp_path / "a.ipynb").touch()
    entry, now = {"parameters": {"seed": 1}, "source": "x", "seconds": 1.0}, {"parameters": {"seed": 1}, "source": "x"}
    assert run.fresh_results({"a": entry}, {"a": now}, tmp_path) == {"a": entry}
    assert run.fresh_results({"a": entry}, {}, tmp_path) == {}
    assert run.fresh_results({}, {"a": now}, tmp_path) == {}
    assert run.fresh_results({"a": entry}, {"a": now | {"source": "y"}}, tmp_path) == {}
    assert run.fresh_results({"a": entry}, {"a": now | {"parameters": {}}}, tmp_path) == {}
    assert run.fresh_results({"b": entry}, {"b": now}, tmp_path) == {}


def test_plain_papermill_runs_a_notebook(book):
    out = book / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(book / "book" / "notebooks" / "01_one.ipynb"), str(out)]
    subprocess.run([*command, "-p", "seed", "1"], check=True, capture_output=True, cwd=book)
    assert "seed = 1" in nbformat.read(out, 4).cells[2].source


def test_child_environment():
    environment = execute.child_environment(Path("/checkout"), 3, {"PYTHONPATH": "/mine", "HOME": "/h"})
    assert environment["PYTHONPATH"] == os.pathsep.join(["/checkout", "/mine"])
    assert environment["NLS_WORKERS"] == "3"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["HOME"] == "/h"


# The checker bites


def test_check_ran_bites(book):
    path = book / "book" / "notebooks" / "01_one.ipynb"
    entry = {"parameters": {}, "cell_seconds": 1.0}
    assert check_site.check_ran(path.with_name("x.ipynb"), entry) == ["notebooks/x.ipynb: did not run"]
    assert check_site.check_ran(path, None) == ["notebooks/01_one.ipynb: did not run"]
    findings = check_site.check_ran(path, entry)
    assert "notebooks/01_one.ipynb: cell 2 (id parameters) did not run" in findings
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells[1:]:
        cell.execution_count = 1
    picture = new_output("display_data", data={"image/png": "AAAA"})
    notebook.cells[2].outputs = [picture, new_output("error", ename="E", evalue="", traceback=[])]
    notebook.cells[2].metadata["mystnb"] = {"image": {"alt": " "}}
    nbformat.write(notebook, path)
    assert check_site.check_ran(path, {"parameters": {"seed": 3}, "cell_seconds": 0.0}) == [
        "notebooks/01_one.ipynb: cell 3 (id code-0) shows an error",
        "notebooks/01_one.ipynb: cell 3 (id code-0) draws a figure without mystnb.image.alt",
        "notebooks/01_one.ipynb: cell 3 (id code-0) draws a figure without mystnb.figure.caption",
        "notebooks/01_one.ipynb: ran in 0.0 s, which is below the floor of 0.1 s",
        "notebooks/01_one.ipynb: ran with {}, but the profile says {'seed': 3}",
    ]


@pytest.mark.parametrize(
    ("markup", "finding"),
    [
        ('<a href="b.html">x</a>', None),
        ('<a href="b.html#there">x</a>', None),
        ('<article><a href="https://doi.org/1">x</a></article>', None),
        ('<img src="data:image/png;base64,AA">', None),
        ('<a href="#">x</a>', None),
        ('<a href="c.html">x</a>', "a.html: broken link: c.html"),
        ('<a href="b.html#here">x</a>', "a.html: no such place on the page: b.html#here"),
        ('<a href="#here">x</a>', "a.html: no such place on the page: #here"),
        ('<img src="p.png">', "a.html: broken link: p.png"),
        ('<script src="https://cdn.example/x.js"></script>', "a.html: fetches <script> https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "a.html: fetches <link> //cdn.example/x.css"),
        ('<article><img src="http://x.example/p.png"></article>', "a.html: fetches <img> http://x.example/p.png"),
        ('<a href="https://x.example">x</a>', "a.html: foreign link outside the text: https://x.example"),
    ],
)
def test_check_links(tmp_path, markup, finding):
    (tmp_path / "b.html").write_text('<p id="there"></p>')
    (tmp_path / "a.html").write_text(markup)
    pages = {path: BeautifulSoup(path.read_text(), "html.parser") for path in sorted(tmp_path.glob("*.html"))}
    assert check_site.check_links(pages, tmp_path) == ([finding] if finding else [])


def test_check_links_reads_style_sheets(tmp_path):
    (tmp_path / "a.css").write_text('@import "https://x.example/a.css"; p { src: url(b.woff), url(data:font/woff;AA) }')
    assert check_site.check_links({}, tmp_path) == ["a.css: fetches https://x.example/a.css"]


@pytest.mark.parametrize(
    ("markup", "findings"),
    [
        ('<figure><img src="a.png" alt="A line that rises."><figcaption>Rises.</figcaption></figure>', []),
        ('<figure><img src="a.png" alt="A line that rises."></figure>', ["p: figure without a caption: a.png"]),
        (
            '<figure><img src="a.png" alt="A line"><figcaption>Rises.</figcaption></figure>',
            ["p: image without alt text that says what it shows: a.png"],
        ),
        (
            '<img src="a.png" alt="../_images/1234567.png">',
            ["p: image without alt text that says what it shows: a.png", "p: figure without a caption: a.png"],
        ),
    ],
)
def test_check_images(markup, findings):
    page = BeautifulSoup(f'<article><div class="cell_output">{markup}</div></article>', "html.parser")
    assert check_site.check_images(page, "p") == findings


def test_check_finds_missing_pages_and_private_paths(copy):
    out, html = copy / "_build", copy / "_build" / "html"
    (html / "notebooks" / "01_one.html").unlink()
    (html / "index.html").write_text("<article>/home/me/book/x.py</article>")
    findings = check_site.check(html, out / "stage" / "book", run.read_record(out), ["/home/me/book"])
    assert "notebooks/01_one: in _toc.yml, but has no page" in findings
    assert "index.html: shows a path of this machine: /home/me/book" in findings


def test_check_site_command(built, tmp_path, capsys):
    assert check_site.main([str(built / "_build")]) == 0
    assert capsys.readouterr().out == "0 findings\n"
    assert check_site.main([str(tmp_path)]) == 1
    assert "no finished build" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"notebooks": []}',
        '{"notebooks": {"01_one": 3}}',
        '{"notebooks": {"01_one": {"parameters": {}, "cell_seconds": "1"}}}',
    ],
)
def test_a_damaged_record(tmp_path, text, capsys):
    (tmp_path / "html").mkdir()
    (tmp_path / "run.json").write_text(text)
    assert check_site.main([str(tmp_path)]) == 1
    expected = f"{tmp_path / 'run.json'}: expected the record of a run, which `make book` writes, got b'"
    assert capsys.readouterr().out.startswith(expected)
    assert run.read_record(tmp_path) == {}  # a build runs all notebooks again


def test_check_site_names_a_malformed_table_of_contents(copy, capsys):
    (copy / "_build" / "stage" / "book" / "_toc.yml").write_text("[")
    assert check_site.main([str(copy / "_build")]) == 1
    assert "_toc.yml: not a table of contents: while parsing" in capsys.readouterr().out


BAD_PAGE = """<html data-theme="light"><body><article>
<button class="search-button">one</button><button class="search-button">two</button>
<img src="http://nowhere.invalid/x.png"><span class="math">raw</span>
<div style="width: 2000px">wide</div><div style="overflow-x: auto"><p style="width: 2000px">scrolls</p></div>
</article><script>console.error("said so"); throw new Error("thrown")</script></body></html>"""


@pytest.mark.skipif(not any(map(shutil.which, browse_site.BROWSERS)), reason="there is no Chromium on this machine")
def test_browser_check_bites(tmp_path, capsys):
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "index.html").write_text(BAD_PAGE)
    assert browse_site.main(["--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    for finding in (
        "index.html, desktop, dark: shows the light theme",
        "index.html, desktop, light: external request: http://nowhere.invalid/x.png",
        "index.html, desktop, light: console error: said so",
        "index.html, desktop, light: page error: Error: thrown",
        "index.html, desktop, light: 1 formulas are not typeset",
        "index.html, desktop, light: 2 search buttons are visible",
        "index.html, phone, light: sticks out sideways: 2",
        "search.html: no result for smoothing",
    ):
        assert finding in out
    assert "index.html, desktop, light: sticks out" not in out
    assert "index.html, desktop, light: shows" not in out
    assert "p. ends at" not in out  # what scrolls inside itself is fine
    assert (tmp_path / "screenshots" / "index-phone-dark.png").stat().st_size > 1000


def test_browser_check_needs_browser_and_site(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert browse_site.main(["--out", str(tmp_path)]) == 2
    assert "site-check needs a browser" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert browse_site.main(["--out", str(tmp_path)]) == 2
    assert "no site; run `make book`" in capsys.readouterr().err


# The repository's address


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, None),
        ({"NLS_REPOSITORY_URL": f"{URL}.git/"}, URL),
        ({"NLS_REPOSITORY_URL": f"{URL}/"}, URL),
        ({"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "someone/some-book"}, URL),
        ({"NLS_REPOSITORY_URL": "", "GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "a/b"}, None),
    ],
)
def test_repository_url(environment, url):
    assert launch.repository_url(environment) == url


@pytest.mark.parametrize(
    "url", ["github.com/a/b", "https://github.com/a", "git@github.com:a/b", 'https://x/a/b"; import']
)
def test_malformed_addresses_are_refused(url):
    with pytest.raises(parameters.BookError, match="expected https://HOST/OWNER/NAME"):
        launch.repository_url({"NLS_REPOSITORY_URL": url})


def test_an_address_that_colab_cannot_open_gives_no_button():
    assert launch.launch_settings("https://gitlab.com/a/b")["launch_buttons"] == {}
    assert launch.launch_settings(None) == {"repository": {"url": ""}, "launch_buttons": {}}


def test_source_commit(tmp_path):
    assert launch.source_commit(tmp_path, {"GITHUB_SHA": "abc"}) == "abc"
    with pytest.raises(parameters.BookError, match="launch copies need a commit"):
        launch.source_commit(tmp_path, {"GIT_CEILING_DIRECTORIES": str(tmp_path)})


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_needed_only_where_there_is_an_address(tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_SHA", raising=False)
    assert run.known_commit(tmp_path, None) == ""
    with pytest.raises(parameters.BookError, match="need a commit"):
        run.known_commit(tmp_path, "https://host/owner/name")
    monkeypatch.setenv("GITHUB_SHA", "abc")
    assert run.known_commit(tmp_path, None) == "abc"


def test_launch_copy_works_in_a_colab_like_place(book, tmp_path, monkeypatch, capsys):
    git(book, "init", "--quiet")
    git(book, "add", "book")
    git(book, "commit", "--quiet", "-m", "first")
    commit = launch.source_commit(book, {})
    assert commit == git(book, "rev-parse", "HEAD")
    (written,) = launch.write_launch_copies(book / "book", tmp_path / "launch", URL, commit)
    assert written == tmp_path / "launch" / "book" / "notebooks" / "01_one.ipynb"
    copy = nbformat.read(written, 4)
    nbformat.validate(copy)
    source = nbformat.read(book / "book" / "notebooks" / "01_one.ipynb", 4)
    assert copy.cells[1:] == source.cells
    setup = copy.cells[0].source
    assert f'REPOSITORY = "{URL}"' in setup
    assert f'COMMIT = "{commit}"' in setup

    place, run_command, installs = tmp_path / "content", subprocess.run, []
    setup = setup.replace(URL, str(book)).replace("/content/", f"{place}/")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NLS_STORE", raising=False)

    def fake_run(command, **keywords):
        if "pip" in command:
            return installs.append(command)
        return run_command(command, **keywords)

    monkeypatch.setattr(subprocess, "run", fake_run)
    exec(setup, {})
    assert Path.cwd() == tmp_path  # outside Colab nothing happens
    assert capsys.readouterr().out == ""
    place.mkdir()
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(setup, {})
    assert Path.cwd() == (place / "some-book" / "book" / "notebooks").resolve()
    assert Path("01_one.ipynb").exists()
    exec(setup, {})  # a second run is harmless
    assert [command[1:] for command in installs] == [
        ["-m", "pip", "install", "--quiet", "--constraint", str(place / "held.txt"), str(place / "some-book")]
    ] * 2
    assert f"torch=={version('torch')}" in (place / "held.txt").read_text().splitlines()
    assert len(re.findall("^(GPU: |No GPU: all runs on the CPU)", capsys.readouterr().out, re.MULTILINE)) == 2
    assert "NLS_STORE" not in os.environ

    drive = f"{place}/drive/MyDrive/nls"
    mounted = SimpleNamespace(mount=lambda folder: Path(folder, "MyDrive").mkdir(parents=True))
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=mounted))
    monkeypatch.setenv("NLS_STORE", "")  # so that it is as it was afterwards
    exec(setup.replace('DRIVE = ""', f'DRIVE = "{drive}"'), {})
    assert os.environ["NLS_STORE"] == drive
    assert Path(drive).parent.is_dir()


def test_record_of_a_run_is_json(built):
    record = json.loads((built / "_build" / "run.json").read_text())
    assert record["profile"] == "smoke"
    assert set(record["notebooks"]["01_one"]) == {"parameters", "source", "seconds", "cell_seconds"}
