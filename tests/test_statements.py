"""The ledger holds what the executed notebooks claim and nothing else, and its data are what it shows."""

import csv
import json
import re

import pytest
from ledger_page import ROOT, render, statements, write_executed, write_ledger, write_pages
from parameters import BookError

from nls.claims import Claim
from nls.stats import Interval

PROVED = Claim("equal", "a_b = |z| for r < 0.", "this book", True, "largest gap 1e-16", "enumerated", kind="proved",
               test="test_a.py::test_b", figure="fig-a")  # fmt: skip
GAIN = Claim("gain", 'It "gains" -- it\'s said.', "Wei et al. 2022", True, Interval(0.1, 0.05, 0.15, 10), "live",
             kind="reproduction", condition="few <labels>", test="test_a.py::test_c", cost="2 s")  # fmt: skip
REFUTED = Claim("always", "It always helps.", "Xia et al. 2025", False, "-0.1", "live", n=3, says="fails")
UNTRIED = Claim("untried", "It helps people.", "Mueller et al. 2019", None, "no file", "none", kind="reproduction",
                test="test_a.py::test_b")  # fmt: skip
PAGE = "Intro.\n\n<!-- counts -->\n\n<!-- statements -->\n\nEnd.\n"
GAIN_LINES = """\
- <span id="02_two-gain"></span><strong class="c-statement">It “gains” -- it's said.</strong>

  <b class="c-verdict v-reproduced-only-under-a-condition">reproduced only under few \\<labels\\></b> \
· <span class="c-kind">reproduction</span> · <span class="c-source">Wei et al. 2022</span> \
· <a class="c-chapter" href="notebooks/02_two.html">Second?</a>

  Effect: <span class="c-effect">+0.100 \\[+0.050, +0.150\\] (n=10)</span> · n: <span class="c-n">10</span> \
· Protocol: <span class="c-protocol">live</span> · Cost: <span class="c-cost">2 s</span>, its page ran 12 s

  Shown in: <a href="notebooks/02_two.html#claim-gain">claims of the page</a> \
· Guarded by: <span class="c-test">test\\_a.py::<wbr>test\\_c</span> · <a href="#02_two-gain">link to this row</a>
""".splitlines()


def write_book(folder, *more, **texts):
    """A small book of two chapters, every kind of claim in it."""
    stage, tests = write_pages(folder, **texts)
    write_executed(stage, "01_one", "First?", [PROVED, *more])
    write_executed(stage, "02_two", "Second?", [REFUTED, GAIN, UNTRIED])
    return stage, tests


def test_the_page_holds_every_claim_those_of_the_sources_first(tmp_path):
    stage, tests = write_book(tmp_path, ledger=PAGE)
    assert write_ledger(stage, tests, seconds={"02_two": 12.3}) == 4
    lines = (stage / "statements.md").read_text(encoding="utf-8").splitlines()
    heads = [line for line in lines if line.startswith("## ")]
    assert heads == ["## Wei et al. 2022", "## Question and answer", "## Other papers", "## This book"]
    start = lines.index(GAIN_LINES[0])
    assert lines[start : start + len(GAIN_LINES)] == GAIN_LINES
    ids = [match[1] for line in lines if (match := re.match(r'- <span id="(.*?)">', line))]
    assert ids == ["02_two-gain", "02_two-untried", "02_two-always", "01_one-equal"]
    page = "\n".join(lines)
    assert '{ref}`figure <fig-a>` · <a href="notebooks/01_one.html#claim-equal">' in page
    assert "a\\_b = \\|z\\| for r \\< 0." in page
    assert 'Guarded by: <span class="c-test">not given</span>' in page
    assert lines[0] == "Intro."
    assert lines[-1] == "End."


def test_counts_are_by_verdict_and_source_and_what_has_no_test_is_listed(tmp_path):
    stage, tests = write_book(tmp_path, ledger=PAGE)
    write_ledger(stage, tests)
    text = (stage / "statements.md").read_text(encoding="utf-8")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert table[0] == ["verdict", *statements.SECTIONS, "all"]
    assert table[2:] == [
        ["holds", "0", "0", "0", "0", "1", "1"],
        ["fails", "0", "0", "0", "1", "0", "1"],
        ["reproduced only under a condition", "1", "0", "0", "0", "0", "1"],
        ["not tested", "0", "0", "1", "0", "0", "1"],
        ["all", "1", "0", "1", "1", "1", "4"],
        ["without a test", "0", "0", "0", "1", "0", "1"],
    ]
    assert 'Without a test: <a href="#02_two-always">It always helps.</a>' in text


def test_the_first_page_says_what_was_counted(tmp_path):
    stage, tests = write_book(tmp_path, first="A\n\n<!-- claims -->\n\nB\n")
    write_ledger(stage, tests)
    assert (stage / "index.md").read_text().splitlines() == [
        "A",
        "",
        "This build checks **4 claims**, 3 of them guarded by a named test.",
        "Of the 2 claims of its three sources, 0 hold or were reproduced, 1 were reproduced only under a condition, "
        "0 do not hold or were not reproduced and 1 could not be tested.",
        "The {doc}`ledger <statements>` has each, with its effect, protocol, figure and test.",
        "",
        "B",
    ]


def test_the_first_page_says_each_where_no_claim_lacks_a_test():
    row = {"section": "This book", "verdict": "holds", "test": "test_a.py::test_b"}
    assert "**2 claims**, each guarded by a named test." in statements.headline([row, row])
    assert "**2 claims**, 1 of them guarded by a named test." in statements.headline([row, row | {"test": ""}])


