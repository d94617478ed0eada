"""The book as one PDF: which pages, in which order, on which sheets, and what of a page goes onto paper."""

import shutil
import sys
from pathlib import Path

import pytest

pikepdf = pytest.importorskip("pikepdf", reason="the PDF is packed with the book's own packages")
pypdf = pytest.importorskip("pypdf", reason="the PDF is read with the book's own packages")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))  # the pipeline is a folder of scripts, not a package

import browse_site  # noqa: E402
import print_book  # noqa: E402
from parameters import BookError  # noqa: E402

TOC = """format: jb-book
root: index
parts:
  - caption: First part
    chapters:
      - file: notes/b
      - file: notes/a.md
  - caption: Last part
    chapters:
      - file: api/index
        sections:
          - file: api/losses
      - file: end
"""
CONFIG = """title: A book of tests
author: the testers
html: {extra_footer: <p>Free text.</p>}
sphinx:
  config:
    html_context:
      citation: {fields: {version: 0.3}, commit: abcdef0123456789, url: ""}
"""
PAGE = """<!DOCTYPE html><html lang="en"><head><title>{title}</title></head><body><article class="bd-article">
<section id="top"><h1>{title}<a class="headerlink" href="#top">#</a></h1>{body}</section></article></body></html>"""
BODIES = {
    "index": '<p id="whole-book"></p><p>Opening, and <a href="notes/a.html#deep">the depth</a>.</p>',
    "notes/b": """<p>Exercise.</p><div class="admonition solution dropdown toggle toggle-hidden"><p>Solved.</p></div>
<p>After it.</p><details class="hide"><summary>Show code</summary><pre>secret()</pre></details>
<button>Press</button><p hidden>Finding.</p><a href="../api/index.html">reference</a>""",
    "notes/a": '<section id="deep"><h2>Deep</h2><p style="height: 3000px">Long.</p></section>',
    "end": '<p>Back to <a href="index.html">the start</a>.</p>',
}
CHROMIUM = browse_site.find_browser()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A rendered book of four pages and a reference."""
    out = tmp_path_factory.mktemp("printed")
    (out / "stage" / "book").mkdir(parents=True)
    (out / "stage" / "book" / "_toc.yml").write_text(TOC)
    (out / "stage" / "_config.yml").write_text(CONFIG)
    (out / "html" / "notes").mkdir(parents=True)
    shutil.copytree(ROOT / "book" / "_web" / "css", out / "html" / "_static" / "css")
    for name, body in BODIES.items():
        (out / "html" / f"{name}.html").write_text(PAGE.format(title=f"Page {name[-1]}", body=body))
    return out


@pytest.fixture(scope="module")
def printed(sources):
    """The same, printed."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    assert print_book.main(["--out", str(sources)]) == 0
    return pypdf.PdfReader(sources / print_book.NAME)


def test_pages_come_in_reading_order_by_part_and_without_the_reference(sources):
    assert print_book.read_parts(sources / "stage" / "book") == [
        ("", ["index.html"]),
        ("First part", ["notes/b.html", "notes/a.html"]),
        ("Last part", ["end.html"]),
    ]


def test_the_title_page_says_what_is_known(sources):
    title, author, built, licence, said = print_book.read_title(sources / "stage")
    assert (title, author, built) == ("A book of tests", "the testers", "version 0.3, commit abcdef012345")
    assert licence == "Free text."
    assert "left out" in said


def test_a_missing_page_is_refused(sources, tmp_path, capsys, monkeypatch):
    copy = shutil.copytree(sources, tmp_path / "copy")
    (copy / "html" / "notes" / "a.html").unlink()
    monkeypatch.setattr(print_book, "find_browser", lambda: "never started")
    assert print_book.main(["--out", str(copy)]) == 1
    assert "notes/a.html: in the table of contents, but has no page" in capsys.readouterr().err
    assert not (copy / print_book.NAME).exists()


