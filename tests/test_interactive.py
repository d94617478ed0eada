"""The interactive figures in a real browser: their numbers are those of nls, and fingers and keys can use them."""

import base64
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from live_pages import BOOK, CONTRAST, FIGURES, LABELS, LOADED, OWN, Reader, browse_site, read_cells, write_pages

import nls
from nls.losses import gls_parts
from nls.rates import compose_rates

CHROMIUM = next(filter(None, map(shutil.which, browse_site.BROWSERS)), None)


@pytest.fixture(scope="module")
def grid():
    """What the chapter's own cells make for the map, at a small size."""
    names, cells = {}, read_cells("boundary")
    for cell in ("imports", "parameters", "settings", "maps", "live-data"):
        source = cells[cell].source
        if cell == "live-data":
            assert source.count("\nHTML(") == 1
            source = source.replace("\nHTML(", "\nshown = HTML(")
        exec(compile(source, cell, "exec"), names)
        if cell == "parameters":
            names |= {"plenty_labels": 600, "plenty_seeds": 1, "num_test": 200}
    return names


@pytest.fixture(scope="module")
def site(tmp_path_factory, grid):
    """The pages, served."""
    folder = tmp_path_factory.mktemp("site")
    write_pages(folder, grid["shown"].data)
    with browse_site.serve(folder) as address:
        yield address


