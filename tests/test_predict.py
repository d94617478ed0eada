"""Predictions before answers, in a real browser: what is covered, what opens it, what is kept and what is forgotten.

The pages of this test have the structure that Sphinx gives to a chapter, and the book's own script and style. Chromium
is driven through book/browse_site.py.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK))  # the pipeline is a folder of scripts, not a package

import browse_site  # noqa: E402
import parameters  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, browse_site.BROWSERS)), None)
HEAD = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width"><title>Page</title>
<link rel="stylesheet" href="_static/css/predict.css"><script defer src="_static/js/predict.js"></script></head>
<body><main><article class="bd-article">"""
CHAPTER = (
    HEAD
    + """<section id="title"><h1>Title</h1><p>Opening.</p>
<section id="one"><h2>One</h2><p>Theory.</p>
<div class="tip admonition"><p class="admonition-title">Predict before you read on</p><p>Up or down?</p></div>
<div class="cell"><pre>code()</pre></div><figure id="fig-a"><figcaption>Rises.</figcaption></figure>
<p><strong>Read it.</strong> It is quicksilver.</p>
<p><strong>Predict.</strong> And then?</p>
<figure id="fig-b"><figcaption>Falls into amberwood.</figcaption></figure>
</section>
<section id="two"><h2>Two</h2><p>Plain text.</p>
<div class="tip admonition"><p class="admonition-title">Predict</p><p>Third?</p></div>
<p>A <span class="highlighted">marked</span> word.</p>
<section id="deeper"><h3>Deeper</h3><p>Never covered.</p><a href="#fig-b">figure</a></section></section>
<section id="tips"><h2>Tips</h2><div class="tip admonition"><p class="admonition-title">A tip</p><p>Do.</p></div>
<p>After the tip.</p></section>
<figure class="nls-live" id="fig-live"><p><strong>Predict.</strong> A figure asks by itself.</p>
<p class="nls-finding" hidden>Found.</p></figure></section></article></main></html>"""
)
OTHER = CHAPTER.replace("<h1>Title", "<h1>Other").replace("highlighted", "plain")
PLAIN = HEAD + "<section id='t'><h1>T</h1><p>Nothing is asked.</p></section></article></main></html>"
COVERED = "[...document.querySelectorAll('.nls-answer')].map(a => a.hasAttribute('hidden'))"
KEPT = "Object.fromEntries(Object.entries(localStorage).sort())"
ALL, NONE = [True, True, True], [False, False, False]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the pages."""
    folder = tmp_path_factory.mktemp("site")
    for part in ("css", "js"):
        shutil.copytree(BOOK / "_web" / part, folder / "_static" / part)
    for name, text in (
        ("chapter", CHAPTER.replace("highlighted", "plain")),
        ("other", OTHER),
        ("hits", CHAPTER),
        ("plain", PLAIN),
    ):
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


class Reader:
    """A reader who types, presses and looks."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address
        self.see, self.call = browser.evaluate, browser.call

    def open(self, page="chapter.html", view="desktop"):
        width, phone = browse_site.WIDTHS[view], view == "phone"
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        if "#" in page:  # a fragment of the page that is open would not load it
            self.browser.open("about:blank")
        self.browser.open(f"{self.address}/{page}")

    def press(self, key, code, modifiers=0, **more):
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers, **more
            )

    def commit(self, n, text):
        self.see(f"document.querySelector('#nls-ask-{n}').value = {json.dumps(text)}")
        self.see(f"document.querySelector('#nls-ask-{n}').form.requestSubmit()")

    def click(self, name):
        """Press the first visible button of a name."""
        found = self.see(
            f"""(() => {{ const button = [...document.querySelectorAll(".nls-ask button, .nls-cover button, "
              + ".nls-settings button")].find(b => b.textContent.startsWith({json.dumps(name)}) && b.checkVisibility());
              button?.click(); return !!button; }})()"""
        )
        assert found, f"no button {name}"

    def text(self, selector):
        return self.see(f"document.querySelector({json.dumps(selector)}).innerText")

    def visible(self, selector):
        script = "checkVisibility({contentVisibilityAuto: true, visibilityProperty: true})"
        return self.see(f"document.querySelector({json.dumps(selector)}).{script}")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip(f"needs a browser on the PATH: {', '.join(browse_site.BROWSERS)}")
    browser = browse_site.Browser(CHROMIUM, str(tmp_path_factory.mktemp("profile")))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def address(site):
    with browse_site.serve(site) as address:
        yield address


