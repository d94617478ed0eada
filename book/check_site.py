"""Check a rendered site without a browser: pages, links, requests, figures, and that each notebook really ran.

python book/check_site.py [_build]
"""

import ast
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import yaml
from bs4 import BeautifulSoup, Tag
from launch import COLAB
from parameters import BookError
from sphinx_external_toc.parsing import MalformedError, parse_toc_yaml

# What a browser fetches by itself when it opens a page. An <a> waits for a click.
FETCHED = {"link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src"}
SECONDS_FLOOR = 0.1  # a notebook whose cells took less than this in all did not compute anything


def read_toc(source: Path) -> list[str]:
    """Read the pages of the book.

    Args:
        source: The book's folder.

    Returns:
        Paths without their endings, in reading order.

    Raises:
        BookError: If _toc.yml is missing or malformed.
    """
    try:
        toc = parse_toc_yaml(source / "_toc.yml")
    except (OSError, MalformedError, yaml.YAMLError, TypeError, ValueError) as error:
        raise BookError(f"{source / '_toc.yml'}: not a table of contents: {error}") from None
    return [name.removesuffix(".md").removesuffix(".ipynb") for name in toc]


def check_toc(source: Path) -> None:
    """Compare the table of contents with the files, before minutes of execution are spent.

    Args:
        source: The book's folder.

    Raises:
        BookError: If a page has no file, or a notebook no page.
    """
    pages = read_toc(source)
    findings = [
        f"_toc.yml: {page}: no such file"
        for page in pages
        if not any((source / f"{page}{ending}").exists() for ending in (".md", ".ipynb"))
    ]
    for path in sorted((source / "notebooks").glob("*.ipynb")):
        if f"notebooks/{path.stem}" not in pages:
            findings.append(f"notebooks/{path.name}: not in _toc.yml")
    if findings:
        raise BookError(findings)


def read_record(out: Path) -> dict[str, dict]:
    """Read what the last run left in run.json.

    Args:
        out: The build folder.

    Returns:
        Notebook -> its parameters, source hash and times.

    Raises:
        BookError: If the file is missing or holds anything else.
    """
    path = out / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))["notebooks"]
        if not all("parameters" in entry and entry["cell_seconds"] >= 0 for entry in record.values()):
            raise ValueError
    except FileNotFoundError:
        raise BookError(f"{out}: no finished build; run `make book`") from None
    except OSError as error:
        raise BookError(f"{path}: {error.strerror}") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        start = path.read_bytes()[:40]
        raise BookError(f"{path}: expected the record of a run, which `make book` writes, got {start!r}") from None
    return record


def _is_external(address: str) -> bool:
    """Tell whether an address leaves the site."""
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ftp", "ws", "wss")


def _check_external(tag: Tag, address: str) -> str | None:
    """Judge an address that leaves the site: text may point to sources, but nothing may be fetched."""
    if tag.name != "a":
        return f"fetches <{tag.name}> {address}"
    if not tag.find_parent("article") and not address.startswith(COLAB):
        return f"foreign link outside the text: {address}"
    return None


def _check_internal(path: Path, address: str, anchors: dict[Path, set[str]]) -> str | None:
    """Follow an address within the site."""
    parts = urlsplit(address)
    if parts.scheme or (not parts.path and not parts.fragment):
        return None  # mailto:, data:, javascript:, or a bare #
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return f"broken link: {address}"
    if parts.fragment and unquote(parts.fragment) not in anchors.get(target, {unquote(parts.fragment)}):
        return f"no such place on the page: {address}"
    return None


def check_links(pages: dict[Path, BeautifulSoup], html: Path) -> list[str]:
    """Follow every internal link, and refuse whatever a page would fetch from elsewhere.

    Args:
        pages: File -> parsed page.
        html: The site's folder.

    Returns:
        Findings.
    """
    anchors = {
        path: {tag[key] for key in ("id", "name") for tag in page.find_all(attrs={key: True})}
        for path, page in pages.items()
    }
    findings = []
    for path, page in pages.items():
        for kind, key in {**FETCHED, "a": "href"}.items():
            for tag in page.find_all(kind, attrs={key: True}):
                address = tag[key]
                finding = (
                    _check_external(tag, address) if _is_external(address) else _check_internal(path, address, anchors)
                )
                if finding:
                    findings.append(f"{path.relative_to(html)}: {finding}")
    for sheet in html.rglob("*.css"):
        for address in re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", sheet.read_text("utf-8")):
            findings.append(f"{sheet.relative_to(html)}: fetches {address}")
    return findings


