"""Pages with the interactive figures, and a reader who presses, drags and looks.

Each page holds the markup of one notebook, the scripts and styles of the figures and those of the theme, so no built
book is needed. Chromium is driven through book/browse_site.py.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

markdown_it = pytest.importorskip("markdown_it", reason="the pages are made with the book's own packages")
pydata_sphinx_theme = pytest.importorskip("pydata_sphinx_theme", reason="the pages wear the book's theme")

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK))  # the pipeline is a folder of scripts, not a package

import browse_site  # noqa: E402
import parameters  # noqa: E402

FIGURES = {
    "rate": "01_smooth_rate",
    "simplex": "03_posterior_entropy",
    "phase": "04_best_rate",
    "boundary": "10_boundaries",
}
OWN = ["css/book.css", "css/figures.css", *(f"js/{name}.js" for name in ("figures", *FIGURES))]
LOADED = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, " ": 32, "Tab": 9}


def read_cells(name):
    """The cells of the notebook that shows a figure, by their ids."""
    return {cell.id: cell for cell in parameters.read_notebook(BOOK / "notebooks" / f"{FIGURES[name]}.ipynb").cells}


def write_pages(folder, data):
    """Write a page for each figure and scheme."""
    for part in ("css", "js"):
        shutil.copytree(BOOK / "_web" / part, folder / part)
    styles = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static/styles"
    sheets = ["theme.css", "bootstrap.css", "pydata-sphinx-theme.css"]
    for sheet in sheets:  # their pictures and fonts are the theme's affair
        text = re.sub(r"@import[^;]*;", "", (styles / sheet).read_text())
        text = re.sub(r"url\([^)]*\)", "none", text)
        (folder / sheet).write_text(re.sub(r"@font-face\s*{[^}]*}", "", text))
    head = '<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">'
    styled = sheets + [sheet for sheet in LOADED["html_css_files"] if sheet in OWN]
    head += "".join(f'<link rel="stylesheet" href="{sheet}">' for sheet in styled)
    scripts = [(file, how) for file, how in LOADED["html_js_files"] if file in OWN]
    head += "".join(f'<script src="{file}" {" ".join(how)}></script>' for file, how in scripts)
    for name in FIGURES:
        body = markdown_it.MarkdownIt().render(read_cells(name)[f"live-{name}"].source)
        for scheme in browse_site.SCHEMES:
            (folder / f"{name}-{scheme}.html").write_text(
                f'<!DOCTYPE html><html lang="en" data-theme="{scheme}"><head><meta charset="utf-8">{head}'
                f'<title>{name}</title></head><body><main><article class="bd-article">'
                f"{data if name == 'boundary' else ''}{body}</article></main></body></html>"
            )


class Reader:
    """A reader of the pages, who presses, drags and looks."""

    def __init__(self, browser, site):
        self.browser, self.site = browser, site
        self.see, self.call = browser.evaluate, browser.call

    def open(self, name, view="desktop", scheme="light", committed=True):
        width, phone = browse_site.WIDTHS[view], view == "phone"
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.browser.open(f"{self.site}/{name}-{scheme}.html")
        self.see("localStorage.clear()")
        if not committed:
            self.browser.open(f"{self.site}/{name}-{scheme}.html")

    def set(self, **values):
        """Move sliders to values, by the start of their labels."""
        for label, value in values.items():
            self.see(
                f"""(() => {{ const label = [...document.querySelectorAll(".nls-slider label")].find(
                    node => node.textContent.startsWith({json.dumps(label.replace("_", " "))}));
                  label.control.value = {value}; label.control.dispatchEvent(new Event("input")); }})()"""
            )

    def read(self, *keys):
        """Read exact numbers; texts such as "none" stay texts."""
        found = [self.see(f"document.querySelector('[data-key=\"{key}\"]').dataset.value") for key in keys]
        return [json.loads(text) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text) else text for text in found]

    def press(self, key, times=1):
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def centre(self, selector):
        """Scroll something into view and return where its middle is."""
        return self.see(
            f"""(() => {{ const node = document.querySelector({json.dumps(selector)});
              node.scrollIntoView({{block: "center", behavior: "instant"}}); const box = node.getBoundingClientRect();
              return [box.left + box.width / 2, box.top + box.height / 2]; }})()"""
        )

    def drag(self, x, y, dx, dy):
        """Move a finger from one place to another."""
        for kind, points in (
            ("touchStart", [{"x": x, "y": y}]),
            ("touchMove", [{"x": x + dx / 2, "y": y + dy / 2}]),
            ("touchMove", [{"x": x + dx, "y": y + dy}]),
            ("touchEnd", []),
        ):
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


LABELS = """(() => { const bad = [];
  for (const node of document.querySelectorAll(".nls-live :is(input, button, svg, [tabindex])")) {
    const name = node.getAttribute("aria-label") || node.labels?.[0]?.textContent || node.textContent;
    if (node.ownerSVGElement && node.tagName === "svg") continue;  // a part of a drawing
    if (!name || name.trim().length < 5) bad.push(node.outerHTML.slice(0, 80));
    if (node.tagName === "svg" && !node.getAttribute("role")) bad.push("a drawing without a role");
    if (node.getAttribute("role") === "slider" && !["now", "min", "max", "text"].every(
        part => node.hasAttribute("aria-value" + part))) bad.push("a handle without a value");
  }
  const ids = [...document.querySelectorAll("[id]")].map(node => node.id);
  return bad.concat(ids.filter((id, n) => ids.indexOf(id) !== n)); })()"""

CONTRAST = """(() => { const bad = [];
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce(
    (sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = node => { const found = channels(getComputedStyle(node).backgroundColor);
    return (found[3] ?? 1) === 1 ? found : node.parentElement ? ground(node.parentElement) : [255, 255, 255]; };
  let count = 0;
  const texts = "legend, label, p, dt, dd, th, td, caption, button, span, strong, text";
  for (const node of document.querySelectorAll(`.nls-live :is(${texts})`)) {
    if (!node.textContent.trim() || !node.getBoundingClientRect().width) continue;
    const style = getComputedStyle(node), shown = channels(node.tagName === "text" ? style.fill : style.color);
    const [a, b] = [light(shown), light(ground(node))].sort((x, y) => y - x);
    count++;
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(node.textContent.trim().slice(0, 30) + " " + (a + 0.05) / (b + 0.05));
  }
  return count > 15 ? bad : ["too little text: " + count]; })()"""
