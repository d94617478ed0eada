"""End each page of the book with a box that says how to cite it; book/cite.py reads what it needs from CITATION.cff."""

import html
import re

from sphinx.application import Sphinx

BOX = """<details class="nls-cite"{state}><summary>Cite this {what}</summary>
<p>{text}</p>
<div class="highlight-bibtex notranslate"><div class="highlight"><pre>{entry}
</pre></div></div></details>"""


def name_authors(fields: dict) -> str:
    """Write the authors as BibTeX does; a group keeps its name whole.

    Args:
        fields: The fields of CITATION.cff.

    Returns:
        Names, joined by "and".
    """
    return " and ".join(
        f"{one['family-names']}, {one['given-names']}" if "family-names" in one else f"{{{one['name']}}}"
        for one in fields["authors"]
    )


def cite_page(fields: dict, page: str, title: str, year: str, commit: str = "", url: str = "") -> tuple[str, str]:
    """Write the citation of one page.

    Args:
        fields: The fields of CITATION.cff.
        page: The page, without its ending.
        title: Its title; that of the book on the first page.
        year: The year.
        commit: The commit that the page was built from, if known.
        url: The repository's address, if known.

    Returns:
        One sentence, and an entry for BibTeX.
    """
    book, version = fields["title"], f"version {fields['version']}" + (f", commit {commit[:12]}" if commit else "")
    people = re.sub(r"[{}]", "", name_authors(fields))
    whole = title == book
    named = title if whole else f"{title}{'' if title.endswith('?') else '.'} In {book}"
    text = f"{people} ({year}). {named}, {version}." + (f" {url}" if url else "")
    words = re.sub(r"\W+", "-", book.lower()).strip("-")
    entry = {
        "author": name_authors(fields),
        "title": f"{{{title}}}",
        **({} if whole else {"howpublished": f"In {{{book}}}"}),
        "year": year,
        "note": version[0].upper() + version[1:],
        **({"url": url} if url else {}),
    }
    key = words if whole else f"{words}:{page.rsplit('/', 1)[-1]}"
    lines = ",\n".join(f"  {name:<12} = {{{value}}}" for name, value in entry.items())
    return text, f"@misc{{{key},\n{lines}\n}}"


def _add_box(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Append the box to a page that a source stands behind."""
    known = context.get("citation")
    if not known or not known["fields"] or doctree is None or "body" not in context:
        return
    title = html.unescape(re.sub(r"<[^>]*>", "", str(context.get("title", "")))).strip()
    first = pagename == app.config.root_doc
    title = known["fields"]["title"] if first else re.sub(r"^[\d.]+\s+", "", title)
    text, entry = cite_page(known["fields"], pagename, title, known["year"], known["commit"], known["url"])
    what = "book" if first else "page"
    parts = {"text": html.escape(text), "entry": html.escape(entry), "state": " open" if first else ""}
    context["body"] += BOX.format(what=what, **parts)


def setup(app: Sphinx) -> dict:
    """Register the extension.

    Args:
        app: The Sphinx application.

    Returns:
        Its metadata.
    """
    app.connect("html-page-context", _add_box, priority=940)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
