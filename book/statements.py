"""The page of all statements: what every notebook claims, collected from its executed cells."""

import re
from pathlib import Path

import nbformat
from parameters import BookError

KEY = "nls_claims"  # where a table of claims leaves its records, in the metadata of its output
MARKER = "<!-- statements -->"
FIELDS = {
    "name", "statement", "source", "effect", "protocol", "kind", "says", "test", "figure", "condition", "cost",
    "verdict",
}  # fmt: skip
REFUTED = ("fails", "not reproduced")


def read_claims(path: Path) -> tuple[str, list[dict]]:
    """Read what an executed notebook claims.

    Args:
        path: The notebook.

    Returns:
        Its title and the records of its claims, in the order of the page.

    Raises:
        BookError: If it shows no table of claims, or one of another form.
    """
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    claims = [claim for output in outputs for claim in output.get("metadata", {}).get(KEY, [])]
    if not claims or any(set(claim) != FIELDS for claim in claims):
        raise BookError(f"notebooks/{path.name}: expected a cell that shows its claims with nls.check_claims")
    return notebook.cells[0].source.removeprefix("# ").splitlines()[0], claims


def plain(text: str) -> str:
    r"""Escape what Markdown would read as markup.

    Args:
        text: Any text.

    Returns:
        The text, on one line.

    Examples:
        >>> print(plain("|z| < a_b"))
        \|z\| \< a\_b
    """
    return re.sub(r"([\\`*_{}\[\]<>#|$~^])", r"\\\1", " ".join(text.split()))


def entry(claim: dict, stem: str) -> list[str]:
    """Write one claim as an entry of a list: the statement, and below it what stands behind it.

    Args:
        claim: Its record.
        stem: The notebook that makes it.

    Returns:
        Lines of Markdown.
    """
    behind = [f"**{plain(claim['verdict'])}**", claim["kind"], plain(claim["source"]), plain(claim["effect"])]
    behind += [f"{{ref}}`figure <{claim['figure']}>`"] * bool(claim["figure"])
    behind += [f"cost: {plain(claim['cost'])}"] * bool(claim["cost"])
    behind += [f"`{claim['test']}`"] * bool(claim["test"])
    # An address of its own, so that a statement can be pointed to.
    anchor = f'<span id="{stem}-{claim["name"]}"></span>'
    return [f"{anchor}{plain(claim['statement'])}", f": {' · '.join(behind)}", ""]


def entries(claims: list[tuple[dict, str]]) -> list[str]:
    """Write claims as a list.

    Args:
        claims: Records, each with its notebook.

    Returns:
        Lines of Markdown.
    """
    return [line for claim, stem in claims for line in entry(claim, stem)]


def write_statements(stage: Path) -> int:
    """Fill the page of all statements from the executed notebooks.

    Args:
        stage: The staged book.

    Returns:
        How many statements there are; none in a book without that page.

    Raises:
        BookError: If a notebook shows no claims, or the page has no place for them.
    """
    page = stage / "statements.md"
    if not page.exists():
        return 0
    before, marker, after = page.read_text(encoding="utf-8").partition(MARKER)
    if not marker:
        raise BookError(f"{page.name}: expected a line {MARKER} where the statements go")
    pages = {path.stem: read_claims(path) for path in sorted((stage / "notebooks").glob("*.ipynb"))}
    every = [(claim, stem) for stem, (_, claims) in pages.items() for claim in claims]
    refuted = [(claim, stem) for claim, stem in every if claim["verdict"] in REFUTED]
    count = {kind: sum(claim["kind"] == kind for claim, _ in every) for kind in ("proved", "measured", "reproduction")}
    untested = sum(claim["verdict"] == "not tested" for claim, _ in every)
    lines = [
        f"This build states {len(every)} things on {len(pages)} pages: {count['proved']} are proved there and "
        f"confirmed by numbers, {count['measured']} are measured, {count['reproduction']} are a paper's own findings, "
        f"tried again; {len(refuted)} do not hold, {untested} could not be tested.",
        "",
    ]
    if refuted:
        lines += ["## What does not hold", "", *entries(refuted)]
    for stem, (title, claims) in pages.items():
        rest = [(claim, stem) for claim in claims if claim["verdict"] not in REFUTED]
        lines += [f"## {title}", "", f"The page: {{doc}}`notebooks/{stem}`.", "", *entries(rest)]
    page.write_text(before + "\n".join(lines) + after, encoding="utf-8")
    return len(every)
