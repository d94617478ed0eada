"""Check every page of the site for barriers with axe-core, at desktop width in light and at phone width in dark.

    python book/axe_site.py axe.min.js [--out _build] [--pages index.html ...]

Any violation is a finding, the theme's own as well: book/_templates mends what it breaks.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from browse_site import WIDTHS, Browser, find_browser, list_pages, serve

VIEWS = (("desktop", "light"), ("phone", "dark"))
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice")

RUN = """(async () => {
  document.querySelectorAll("*").forEach(node => { node.style.transition = "none"; });
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  const found = await axe.run(document, {runOnly: {type: "tag", values: TAGS}, resultTypes: ["violations"]});
  return found.violations.flatMap(v =>
    v.nodes.map(n => [v.id, v.impact, n.target.flat().join(" "), n.html.slice(0, 160)]));
})()""".replace("TAGS", json.dumps(TAGS))


def check(browser: Browser, site: str, page: str, view: str, scheme: str, axe: str) -> list[str]:
    """Run axe on one page.

    Args:
        browser: The browser.
        site: The site's address.
        page: The page.
        view: A key of WIDTHS.
        scheme: light or dark.
        axe: The text of axe.min.js.

    Returns:
        Findings.
    """
    phone = view == "phone"
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=WIDTHS[view], height=900, deviceScaleFactor=1, mobile=phone
    )
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(f"{site}/{page}")
    browser.evaluate(axe + "; true")
    where = f"{page}, {view}, {scheme}"
    return [f"{where}: {rule} ({impact}) {target}: {html}" for rule, impact, target, html in browser.evaluate(RUN)]


def main(arguments: list[str] | None = None) -> int:
    """Check the site of a build folder.

    Args:
        arguments: The arguments; those of the process by default.

    Returns:
        The exit status: 0, 1 where there are findings, 2 where something needed is missing.
    """
    parser = argparse.ArgumentParser(description="Check the site with axe-core.")
    parser.add_argument("axe", type=Path, help="axe.min.js")
    parser.add_argument("--out", type=Path, default=Path("_build"), help="build folder (default: _build)")
    parser.add_argument("--pages", nargs="+", help="pages, relative to the site; all by default")
    args = parser.parse_args(arguments)
    html, program = args.out / "html", find_browser()
    for missing, what in ((not args.axe.is_file(), f"{args.axe}"), (not (html / "index.html").exists(), f"{html}")):
        if missing:
            print(f"axe-check needs {what}, which is missing", file=sys.stderr)
            return 2
    if program is None:
        print("axe-check needs Chromium on the PATH", file=sys.stderr)
        return 2
    if unknown := sorted(set(args.pages or ()) - set(list_pages(html))):
        print(f"axe-check: no such page in {html}: {', '.join(unknown)}", file=sys.stderr)
        return 2
    axe, start = args.axe.read_text(encoding="utf-8"), time.monotonic()
    pages, findings = args.pages or list_pages(html), []
    with serve(html) as site, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            for page in pages:
                for view, scheme in VIEWS:
                    findings += check(browser, site, page, view, scheme, axe)
        finally:
            browser.close()
    for finding in findings:
        print(finding)
    print(
        f"axe: {len(pages)} pages, {len(pages) * len(VIEWS)} loads, {len(findings)} findings, "
        f"{time.monotonic() - start:.0f} s"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
