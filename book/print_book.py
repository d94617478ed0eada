"""Print the whole site as one PDF, by Chromium: title, contents with page numbers, the pages in reading order.

    python book/print_book.py [--out _build]

Each page is opened as a reader opens it, so that its maths is typeset and its figures are drawn, and what it then shows
goes into one long page, where links between pages become links within the book. That page is printed twice: once to
learn on which sheet each chapter begins, once with these numbers in the contents. Solutions move to the end of their
chapter, away from the exercise; code that a page hides, the reference of the package, and whatever needs a click are
left out.
"""

import argparse
import base64
import html as markup
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pikepdf
import yaml
from browse_site import UNASKED, Browser, find_browser, serve
from check_site import read_toc
from parameters import BookError
from pypdf import PdfReader
from sphinx_external_toc.parsing import parse_toc_yaml

LEFT_OUT = ("api/",)  # the package's reference is for a screen, where it is searched
NAME = "label-smoothing.pdf"
HEAVIEST = 20_000_000  # bytes that the site offers for download
SAID = (
    "Solutions stand at the end of their chapter. The reference of the package is left out, and so is code that a "
    "page folds away: both are on the site, and the code in the notebooks."
)
PATIENCE = 600.0  # seconds for printing
SHEET = {  # A4, in inches
    "paperWidth": 8.27,
    "paperHeight": 11.69,
    "marginTop": 0.7,
    "marginBottom": 0.75,
    "marginLeft": 0.8,
    "marginRight": 0.8,
    "scale": 0.82,
    "printBackground": True,
    "generateDocumentOutline": True,
    "generateTaggedPDF": True,
    "displayHeaderFooter": True,
    "headerTemplate": "<span></span>",
    "footerTemplate": '<p style="width: 100%; font: 8px sans-serif; text-align: center">'
    '<span class="pageNumber"></span></p>',
    "transferMode": "ReturnAsStream",
}

# Gives what a page shows, ready to stand among others: names of places begin with the page's own, headings are one
# level lower, and what cannot be pressed on paper is gone.
TAKE = """(async (pages, site) => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  const slug = path => path.replace(/\\.html$/, "").replace(/[^\\w-]/g, "-");
  const here = decodeURIComponent(location.pathname.slice(1)), own = slug(here);
  const article = document.querySelector("article.bd-article");
  const all = selector => [...article.querySelectorAll(selector)];
  for (const item of window.MathJax?.startup?.document?.math ?? []) {  // one picture each, read out as it is written
    item.typesetRoot?.setAttribute("role", "img");
    item.typesetRoot?.setAttribute("aria-label", item.math);
  }
  const gone = ".nls-cite, .headerlink, script, details.hide, .nls-ask, .nls-settings, .nls-cover, .nls-waits," +
    ".nls-echo, .toggle-button, button, .copybtn, #ledger-filter, .ledger-form, .tag_injected-parameters," +
    "mjx-assistive-mml";
  for (const node of all(gone)) node.remove();
  for (const node of all(".cell")) if (!node.textContent.trim() && !node.querySelector("img, svg")) node.remove();
  for (const node of all("details")) node.open = true;
  for (const node of all(".toggle-hidden")) node.classList.remove("toggle-hidden", "toggle");
  for (const node of all("[hidden]")) node.hidden = false;
  for (const node of all("input[type=range]")) node.remove();
  for (const node of all("[tabindex]")) node.removeAttribute("tabindex");
  const solutions = all(".admonition.solution");
  if (solutions.length) {
    const end = article.querySelector("section") ?? article;
    const title = document.createElement("h2");
    title.textContent = "Solutions";
    title.className = "book-solutions";
    end.append(title, ...solutions);
  }
  for (const image of all("img")) { image.src = image.src; image.loading = "eager"; }
  const known = new Set(pages.map(slug));
  for (const link of all("a[href]")) {
    const to = new URL(link.href, location.href), at = slug(decodeURIComponent(to.pathname.slice(1)) || "index");
    if (to.origin !== location.origin) continue;
    const place = to.hash ? "--" + decodeURIComponent(to.hash.slice(1)) : "";
    if (known.has(at)) link.setAttribute("href", "#" + at + place);
    else link.replaceWith(...link.childNodes);
  }
  for (const node of all("[id]")) node.id = own + "--" + node.id;
  for (const node of all("*")) for (const part of [...node.attributes])
    if (/url\\(#/.test(part.value)) part.value = part.value.replace(/url\\(#/g, `url(#${own}--`);
  for (let level = 5; level; level--) for (const node of all("h" + level)) {
    const lower = document.createElement("h" + (level + 1));
    for (const part of node.attributes) lower.setAttribute(part.name, part.value);
    lower.append(...node.childNodes);
    node.replaceWith(lower);
  }
  const rules = [...(document.getElementById("MJX-CHTML-styles")?.sheet?.cssRules ?? [])].map(rule =>
    rule.cssText.replace(/url\\("([^"]+)"\\)/g, (_, at) => `url("${new URL(at, location.href).pathname}")`));
  const sheets = [...document.querySelectorAll("link[rel=stylesheet]")].map(link => new URL(link.href).pathname);
  const text = article.innerHTML.replaceAll(location.origin + "/", "/");
  return {slug: own, title: (article.querySelector("h2")?.textContent ?? document.title).trim(), text, rules, sheets,
          raw: all(".math").filter(node => !node.querySelector("mjx-container")).length};
})(PAGES)"""


