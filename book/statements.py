"""The ledger: what every notebook claims, collected from its executed cells into one page and two files of data."""

import ast
import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup, Tag
from parameters import BookError

KEY = "nls_claims"  # where a table of claims leaves its records, in the metadata of its output
COUNTS, MARKER, HEADLINE = "<!-- counts -->", "<!-- statements -->", "<!-- claims -->"
DATA = "_web/claims"  # of the stage; the site has it as _static/claims, with the endings .json and .csv
FIELDS = {
    "name", "statement", "source", "effect", "protocol", "kind", "says", "test", "figure", "condition", "cost", "n",
    "verdict",
}  # fmt: skip
BOOK, OTHERS = "This book", "Other papers"
# Section -> the sources that it holds; the first that matches. The order of the page is that of SECTIONS.
SHELVES = {
    BOOK: r"this book$",
    "Wei et al. 2022": r"Wei et al\. 2022(?!, Learning)",  # the paper and its submission, not the other of that year
    "Li et al. 2021": r"Li et al\. 2021",
    "Question and answer": r"question and answer|Mueller et al\. 2019|Warde-Farley|Pereyra et al\. 2017",
    OTHERS: "",
}
SOURCES = ("Wei et al. 2022", "Li et al. 2021", "Question and answer")
SECTIONS = {
    "Wei et al. 2022": "*To smooth or not? When label smoothing meets noisy labels*, and its submission to ICLR.",
    "Li et al. 2021": "*How does a neural network's architecture impact its robustness to noisy labels?*",
    "Question and answer": "A question on label smoothing and label flipping when every label is right, its "
    "answers, and the three papers that they quote.",
    OTHERS: "What else the chapters try of the literature; a remark whose wording was not checked is here, too.",
    BOOK: "What the chapters say of their own.",
}
VERDICTS = (
    "holds", "fails", "reproduced", "reproduced only under a condition", "not reproduced", "not tested", "no verdict",
)  # fmt: skip
INTERVAL = re.compile(r"([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\] \(n=.*\)")  # as nls.stats.Interval prints itself
TYPESET = str.maketrans("\u201c\u201d\u2018\u2019\u2013\u2014", "\"\"''--")
SHOWN = ("statement", "verdict", "kind", "source", "effect", "n", "protocol", "cost", "test")  # of a row, on the page


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


