"""A small book with executed notebooks, and its ledger rendered the way Sphinx does, but in milliseconds."""

import re
import shutil
import sys
from pathlib import Path

import nbformat
from IPython.core.formatters import DisplayFormatter
from markdown_it import MarkdownIt

from nls.claims import claims_table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))  # the pipeline is a folder of scripts, not a package

import browse_site  # noqa: E402, F401  (tests import it from here)
import statements  # noqa: E402


def write_pages(folder, ledger=None, first="First.\n\n<!-- claims -->\n"):
    """Write the sources of a small book: the ledger's page (the real one by default), the first page, two tests."""
    stage, tests = folder / "stage", folder / "tests"
    for new in (stage / "notebooks", stage / "_web", tests):
        new.mkdir(parents=True)
    text = (ROOT / "book" / "statements.md").read_text(encoding="utf-8") if ledger is None else ledger
    (stage / "statements.md").write_text(text, encoding="utf-8")
    (stage / "index.md").write_text(first, encoding="utf-8")
    (tests / "test_a.py").write_text("\n\ndef test_b():\n    assert True\n\n\ndef test_c():\n    assert True\n")
    return stage, tests


def write_executed(stage, stem, title, claims):
    """Write a notebook as an execution leaves it."""
    data, metadata = DisplayFormatter().format(claims_table(claims)) if claims else ({"text/plain": "1"}, {})
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\nMore."), nbformat.v4.new_code_cell("x", outputs=[output])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), stage / "notebooks" / f"{stem}.ipynb")


def render(stage, site):
    """Render the ledger with its data, script and style.

    Headings open sections with Sphinx's identifiers, containers are divisions, and references to figures are links.
    """
    text = (stage / "statements.md").read_text(encoding="utf-8")
    text = re.sub(r"\{ref\}`figure <(.*?)>`", r'<a href="notebooks/x.html#\1">figure</a>', text)
    text = re.sub(r"^:::::\{container\} (\S+)$", r'<div class="\1">\n', text, flags=re.M)
    text = re.sub(r"^:::::$", "\n</div>\n", text, flags=re.M)
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    parts = re.split(r"(?=<h2>)", page)
    sections = [f'<section id="{slug(re.search("<h2>(.*?)</h2>", part)[1])}">{part}</section>' for part in parts[1:]]
    site.mkdir()
    for name in ("css", "js"):
        shutil.copytree(ROOT / "book" / "_web" / name, site / "_static" / name)
    for name in ("claims.json", "claims.csv"):
        shutil.copy(stage / "_web" / name, site / "_static")
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    body = f"<title>Ledger</title><article>{parts[0]}{''.join(sections)}</article></html>"
    (site / "statements.html").write_text(head + body, encoding="utf-8")
    return site


def slug(title):
    """Return the identifier that Sphinx gives to a heading."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def write_ledger(stage, tests, **more):
    """Fill the ledger of a small book."""
    return statements.write_statements(stage, tests, more.pop("seconds", {}), **more)