@pytest.fixture
def reader(chromium, address):
    """A reader who comes for the first time."""
    reader = Reader(chromium, address)
    reader.open("plain.html")
    reader.see("localStorage.clear()")
    reader.open()
    return reader


def test_answers_are_covered_and_nothing_else_is(reader):
    assert reader.see(COVERED) == ALL
    shown = ("#one .tip", "#one > p", "#deeper p", "#tips > p", "#two h2", "#fig-live", "#fig-live p")
    assert [reader.visible(selector) for selector in shown] == [True] * len(shown)
    hidden = ("#one pre", "#fig-a", "#fig-b", "#two .plain")
    assert [reader.visible(selector) for selector in hidden] == [False] * len(hidden)
    assert reader.see("document.querySelectorAll('#tips .nls-ask, #fig-live .nls-ask').length") == 0
    assert reader.see(KEPT) == {}, "looking at a page keeps nothing"


def test_a_commitment_opens_its_answer_and_is_remembered_beside_it(reader):
    reader.commit(1, "  It <b>rises</b>,\nslowly. ")
    assert reader.see(COVERED) == [False, True, True]
    assert reader.see("document.activeElement.className") == "nls-made", "reading goes on from there"
    assert reader.see(KEPT) == {"nls-prediction:chapter#one.1": '{"text":"It <b>rises</b>,\\nslowly."}'}
    reader.open()
    assert reader.see(COVERED) == [False, True, True]
    for place in (".nls-made", ".nls-echo"):
        assert reader.text(place).startswith("You predicted: It <b>rises</b>,\nslowly.")
    after = reader.see("document.querySelector('.nls-echo').nextElementSibling.textContent")
    assert after.startswith("Read it."), "shown again where the answer is read"
    reader.open("other.html")
    assert reader.see(COVERED) == ALL, "another page has answers of its own"


def test_nothing_written_commits_nothing(reader):
    reader.commit(1, "  \n ")
    assert reader.see(COVERED) == ALL
    assert reader.text(".nls-ask [role=status]") == "Write something first; a word is enough."
    assert reader.see(KEPT) == {}


def test_keys_alone_predict_and_look(reader):
    reader.see("document.querySelector('.nls-ask textarea').focus()")
    for letter in "up":
        reader.press(letter, ord(letter.upper()), text=letter)
    reader.press("Tab", 9)
    assert reader.see("document.activeElement.textContent") == "Commit"
    reader.press("Enter", 13, text="\r")
    assert reader.see(KEPT) == {"nls-prediction:chapter#one.1": '{"text":"up"}'}
    reader.press("Tab", 9)
    assert reader.see("document.activeElement.textContent") == "Predict again"
    reader.press(" ", 32, text=" ")
    assert reader.see(COVERED) == ALL
    assert reader.see("[document.activeElement.id, document.activeElement.value]") == ["nls-ask-1", "up"]
    reader.press("Enter", 13, modifiers=2)  # Control
    assert reader.see(COVERED) == [False, True, True]


def test_a_finger_looks_without_a_prediction(reader):
    reader.open(view="phone")
    x, y = reader.see(
        """(() => { const button = document.querySelector(".nls-cover button");
        button.scrollIntoView({block: "center"}); const box = button.getBoundingClientRect();
        return [box.left + box.width / 2, box.top + box.height / 2]; })()"""
    )
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        reader.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    reader.see("new Promise(done => setTimeout(done, 400))")
    assert reader.see(COVERED) == [False, True, True]
    reader.open()
    assert reader.see(COVERED) == [False, True, True], "who has looked is not asked again"
    reader.click("Cover it and predict")
    assert reader.see(COVERED) == ALL
    assert reader.see(KEPT) == {}