def read_tests(folder: Path) -> dict[str, int]:
    """Find the tests.

    Args:
        folder: Where they are.

    Returns:
        ``file::function`` -> the line where it starts.
    """
    trees = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("test_*.py")}
    return {
        f"{name}::{node.name}": node.lineno
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def find_section(source: str) -> str:
    """Tell which section of the ledger a source belongs to.

    Examples:
        >>> find_section("Wei et al. 2022, ICLR submission")
        'Wei et al. 2022'
    """
    return next(section for section, pattern in SHELVES.items() if re.match(pattern, source))


def name_verdict(verdict: str) -> str:
    """Return a verdict without the condition that it may name.

    Examples:
        >>> name_verdict("reproduced only under few labels")
        'reproduced only under a condition'
    """
    return re.sub(r"(?<=only under ).*", "a condition", verdict)


def collect(stage: Path, seconds: Mapping[str, float]) -> list[dict]:
    """Collect the rows of the ledger, in the order of the page.

    Args:
        stage: The staged book.
        seconds: Notebook -> how long it ran.

    Returns:
        A row for each claim; of numbers that are not given, None.
    """
    rows = []
    for path in sorted((stage / "notebooks").glob("*.ipynb")):
        title, claims = read_claims(path)
        took = round(seconds[path.stem]) if path.stem in seconds else None
        for claim in claims:
            ends = INTERVAL.fullmatch(claim["effect"])
            estimate, low, high = map(float, ends.groups()) if ends else (None, None, None)
            rows.append(
                {
                    "id": f"{path.stem}-{claim['name']}",
                    "section": find_section(claim["source"]),
                    "chapter": path.stem,
                    "title": title,
                    **{key: " ".join(claim[key].split()) for key in SHOWN[:-4]},
                    "estimate": estimate,
                    "low": low,
                    "high": high,
                    **{key: " ".join(claim[key].split()) for key in SHOWN[-4:]},
                    "page_seconds": took,
                    "figure": claim["figure"],
                }
            )
    order = list(SECTIONS)
    return sorted(rows, key=lambda row: order.index(row["section"]))


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
    text = re.sub(r"([\\`*_{}\[\]<>#|$~^])", r"\\\1", " ".join(text.split()))
    return re.sub(r'"([^"]*)"', r"“\1”", text)  # Sphinx would turn a quotation mark after a tag the wrong way


def field(name: str, text: str, tag: str = "span") -> str:
    """Mark a part of a row, for the script, the style and the check."""
    return f'<{tag} class="c-{name}">{text}</{tag}>'


def entry(row: dict, tests: Mapping[str, int], source: str) -> list[str]:
    """Write one row as an item of a list: the statement, and below it what stands behind it.

    Args:
        row: The row.
        tests: What :func:`read_tests` found.
        source: The address of the tests' folder in the repository, or nothing.

    Returns:
        Lines of Markdown.
    """
    shown = {key: plain(row[key]) or "not given" for key in SHOWN}
    name = shown["test"].replace("::", "::<wbr>")
    file, line = row["test"].partition("::")[0], tests.get(row["test"])
    if source and line:
        name = f'<a class="reference external" href="{source}/{file}#L{line}">{name}</a>'
    page = f"notebooks/{row['chapter']}.html"
    own = row["id"].removeprefix(row["chapter"])[1:]
    cost = field("cost", shown["cost"]) if row["cost"] else ""
    if row["page_seconds"] is not None:
        cost += f"{', ' if cost else ''}its page ran {row['page_seconds']} s"
    figure = f"{{ref}}`figure <{row['figure']}>` · " if row["figure"] else ""
    kind = re.sub(r"\W+", "-", name_verdict(row["verdict"]))
    return [
        f'- <span id="{row["id"]}"></span>{field("statement", shown["statement"], "strong")}',
        "",
        f'  <b class="c-verdict v-{kind}">{shown["verdict"]}</b> · {field("kind", shown["kind"])} · '
        f'{field("source", shown["source"])} · <a class="c-chapter" href="{page}">{plain(row["title"])}</a>',
        "",
        f"  Effect: {field('effect', shown['effect'])} · n: {field('n', shown['n'])} · "
        f"Protocol: {field('protocol', shown['protocol'])} · Cost: {cost or 'not given'}",
        "",
        f'  Shown in: {figure}<a href="{page}#claim-{own}">claims of the page</a> · '
        f'Guarded by: {field("test", name)} · <a href="#{row["id"]}">link to this row</a>',
        "",
    ]


def count_rows(rows: list[dict]) -> list[str]:
    """Write the table of counts.

    Args:
        rows: The rows.

    Returns:
        Lines of Markdown: verdicts below each other, sources beside each other.
    """
    groups = [*([row for row in rows if row["section"] == section] for section in SECTIONS), rows]
    found = {name_verdict(row["verdict"]) for row in rows}
    lines = {verdict: lambda row, verdict=verdict: name_verdict(row["verdict"]) == verdict for verdict in VERDICTS}
    lines = {verdict: test for verdict, test in lines.items() if verdict in found}
    lines |= {"all": lambda row: True, "without a test": lambda row: not row["test"]}
    cells = [[label, *(str(sum(map(test, group))) for group in groups)] for label, test in lines.items()]
    head = ["verdict", *SECTIONS, "all"]
    return [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * len(groups)], *cells)]


def headline(rows: list[dict]) -> str:
    """Say in two sentences what the ledger holds, for the first page."""
    theirs = [name_verdict(row["verdict"]) for row in rows if row["section"] in SOURCES]
    said = {
        "hold or were reproduced": ("holds", "reproduced"),
        "were reproduced only under a condition": ("reproduced only under a condition",),
        "do not hold or were not reproduced": ("fails", "not reproduced"),
        "could not be tested": ("not tested", "no verdict"),
    }
    parts = [f"{sum(verdict in verdicts for verdict in theirs)} {text}" for text, verdicts in said.items()]
    tested = sum(bool(row["test"]) for row in rows)
    guarded = "each" if tested == len(rows) else f"{tested} of them"
    return (
        f"This build checks **{len(rows)} claims**, {guarded} guarded by a named test.\n"
        f"Of the {len(theirs)} claims of its three sources, {', '.join(parts[:-1])} and {parts[-1]}.\n"
        "The {doc}`ledger <statements>` has each, with its effect, protocol, figure and test."
    )


def check_tests(rows: list[dict], tests: Mapping[str, int]) -> list[str]:
    """Require that each claim of the three sources names a test, and that every named test exists.

    Args:
        rows: The rows.
        tests: What :func:`read_tests` found.

    Returns:
        Findings.
    """
    where = {row["id"]: f"notebooks/{row['chapter']}.ipynb: the claim {row['id']}" for row in rows}
    lacking = [
        f"{where[row['id']]} of {row['source']} names no test"
        for row in rows
        if row["section"] in SOURCES and not row["test"]
    ]
    unknown = [
        f"{where[row['id']]} names the test {row['test']}, which does not exist"
        for row in rows
        if row["test"] and row["test"] not in tests
    ]
    return lacking + unknown


