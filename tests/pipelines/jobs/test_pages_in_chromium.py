"""The report and the page of a decision in headless Chromium. Screenshots stay in the temporary folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, opened_browser
from tests.pipelines.jobs.pages import write_pages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (Debian: chromium)"),
]

AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core")) / "axe.min.js"
"""npm's axe-core, which checks whether people with disabilities can use a page."""

PAGES = ("report", "decision")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report on three models, and the page of a decision against a champion."""
    folder = tmp_path_factory.mktemp("pages")
    write_pages(folder, models=3)
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with opened_browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("view", "width"), [("light", 1280), ("dark", 1280), ("phone", 390)])
def test_a_page_fits_its_window_and_asks_for_nothing(pages, tab, name, view, width):
    tab.open(pages / f"{name}.html", width=width, dark=view == "dark")
    tab.screenshot(pages / f"{name}-{view}.png")
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= width
    assert tab.requests() == []
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(19, 20, 23)" if view == "dark" else "rgb(251, 251, 250)")
    broken = "[...document.images].filter(image => !image.naturalWidth).length"
    assert tab.evaluate(broken) == 0


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_printed(pages, tab, name):
    tab.open(pages / f"{name}.html")
    printed = tab.pdf()
    (pages / f"{name}.pdf").write_bytes(printed)
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Type /Page\n") > 1


@pytest.mark.skipif(
    not AXE.is_file(), reason=f"{AXE} is missing (npm pack axe-core; AXE_CORE names its folder)"
)
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(pages, tab, name, dark):
    tab.open(pages / f"{name}.html", dark=dark)
    tab.evaluate(AXE.read_text())
    found = json.loads(tab.evaluate("axe.run().then(r => JSON.stringify(r.violations))"))
    serious = [
        (rule["id"], [node["html"] for node in rule["nodes"]])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_a_request_and_a_wide_page_are_noticed(tab, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><p style="width: 2000px">wide</p>')
    tab.open(page, width=390)
    assert tab.requests() == ["http://127.0.0.1:9/x.png"]
    assert tab.evaluate("document.scrollingElement.scrollWidth") > 390
