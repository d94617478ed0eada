"""Let a page load only what it shows, and name its folds by what they say.

A style sheet or script of an extension is dropped from pages that hold none of its parts, so that the first page stays
light on a phone.
"""

from sphinx.application import Sphinx

# What the name of a file holds -> what a page that needs the file holds, any of it.
NEEDS = {
    "mathjax": ('class="math',),
    "sphinx-design": ("sd-",),
    "design-tabs": ("sd-",),
    "mystnb": ('class="cell', "cell_output"),
    "proof.css": ('class="proof',),
    "exercise.css": ("exercise", "solution"),
    "togglebutton": ("toggle", "dropdown"),
    "js/rate": ("nls-live",),
    "js/simplex": ("nls-live",),
    "js/phase": ("nls-live",),
    "js/boundary": ("nls-live",),
    "js/figures": ("nls-live",),
    "css/figures": ("nls-live", 'type="application/json"'),
    "predict": ("Predict",),
}


def _is_needed(asset, body: str) -> bool:
    """Tell whether a page holds a part that a file is for."""
    name = str(getattr(asset, "filename", "") or asset)
    return all(any(mark in body for mark in marks) for part, marks in NEEDS.items() if part in name)


def _lighten(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Drop what one page does not need, and labels that hide what its folds say."""
    body = context.get("body", "").replace(' aria-label="Toggle hidden content"', "")
    if "body" in context:
        context["body"] = body
    for key in ("script_files", "css_files"):
        context[key][:] = [asset for asset in context.get(key, []) if _is_needed(asset, body)]


def setup(app: Sphinx) -> dict:
    """Register the extension.

    Args:
        app: The Sphinx application.

    Returns:
        Its metadata.
    """
    app.connect("html-page-context", _lighten, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
