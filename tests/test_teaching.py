"""The page for teachers: every objective is covered, every chapter has an exercise whose solution is checked."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

import nls

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK))  # the pipeline is a folder of scripts, not a package

import parameters  # noqa: E402
import teaching  # noqa: E402

CHAPTERS = teaching.read_chapters(BOOK)
PAGE = (BOOK / "teaching.md").read_text(encoding="utf-8")
TEXT = """# Title

After reading it you can

1. add {doc}`07_cost`;
2. subtract.
"""
QUESTION = "## Sums $a + b$\n\n```{admonition} Predict before you read on\n:class: tip\nWhat?\n```"
EXERCISE = """**Read it.**

## Exercises

```{exercise}
:label: sum-one
*Misconception: "One and one is {said}."*

Add.
```

```{solution-start} sum-one
:class: dropdown
```"""


def write_book(folder, text=TEXT, said="three", page="[[01_sum: Sums $a + b$]] [[sum-one]]", trains="[1]"):
    """Write a book of one chapter, and its stage."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "stage" / "_web").mkdir(parents=True)
    figure = {"mystnb": {"figure": {"name": "fig-sum"}}}
    cells = [nbformat.v4.new_markdown_cell(source) for source in (text, QUESTION)]
    cells += [nbformat.v4.new_code_cell("draw()", metadata=figure)]
    cells += [nbformat.v4.new_markdown_cell(EXERCISE.replace("{said}", said))]
    cells += [nbformat.v4.new_code_cell("assert 1 + 1 == 2"), nbformat.v4.new_markdown_cell("```{solution-end}\n```")]
    cells += [nbformat.v4.new_code_cell("other()", metadata={"mystnb": {"figure": {"name": "fig-other"}}})]
    cells[1].id = "ask"
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, folder / "notebooks" / "01_sum.ipynb")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n  - file: notebooks/01_sum\n")
    (folder / "objectives.yml").write_text(
        f"01_sum:\n  exercises: {{sum-one: {trains}}}\n  predictions: {{ask: [2]}}\n"
    )
    markers = f"{teaching.OBJECTIVES}\n\n{teaching.MISCONCEPTIONS}\n"
    (folder / "stage" / "teaching.md").write_text(f"# Teach\n\n{page}\n\n{markers}")
    claims = [{"id": "sum-holds", "chapter": "01_sum", "figure": "fig-sum"}]
    claims += [{"id": "far", "chapter": "01_sum", "figure": "fig-other"}]
    (folder / "stage" / "_web" / "claims.json").write_text(json.dumps(claims))
    return folder, folder / "stage"


def test_every_objective_of_the_book_is_covered():
    assert teaching.check_objectives(CHAPTERS, teaching.read_objectives(BOOK)) == []
    assert sum(len(chapter.objectives) for chapter in CHAPTERS) >= 3 * len(CHAPTERS)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_every_chapter_has_exercises_with_checked_solutions(chapter):
    assert len(chapter.exercises) >= 1
    for exercise in chapter.exercises:
        assert re.search(r"^\s*assert ", exercise.solution, re.M), f"nothing checks the solution of {exercise.label}"
        assert exercise.misconception, f"{exercise.label} names no misconception"
    labels = [exercise.label for exercise in chapter.exercises]
    assert len(set(labels)) == len(labels)
    assert len(chapter.predictions) >= 1


def test_a_chapter_is_read_as_it_is_written(tmp_path):
    (chapter,) = teaching.read_chapters(write_book(tmp_path)[0])
    assert (chapter.title, chapter.objectives) == ("Title", ["add {doc}`07_cost`", "subtract"])
    assert chapter.predictions == {"ask": "Sums $a + b$"}
    assert chapter.figures == {"fig-sum": "ask"}, "the other figure answers nothing that was asked"
    (exercise,) = chapter.exercises
    assert (exercise.label, exercise.misconception) == ("sum-one", "One and one is three.")
    assert exercise.solution == "assert 1 + 1 == 2\n"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda given: given["01_sum"].update({"sum-one": []}), "01_sum: objective 1 is not covered"),
        (lambda given: given["01_sum"].pop("ask?"), "objectives.yml: 01_sum: ask? is missing"),
        (lambda given: given["01_sum"].update({"far": [1]}), "objectives.yml: 01_sum: nothing is called far"),
        (lambda given: given["01_sum"].update({"sum-one": [1, 3]}), "objectives.yml: 01_sum: it has no objective 3"),
        (lambda given: given.update({"02_far": {}}), "objectives.yml: 02_far: no such chapter"),
    ],
)
def test_what_is_not_covered_is_found(tmp_path, change, finding):
    book, _ = write_book(tmp_path)
    chapters, given = teaching.read_chapters(book), teaching.read_objectives(book)
    assert teaching.check_objectives(chapters, given) == []
    change(given)
    assert finding in teaching.check_objectives(chapters, given)


