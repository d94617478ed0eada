"""How the book is cited, read from CITATION.cff, which is the one place that says it."""

from pathlib import Path

import yaml
from parameters import BookError

NEEDED = ("cff-version", "message", "title", "authors", "version")


def read_citation(root: Path) -> dict:
    """Read CITATION.cff.

    Args:
        root: The checkout.

    Returns:
        Its fields; empty where the file is missing.

    Raises:
        BookError: If the file is not YAML, or lacks a field that a citation needs.
    """
    path = root / "CITATION.cff"
    if not path.exists():
        return {}
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BookError(f"CITATION.cff: not YAML: {error}") from None
    missing = [key for key in NEEDED if not (isinstance(fields, dict) and fields.get(key))]
    if missing:
        raise BookError(f"CITATION.cff: expected the fields {', '.join(NEEDED)}, but {', '.join(missing)} is missing")
    return fields


def citation_settings(root: Path, year: str, commit: str, url: str | None) -> dict:
    """Return what the pages' citation boxes need; book/_ext/citation_box.py writes them.

    Args:
        root: The checkout.
        year: The year of the book.
        commit: The commit that is built, or an empty string.
        url: The repository's address or None.

    Returns:
        A value of html_context.
    """
    return {"fields": read_citation(root), "year": year, "commit": commit, "url": url or ""}
