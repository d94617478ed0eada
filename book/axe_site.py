"""Check every page of the site for barriers with axe-core, at desktop width in light and at phone width in dark.

    python book/axe_site.py axe.min.js [--out _build] [--pages index.html ...]

What two rules of the theme say of its own parts is known, and listed below; any other violation is a finding.
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

# The theme's own: a search button whose label is not its text, a code cell's summary that says "Show", and "Hide" by
# its style sheet, and a logo that stands outside of every landmark.
KNOWN = {
    "label-content-name-mismatch": ("search-button", "summary"),
    "region": ("logo__image",),
}

RUN = """(async () => {
  document.querySelectorAll("*").forEach(node => { node.style.transition = "none"; });
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  const found = await axe.run(document, {runOnly: {type: "tag", values: TAGS}, resultTypes: ["violations"]});
  return found.violations.flatMap(v =>
    v.nodes.map(n => [v.id, v.impact, n.target.flat().join(" "), n.html.slice(0, 160)]));
})()""".replace("TAGS", json.dumps(TAGS))


def is_known(rule: str, target: str, html: str) -> bool:
    """Tell whether a violation is one of the theme's.

    Args:
        rule: Its rule.
        target: The selector of the part.
        html: How the part begins.
    """
    return any(part in target or part in html for part in KNOWN.get(rule, ()))


def check(browser: Browser, site: str, page: str, view: str, scheme: str, axe: str) -> tuple[list[str], int]:
    """Run axe on one page.

    Args:
        browser: The browser.
        site: The site's address.
        page: The page.
        view: A key of WIDTHS.
        scheme: light or dark.
        axe: The text of axe.min.js.

    Returns:
        Findings, and how many violations are known ones.
    """
    phone = view == "phone"
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=WIDTHS[view], height=900, deviceScaleFactor=1, mobile=phone
    )
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(f"{site}/{page}")
    browser.evaluate(axe + "; true")
    violations = browser.evaluate(RUN)
    new = [v for v in violations if not is_known(v[0], v[2], v[3])]
    where = f"{page}, {view}, {scheme}"
    return [f"{where}: {rule} ({impact}) {target}: {html}" for rule, impact, target, html in new], len(
        violations
    ) - len(new)


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
    axe, start = args.axe.read_text(encoding="utf-8"), time.monotonic()
    pages, findings, known = args.pages or list_pages(html), [], 0
    with serve(html) as site, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            for page in pages:
                for view, scheme in VIEWS:
                    found, theirs = check(browser, site, page, view, scheme, axe)
                    findings, known = findings + found, known + theirs
        finally:
            browser.close()
    for finding in findings:
        print(finding)
    print(
        f"axe: {len(pages)} pages, {len(pages) * len(VIEWS)} loads, {len(findings)} findings, {known} known ones of "
        f"the theme, {time.monotonic() - start:.0f} s"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
