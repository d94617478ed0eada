"""Print what pyproject.toml asks for, for pip: python .ci/ranges.py lowest|newest [EXTRA ...]."""

import re
import sys
import tomllib
from pathlib import Path


def at_end(requirements: list[str], end: str) -> list[str]:
    """Return requirements at one end of their ranges.

    Args:
        requirements: Such as ``"numpy>=1.26"``.
        end: ``"lowest"`` pins the version that is named; ``"newest"`` leaves the choice to pip.

    Returns:
        Such as ``"numpy==1.26"`` for the lowest.

    Raises:
        ValueError: If a requirement has another form, or the end is another word.

    Examples:
        >>> at_end(["numpy>=1.26"], "lowest")
        ['numpy==1.26']
    """
    if end not in ("lowest", "newest"):
        raise ValueError(f"end must be 'lowest' or 'newest', got {end!r}")
    for requirement in requirements:
        if not re.fullmatch(r"[\w.-]+>=[\w.]+", requirement):
            raise ValueError(f"pyproject.toml: expected NAME>=VERSION, got {requirement!r}")
    return [requirement.replace(">=", "==") if end == "lowest" else requirement for requirement in requirements]


if __name__ == "__main__":
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text("utf-8"))["project"]
    extras = [requirement for extra in sys.argv[2:] for requirement in project["optional-dependencies"][extra]]
    print("\n".join(at_end([*project["dependencies"], *extras], sys.argv[1])))
