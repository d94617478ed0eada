"""Remove sphinx-thebe's assets, which Jupyter Book v1 adds to every page, twice.

The book has no live-code button. The second copy of the inline script throws on every page, and the first one names
a server from which it would fetch code.
"""

from sphinx.application import Sphinx


def _is_thebe(asset) -> bool:
    """Tell whether a script or style sheet belongs to sphinx-thebe."""
    body = getattr(asset, "attributes", {}).get("body", "") or ""
    return "thebe" in str(getattr(asset, "filename", asset)).lower() or "thebe" in body.lower()


def _drop(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Drop them from one page."""
    for key in ("script_files", "css_files"):
        context[key][:] = [asset for asset in context.get(key, []) if not _is_thebe(asset)]


def setup(app: Sphinx) -> dict:
    """Register the extension.

    Args:
        app: The Sphinx application.

    Returns:
        Its metadata.
    """
    app.connect("html-page-context", _drop, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
