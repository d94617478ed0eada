"""The check for barriers: every violation is a finding, and axe is really asked."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "book"))  # the pipeline is a folder of scripts, not a package
import axe_site
from browse_site import find_browser

# In place of axe: it reports what the page itself says.
STAND_IN = """window.axe = {run: async () => ({violations: [...document.querySelectorAll("[data-rule]")].map(node => ({
  id: node.dataset.rule, impact: "serious", nodes: [{target: [node.className], html: node.outerHTML}]}))})};"""


def test_what_is_missing_is_named(tmp_path, capsys):
    assert axe_site.main([str(tmp_path / "axe.min.js"), "--out", str(tmp_path)]) == 2
    assert "axe.min.js" in capsys.readouterr().err
    (tmp_path / "axe.min.js").write_text(STAND_IN)
    assert axe_site.main([str(tmp_path / "axe.min.js"), "--out", str(tmp_path)]) == 2
    assert "html, which is missing" in capsys.readouterr().err


def test_a_page_that_is_not_there_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(axe_site, "find_browser", lambda: "never started")
    (tmp_path / "axe.min.js").write_text(STAND_IN)
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "index.html").write_text("<p>text</p>")
    asked = ["--pages", "index.html", "notebooks/nowhere.html"]
    assert axe_site.main([str(tmp_path / "axe.min.js"), "--out", str(tmp_path), *asked]) == 2
    said = capsys.readouterr().err
    assert "no such page in" in said
    assert said.strip().endswith(": notebooks/nowhere.html")


@pytest.mark.skipif(find_browser() is None, reason="no Chromium on the PATH")
@pytest.mark.parametrize(("rule", "status", "findings"), [("region", 1, 2), ("", 0, 0)])
def test_a_violation_on_a_page_is_found_in_both_views(rule, status, findings, tmp_path, capsys):
    (tmp_path / "axe.min.js").write_text(STAND_IN)
    (tmp_path / "html").mkdir()
    part = f'<p class="ours" data-rule="{rule}">text</p>' if rule else "<p>text</p>"
    page = f'<!doctype html><html lang="en"><title>t</title>{part}<img class="logo__image"></html>'
    (tmp_path / "html" / "index.html").write_text(page)
    assert axe_site.main([str(tmp_path / "axe.min.js"), "--out", str(tmp_path)]) == status
    said = capsys.readouterr().out
    assert f"1 pages, 2 loads, {findings} findings, " in said
    assert ("index.html, phone, dark: region (serious) ours" in said) is bool(rule)
