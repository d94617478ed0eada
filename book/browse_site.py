"""Open every page of the site in Chromium, at two widths, light and dark; save screenshots and check what happens.

    python book/browse_site.py [--out _build]

A page passes if it requests nothing off the site, logs no error, throws none, typesets its maths, shows one search
button, and nothing sticks out sideways on a phone; the first page must be light, too. Chromium is driven over
--remote-debugging-pipe, which needs nothing but the standard library: messages of the DevTools protocol, as JSON, each
ended by a zero byte.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",  # the only pages opened are the site's own
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
]
WIDTHS = {"desktop": 1440, "phone": 390}
SCHEMES = ("light", "dark")
TALLEST = 16000  # Chromium cannot draw a taller picture
PATIENCE = 60.0  # seconds for any one answer
FIRST_PAGE_BYTES = 1_000_000  # what a reader on a phone waits for
# A visitor who does not want to predict first: the answers are to be checked, too.
UNASKED = "try { localStorage.setItem('nls-prediction:ask', 'no') } catch {}"

# Becomes the browser, after making the pipe's ends the descriptors 3 and 4, where the browser expects them.
CONNECT = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])"""

# Resolves once fonts and maths are in place, to what the checks need.
PROBE = """(async () => {
  const still = document.createElement("style");
  still.textContent = "*, *::before, *::after { transition: none !important; }";  // else a sidebar is seen half-way
  document.head.append(still);
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  await new Promise(done => setTimeout(done, 100));
  const page = document.documentElement, width = page.clientWidth, wide = [];
  const scrolls = node => node && node !== document.body &&
    (["auto", "scroll"].includes(getComputedStyle(node).overflowX) || scrolls(node.parentElement));
  for (const node of document.querySelectorAll("article *")) {
    const box = node.getBoundingClientRect();
    if (box.width && box.right > width + 1 && getComputedStyle(node).visibility !== "hidden" && !scrolls(node))
      wide.push(node.tagName.toLowerCase() + "." + node.className + " ends at " + Math.round(box.right));
  }
  const shown = [...document.querySelectorAll(".search-button, .search-button-field")].filter(n => n.offsetParent);
  return {
    scrollWidth: page.scrollWidth, width, wide: wide.slice(0, 3), height: page.scrollHeight,
    raw: [...document.querySelectorAll(".math")].filter(n => !n.querySelector("mjx-container")).length,
    theme: page.dataset.theme, searches: shown.length,
  };
})()"""