def check_images(page: BeautifulSoup, name: str) -> list[str]:
    """Require alt text of every image, and a caption of every figure that a notebook drew.

    Args:
        page: A parsed page.
        name: Its name, for messages.

    Returns:
        Findings.
    """
    findings = []
    for image in page.select("article img"):
        source, alt = image.get("src", ""), image.get("alt", "").strip()
        if len(alt) < 15 or re.search(r"\.(png|svg|jpe?g)$", alt):
            findings.append(f"{name}: image without alt text that says what it shows: {source}")
        if image.find_parent(class_="cell_output"):
            caption = image.find_parent("figure") and image.find_parent("figure").find("figcaption")
            if not caption or not caption.get_text(strip=True):
                findings.append(f"{name}: figure without a caption: {source}")
    return findings


def _check_cell(cell: nbformat.NotebookNode) -> list[str]:
    """Require that a code cell ran, shows no error, and describes the figure it draws."""
    findings = []
    if cell.source.strip() and cell.execution_count is None:
        findings.append("did not run")
    if any(output.output_type == "error" for output in cell.outputs):
        findings.append("shows an error")
    if any({"image/png", "image/svg+xml"} & set(output.get("data", {})) for output in cell.outputs):
        shown = cell.metadata.get("mystnb", {})
        for part, key in (("image", "alt"), ("figure", "caption")):
            if not shown.get(part, {}).get(key, "").strip():
                findings.append(f"draws a figure without mystnb.{part}.{key}")
    return findings


def check_ran(path: Path, entry: dict | None) -> list[str]:
    """Require that a staged notebook ran from its first cell to its last, with the parameters of the profile.

    Args:
        path: The executed notebook.
        entry: Its part of run.json, or None.

    Returns:
        Findings.
    """
    name = f"notebooks/{path.name}"
    if not path.exists() or entry is None:
        return [f"{name}: did not run"]
    notebook, findings, injected = nbformat.read(path, 4), [], {}
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            findings += [f"{name}: cell {number} (id {cell.id}) {finding}" for finding in _check_cell(cell)]
        if cell.id == "injected-parameters":
            injected = {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse(cell.source).body}
    if entry["cell_seconds"] < SECONDS_FLOOR:
        findings.append(f"{name}: ran in {entry['cell_seconds']} s, which is below the floor of {SECONDS_FLOOR} s")
    if injected != entry["parameters"]:
        findings.append(f"{name}: ran with {injected}, but the profile says {entry['parameters']}")
    return findings


def check(html: Path, book: Path, record: dict[str, dict], private: list[str]) -> list[str]:
    """Check a site against the stage that it was rendered from.

    Args:
        html: The site's folder.
        book: The staged book.
        record: Notebook -> what it ran with, from run.json.
        private: Folders of this machine, which no page may show.

    Returns:
        Findings, empty where all is well.
    """
    findings, toc = [], read_toc(book)
    for page in toc:
        if not (html / f"{page}.html").exists():
            findings.append(f"{page}: in _toc.yml, but has no page")
        if page.startswith("notebooks/"):
            stem = page.removeprefix("notebooks/")
            findings += check_ran(book / f"{page}.ipynb", record.get(stem))
    # The theme keeps templates under _static that are no pages.
    paths = [path.resolve() for path in sorted(html.rglob("*.html")) if "_static" not in path.relative_to(html).parts]
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in paths}
    for path, page in pages.items():
        name = str(path.relative_to(html.resolve()))
        if name.removesuffix(".html") in toc:
            findings += check_images(page, name)
        text = str(page)
        findings += [f"{name}: shows a path of this machine: {folder}" for folder in private if f"{folder}/" in text]
    return findings + check_links(pages, html.resolve())


def main(arguments: list[str]) -> int:
    """Check the site of a build folder.

    Args:
        arguments: At most the build folder; _build by default.

    Returns:
        The exit status: 1 where there are findings.
    """
    out = Path(arguments[0] if arguments else "_build")
    if not (out / "run.json").exists() or not (out / "html").exists():
        print(f"{out}: no finished build; run `make book`", file=sys.stderr)
        return 1
    try:
        findings = check(out / "html", out / "stage" / "book", read_record(out), [str(Path.cwd()), sys.prefix])
    except BookError as error:
        findings = error.findings
    print("\n".join([*findings, f"{len(findings)} findings"]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