def read_parts(book: Path) -> list[tuple[str, list[str]]]:
    """Read which pages are printed, part by part.

    Args:
        book: The folder of _toc.yml.

    Returns:
        Caption of each part, and its pages with the ending .html; the first part is the first page, without a caption.

    Raises:
        BookError: If _toc.yml is missing or malformed.
    """
    order = [name for name in read_toc(book) if not name.startswith(LEFT_OUT)]
    toc = parse_toc_yaml(book / "_toc.yml")
    captions = {item: tree.caption or "" for tree in toc[order[0]].subtrees for item in tree.items}
    captions = {item.removesuffix(".md").removesuffix(".ipynb"): text for item, text in captions.items()}
    parts = []
    for name in order:
        caption = captions.get(name)
        if not parts or (caption is not None and caption != parts[-1][0]):
            parts.append((caption or "", []))
        parts[-1][1].append(f"{name}.html")
    return parts


def take(browser: Browser, site: str, pages: list[str]) -> list[dict]:
    """Open the pages and take what they show.

    Args:
        browser: The browser.
        site: The site's address.
        pages: The pages, relative to the site.

    Returns:
        For each page its slug, title, markup, style sheets and the rules of its typeset maths.

    Raises:
        BookError: If the maths of a page is not typeset.
    """
    taken = []
    for page in pages:
        browser.open(f"{site}/{page}")
        taken.append(browser.evaluate(TAKE.replace("PAGES", json.dumps(pages))))
        if taken[-1]["raw"]:
            raise BookError(f"{page}: {taken[-1]['raw']} formulas are not typeset")
    return taken


def read_title(stage: Path) -> list[str]:
    """Read what the title page says.

    Args:
        stage: The folder of the configuration that the site was rendered with.

    Returns:
        The title, and lines below it.
    """
    config = yaml.safe_load((stage / "_config.yml").read_text(encoding="utf-8"))
    known = config["sphinx"]["config"].get("html_context", {}).get("citation", {})
    version = known.get("fields", {}).get("version", "")
    commit = known.get("commit", "")[:12]
    built = [f"version {version}"] * bool(version) + [f"commit {commit}"] * bool(commit)
    licence = re.sub(r"<[^>]*>", "", config.get("html", {}).get("extra_footer", ""))
    lines = [config["title"], config["author"], ", ".join(built), known.get("url", ""), licence, SAID]
    return [line for line in lines if line]