def test_without_a_browser_or_a_site_it_says_so(sources, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(print_book, "find_browser", lambda: None)
    assert print_book.main(["--out", str(sources)]) == 2
    assert "needs Chromium" in capsys.readouterr().err
    monkeypatch.setattr(print_book, "find_browser", lambda: "never started")
    assert print_book.main(["--out", str(tmp_path)]) == 2
    assert "no site" in capsys.readouterr().err


def test_the_contents_name_the_sheet_on_which_each_chapter_begins(printed):
    texts = [page.extract_text() for page in printed.pages]
    at = [next(n for n, text in enumerate(texts, 1) if mark in text) for mark in ("Opening", "Exercise.", "Back to")]
    assert at == sorted(set(at))
    assert "A book of tests" in texts[0]
    contents = " ".join(texts[1].split())
    for title, sheet in zip(("Page x", "Page b", "Page d"), at, strict=True):
        assert f"{title} {sheet}" in contents.replace(title, f"{title} ").replace("  ", " ")
    assert contents.index("First part") < contents.index("Page b") < contents.index("Page a") < contents.index("Last")


def test_solutions_stand_at_the_end_and_what_a_screen_needs_is_gone(printed):
    text = next(text for page in printed.pages if "Exercise." in (text := page.extract_text()))
    assert text.index("Exercise.") < text.index("After it.") < text.index("Finding.") < text.index("Solved.")
    assert "secret" not in text
    assert "Press" not in text
    assert "#" not in text


def test_links_stay_within_the_book_and_chapters_are_bookmarks(printed):
    assert {"index", "notes-a", "notes-a--deep", "end"} <= {name.lstrip("/") for name in printed.named_destinations}
    targets = [
        note.get_object()["/A"]["/URI"]
        for page in printed.pages
        for note in page.get("/Annots", [])
        if "/URI" in note.get_object().get("/A", {})
    ]
    assert targets == []

    def titles(outline):
        return [part for one in outline for part in (titles(one) if isinstance(one, list) else [one.title])]

    found = titles(printed.outline)
    assert [title for title in found if "Page" in title] == ["Page x", "Page b", "Page a", "Page d"]
    assert {"First part", "Last part", "Deep", "Solutions"} <= set(found)


def test_a_bookmark_that_says_its_part_twice_is_mended(printed, sources, tmp_path):
    assert printed.pages
    with pikepdf.open(sources / print_book.NAME) as pdf:
        marks = [pdf.Root.Outlines.First]
        while "/Next" in marks[-1]:
            marks.append(marks[-1].Next)
        for mark in marks:
            if str(mark.Title) == "Last part":
                mark.Title = pikepdf.String("Last partLast part")
        pdf.save(tmp_path / "twice.pdf")
    print_book.pack(tmp_path / "twice.pdf", tmp_path / "packed.pdf", ["First part", "Last part"])
    titles = [one.title for one in pypdf.PdfReader(tmp_path / "packed.pdf").outline if not isinstance(one, list)]
    assert titles.count("Last part") == 1
    assert "Last partLast part" not in titles


def test_the_first_page_offers_a_light_book_only(printed, sources, tmp_path, monkeypatch):
    assert printed.pages
    assert f'<p id="whole-book"><a href="{print_book.NAME}">' in (sources / "html" / "index.html").read_text()
    assert (sources / "html" / print_book.NAME).exists()
    monkeypatch.setattr(print_book, "HEAVIEST", 100)
    site = shutil.copytree(sources / "html", tmp_path / "html", ignore=shutil.ignore_patterns("*.pdf"))
    assert not print_book.offer(site, sources / print_book.NAME)
    assert not (site / print_book.NAME).exists()


def test_contents_that_name_other_sheets_are_a_finding(sources, tmp_path, capsys, monkeypatch):
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    copy = shutil.copytree(sources, tmp_path / "copy", ignore=shutil.ignore_patterns("*.pdf"))
    sheets = iter(({"end": 5}, {"end": 6}))
    monkeypatch.setattr(print_book, "find_sheets", lambda path, slugs: next(sheets))
    assert print_book.main(["--out", str(copy)]) == 1
    assert "the contents name the sheets {'end': 5}, chapters begin on {'end': 6}" in capsys.readouterr().err
    assert not (copy / print_book.NAME).exists()


@pytest.mark.parametrize("broken", ["pack", "offer"])
def test_an_interruption_leaves_what_was_there_whole(broken, sources, tmp_path, monkeypatch):
    copy = shutil.copytree(sources, tmp_path / "copy", ignore=shutil.ignore_patterns("*.pdf"))
    (copy / "html" / "index.html").write_text(PAGE.format(title="Page x", body=BODIES["index"]))
    before = (copy / "html" / "index.html").read_text()
    pikepdf.new().save(copy / print_book.NAME)
    old = (copy / print_book.NAME).read_bytes()
    write = Path.write_text

    def cut(source, target, captions):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    def cut_text(path, text, **options):
        write(path, text[: len(text) // 2], **options)
        if path.parent.name == "html":
            raise KeyboardInterrupt

    if broken == "offer":
        monkeypatch.setattr(Path, "write_text", cut_text)
        with pytest.raises(KeyboardInterrupt):
            print_book.offer(copy / "html", copy / print_book.NAME)
    elif CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    else:
        monkeypatch.setattr(print_book, "pack", cut)
        with pytest.raises(KeyboardInterrupt):
            print_book.main(["--out", str(copy)])
    assert (copy / "html" / "index.html").read_text() == before
    assert (copy / print_book.NAME).read_bytes() == old


def test_a_chapter_that_is_not_in_the_pdf_is_a_finding(printed, sources):
    assert printed.pages
    with pytest.raises(BookError, match="no place for nowhere"):
        print_book.find_sheets(sources / print_book.NAME, ["index", "nowhere"])
    with pytest.raises(BookError, match="not in order"):
        print_book.find_sheets(sources / print_book.NAME, ["end", "index"])
