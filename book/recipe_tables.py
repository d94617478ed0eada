"""The tables of the page of recipes, from stored results: what libraries do with a rate, what a recipe ran with."""

import csv
from pathlib import Path

from statements import fill

LIBRARIES, VERSIONS = "<!-- libraries -->", "<!-- versions -->"
ASKED = ("torch", "timm", "transformers", "fastai", "keras")
SAID = {"GLS": "the loss at that rate", "plain CE silently": "**cross entropy, without a word**", "raises": "an error"}


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Read a stored study.

    Args:
        folder: Its CSV files.

    Returns:
        Rows.
    """
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    return rows


def list_libraries(rows: list[dict[str, str]]) -> str:
    """Write the table of what libraries return for a negative rate.

    Args:
        rows: Of the study `conformance`.

    Returns:
        Markdown.
    """
    lines = ["| library | what takes the rate | at the rate -0.5 you get |", "|---|---|---|"]
    for library in ASKED:
        for row in rows:
            if row["library"] == library and row["argument"] != "the rows":
                call, _, rest = row["call"].partition(" ")
                taking = f"`{call}` {rest}".strip() + f", `{row['argument']}`"
                said = SAID.get(row["result"], row["result"])
                said += "" if row["confident"] == row["result"] else ", while no probability is clipped"
                lines.append(f"| `{library}` {row['version']} | {taking} | {said} |")
    return "\n".join(lines)


def list_versions(rows: list[dict[str, str]]) -> str:
    """Write the table of what the recipes ran with.

    Args:
        rows: Of the study `recipes`.

    Returns:
        Markdown.
    """
    lines = ["| recipe | ran with | rate | on clean test labels | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        versions = f"torch {row['torch']}, Python {row['python']}, {row['date']}"
        if row["library"] != "torch":
            versions = f"{row['library']} {row['version']}, {versions}"
        found = "" if not row["accuracy"] else f"{float(row['accuracy']):.2f}, {float(row['log_loss']):.2f} nats"
        rate, seconds = f"{float(row['rate']):.2f}", f"{float(row['seconds']):.0f}"
        lines.append(f"| `{row['recipe']}.py` | {versions} | {rate} | {found} | {seconds} |")
    return "\n".join(lines)


def write_recipes(stage: Path) -> None:
    """Fill the page of recipes; a book without that page stays as it is.

    Args:
        stage: The staged book, with its stored results.

    Raises:
        BookError: If the page has no place for a table.
    """
    page = stage / "recipes.md"
    if page.exists():
        libraries = list_libraries(read_rows(stage / "results" / "conformance"))
        fill(page, {LIBRARIES: libraries, VERSIONS: list_versions(read_rows(stage / "results" / "recipes"))})