@pytest.mark.parametrize(("fragment", "covered"), [("fig-a", [False, True, True]), ("fig-b", [False, False, True])])
def test_a_deep_link_opens_what_it_leads_to(reader, fragment, covered):
    reader.open(f"chapter.html#{fragment}")
    assert reader.see(COVERED) == covered
    assert reader.visible(f"#{fragment}")
    assert reader.see(KEPT) == {}
    reader.open(f"chapter.html#{'one'}")
    assert reader.see(COVERED) == ALL, "and only for this visit"


OLDER = """const set = Element.prototype.setAttribute; Element.prototype.setAttribute = function (name, value) {
  set.call(this, name, value === "until-found" ? "" : value); }"""  # a browser that does not know the value


@pytest.mark.parametrize("script", ["", OLDER], ids=["newer", "older"])
def test_a_link_on_the_page_opens_what_it_leads_to_every_time(reader, script):
    added = reader.call("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    try:
        reader.open("chapter.html?link")
        for _ in range(2):
            reader.see("document.querySelector('#deeper a').click()")
            reader.see("new Promise(done => setTimeout(done, 100))")
            assert reader.see(COVERED) == [False, False, True]
            reader.click("Cover it and predict")
            assert reader.see(COVERED)[0]
    finally:
        reader.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)


def test_searches_open_what_they_find(reader):
    reader.open("chapter.html#:~:text=amberwood")  # what a browser does for a hit of its own search
    reader.see("new Promise(done => setTimeout(done, 300))")
    assert reader.see(COVERED) == [False, False, True]
    reader.open("hits.html")  # as the search of the book marks it
    reader.see("new Promise(done => setTimeout(done, 300))")
    assert reader.see(COVERED) == [True, True, False]


def test_the_switch_is_remembered_in_the_whole_book(reader):
    reader.commit(3, "mine")
    reader.see("document.querySelector('.nls-settings input').click()")
    assert reader.see(COVERED) == NONE
    reader.open("other.html")
    assert reader.see(COVERED) == NONE
    assert reader.see("document.querySelector('.nls-settings input').checked")
    assert not reader.visible(".nls-ask"), "nobody is asked"
    assert reader.visible("#fig-live .nls-finding"), "the interactive figures follow"
    reader.open()
    assert reader.text("#two .nls-made").startswith("You predicted: mine"), "what was committed is still shown"
    reader.see("document.querySelector('.nls-settings input').click()")
    assert reader.see(COVERED) == [True, True, False]
    assert list(reader.see(KEPT)) == ["nls-prediction:chapter#two.1"]


def test_a_page_and_the_book_are_forgotten(reader):
    assert not reader.visible(".nls-settings button"), "nothing to forget"
    reader.see("localStorage.setItem('mode', 'dark'); localStorage.setItem('nls-prediction-fig-far', '2')")
    reader.see("localStorage.setItem('nls-prediction-fig-live', '1')")
    reader.commit(1, "here")
    reader.open("other.html")
    reader.commit(1, "there")
    assert reader.text(".nls-settings").count("(2)") == 1
    assert reader.text(".nls-settings").count("(4)") == 1
    reader.click("Forget what this page kept")
    assert reader.see(COVERED) == ALL
    assert list(reader.see(KEPT)) == ["mode", "nls-prediction-fig-far", "nls-prediction:chapter#one.1"]
    reader.click("Forget what the whole book kept")
    assert reader.see(KEPT) == {"mode": "dark"}, "what others keep stays"
    assert reader.text(".nls-settings [role=status]") == "What the whole book kept is forgotten."
    reader.open()
    assert reader.see(COVERED) == ALL


REFUSALS = {
    "no storage": "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no') }})",
    "no room": "Storage.prototype.setItem = () => { throw new DOMException('full') }",
}