def compose(title: list[str], parts: list[tuple[str, list[dict]]], numbers: dict[str, int]) -> str:
    """Write the long page.

    Args:
        title: The book's title, and what the title page says below it.
        parts: Caption of each part and what its pages show.
        numbers: Slug -> sheet on which it begins; empty before the first printing.

    Returns:
        HTML.
    """
    taken = [page for _, pages in parts for page in pages]
    sheets = dict.fromkeys(sheet for page in taken for sheet in page["sheets"])
    rules = "\n".join(dict.fromkeys(rule for page in taken for rule in page["rules"]))
    lines, body = [], []
    for caption, pages in parts:
        if caption:
            lines.append(f'<li class="book-part">{markup.escape(caption)}</li>')
        for number, page in enumerate(pages):
            lines.append(
                f'<li><a href="#{page["slug"]}">{markup.escape(page["title"])}</a>'
                f"<span>{numbers.get(page['slug'], 0)}</span></li>"
            )
            part = f'<h1 class="book-caption">{markup.escape(caption)}</h1>' if caption and not number else ""
            body.append(f'<article class="bd-article" id="{page["slug"]}">{part}{page["text"]}</article>')
    below = "".join(f"<p>{markup.escape(line)}</p>" for line in title[1:])
    links = "".join(f'<link rel="stylesheet" href="{sheet}">' for sheet in [*sheets, "/_static/css/paper.css"])
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{markup.escape(title[0])}</title>{links}<style>{rules}</style></head><body>"
        f'<main class="bd-main"><div class="bd-content"><div class="bd-article-container">'
        f'<section class="book-title"><p class="book-name">{markup.escape(title[0])}</p>{below}</section>'
        f'<nav class="book-contents"><p>Contents</p><ul>{"".join(lines)}</ul></nav>{"".join(body)}'
        f"</div></div></main></body></html>"
    )


def print_page(browser: Browser, address: str, target: Path) -> None:
    """Print one page.

    Args:
        browser: The browser.
        address: The page.
        target: Where the PDF goes.
    """
    browser.open(address)
    browser.evaluate("document.fonts.ready.then(() => true)")
    stream = browser.call("Page.printToPDF", **SHEET)["stream"]
    with target.open("wb") as file:
        more = True
        while more:
            chunk = browser.call("IO.read", handle=stream, size=2**19)
            file.write(base64.b64decode(chunk["data"]) if chunk.get("base64Encoded") else chunk["data"].encode())
            more = not chunk["eof"]
    browser.call("IO.close", handle=stream)


def find_sheets(path: Path, slugs: list[str]) -> dict[str, int]:
    """Read on which sheet of a PDF each chapter begins.

    Args:
        path: The PDF.
        slugs: The chapters.

    Returns:
        Slug -> sheet, counted from one.

    Raises:
        BookError: If a chapter is not there, or the order is not that of the slugs.
    """
    reader = PdfReader(path)
    named = reader.named_destinations
    missing = [slug for slug in slugs if slug not in named and f"/{slug}" not in named]
    if missing:
        raise BookError(f"{path.name}: no place for {', '.join(missing)}")
    found = {slug: reader.get_destination_page_number(named.get(slug) or named[f"/{slug}"]) + 1 for slug in slugs}
    if list(found.values()) != sorted(found.values()):
        raise BookError(f"{path.name}: chapters are not in order: {found}")
    return found


def offer(html: Path, target: Path) -> bool:
    """Put the PDF beside the first page, which then links to it; one that is too heavy to offer stays where it is.

    Args:
        html: The site's folder.
        target: The PDF.

    Returns:
        Whether the first page has a place for the link, and the PDF is light enough.
    """
    size, first = target.stat().st_size, html / "index.html"
    text = first.read_text(encoding="utf-8")
    link = f'<a href="{NAME}">The whole book as a PDF</a> ({size / 1e6:.0f} MB).'
    offered, count = re.subn(r'(<p id="whole-book">).*?(</p>)', rf"\g<1>{link}\g<2>", text, count=1, flags=re.DOTALL)
    if size > HEAVIEST or not count:
        return False
    shutil.copy(target, html / NAME)
    part = first.with_suffix(".part")
    part.write_text(offered, encoding="utf-8")
    part.replace(first)
    return True


