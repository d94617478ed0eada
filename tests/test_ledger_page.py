"""The ledger's filter in a browser, opened as a file: what it leaves is what Python would, by any way of asking."""

import json
import shutil
import tempfile
from itertools import product

import pytest
from ledger_page import browse_site, render, statements, write_executed, write_ledger, write_pages

from nls.claims import Claim

PROGRAM = next(filter(None, map(shutil.which, browse_site.BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"needs a browser on the PATH: {', '.join(browse_site.BROWSERS)}"
)

SOURCES = ("Wei et al. 2022", "Li et al. 2021", "Xu et al. 2020", "this book")
KINDS = ("proved", "measured", "reproduction")
STATE = {"source": "", "verdict": "", "kind": "", "chapter": "", "q": ""}
VISIBLE = "[...document.querySelectorAll('.ledger > ul > li')].filter(n => n.offsetParent).map(n => n.children[0]" \
          ".querySelector('span[id]').id)"  # fmt: skip


def slug(text):
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def make_claims(seed):
    """Claims of every source, kind and verdict that there can be."""
    claims = []
    for number, (source, kind, holds) in enumerate(product(SOURCES, KINDS, (True, False, None))):
        if (holds is None and kind != "reproduction") or (number + seed) % 3 == 0:
            continue
        condition = "few labels" if kind == "reproduction" and holds and number % 2 else ""
        words = f"{('Smooth', 'Sharp')[number % 2]} targets {('help', 'hurt', 'heal')[number % 3]} <here>."
        claims.append(Claim(f"c{number}", words, source, holds, f"{number} of 40", "live", kind=kind,
                            condition=condition, test="test_a.py::test_b"))  # fmt: skip
    return claims


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A rendered ledger of two chapters."""
    folder = tmp_path_factory.mktemp("ledger")
    stage, tests = write_pages(folder)
    for number, stem in enumerate(("01_one", "02_two")):
        write_executed(stage, stem, f"Chapter {number}?", make_claims(number))
    write_ledger(stage, tests)
    return render(stage, folder / "site")


@pytest.fixture(scope="module")
def rows(site):
    """The data of the ledger."""
    return json.loads((site / "_static" / "claims.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def browser():
    """A browser."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = browse_site.Browser(PROGRAM, profile)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, site):
    """The browser with the ledger open, as a file."""
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=True)
    open_page(browser, site)
    yield browser
    assert browse_site.read_events(browser.events, "file://") == []


def open_page(browser, site, state=""):
    browser.open("about:blank")  # a change of the address's end alone loads nothing
    browser.open(f"{(site / 'statements.html').as_uri()}{state}")


def expected(rows, **state):
    """Filter the data in Python: the oracle."""
    state = STATE | state
    values = [
        (row["id"], {"source": slug(row["section"]), "verdict": slug(statements.name_verdict(row["verdict"])),
                     "kind": row["kind"], "chapter": row["chapter"]}, " ".join(map(str, row.values())).lower())
        for row in rows
    ]  # fmt: skip
    return [
        name
        for name, value, text in values
        if all(not state[key] or state[key] == value[key] for key in value)
        and all(word in text for word in state["q"].lower().split())
    ]


def choose(page, **state):
    """Set controls the way a reader does: their value, then the event."""
    for key, value in state.items():
        page.evaluate(
            f"(n => {{ n.value = {json.dumps(value)}; n.dispatchEvent(new Event('input', {{ bubbles: true }})) }})"
            f"(document.querySelector('[name={key}]'))"
        )


def press(page, key, code):
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def test_every_pair_of_filters_leaves_what_python_would(page, rows):
    assert page.evaluate(VISIBLE) == expected(rows) == [row["id"] for row in rows]
    choices = {
        key: page.evaluate(f"[...document.querySelector('[name={key}]').options].map(o => o.value)")
        for key in ("source", "verdict", "kind", "chapter")
    }
    assert choices["source"] == ["", "wei-et-al-2022", "li-et-al-2021", "other-papers", "this-book"]
    assert len(choices["verdict"]) == 7
    for source, verdict, kind in product(choices["source"], choices["verdict"], choices["kind"]):
        state = {"source": source, "verdict": verdict, "kind": kind}
        choose(page, **state)
        left = expected(rows, **state)
        assert page.evaluate(VISIBLE) == left, state
        said = page.evaluate("document.querySelector('[role=status]').textContent")
        assert said.startswith(f"{len(left)} of {len(rows)} claims")
    choose(page, source="", verdict="", kind="", chapter="02_two", q="Help  <HERE>")
    left = expected(rows, chapter="02_two", q="help <here>")
    assert page.evaluate(VISIBLE) == left
    assert 0 < len(left) < len(rows)


def test_each_choice_tells_how_many_it_would_leave(page, rows):
    choose(page, source="this-book", kind="reproduction", q="sharp")
    texts = page.evaluate("[...document.querySelector('[name=source]').options].map(o => [o.value, o.text])")
    for value, text in texts[1:]:
        assert text.endswith(f" ({len(expected(rows, source=value, kind='reproduction', q='sharp'))})"), text


def test_the_state_is_in_the_address_and_comes_back_from_it(page, site, rows):
    state = {"source": "wei-et-al-2022", "verdict": "not-reproduced", "q": "sharp <here>"}
    choose(page, **state)
    left, address = page.evaluate(VISIBLE), page.evaluate("location.hash")
    assert address == "#source=wei-et-al-2022&verdict=not-reproduced&q=sharp+%3Chere%3E"
    open_page(page, site, address)
    assert page.evaluate(VISIBLE) == left == expected(rows, **state) != []
    assert page.evaluate("document.querySelector('[name=q]').value") == "sharp <here>"
    open_page(page, site, "#source=nobody&kind=proved")
    assert page.evaluate(VISIBLE) == expected(rows, kind="proved"), "an unknown value is no filter"


def test_keys_alone_filter_and_undo(page, rows):
    page.evaluate("document.querySelector('[name=kind]').focus()")
    press(page, "ArrowDown", 40)
    chosen = page.evaluate("document.querySelector('[name=kind]').value")
    assert chosen in KINDS
    assert page.evaluate(VISIBLE) == expected(rows, kind=chosen)
    for _ in range(2):  # past the chapter, to the text
        press(page, "Tab", 9)
    page.call("Input.insertText", text="hurt")
    assert page.evaluate(VISIBLE) == expected(rows, kind=chosen, q="hurt")
    press(page, "Tab", 9)
    assert page.evaluate("document.activeElement.textContent") == "Show all"
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert page.evaluate(VISIBLE) == expected(rows)
    assert page.evaluate("location.hash") == ""


def test_a_count_is_a_link_to_its_rows(page, rows):
    links = page.evaluate("[...document.querySelectorAll('.ledger-counts a')].map(a => [a.textContent, a.hash])")
    assert len(links) > 20
    for count, address in links:
        page.evaluate(f"new Promise(done => {{ addEventListener('hashchange', () => done(), {{ once: true }}); "
                      f"document.querySelector('.ledger-counts a[href=\"{address}\"]').click() }})")  # fmt: skip
        state = dict(part.split("=") for part in address[1:].split("&"))
        left = expected(rows, **state)
        assert page.evaluate(VISIBLE) == left, address
        assert int(count) == len(left) > 0


def test_a_place_that_a_filter_hides_is_shown(page, rows):
    hidden = rows[0]["id"]
    choose(page, source="this-book")
    assert hidden not in page.evaluate(VISIBLE)
    page.evaluate(f"new Promise(done => {{ addEventListener('hashchange', () => done(), {{ once: true }}); "
                  f"location.hash = '{hidden}' }})")  # fmt: skip
    assert page.evaluate(VISIBLE) == expected(rows)
    assert page.evaluate(f"Math.abs(document.getElementById('{hidden}').getBoundingClientRect().top) < 900")


def test_a_phone_holds_the_form_and_every_control_has_a_name(page):
    assert page.evaluate("document.querySelector('.ledger-form').getBoundingClientRect().right") <= 390
    controls = page.evaluate(
        "[...document.querySelectorAll('.ledger-form :is(input, select, button)')].map(n => "
        "[(n.labels && n.labels[0] || n).firstChild.textContent, n.getBoundingClientRect().height])"
    )
    assert [name for name, _ in controls] == [
        "Source",
        "Verdict",
        "Kind",
        "Chapter",
        "Text, every word of it",
        "Show all",
    ]
    assert all(height >= 44 for _, height in controls)


def test_without_a_script_the_list_is_whole(browser, site, rows):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        open_page(browser, site, "#source=this-book")
        assert browser.evaluate(VISIBLE) == [row["id"] for row in rows]
        assert browser.evaluate("document.querySelectorAll('form').length") == 0
        assert "whole list is below" in browser.evaluate("document.getElementById('ledger-filter').textContent")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
