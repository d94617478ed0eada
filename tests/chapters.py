"""Runs a chapter of the book in this process, as it is or with something planted in it."""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat

import nls
from nls import plotting

NOTEBOOKS = Path(__file__).parents[1] / "book" / "notebooks"


def run_chapter(stem, patch, whole=False, **values):
    """Execute the cells of a chapter, but for its figures and solutions, and return its names.

    Args:
        stem: The notebook's name without its ending.
        patch: pytest's MonkeyPatch; nothing is glued, and claims that fail are reported, not raised.
        whole: Whether to execute figures and solutions, too.
        values: Parameters with other values than the default.
    """
    patch.setattr(plotting, "glue", lambda name, value: None)
    names = {}
    for cell in nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells:
        left_out = not whole and ("mystnb" in cell.metadata or cell.id.startswith("solution-"))
        if cell.cell_type != "code" or left_out:
            continue
        exec(compile(cell.source, f"{stem}:{cell.id}", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            unknown = (values | {"strict": False}).keys() - names.keys()
            assert not unknown, f"no such parameters: {unknown}"
            names.update(values, strict=False)
    plt.close("all")
    return names


def run_solution(stem, name, names, change=("", "")):
    """Execute the solution of an exercise after its chapter, with one piece of its text replaced."""
    cells = {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells}
    old, new = change
    assert old in cells[name], f"{name} does not hold {old!r}"
    exec(compile(cells[name].replace(old, new, 1) if old else cells[name], f"{stem}:{name}", "exec"), dict(names))


def unexpected(names):
    """Return the names of the claims that are not as the page says, among those that ``run_chapter`` left."""
    assert all(isinstance(claim, nls.Claim) for claim in names["claims"])
    return {claim.name for claim in names["claims"] if claim.verdict == "no verdict" or not claim.as_said}