def pack(source: Path, target: Path, captions: list[str]) -> None:
    """Pack a PDF, a third of which is there for screen readers, and mend its bookmarks.

    Args:
        source: The PDF as Chromium writes it, in which a heading that this script made is twice in its bookmark.
        target: Where the packed one goes.
        captions: The parts.
    """
    twice = {heading * 2: heading for heading in [*captions, "Solutions"]}
    with pikepdf.open(source) as pdf:
        marks = [pdf.Root.Outlines] if "/Outlines" in pdf.Root else []
        while marks:
            mark = marks.pop()
            if (title := str(mark.get("/Title", ""))) in twice:
                mark.Title = pikepdf.String(twice[title])
            marks += [mark[key] for key in ("/First", "/Next") if key in mark]
        pdf.save(target, object_stream_mode=pikepdf.ObjectStreamMode.generate)


def print_book(out: Path, program: str) -> tuple[Path, int]:
    """Print the site of a build folder.

    Args:
        out: The build folder.
        program: A Chromium.

    Returns:
        The PDF, and how many sheets it has.

    Raises:
        BookError: If a page is missing, or a chapter does not arrive in the PDF on the sheet that the contents name.
    """
    html, target, title = out / "html", out / NAME, read_title(out / "stage")
    parts = read_parts(out / "stage" / "book")
    pages = [page for _, names in parts for page in names]
    missing = [page for page in pages if not (html / page).exists()]
    if missing:
        raise BookError([f"{page}: in the table of contents, but has no page" for page in missing])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        desk = Path(scratch) / "desk"
        desk.mkdir()
        for path in html.resolve().iterdir():
            os.symlink(path, desk / path.name)
        with serve(desk) as site:
            browser = Browser(program, f"{scratch}/profile", PATIENCE)
            try:
                browser.call("Page.addScriptToEvaluateOnNewDocument", source=UNASKED)
                light = [{"name": "prefers-color-scheme", "value": "light"}]
                browser.call("Emulation.setEmulatedMedia", features=light)
                browser.call(
                    "Emulation.setDeviceMetricsOverride", width=1000, height=900, deviceScaleFactor=1, mobile=False
                )
                taken = dict(zip(pages, take(browser, site, pages), strict=True))
                written = [(caption, [taken[page] for page in names]) for caption, names in parts]
                slugs = [content["slug"] for content in taken.values()]
                numbers: dict[str, int] = {}
                for page in ("whole-book-0.html", "whole-book-1.html"):  # one name would be served from the cache
                    (desk / page).write_text(compose(title, written, numbers), "utf-8")
                    print_page(browser, f"{site}/{page}", Path(scratch) / NAME)
                    said, numbers = numbers, find_sheets(Path(scratch) / NAME, slugs)
                if said != numbers:
                    raise BookError(f"{NAME}: the contents name the sheets {said}, chapters begin on {numbers}")
            finally:
                browser.close()
        part = target.with_suffix(".part")
        pack(Path(scratch) / NAME, part, [caption for caption, _ in parts if caption])
        part.replace(target)  # an interruption leaves the last PDF whole
    return target, len(PdfReader(target).pages)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; those of the process by default.

    Returns:
        The exit status: 0, 1 where a page or a chapter is missing, 2 where there is no browser or no site.
    """
    parser = argparse.ArgumentParser(description="Print the book.")
    parser.add_argument("--out", type=Path, default=Path("_build"), help="build folder (default: _build)")
    args = parser.parse_args(arguments)
    program, start = find_browser(), time.monotonic()
    if program is None:
        print("pdf needs Chromium on the PATH", file=sys.stderr)
        return 2
    if not (args.out / "html" / "index.html").exists():
        print(f"{args.out / 'html'}: no site; run `make book`", file=sys.stderr)
        return 2
    try:
        target, sheets = print_book(args.out, program)
    except BookError as error:
        print("\n".join(error.findings), file=sys.stderr)
        return 1
    size = target.stat().st_size / 1e6
    where = "the first page offers it" if offer(args.out / "html", target) else "not offered on the site"
    print(f"{target}: {sheets} sheets, {size:.1f} MB, {time.monotonic() - start:.0f} s; {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
