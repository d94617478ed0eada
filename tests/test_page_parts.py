"""What every page carries: no more files than it needs, a box that says how to cite it, words in one place."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
for folder in ("book", "book/_ext"):
    sys.path.insert(0, str(ROOT / folder))  # the pipeline is a folder of scripts, not a package

import browse_site  # noqa: E402
import check_site  # noqa: E402
import citation_box  # noqa: E402
import cite  # noqa: E402
import own_parts  # noqa: E402
from parameters import BookError, read_notebook  # noqa: E402

FIELDS = {"title": "A book", "version": "1.2", "authors": [{"name": "The group"}]}
FILES = [
    "styles/theme.css",
    "mystnb.1b.css",
    "sphinx-design.min.css",
    "mathjax/tex-chtml.js",
    "proof.css",
    "css/figures.css",
    "css/predict.css",
    "css/book.css",
]


def lighten(body):
    """The style sheets that a page keeps."""
    context = {
        "body": body,
        "css_files": [SimpleNamespace(filename=f"_static/{file}") for file in FILES],
        "script_files": [],
    }
    own_parts._lighten(None, "page", "page.html", context, None)
    return [file.filename.removeprefix("_static/") for file in context["css_files"]], context["body"]


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        ("<p>text</p>", set()),
        ('<div class="cell docutils container">', {"mystnb.1b.css"}),
        ('<span class="math notranslate">', {"mathjax/tex-chtml.js"}),
        ('<div class="proof theorem">', {"proof.css"}),
        ('<figure class="nls-live">', {"css/figures.css"}),
        ('<p class="admonition-title">Predict before you read on</p>', {"css/predict.css"}),
        ('<div class="sd-card">', {"sphinx-design.min.css"}),
    ],
)
def test_a_page_loads_the_files_of_what_it_shows(body, extra):
    kept, _ = lighten(body)
    assert kept == [file for file in FILES if file in {"styles/theme.css", "css/book.css"} | extra]


@pytest.mark.parametrize(("body", "extra"), [("<p>text</p>", []), ('<figure class="nls-live">', ["js/rate.js"])])
def test_a_page_loads_the_scripts_of_what_it_shows(body, extra):
    scripts = [SimpleNamespace(filename=f"_static/{name}") for name in ("js/rate.js", "js/access.js")]
    context = {"body": body, "css_files": [], "script_files": scripts}
    own_parts._lighten(None, "page", "page.html", context, None)
    assert [one.filename for one in context["script_files"]] == [f"_static/{name}" for name in [*extra, "js/access.js"]]


def test_a_fold_is_named_by_what_it_says():
    kept = '<summary><p class="collapsed">Show code cell source</p></summary><p aria-label="x">'
    assert lighten(kept.replace("<summary>", '<summary aria-label="Toggle hidden content">'))[1] == kept


def test_every_file_that_the_configuration_loads_exists():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    listed = config["html_css_files"] + [name for name, _ in config["html_js_files"]]
    assert len(listed) > 8
    assert [name for name in listed if not (ROOT / "book" / "_web" / name).exists()] == []


def test_a_page_is_cited_with_its_title_and_the_book_alone_without():
    text, entry = citation_box.cite_page(FIELDS, "notebooks/01_x", "Why?", "2026", "abcdef0123456789", "https://h/o/n")
    assert text == "The group (2026). Why? In A book, version 1.2, commit abcdef012345. https://h/o/n"
    assert entry == (
        "@misc{a-book:01_x,\n  author       = {{The group}},\n  title        = {{Why?}},\n"
        "  howpublished = {In {A book}},\n  year         = {2026},\n"
        "  note         = {Version 1.2, commit abcdef012345},\n  url          = {https://h/o/n}\n}"
    )
    text, entry = citation_box.cite_page(FIELDS, "index", "A book", "2026")
    assert text == "The group (2026). A book, version 1.2."
    assert entry.startswith("@misc{a-book,\n")
    assert not re.search("url|howpublished|commit", entry)


def test_people_are_cited_by_family_and_given_names():
    people = {"authors": [{"family-names": "Ng", "given-names": "A."}, {"name": "The group"}]}
    assert citation_box.name_authors(people) == "Ng, A. and {The group}"


@pytest.mark.parametrize(
    ("page", "title", "shown"),
    [
        ("index", "Anything", ("Cite this book", "title        = {{A book}}")),
        ("notebooks/01", '3. Is <em class="x">r</em> &lt; 0?', ("Cite this page", "title        = {{Is r &lt; 0?}}")),
    ],
)
def test_the_box_ends_the_page_and_is_text(page, title, shown):
    app = SimpleNamespace(config=SimpleNamespace(root_doc="index"))
    citation = {"fields": FIELDS, "year": "2026", "commit": "", "url": ""}
    context = {"body": "<p>before</p>", "title": title, "citation": citation}
    citation_box._add_box(app, page, "page.html", context, doctree=object())
    assert context["body"].startswith("<p>before</p><details")
    assert all(part in context["body"] for part in shown)
    assert ('<details class="nls-cite" open>' in context["body"]) == (page == "index")  # folded elsewhere
    assert "< 0" not in context["body"]


@pytest.mark.parametrize(("citation", "doctree"), [({"fields": {}}, object()), ({"fields": FIELDS}, None), (None, 1)])
def test_no_box_where_nothing_is_known_or_no_source_stands_behind(citation, doctree):
    context = {"body": "", "title": "Index", "citation": citation}
    citation_box._add_box(SimpleNamespace(config=SimpleNamespace(root_doc="index")), "p", "t", context, doctree)
    assert context["body"] == ""


def test_the_citation_file_has_what_a_citation_needs_and_what_its_format_asks_for():
    fields = cite.read_citation(ROOT)
    assert fields["cff-version"] == "1.2.0"
    assert fields["type"] == "software"
    assert all("name" in one or {"family-names", "given-names"} <= one.keys() for one in fields["authors"])
    allowed = {"cff-version", "message", "title", "abstract", "type", "version", "license", "authors", "keywords"}
    assert fields.keys() <= allowed | {"date-released", "repository-code", "url", "doi", "references"}
    assert fields["version"] in (ROOT / "pyproject.toml").read_text()
    assert fields["title"] == yaml.safe_load((ROOT / "_config.yml").read_text())["title"]


@pytest.mark.parametrize(("text", "said"), [("title: A\n", "authors, version is missing"), ("a: [", "not YAML")])
def test_a_citation_file_that_says_too_little_is_refused(text, said, tmp_path):
    assert cite.read_citation(tmp_path) == {}
    (tmp_path / "CITATION.cff").write_text(text)
    with pytest.raises(BookError, match=said):
        cite.read_citation(tmp_path)


def test_weights_count_each_file_of_the_site_once(tmp_path):
    for name, size in (("index.html", 10), ("a b.css", 200), ("other.png", 4000)):
        (tmp_path / name).write_bytes(b"x" * size)
    urls = ["http://s/index.html", "http://s/a%20b.css?v=1", "http://s/a%20b.css?v=2", "http://far/other.png", "data:,"]
    events = [{"method": "Network.requestWillBeSent", "params": {"request": {"url": url}}} for url in urls]
    assert browse_site.weigh([*events, {"method": "Page.other"}], "http://s", tmp_path) == 210


@pytest.mark.parametrize(("size", "findings"), [(1_000_000, []), (1_000_001, ["index.html: 1000001 bytes, more than"])])
def test_a_heavy_first_page_is_a_finding_and_the_heaviest_are_printed(size, findings, capsys):
    weights = {f"page-{number}.html": 2_000_000 + number * 100_000 for number in range(7)} | {"index.html": size}
    found = browse_site.report_weights(weights)
    assert [text[: len(start)] for text, start in zip(found, findings, strict=True)] == findings
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "  2.60 MB  page-6.html"
    assert printed[-1] == "  1.00 MB  index.html"
    assert len(printed) == 6


def test_a_word_is_explained_once_with_a_page_that_teaches_it():
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^(\w[^\n]*(?:\n\w[^\n]*)*)\n((?:  [^\n]+\n)+)", text, re.MULTILINE)
    words = [word for names, _ in entries for word in names.split("\n")]
    assert len(entries) > 40
    assert len(words) == len({word.lower() for word in words})
    linked = re.findall(r"\{doc\}`([\w/]+)`", text)
    assert set(linked) <= set(check_site.read_toc(ROOT / "book"))
    assert len(set(linked)) > 15
    for names, meaning in entries:
        assert 30 < len(meaning) < 420, names
        assert meaning.strip().endswith("."), names
    assert "## Words" not in (ROOT / "book" / "notation.md").read_text(encoding="utf-8")


def test_alternative_texts_say_what_came_out_in_other_words_than_the_caption():
    count = 0
    for path in sorted((ROOT / "book" / "notebooks").glob("*.ipynb")):
        for cell in read_notebook(path).cells:
            shown = cell.metadata.get("mystnb", {})
            if "figure" in shown:
                alt, caption = shown["image"]["alt"].strip(), shown["figure"]["caption"].strip()
                assert len(alt) > 120, (path.name, alt)
                assert alt[:60] != caption[:60], (path.name, alt)
                assert not re.match("(An? )?(image|figure|plot|picture) ", alt, re.IGNORECASE), (path.name, alt)
                count += 1
    assert count > 150
