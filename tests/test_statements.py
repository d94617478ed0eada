"""The page of all statements holds what the executed notebooks claim, and nothing else."""

import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter

from nls.claims import Claim, claims_table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))  # the pipeline is a folder of scripts, not a package

import statements  # noqa: E402
from parameters import BookError  # noqa: E402

PROVED = Claim("equal", "a_b = |z| for r < 0.", "this book", True, "largest gap 1e-16", "enumerated", kind="proved",
               test="test_a.py::test_b", figure="fig-a")  # fmt: skip
REFUTED = Claim("always", "It always helps.", "A paper", False, "-0.1", "live", says="fails")

REFUTED_LINES = [
    '<span id="02_two-always"></span>It always helps.',
    ": **fails** · measured · A paper · -0.1",
]


def write_page(stage, text="Intro.\n\n<!-- statements -->\n\nEnd.\n"):
    (stage / "notebooks").mkdir(parents=True)
    (stage / "statements.md").write_text(text)
    return stage


def write_executed(stage, stem, title, claims):
    """Write a notebook as an execution leaves it."""
    data, metadata = DisplayFormatter().format(claims_table(claims)) if claims else ({"text/plain": "1"}, {})
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\nMore."), nbformat.v4.new_code_cell("x", outputs=[output])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), stage / "notebooks" / f"{stem}.ipynb")


def test_the_page_holds_every_claim_and_those_that_fail_first(tmp_path):
    stage = write_page(tmp_path / "stage")
    write_executed(stage, "02_two", "Second?", [REFUTED])
    write_executed(stage, "01_one", "First?", [PROVED])
    assert statements.write_statements(stage) == 2
    lines = (stage / "statements.md").read_text().splitlines()
    assert "states 2 things on 2 pages: 1 are proved" in lines[2]
    assert "1 are measured, 0 are a paper's own findings, tried again; 1 do not hold, 0 could" in lines[2]
    assert [line for line in lines if line.startswith("## ")] == ["## What does not hold", "## First?", "## Second?"]
    assert lines.index("## What does not hold") < lines.index(REFUTED_LINES[0]) < lines.index("## First?")
    assert [line for line in lines if line.startswith(("<span", ": "))] == [
        *REFUTED_LINES,
        '<span id="01_one-equal"></span>a\\_b = \\|z\\| for r \\< 0.',
        ": **holds** · proved · this book · largest gap 1e-16 · {ref}`figure <fig-a>` · `test_a.py::test_b`",
    ]
    assert lines[-1] == "End."


def test_what_cannot_be_collected_stops_the_build(tmp_path):
    stage = write_page(tmp_path / "stage")
    write_executed(stage, "01_one", "First?", [])
    with pytest.raises(BookError, match=r"notebooks/01_one.ipynb: expected a cell that shows its claims"):
        statements.write_statements(stage)
    unmarked = write_page(tmp_path / "unmarked", "No place.\n")
    with pytest.raises(BookError, match=r"statements\.md: expected a line <!-- statements -->"):
        statements.write_statements(unmarked)


def test_a_book_without_the_page_has_no_statements(tmp_path):
    assert statements.write_statements(tmp_path) == 0