@pytest.fixture(scope="module")
def reader(site, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip(f"needs a browser on the PATH: {', '.join(browse_site.BROWSERS)}")
    browser = browse_site.Browser(CHROMIUM, str(tmp_path_factory.mktemp("profile")))
    yield Reader(browser, site)
    browser.close()


def near(value, expected):
    assert value == pytest.approx(expected, abs=1e-6, rel=1e-6)


# The numbers are those of nls


@pytest.mark.parametrize(("classes", "margin"), [(2, 3), (10, -1.5), (20, 8.9)])
def test_target_and_loss_are_those_of_nls(reader, classes, margin):
    reader.open("rate")
    for rate in (1, 0.4, 0.02, 0, -0.4, -2):
        check_rate(reader, rate, classes, margin)


def check_rate(reader, rate, classes, margin):
    reader.set(smooth_rate=rate, classes=classes, margin=margin)
    target = nls.gls_targets(torch.tensor([0]), classes, rate)[0].double()
    logits = torch.zeros(1, classes, dtype=torch.float64)
    logits[0, 0] = margin * classes / (classes - 1)
    label = torch.tensor([0])
    near(float(gls_parts(logits, label)[1]), margin)
    near(reader.read("own", "other"), [float(target[0]), float(target[1])])
    own = logits.requires_grad_()
    loss = nls.gls_loss(own, label, rate)
    loss.backward()
    # A unit of the margin is K / (K - 1) of the label's logit.
    near(reader.read("loss", "slope"), [float(loss.detach()), float(own.grad[0, 0]) * classes / (classes - 1)])
    least, best = reader.read("least", "best")
    said = reader.see("document.querySelector('.nls-said').textContent")
    if rate > 0:
        near(least, float(nls.entropy(target.float().double())))
        logits = torch.zeros(1, classes, dtype=torch.float64)
        logits[0, 0] = best * classes / (classes - 1)
        near(logits.softmax(1)[0].tolist(), target.tolist())
        assert "bounded below, least at" in said
    else:
        assert (least, best) == (0 if rate == 0 else "-Infinity", "at no margin")
        assert ("not bounded below" if rate else "bounded below by 0") in said


@pytest.mark.parametrize("noise", [0, 0.2, 0.5])
def test_posteriors_and_entropies_are_those_of_nls(reader, noise):
    reader.open("simplex")
    for rate in (0.4, 0, -0.2, -3):
        reader.set(noise_rate=noise, smooth_rate=rate)
        check_simplex(reader, noise, rate)
    reader.see("document.querySelector('.nls-stage > button').click()")
    check_simplex(reader, noise, nls.optimal_smooth_rate(noise, 3))


def check_simplex(reader, noise, rate):
    clean = torch.tensor(reader.read("clean-A", "clean-B", "clean-C"), dtype=torch.float64)
    near(float(clean.sum()), 1)
    noisy = nls.noisy_posterior(clean, nls.symmetric_transition(3, noise))
    asked = nls.gls_posterior(noisy, rate)
    for name, posterior in (("clean", clean), ("noisy", noisy), ("asked", asked)):
        near(reader.read(*(f"{name}-{part}" for part in "ABC")), posterior.tolist())
        (found,) = reader.read(f"{name}-entropy")
        if bool((posterior < -1e-9).any()):
            assert found == "NaN"
        else:
            near(found, float(nls.entropy(posterior.clamp(min=0))))
    if bool((asked < -1e-9).any()):
        assert "no minimum" in reader.see("document.querySelector('.nls-said').textContent")


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_best_rate_and_its_edge_are_those_of_nls(reader, classes):
    reader.open("phase")
    for noise, clean in itertools.product([0, 0.05, 0.3, 0.49], [0.5, 0.1, 0, -0.4]):
        check_phase(reader, classes, noise, clean)


def check_phase(reader, classes, noise, clean):
    reader.set(classes=classes, noise_rate=noise, clean_rate=clean)
    best, edge, lost, turn, feasible = reader.read("best", "edge", "lost", "turn", "feasible")
    near(best, nls.optimal_smooth_rate(noise, classes, clean))
    certain = torch.eye(classes, dtype=torch.float64)
    near(edge, nls.feasible_rate(nls.noisy_posterior(certain, nls.symmetric_transition(classes, noise))))
    near(lost, classes * noise / (classes - 1))
    near(turn, max(clean, 0) * (classes - 1) / classes)
    assert feasible == ("on the edge" if abs(best - edge) < 1e-9 else "yes" if best > edge else "no")
    said = reader.see("document.querySelector('.nls-said').textContent")
    assert ("negative" if best < -1e-9 else "positive" if best > 1e-9 else "zero") in said


def test_labels_without_information_have_no_best_rate(reader):
    reader.open("phase")
    reader.set(classes=2, noise_rate=0.5)
    assert reader.read("best", "edge", "feasible") == ["none", "none", "no rate"]
    with pytest.raises(ValueError, match="no information"):
        nls.optimal_smooth_rate(0.5, 2)


def test_the_human_data_sets_have_the_rates_that_were_counted(reader):
    reader.open("phase")
    counts = nls.load_results("cifar_n")
    sets = {"CIFAR-10N, three votes": ("cifar10n", "aggregate"), "CIFAR-10N, worst": ("cifar10n", "worst")}
    sets |= {"CIFAR-100N": ("cifar100n", "fine")}
    for name, (dataset, label_set) in sets.items():
        rows = counts[(counts["dataset"] == dataset) & (counts["label_set"] == label_set)]
        rate = rows.loc[rows["clean"] != rows["noisy"], "count"].sum() / rows["count"].sum()
        classes = int(rows["clean"].max()) + 1
        reader.see(f"[...document.querySelectorAll('button')].find(b => b.textContent === {name!r}).click()")
        near(reader.read("lost"), [rate * classes / (classes - 1)])


# The map of chapter 10


def decode(text):
    return (np.frombuffer(base64.b64decode(text), np.uint8).astype(float) - 127) * 6 / 127


def bilinear(odds, reach, x, y):
    table, (u, v) = odds.reshape(32, 32), ((np.array([x, y]) + reach) / (2 * reach) * 31)
    i, j = min(int(u), 30), min(int(v), 30)
    a, b = u - i, v - j
    return (1 - a) * ((1 - b) * table[i, j] + b * table[i, j + 1]) + a * (
        (1 - b) * table[i + 1, j] + b * table[i + 1, j + 1]
    )


def read_data(grid):
    opened = '<script type="application/json" id="boundaries-data">'
    text = grid["shown"].data
    assert text.startswith(opened)
    assert text.count("<") == 2, "data that would end the script"
    return json.loads(text.removeprefix(opened).removesuffix("</script>"))


def test_the_chapter_writes_its_networks_into_the_page(grid):
    data = read_data(grid)
    assert len(grid["shown"].data) < 60_000
    assert data["members"] == [list(pair) for pair in grid["members"]["circles"]]
    assert [len(maps) for maps in data["maps"]] == [len(data["members"])] * 2
    for maps, stack, scores in zip(data["maps"], grid["both_sizes"], data["scores"], strict=True):
        exact = stack.forward(grid["grid"]).detach()
        exact = (exact[..., 1] - exact[..., 0]).clamp(-6, 6).numpy()
        for text, odds in zip(maps, exact, strict=True):
            assert np.abs(decode(text) - odds).max() < 1.01 * 6 / 127 / 2
        found = nls.truth.truth_scores(stack.forward(grid["inputs"]["circles"]), grid["truth"]["circles"])
        for k, key in enumerate(("disagreement", "accuracy", "confidence")):
            assert np.abs(np.array(scores)[:, k] - found[key].numpy()).max() < 1e-4
    # The first labels are those of the maps, and noise at one rate flips the labels that it flips at a lower one, too.
    clean, *noisy = (np.array(list(text)) for text in data["labels"])
    assert all(
        (labels != clean).mean() == pytest.approx(e, abs=0.1) for e, labels in zip((0.2, 0.4), noisy, strict=True)
    )
    assert all(noisy[1][noisy[0] != clean] != clean[noisy[0] != clean])


def test_the_map_shows_what_the_chapter_wrote(reader, grid):
    reader.open("boundary")
    for noise, size in itertools.product(range(3), range(2)):
        check_maps(reader, read_data(grid), noise, size)


def check_maps(reader, data, noise, size):
    level, reach = data["noise"][noise], data["reach"]
    rates = sorted((r, n) for n, (e, r) in enumerate(data["members"]) if e == level)
    reader.set(labels=size, noise_rate=noise)
    for place, (rate, member) in enumerate(rates):
        reader.set(smooth_rate=place)
        strength, here, true = reader.read("strength", "here", "true")
        near(float(reader.see("document.querySelector('.nls-stage').dataset.rate")), rate)
        near(strength, 1 - compose_rates(2 * level, rate))
        odds = decode(data["maps"][size][member])
        near(here, 1 / (1 + np.exp(-bilinear(odds, reach, 0, 1.1))))
        near(true, 1 / (1 + np.exp(-bilinear(decode(data["truth"]), reach, 0, 1.1))))
        near(reader.read("disagreement", "accuracy", "confidence"), data["scores"][size][member])
        path = reader.see("document.querySelector('.nls-stage .nls-line').getAttribute('d')")
        ends = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", path), float)
        signs = odds.reshape(32, 32) > 0
        crossed = (signs[1:] != signs[:-1]).sum() + (signs[:, 1:] != signs[:, :-1]).sum()
        assert (len(ends) > 0) == (crossed > 0)
        for px, py in ends[:: max(1, len(ends) // 20)]:  # on the line the odds are even, up to a tenth of a pixel
            x, y = (px - 12) / 340 * 2 * reach - reach, reach - (py - 12) / 340 * 2 * reach
            steep = np.abs(np.gradient(odds.reshape(32, 32))).max()
            assert abs(bilinear(odds, reach, x, y)) < 0.1 / (340 / 31) * 4 * steep + 1e-9


# Fingers, keys, and readers


HANDLES = ("simplex", "phase", "boundary")
PLACE = "document.querySelector('.nls-handle').getAttribute('transform').match(/-?[\\d.]+/g).map(Number)"


@pytest.mark.parametrize("name", FIGURES)
def test_every_slider_answers_to_keys(reader, name):
    reader.open(name)
    count = reader.see("document.querySelectorAll('.nls-stage input').length")
    assert count == {"rate": 3, "simplex": 2, "phase": 3, "boundary": 3}[name]
    for n in range(count):
        look = f"(() => {{ const i = document.querySelectorAll('.nls-stage input')[{n}]; return ["
        look += "Number(i.value), i.getAttribute('aria-valuetext'), i.parentElement.textContent, Number(i.min),"
        look += "Number(i.max), Number(i.step), document.querySelector('.nls-said').textContent] })()"
        reader.see(f"document.querySelectorAll('.nls-stage input')[{n}].focus()")
        reader.press("Home")
        first = reader.see(look)
        assert first[0] == first[3]
        reader.press("ArrowRight")
        then = reader.see(look)
        assert then[0] == pytest.approx(first[0] + first[5])
        assert then[1] != first[1]
        assert then[1] in then[2], "the number beside the slider is the one that is spoken"
        reader.press("End")
        assert reader.see(look)[0] == pytest.approx(first[4])
        assert reader.see(look)[6] != first[6] or name == "rate", "what is said follows the slider"


@pytest.mark.parametrize("name", HANDLES)
def test_the_handle_answers_to_keys_fingers_and_taps(reader, name):
    reader.open(name, "phone")
    x, y = reader.centre(".nls-handle")
    before, scrolled = reader.see(PLACE), reader.see("scrollY")
    reader.see("document.querySelector('.nls-handle').focus()")
    reader.press("ArrowUp", 2)
    risen = reader.see(PLACE)
    assert risen[1] < before[1]
    reader.press("ArrowRight", 2)
    assert reader.see(PLACE)[0] > risen[0]
    text = reader.see("document.querySelector('.nls-handle').getAttribute('aria-valuetext')")
    x, y = reader.centre(".nls-handle")
    scrolled, before = reader.see("scrollY"), reader.see(PLACE)
    reader.drag(x, y, -30, 20)
    after, scale = reader.see(PLACE), reader.see("document.querySelector('svg').getScreenCTM().a")
    assert np.allclose(np.array(after) - before, np.array([-30, 20]) / scale, atol=4), "it follows the finger"
    assert reader.see("document.querySelector('.nls-handle').getAttribute('aria-valuetext')") != text
    assert reader.see("scrollY") == scrolled, "the page stays where it is"
    x, y = reader.centre(".nls-handle")
    reader.call("Emulation.setTouchEmulationEnabled", enabled=False)
    before = reader.see(PLACE)
    reader.click(x + 45, y - 10)
    assert np.allclose(np.array(reader.see(PLACE)) - before, np.array([45, -10]) / scale, atol=4), "it goes to the tap"


def test_the_clean_posterior_stays_a_posterior(reader):
    reader.open("simplex")
    reader.see("document.querySelector('.nls-handle').focus()")
    for key, times in (("ArrowUp", 18), ("ArrowRight", 3), ("ArrowDown", 52), ("ArrowLeft", 52), ("ArrowRight", 52)):
        reader.press(key, times)
        check_simplex(reader, 0.2, 0.4)
        parts = reader.read("clean-A", "clean-B", "clean-C")
        assert min(parts) >= 0
    near(parts, [0, 0, 1])


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("scheme", browse_site.SCHEMES)
@pytest.mark.parametrize("view", browse_site.WIDTHS)
def test_each_page_is_quiet_fits_and_can_be_read(reader, name, view, scheme):
    reader.open(name, view, scheme)
    found = reader.see(browse_site.PROBE)
    assert browse_site.read_events(reader.browser.events, reader.site) == []
    assert found["scrollWidth"] <= found["width"] == browse_site.WIDTHS[view]
    assert found["wide"] == []
    assert reader.see(LABELS) == []
    assert reader.see(CONTRAST) == []
    ground = reader.see("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 384) == (scheme == "dark")
    assert "In words" not in reader.see("document.querySelector('.nls-stage').textContent")
    least = reader.see("Math.min(99, ...[...document.querySelectorAll('.nls-stage svg text')].map(node =>"
                       " parseFloat(getComputedStyle(node).fontSize) * node.getScreenCTM().a))")  # fmt: skip
    assert least > 10, "letters of a drawing are legible on a phone"
    touched = reader.see("Math.min(...[...document.querySelectorAll('.nls-live :is(.nls-stage input, button,"
                         " .nls-reach, label)')].map(node => node.getBoundingClientRect().height))")  # fmt: skip
    assert touched >= 24, "what is touched is large enough"


@pytest.mark.parametrize("name", FIGURES)
def test_a_prediction_comes_before_the_finding_and_is_remembered(reader, name):
    reader.open(name, committed=False)
    shown = "getComputedStyle(document.querySelector('.nls-finding')).display !== 'none'"
    button = ".nls-predict button"
    assert not reader.see(shown)
    reader.see(f"document.querySelector('{button}').focus()")
    reader.press(" ")
    assert "Choose" in reader.see("document.querySelector('.nls-predict p').textContent")
    assert not reader.see(shown)
    reader.see("document.querySelector('.nls-predict input').focus()")
    reader.press(" ")
    assert not reader.see(shown), "a choice is not yet a commitment"
    reader.see(f"document.querySelector('{button}').focus()")
    reader.press(" ")
    for _ in range(2):  # now, and after the page has been opened again
        assert reader.see(shown)
        assert reader.see("document.querySelector('.nls-live').dataset.predicted") == "1"
        said = reader.see("document.querySelector('.nls-predict p').textContent")
        assert said.startswith("It goes another way.")
        reader.browser.open(f"{reader.site}/{name}-light.html")
    reader.see(f"document.querySelector('{button}').click()")
    assert not reader.see(shown)
    reader.see(f"document.querySelector('input[value=\"3\"]').click(); document.querySelector('{button}').click()")
    assert reader.see("document.querySelector('.nls-predict p').textContent").startswith("As you predicted.")


@pytest.mark.parametrize("name", FIGURES)
def test_without_scripts_the_page_says_it_in_words(reader, name):
    reader.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        reader.browser.open(f"{reader.site}/{name}-light.html")
    finally:
        text = reader.see("document.querySelector('.nls-live').innerText")
        reader.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "In words" in text
    assert len(text) > 700
    finding = re.search(r'nls-finding"><strong>([^<]{30,})', read_cells(name)[f"live-{name}"].source)[1]
    assert finding in text


def test_the_numbers_in_words_are_those_of_nls():
    words = {name: read_cells(name)[f"live-{name}"].source.replace("\N{MINUS SIGN}", "-") for name in FIGURES}
    for rate in (0.4, -0.4):
        own, other = nls.gls_targets(torch.tensor([0]), 10, rate)[0][:2].tolist()
        assert re.search(rf"target is {own:.2f}( for the label)? and {other:.2f}", words["rate"])
    assert f"least at m = {0.9 * np.log(0.64 / 0.04):.2f}" in words["rate"]
    clean = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    noisy = nls.noisy_posterior(clean, nls.symmetric_transition(3, 0.2))
    asked = nls.gls_posterior(noisy, 0.4)
    for posterior, digits in ((clean, 1), (noisy, 2), (asked, 3)):
        a, b, c = (f"{p:.{digits}f}" for p in posterior)
        assert f"{a}, {b} and {c}" in words["simplex"]
        assert f" {float(nls.entropy(posterior)):.3f} nats" in words["simplex"]
    assert f"The exact rate, {nls.optimal_smooth_rate(0.2, 3):.2f}," in words["simplex"]
    best = [f"{nls.optimal_smooth_rate(0.3, k, 0.1):.2f}" for k in (2, 10, 100)]
    assert "it is {} for two classes, {} for ten, and {} for a hundred".format(*best) in words["phase"]
    exact = [f"{nls.optimal_smooth_rate(e, 2):.2g}" for e in (0.4, 0.2)]
    assert f"{exact[0]} with 40 % noise, {exact[1]} with 20 %, 0 without" in words["boundary"]


def test_scripts_are_small_classic_and_ask_for_nothing():
    named = dict(LOADED["html_js_files"])
    own = [name for name in OWN if name.endswith(".js")]
    assert [name for name in named if name in own] == own, "the first is used by the others"
    assert set(OWN) - set(own) <= set(LOADED["html_css_files"])
    for name in own:
        script = (BOOK / "_web" / name).read_text()
        assert named[name] == {"defer": "defer"}
        assert len(script) < 10_000
        assert not re.search(r"^\s*(import|export)\b|fetch\(|XMLHttpRequest|eval\(", script, re.MULTILINE)
        assert set(re.findall(r"https?://[^\"'\s]+", script)) <= {"http://www.w3.org/2000/svg"}