@pytest.mark.parametrize("how", REFUSALS)
def test_where_the_browser_keeps_nothing_the_page_says_so_and_works(reader, how):
    script = reader.call("Page.addScriptToEvaluateOnNewDocument", source=REFUSALS[how])["identifier"]
    try:
        reader.open()
        assert "This browser keeps nothing here" in reader.text(".nls-settings")
        assert "until you leave this page" in reader.text(".nls-ask")
        reader.commit(1, "for now")
        assert reader.see(COVERED) == [False, True, True]
        assert reader.text(".nls-echo") == "You predicted: for now"
        reader.click("Forget what this page kept (1)")
        assert reader.see(COVERED) == ALL
        reader.see("document.querySelector('.nls-settings input').click()")
        assert reader.see(COVERED) == NONE
        assert browse_site.read_events(reader.browser.events, reader.address) == []
        reader.open()
        assert reader.see(COVERED) == ALL
    finally:
        reader.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_what_is_kept_but_not_ours_is_no_prediction(reader):
    reader.see("localStorage.setItem('nls-prediction:chapter#one.1', 'null')")
    reader.see("localStorage.setItem('nls-prediction:chapter#two.1', '{broken')")
    reader.open()
    assert reader.see(COVERED) == ALL
    assert browse_site.read_events(reader.browser.events, reader.address) == []


def test_paper_shows_everything_and_asks_nothing(reader):
    reader.commit(3, "on paper")
    try:
        reader.call("Emulation.setEmulatedMedia", media="print")
        reader.see("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")  # until it is drawn
        assert [reader.visible(s) for s in ("#fig-a", "#fig-b", "#two .plain", "#two .nls-made p")] == [True] * 4
        for selector in (".nls-settings", ".nls-cover", ".nls-ask form", ".nls-made button"):
            assert not reader.visible(selector)
    finally:
        reader.call("Emulation.setEmulatedMedia", media="")


def test_a_reader_without_script_sees_everything(reader):
    try:
        reader.call("Emulation.setScriptExecutionDisabled", value=True)
        reader.open()
        assert reader.visible("#fig-b")
        assert reader.see("document.querySelectorAll('.nls-ask, .nls-settings, .nls-cover').length") == 0
    finally:
        reader.call("Emulation.setScriptExecutionDisabled", value=False)


def test_nothing_is_sent(reader):
    reader.browser.events.clear()
    reader.commit(1, "secret")
    reader.click("Show the answer")
    reader.click("Forget what the whole book kept")
    reader.see("new Promise(done => setTimeout(done, 200))")
    assert [
        e["params"]["request"]["url"] for e in reader.browser.events if e["method"] == "Network.requestWillBeSent"
    ] == []


def test_it_works_from_a_file(reader, site):
    reader.browser.open(f"file://{site}/chapter.html")
    assert reader.see(COVERED) == ALL
    reader.commit(1, "offline")
    reader.browser.open(f"file://{site}/chapter.html?again")
    assert reader.see(COVERED) == [False, True, True]
    reader.see("localStorage.clear()")


def test_controls_have_names_and_room_for_a_finger_on_a_phone(reader):
    reader.open(view="phone")
    reader.commit(3, "x" * 500)
    found = reader.see(
        """[...document.querySelectorAll(".nls-ask, .nls-cover, .nls-settings")].flatMap(box =>
          [...box.querySelectorAll("button, textarea, input")]).filter(node => node.checkVisibility()).map(node =>
          [node.labels?.[0]?.textContent || node.textContent,
           (node.closest(".nls-settings label") ?? node).getBoundingClientRect().height])"""
    )
    assert len(found) == 7
    assert all(name.strip() and height >= 44 for name, height in found)
    assert reader.see("document.documentElement.scrollWidth") <= browse_site.WIDTHS["phone"]


def test_a_page_that_asks_nothing_stays_as_it_is(reader):
    reader.open("plain.html")
    assert reader.see("document.querySelectorAll('[class^=nls]').length") == 0
    assert browse_site.read_events(reader.browser.events, reader.address) == []


@pytest.mark.parametrize("path", sorted((BOOK / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_script_knows_every_question_of_the_book(path):
    cells = [cell.source for cell in parameters.read_notebook(path).cells if cell.cell_type == "markdown"]
    asked = sum(len(re.findall(r"^(?:\*\*)?Predict\b(?! it from)", cell, flags=re.M)) for cell in cells)
    asked += sum(len(re.findall(r"^`{3,}\{admonition\} Predict", cell, flags=re.M)) for cell in cells)
    known = sum(len(re.findall(r"^`{3,}\{admonition\} Predict.*\n:class: tip$", cell, flags=re.M)) for cell in cells)
    known += sum(len(re.findall(r"(?:^|\n\n)\*\*Predict\.\*\*\s+\S", cell)) for cell in cells)
    assert asked == known > 0
