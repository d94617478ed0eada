"""The page for teachers: what each chapter's objectives are trained by, and every misconception with its exercise.

`objectives.yml` gives exercises and predictions the numbers of the objectives that they train. The tables are made from
it and from the sources of the notebooks, so that they cannot drift apart; tests find what is not covered.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from check_site import read_toc
from docutils.nodes import make_id
from parameters import BookError, read_notebook
from statements import fill

OBJECTIVES, MISCONCEPTIONS = "<!-- objectives -->", "<!-- misconceptions -->"
LIST = re.compile(r"^After .*\byou can$\n+((?:\d\. .*\n?)+)", re.M)
EXERCISE = re.compile(r"^`{3,}\{exercise\}\n(.*?)^`{3,}$", re.M | re.S)
SOLUTION = re.compile(r"^`{3,}\{solution-start\} (\S+)$", re.M)
QUESTION = re.compile(r"^`{3,}\{admonition\} Predict|^\*\*Predict\.\*\*", re.M)


@dataclass
class Exercise:
    """An exercise: its label, the misconception that it is about, and the code that checks its solution."""

    label: str
    misconception: str
    solution: str = ""


@dataclass
class Chapter:
    """What a chapter asks of its readers."""

    stem: str
    title: str = ""
    objectives: list[str] = field(default_factory=list)
    exercises: list[Exercise] = field(default_factory=list)
    predictions: dict[str, str] = field(default_factory=dict)  # the cell that asks -> its heading
    headings: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)  # figure -> the cell whose question it answers


def read_exercises(source: str) -> list[Exercise]:
    """Read the exercises of a cell.

    Args:
        source: A cell of text.

    Returns:
        The exercises, without their solutions.
    """
    found = []
    for body in EXERCISE.findall(source):
        label = re.search(r"^:label: (\S+)$", body, re.M)
        said = re.search(r'^\*Misconception: "(.*)"\*$', body, re.M)
        found.append(Exercise(label[1] if label else "", said[1] if said else ""))
    return found


def read_chapter(path: Path) -> Chapter:
    """Read what a chapter asks of its readers.

    Args:
        path: The notebook, as it is in the repository.

    Returns:
        The chapter.
    """
    chapter, place = Chapter(path.stem), {"asking": "", "solving": ""}
    for cell in read_notebook(path).cells:
        if cell.cell_type == "markdown":
            _read_text(chapter, cell.id, cell.source, place)
            continue
        if place["solving"]:
            _find(chapter, place["solving"]).solution += cell.source + "\n"
        figure = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        if figure and place["asking"]:
            chapter.figures[figure] = place["asking"]
    return chapter


def _read_text(chapter: Chapter, cell: str, source: str, place: dict[str, str]) -> None:
    """Read a cell of text; `place` has what is asked and what is being solved at its end."""
    if listed := LIST.search(source):
        chapter.objectives = re.findall(r"^\d\. (.*?)[.;]?$", listed[1], re.M)
    chapter.exercises += read_exercises(source)
    for line in source.splitlines():
        if line.startswith("# "):
            chapter.title = line[2:]
        elif line.startswith("## "):
            chapter.headings.append(line[3:])
            place["asking"] = ""
        elif QUESTION.match(line):
            chapter.predictions[cell] = chapter.headings[-1]
            place["asking"] = cell
        elif line.endswith("{solution-end}"):
            place["solving"] = ""
        elif started := SOLUTION.match(line):
            place["solving"] = started[1]


def _find(chapter: Chapter, label: str) -> Exercise:
    """Find the exercise of a solution."""
    for exercise in chapter.exercises:
        if exercise.label == label:
            return exercise
    raise BookError(f"notebooks/{chapter.stem}.ipynb: a solution of {label}, which is no exercise above it")


def read_chapters(source: Path) -> list[Chapter]:
    """Read the chapters, in the order of the book.

    Args:
        source: The book's folder, with _toc.yml.

    Returns:
        The chapters.
    """
    stems = [page for page in read_toc(source) if page.startswith("notebooks/")]
    return [read_chapter(source / f"{page}.ipynb") for page in stems]


def read_objectives(source: Path) -> dict[str, dict[str, list[int]]]:
    """Read which objectives an exercise or a prediction trains.

    Args:
        source: The book's folder, with objectives.yml.

    Returns:
        Chapter -> label of an exercise or cell of a prediction -> numbers, from one.
    """
    tree = yaml.safe_load((source / "objectives.yml").read_text(encoding="utf-8"))
    return {
        stem: {**parts.get("exercises", {}), **{f"{cell}?": n for cell, n in parts.get("predictions", {}).items()}}
        for stem, parts in tree.items()
    }


def asked(chapter: Chapter) -> list[str]:
    """Return the names that objectives.yml has for a chapter: labels, and cells with a question mark."""
    return [exercise.label for exercise in chapter.exercises] + [f"{cell}?" for cell in chapter.predictions]


def check_objectives(chapters: list[Chapter], trains: Mapping[str, Mapping[str, list[int]]]) -> list[str]:
    """Require that objectives.yml knows every exercise and prediction, and that every objective is covered.

    Args:
        chapters: The chapters.
        trains: What objectives.yml says.

    Returns:
        Findings.
    """
    findings = [f"objectives.yml: {stem}: no such chapter" for stem in trains.keys() - {c.stem for c in chapters}]
    for chapter in chapters:
        given, names = trains.get(chapter.stem, {}), asked(chapter)
        findings += [f"objectives.yml: {chapter.stem}: {name} is missing" for name in names if name not in given]
        findings += [f"objectives.yml: {chapter.stem}: nothing is called {name}" for name in given if name not in names]
        numbers = {number for name in names for number in given.get(name, [])}
        known = set(range(1, len(chapter.objectives) + 1))
        findings += [f"objectives.yml: {chapter.stem}: it has no objective {n}" for n in sorted(numbers - known)]
        findings += [f"{chapter.stem}: objective {n} is not covered" for n in sorted(known - numbers)]
        if not known:
            findings.append(f"{chapter.stem}: lists no objectives")
    return findings


def link(chapter: Chapter, heading: str, text: str = "") -> str:
    """Link to a section of a chapter.

    Args:
        chapter: The chapter.
        heading: The heading of the section.
        text: What to show; the heading by default.

    Returns:
        Markdown.

    Raises:
        BookError: If the chapter has no such section.
    """
    if heading not in chapter.headings:
        raise BookError(f"teaching.md: {chapter.stem} has no section {heading!r}")
    anchor = make_id(re.sub(r"[$`]", "", heading))
    return f'<a href="notebooks/{chapter.stem}.html#{anchor}">{text or heading}</a>'


def tell(text: str) -> str:
    """Make a line of a chapter fit for a cell of a table on a page one folder up."""
    if "{glue" in text:
        raise BookError(f"teaching.md: numbers of a chapter cannot be shown elsewhere: {text}")
    return re.sub(r"\{doc\}`(\d\d_)", r"{doc}`notebooks/\1", text).replace("|", r"\|")


def list_objectives(chapter: Chapter, trains: Mapping[str, list[int]], claims: list[dict]) -> list[str]:
    """Write the table of a chapter's objectives.

    Args:
        chapter: The chapter.
        trains: What objectives.yml says of it.
        claims: The claims of the book, with their figures.

    Returns:
        Lines of Markdown.
    """
    lines = [f"**{{doc}}`notebooks/{chapter.stem}`**", ""]
    lines += ["| | you can | exercises | predictions | claims |", "|---|---|---|---|---|"]
    for number, objective in enumerate(chapter.objectives, 1):
        chosen = [e.label for e in chapter.exercises if number in trains.get(e.label, [])]
        cells = [cell for cell in chapter.predictions if number in trains.get(f"{cell}?", [])]
        sections = list(dict.fromkeys(chapter.predictions[cell] for cell in cells))
        shown = [c for c in claims if c["chapter"] == chapter.stem and chapter.figures.get(c["figure"]) in cells]
        parts = [
            ", ".join(f"{{ref}}`{label}`" for label in chosen),
            "<br>".join(link(chapter, heading) for heading in sections),
            " ".join(f'<a href="statements.html#{c["id"]}">{n}</a>' for n, c in enumerate(shown, 1)),
        ]
        if not chosen and not cells:
            parts[0] = "**not covered**"
        lines.append(f"| {number} | {tell(objective)} | {' | '.join(parts)} |")
    return [*lines, ""]


def list_misconceptions(chapters: list[Chapter]) -> list[str]:
    """Write the table of all misconceptions.

    Args:
        chapters: The chapters.

    Returns:
        Lines of Markdown.
    """
    lines = ["| misconception | exercise | chapter |", "|---|---|---|"]
    for chapter in chapters:
        for exercise in chapter.exercises:
            said = tell(exercise.misconception) or "not named"
            lines.append(f"| {said} | {{ref}}`{exercise.label}` | {{doc}}`notebooks/{chapter.stem}` |")
    return lines


def fill_paths(text: str, chapters: list[Chapter]) -> str:
    """Replace [[chapter: heading]] by a link to that section, and [[label]] by a misconception and its exercise.

    Args:
        text: The page.
        chapters: The chapters.

    Returns:
        The page.

    Raises:
        BookError: If there is no such section or exercise.
    """
    known = {chapter.stem: chapter for chapter in chapters}
    exercises = {exercise.label: exercise for chapter in chapters for exercise in chapter.exercises}

    def replace(match: re.Match) -> str:
        stem, _, heading = match[1].partition(": ")
        if heading and stem in known:
            return link(known[stem], heading)
        if stem in exercises and not heading:
            return f"{tell(exercises[stem].misconception)} ({{ref}}`{stem}`)"
        raise BookError(f"teaching.md: [[{match[1]}]]: no such section or exercise")

    return re.sub(r"\[\[(.+?)\]\]", replace, text)


def write_teaching(source: Path, stage: Path) -> int:
    """Fill the page for teachers.

    Args:
        source: The book's folder, with the notebooks as they are in the repository.
        stage: The staged book, with the data of the claims if they have been collected.

    Returns:
        How many objectives there are; none in a book without that page.

    Raises:
        BookError: If the page names a section or an exercise that does not exist, or has no place for a table.
    """
    page = stage / "teaching.md"
    if not page.exists():
        return 0
    chapters, trains = read_chapters(source), read_objectives(source)
    data = stage / "_web" / "claims.json"
    claims = json.loads(data.read_text(encoding="utf-8")) if data.exists() else []
    page.write_text(fill_paths(page.read_text(encoding="utf-8"), chapters), encoding="utf-8")
    tables = [line for c in chapters for line in list_objectives(c, trains.get(c.stem, {}), claims)]
    fill(page, {OBJECTIVES: "\n".join(tables), MISCONCEPTIONS: "\n".join(list_misconceptions(chapters))})
    return sum(len(chapter.objectives) for chapter in chapters)
