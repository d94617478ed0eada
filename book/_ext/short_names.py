"""Let pages write nls.gls_loss for what the package's pages describe as nls.losses.gls_loss."""

import importlib

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """Resolve a public name through the module that defines it."""
    package, _, name = node.get("reftarget", "").partition(".")
    if node.get("refdomain") != "py" or package != "nls":
        return None
    module = getattr(getattr(importlib.import_module("nls"), name, None), "__module__", None)
    if module is None:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], f"{module}.{name}", node, content)


def setup(app: Sphinx) -> dict:
    """Register the extension.

    Args:
        app: The Sphinx application.

    Returns:
        Its metadata.
    """
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