def write_data(stage: Path, rows: list[dict]) -> None:
    """Write the rows as JSON and as CSV, where the build takes them into the site."""
    target = stage / DATA
    target.parent.mkdir(exist_ok=True)
    text = json.dumps(rows, indent=0, ensure_ascii=False)
    target.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    with target.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Put generated text in the places of a page that wait for it.

    Args:
        page: The page.
        parts: Marker -> text.

    Raises:
        BookError: If a marker is not there exactly once.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    for marker, part in parts.items():
        if text.count(marker) != 1:
            raise BookError(f"{page.name}: expected one line {marker}, where generated text goes")
        text = text.replace(marker, part)
    page.write_text(text, encoding="utf-8")


def write_statements(stage: Path, tests: Path, seconds: Mapping[str, float], source: str = "") -> int:
    """Fill the ledger and the headline of the first page, and write the data, from the executed notebooks.

    Args:
        stage: The staged book.
        tests: The folder of the tests.
        seconds: Notebook -> how long it ran.
        source: The address of that folder in the repository, at the commit that is built; nothing where unknown.

    Returns:
        How many claims there are; none in a book without that page.

    Raises:
        BookError: If a notebook shows no claims, a claim of a source names no test, a named test does not exist, or a
            page has no place for what goes there.
    """
    page = stage / "statements.md"
    if not page.exists():
        return 0
    rows, known = collect(stage, seconds), read_tests(tests)
    if findings := check_tests(rows, known):
        raise BookError(findings)
    lines = []
    for section, about in SECTIONS.items():
        held = [row for row in rows if row["section"] == section]
        if held:
            items = [line for row in held for line in entry(row, known, source)]
            lines += [f"## {section}", "", about, "", ":::::{container} ledger", *items, ":::::", ""]
    bare = [f'<a href="#{row["id"]}">{plain(row["statement"])}</a>' for row in rows if not row["test"]]
    guard = f"Without a test: {' '.join(bare)}" if bare else "Every claim names a test that guards it."
    counts = [":::::{container} ledger-counts", *count_rows(rows), ":::::", "", guard]
    fill(page, {COUNTS: "\n".join(counts), MARKER: "\n".join(lines)})
    fill(stage / "index.md", {HEADLINE: headline(rows)})
    write_data(stage, rows)
    return len(rows)


def straighten(text: str) -> str:
    """Undo what typesetting does to quotation marks and dashes, so that texts can be compared."""
    text = text.replace("…", "...").translate(TYPESET)
    text = re.sub("--+", "-", text)
    return " ".join(text.split())


def read_row(item: Tag) -> dict[str, str]:
    """Read one row of the rendered ledger.

    Args:
        item: The item of the list.

    Returns:
        What it shows, by the names of the data.
    """
    parts = {key: item.select_one(f".c-{key}") for key in SHOWN}
    texts = {key: straighten(part.get_text()) if part else "" for key, part in parts.items()}
    chapter, figure = item.select_one(".c-chapter"), item.select_one("a[href*='#fig-']")
    return {key: "" if text == "not given" else text for key, text in texts.items()} | {
        "id": item.select_one("span[id]")["id"],
        "chapter": Path(chapter["href"]).stem,
        "title": straighten(chapter.get_text()),
        "section": item.find_parent("section").find("h2").find(string=True),
        "figure": figure["href"].partition("#")[2] if figure else "",
    }


def check_ledger(html: Path) -> list[str]:
    """Require that the data to download are what the rendered ledger shows, row by row.

    Args:
        html: The site's folder.

    Returns:
        Findings; none in a book without a ledger.
    """
    page, data = html / "statements.html", html / "_static" / "claims"
    if not page.exists():
        return []
    items = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select(".ledger > ul > li")
    shown = [read_row(item) for item in items]
    rows = json.loads(data.with_suffix(".json").read_text(encoding="utf-8"))
    with data.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    findings = []
    if table != [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]:
        findings.append("statements.html: claims.csv and claims.json differ")
    if [row["id"] for row in rows] != [row["id"] for row in shown]:
        findings.append(
            f"statements.html: {len(shown)} rows, {len(rows)} in claims.json, not the same in the same order"
        )
    for row, seen in zip(rows, shown, strict=False):
        wrong = [key for key, text in seen.items() if text != straighten(row[key])]
        findings += [f"statements.html: {row['id']} shows another {key} than claims.json" for key in wrong]
    return findings