def test_the_pages_of_the_book_type_no_count():
    ledger, first = ((ROOT / "book" / name).read_text(encoding="utf-8") for name in ("statements.md", "index.md"))
    assert ledger.count(statements.COUNTS) == ledger.count(statements.MARKER) == first.count(statements.HEADLINE) == 1
    assert not re.search(r"\d+\W+(claims|statements|things)", ledger + first)


@pytest.fixture
def site(tmp_path):
    """A rendered ledger with its data."""
    stage, tests = write_book(tmp_path)
    write_ledger(stage, tests, seconds={"02_two": 12.3})
    return render(stage, tmp_path / "site")


def test_the_data_are_what_the_page_shows(site):
    assert statements.check_ledger(site) == []
    rows = json.loads((site / "_static" / "claims.json").read_text(encoding="utf-8"))
    assert rows[0] == {
        "id": "02_two-gain",
        "section": "Wei et al. 2022",
        "chapter": "02_two",
        "title": "Second?",
        "statement": 'It "gains" -- it\'s said.',
        "verdict": "reproduced only under few <labels>",
        "kind": "reproduction",
        "source": "Wei et al. 2022",
        "effect": "+0.100 [+0.050, +0.150] (n=10)",
        "estimate": 0.1,
        "low": 0.05,
        "high": 0.15,
        "n": "10",
        "protocol": "live",
        "cost": "2 s",
        "test": "test_a.py::test_c",
        "page_seconds": 12,
        "figure": "",
    }
    assert (rows[2]["n"], rows[2]["low"], rows[3]["page_seconds"]) == ("3", None, None)
    with (site / "_static" / "claims.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert (table[0]["low"], table[2]["low"]) == ("0.05", "")


@pytest.mark.parametrize(
    ("name", "change", "finding"),
    [
        ("statements.html", (">fails<", ">holds<"), "02_two-always shows another verdict"),
        ("statements.html", ("+0.150", "+0.250"), "02_two-gain shows another effect"),
        ("statements.html", ("<h2>This book</h2>", "<h2>That book</h2>"), "01_one-equal shows another section"),
        ("statements.html", ("#fig-a", "#fig-b"), "01_one-equal shows another figure"),
        ("statements.html", ('id="02_two-untried"', 'id="02_two-tried"'), "4 rows, 4 in claims.json, not the same"),
        ("_static/claims.json", ("no file", "a file"), "02_two-untried shows another effect than claims.json"),
        ("_static/claims.csv", ("no file", "a file"), "claims.csv and claims.json differ"),
        ("_static/claims.csv", (",12,", ",13,"), "claims.csv and claims.json differ"),
    ],
)
def test_a_difference_between_page_and_data_is_found(site, name, change, finding):
    text = (site / name).read_text(encoding="utf-8")
    assert text.count(change[0]) >= 1
    (site / name).write_text(text.replace(*change), encoding="utf-8")
    assert any(finding in line for line in statements.check_ledger(site))


def test_with_an_address_a_test_is_a_link_to_its_line(tmp_path):
    stage, tests = write_book(tmp_path, ledger=PAGE)
    write_ledger(stage, tests, source="https://github.com/someone/book/blob/abc/tests")
    text = (stage / "statements.md").read_text(encoding="utf-8")
    assert 'href="https://github.com/someone/book/blob/abc/tests/test_a.py#L7">test\\_a.py::<wbr>test\\_c</a>' in text
    assert text.count("https://") == 3


def test_claims_of_the_sources_need_a_test_and_a_test_must_exist(tmp_path):
    bare = Claim("bare", "It is so.", "Li et al. 2021", True, "1", "live")
    stray = Claim("stray", "It is so.", "this book", True, "1", "live", test="test_a.py::test_z")
    stage, tests = write_book(tmp_path, bare, stray)
    with pytest.raises(BookError) as caught:
        write_ledger(stage, tests)
    assert caught.value.findings == [
        "notebooks/01_one.ipynb: the claim 01_one-bare of Li et al. 2021 names no test",
        "notebooks/01_one.ipynb: the claim 01_one-stray names the test test_a.py::test_z, which does not exist",
    ]


@pytest.mark.parametrize(
    ("source", "section"),
    [
        ("this book", "This book"),
        ("Wei et al. 2022, ICLR submission", "Wei et al. 2022"),
        ("Wei et al. 2022, Learning with Noisy Labels Revisited", "Other papers"),
        ("remark ascribed to Wei et al. 2022, wording not checked", "Other papers"),
        ("Li et al. 2021", "Li et al. 2021"),
        ("question and answer, clean labels", "Question and answer"),
        ("Warde-Farley and Goodfellow 2016", "Question and answer"),
        ("Hinton et al. 2015", "Other papers"),
    ],
)
def test_a_source_has_one_section(source, section):
    assert statements.find_section(source) == section
    assert section in statements.SECTIONS


def test_what_cannot_be_collected_stops_the_build(tmp_path):
    stage, tests = write_pages(tmp_path / "empty")
    write_executed(stage, "01_one", "First?", [])
    with pytest.raises(BookError, match=r"notebooks/01_one.ipynb: expected a cell that shows its claims"):
        write_ledger(stage, tests)
    for texts, message in (
        ({"ledger": "No place.\n"}, r"statements\.md: expected one line <!-- counts -->"),
        ({"first": "No place.\n"}, r"index\.md: expected one line <!-- claims -->"),
    ):
        stage, tests = write_book(tmp_path / message[:5], **texts)
        with pytest.raises(BookError, match=message):
            write_ledger(stage, tests)


def test_a_book_without_the_page_has_no_statements(tmp_path):
    assert write_ledger(tmp_path, tmp_path) == 0
    assert statements.check_ledger(tmp_path) == []