def test_a_chapter_without_objectives_is_found(tmp_path):
    book, _ = write_book(tmp_path, text="# Title\n")
    assert "01_sum: lists no objectives" in teaching.check_objectives(teaching.read_chapters(book), {})


def test_the_page_is_filled(tmp_path):
    book, stage = write_book(tmp_path)
    assert teaching.write_teaching(book, stage) == 2
    lines = (stage / "teaching.md").read_text().splitlines()
    anchor = '<a href="notebooks/01_sum.html#sums-a-b">Sums $a + b$</a>'
    assert f"{anchor} One and one is three. ({{ref}}`sum-one`)" in lines
    assert "| 1 | add {doc}`notebooks/07_cost` | {ref}`sum-one` |  |  |" in lines
    assert f'| 2 | subtract |  | {anchor} | <a href="statements.html#sum-holds">1</a> |' in lines
    assert "| One and one is three. | {ref}`sum-one` | {doc}`notebooks/01_sum` |" in lines


def test_a_gap_is_shown_and_not_hidden(tmp_path):
    book, stage = write_book(tmp_path, trains="[]")
    teaching.write_teaching(book, stage)
    assert "| 1 | add {doc}`notebooks/07_cost` | **not covered** |  |  |" in (stage / "teaching.md").read_text()


def test_a_book_without_the_page_is_left_alone(tmp_path):
    book, stage = write_book(tmp_path)
    (stage / "teaching.md").unlink()
    assert teaching.write_teaching(book, stage) == 0


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"page": "[[01_sum: Sum]]"}, "01_sum has no section 'Sum'"),
        ({"page": "[[sum-two]]"}, r"\[\[sum-two\]\]: no such section or exercise"),
        ({"page": teaching.OBJECTIVES}, "expected one line <!-- objectives -->"),
        ({"said": "{glue:text}`x`"}, "numbers of a chapter cannot be shown elsewhere"),
    ],
)
def test_what_the_page_cannot_show_stops_the_build(tmp_path, what, message):
    book, stage = write_book(tmp_path, **what)
    with pytest.raises(parameters.BookError, match=message):
        teaching.write_teaching(book, stage)


def read_plan(heading):
    """The rows of the table below a heading of the page."""
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.split(" | ")] for line in part.splitlines() if re.match(r"\| *\d", line)]


def test_the_plans_fit_their_times_and_name_what_exists():
    assert sum(int(row[0].strip("| ")) for row in read_plan("A class of two hours")) == 120
    week = read_plan("A course of one week")
    assert [row[0].strip("| ") for row in week] == list("1122334455")
    assert {row[1] for row in week} == {"90"}
    filled = teaching.fill_paths(PAGE, CHAPTERS)
    assert "[[" not in filled
    assert len(re.findall(r'<a href="notebooks/', filled)) > 30


def test_the_commands_of_the_page_change_parameters_that_exist():
    commands = re.findall(r"^\.venv/bin/.*$", PAGE, re.M)
    assert len(commands) == 2
    notebook = re.search(r"notebooks/(\w+)\.ipynb", commands[0])[1]
    named = [(notebook, name) for name in re.findall(r"-p (\w+)", commands[0])]
    named += re.findall(r"--set (\w+)\.(\w+)=", commands[1])
    assert len(named) == 4
    for stem, name in named:
        path = BOOK / "notebooks" / f"{stem}.ipynb"
        assert name in parameters.read_defaults(parameters.read_notebook(path), path.name)


def test_the_numbers_of_a_class_are_gathered(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    for seed, value in enumerate((39.0, 40.0, 44.0)):
        scrap = {"application/papermill.record/text/plain": repr(value)}
        output = {"output_type": "display_data", "data": scrap, "metadata": {"scrapbook": {"name": NAME}}}
        cell = {"cell_type": "code", "outputs": [output, {"output_type": "stream", "text": "x"}]}
        (tmp_path / "runs" / f"{seed}.ipynb").write_text(json.dumps({"cells": [{"cell_type": "markdown"}, cell]}))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(code, "teaching.md", "exec"), {})
    assert capsys.readouterr().out.strip() == str(nls.mean_interval([39.0, 40.0, 44.0]))


NAME = re.search(r'name, values = "([\w-]+)"', PAGE)[1]


def test_the_number_that_a_class_gathers_is_one_of_its_chapter():
    cells = parameters.read_notebook(BOOK / "notebooks" / "02_label_noise.ipynb").cells
    assert any(f"{{glue:text}}`{NAME}:" in cell.source for cell in cells if cell.cell_type == "markdown")