class Browser:
    """A headless Chromium with one page."""

    def __init__(self, program: str, profile: str, patience: float = PATIENCE) -> None:
        self._buffer, self._count, self._session, self.events = b"", 0, None, []
        self._patience = patience
        browser_in, self._write = os.pipe()
        self._read, browser_out = os.pipe()
        command = [sys.executable, "-c", CONNECT, str(browser_in), str(browser_out), program, *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(browser_in, browser_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_in)
        os.close(browser_out)
        try:
            targets = self.call("Target.getTargets")["targetInfos"]
            target = next(t["targetId"] for t in targets if t["type"] == "page")
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            self.call("Page.setLifecycleEventsEnabled", enabled=True)
        except BaseException:
            self.close()
            raise

    def _receive(self) -> dict:
        """Read one message."""
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], self._patience)[0]:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self._read, 2**20)
            if not chunk:
                raise ConnectionError("the browser has ended")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params) -> dict:
        """Call a method of the DevTools protocol; events that arrive meanwhile are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, address: str) -> None:
        """Open an address and wait until it has loaded; earlier events are dropped."""
        self.events.clear()
        loader = self.call("Page.navigate", url=address)["loaderId"]
        deadline = time.monotonic() + self._patience
        while not any(self._ends_load(event, loader) for event in self.events):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{address} does not load")
            self.events.append(self._receive())

    @staticmethod
    def _ends_load(event: dict, loader: str) -> bool:
        """Tell whether an event says that this one navigation has loaded everything."""
        params = event.get("params", {})
        return (
            event.get("method") == "Page.lifecycleEvent" and params["name"] == "load" and params["loaderId"] == loader
        )

    def evaluate(self, expression: str):
        """Evaluate JavaScript on the page, awaiting a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "script failed"))
        return answer["result"].get("value")

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def list_pages(html: Path) -> list[str]:
    """Return the pages of a site, relative to its folder, without the theme's templates."""
    pages = sorted(p.relative_to(html).as_posix() for p in html.rglob("*.html"))
    return [page for page in pages if not page.startswith("_static/")]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that logs nothing."""

    def log_message(self, *arguments) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine.

    Args:
        folder: The site.

    Yields:
        The address, without a trailing slash.
    """
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def read_events(events: list[dict], site: str) -> list[str]:
    """Find what a page load must not do.

    Args:
        events: Events of the DevTools protocol.
        site: The site's own address.

    Returns:
        Requests off the site, console errors, page errors and failed requests.
    """
    findings = []
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith((site + "/", "data:", "blob:", "about:")):
                findings.append(f"external request: {url}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            said = " ".join(str(a.get("value", a.get("description", ""))) for a in params["args"])
            findings.append(f"console error: {said}")
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            findings.append(f"console error: {params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            findings.append(f"page error: {details.get('exception', {}).get('description', details['text'])}")
    return findings


def weigh(events: list[dict], site: str, html: Path) -> int:
    """Add up what a page load requests, as if nothing was in the cache and nothing compressed.

    Args:
        events: Events of the DevTools protocol.
        site: The site's own address.
        html: The site's folder.

    Returns:
        Bytes of the page and of all files that it requests, each counted once.
    """
    asked = (e["params"]["request"]["url"] for e in events if e.get("method") == "Network.requestWillBeSent")
    names = {unquote(urlsplit(url).path).lstrip("/") for url in asked if url.startswith(site + "/")}
    return sum((html / name).stat().st_size for name in names if (html / name).is_file())


def report_weights(weights: dict[str, int]) -> list[str]:
    """Print how heavy the pages are, the heaviest ones and the first.

    Args:
        weights: Page -> bytes.

    Returns:
        A finding if the first page is too heavy.
    """
    heaviest = sorted(weights, key=weights.get, reverse=True)[:5]
    for page in [*heaviest, *(["index.html"] if "index.html" not in heaviest else [])]:
        print(f"{weights[page] / 1e6:6.2f} MB  {page}")
    first = weights["index.html"]
    return [f"index.html: {first} bytes, more than {FIRST_PAGE_BYTES}"] if first > FIRST_PAGE_BYTES else []


def visit(browser: Browser, site: str, page: str, view: str, scheme: str, folder: Path) -> list[str]:
    """Open one page in one way, save its screenshot and check it.

    Args:
        browser: The browser.
        site: The site's address.
        page: The page, relative to the site.
        view: A key of WIDTHS.
        scheme: light or dark.
        folder: Where the screenshot goes.

    Returns:
        Findings.
    """
    width, phone = WIDTHS[view], view == "phone"
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(f"{site}/{page}")
    found = browser.evaluate(PROBE)
    picture = browser.call(
        "Page.captureScreenshot",
        captureBeyondViewport=True,
        clip={"x": 0, "y": 0, "width": width, "height": min(found["height"], TALLEST), "scale": 1},
    )
    name = page.removesuffix(".html").replace("/", "-")
    (folder / f"{name}-{view}-{scheme}.png").write_bytes(base64.b64decode(picture["data"]))
    findings = read_events(browser.events, site)
    if found["theme"] != scheme:
        findings.append(f"shows the {found['theme']} theme")
    if found["raw"]:
        findings.append(f"{found['raw']} formulas are not typeset")
    if found["searches"] != 1:
        findings.append(f"{found['searches']} search buttons are visible")
    if phone and (found["scrollWidth"] > width or found["width"] > width or found["wide"]):
        findings.append(f"sticks out sideways: {found['scrollWidth']} of {width} px; {'; '.join(found['wide'])}")
    return [f"{page}, {view}, {scheme}: {finding}" for finding in findings]


def check_search(browser: Browser, site: str, word: str) -> list[str]:
    """Search for a word that the book contains.

    Args:
        browser: The browser.
        site: The site's address.
        word: The word.

    Returns:
        Findings.
    """
    browser.open(f"{site}/search.html?q={word}")
    hits = browser.evaluate(
        "new Promise(done => { const end = Date.now() + 5000; const look = () => {"
        " const hits = document.querySelectorAll('ul.search li').length;"
        " hits || Date.now() > end ? done(hits) : setTimeout(look, 100) }; look() })"
    )
    findings = read_events(browser.events, site)
    return [f"search.html: {finding}" for finding in findings + ([] if hits else [f"no result for {word}"])]


def main(arguments: list[str] | None = None) -> int:
    """Check the site of a build folder.

    Args:
        arguments: The arguments; those of the process by default.

    Returns:
        The exit status: 0, 1 where there are findings, 2 where there is no browser or no site.
    """
    parser = argparse.ArgumentParser(description="Check the site in Chromium.")
    parser.add_argument("--out", type=Path, default=Path("_build"), help="build folder (default: _build)")
    parser.add_argument("--search", default="smoothing", help="a word that the search must find")
    args = parser.parse_args(arguments)
    html, folder = args.out / "html", args.out / "screenshots"
    program = find_browser()
    if program is None:
        print(f"site-check needs a browser on the PATH: {', '.join(BROWSERS)}", file=sys.stderr)
        return 2
    if not (html / "index.html").exists():
        print(f"{html}: no site; run `make book`", file=sys.stderr)
        return 2
    pages = list_pages(html)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    findings, weights, start = [], {}, time.monotonic()
    with serve(html) as site, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            browser.call("Page.addScriptToEvaluateOnNewDocument", source=UNASKED)
            for page in pages:
                for view in WIDTHS:
                    for scheme in SCHEMES:
                        findings += visit(browser, site, page, view, scheme, folder)
                        weights[page] = max(weights.get(page, 0), weigh(browser.events, site, html))
            findings += check_search(browser, site, args.search)
        finally:
            browser.close()
    findings += report_weights(weights)
    loads = len(pages) * len(WIDTHS) * len(SCHEMES)
    external = sum("external request" in f for f in findings)
    errors = sum("console error" in f or "page error" in f for f in findings)
    for finding in findings:
        print(finding)
    print(
        f"{len(pages)} pages, {loads} loads, {external} external requests, {errors} console or page errors, "
        f"{len(findings)} findings, {time.monotonic() - start:.0f} s; screenshots in {folder}"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
