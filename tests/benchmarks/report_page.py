"""How long Chromium takes to open the report on 20 models, against the limit and the report on one model."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.browser import CHROMIUM, Tab, opened_browser
from tests.pipelines.jobs.pages import write_pages

MODELS, ROUNDS = 20, 11
LIMIT_S = 2.0
QUICK = {"MODELS": 2, "ROUNDS": 1}

_OPENED_MS = """new Promise(done => requestAnimationFrame(() => setTimeout(() => done(Math.max(
  performance.getEntriesByType("navigation")[0].loadEventEnd,
  ...performance.getEntriesByType("paint").map(paint => paint.startTime))))))"""
"""Milliseconds until the page and its pictures were loaded and it was painted."""


def _open_s(tab: Tab, page: Path) -> float:
    tab.open(page)
    return tab.evaluate(_OPENED_MS) / 1000


def bench() -> Iterator[dict[str, object]]:
    """Seconds to open; nothing where there is no browser."""
    if not CHROMIUM:
        print("Chromium is not installed (Debian: chromium)")
        return
    with TemporaryDirectory() as name, opened_browser(Path(name)) as tab:
        pages = []
        for models in (MODELS, 1):
            folder = Path(name) / str(models)
            folder.mkdir()
            write_pages(folder, models)
            pages.append(folder / "report.html")
        rounds = [[_open_s(tab, page) for page in pages] for _ in range(ROUNDS)]
    many, one = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    about = {"name": f"the report on {MODELS} models opens", "unit": "s", "ours": many}
    yield {**about, "peer": LIMIT_S, "peer_name": "limit", "ratio": many / LIMIT_S}
    yield {**about, "peer": one, "peer_name": "report on one model", "ratio": many / one}
