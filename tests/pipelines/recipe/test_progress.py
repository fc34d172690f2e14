"""Progress lines: counts, rate, time left."""

import io
from types import SimpleNamespace

import pytest

from pipelines.recipe.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (125, "2 min 05 s"), (12_000, "3 h 20 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_lines_tell_the_rate_and_what_is_left(monkeypatch):
    clock = iter([0.0, 10.0, 11.0, 40.0])
    monkeypatch.setattr(
        "pipelines.recipe.progress.time", SimpleNamespace(monotonic=lambda: next(clock))
    )
    stream = io.StringIO()
    progress = Progress(stream)
    for done in (0, 100, 110, 400):
        progress.update("train vae", done, 400, "images")
    lines = stream.getvalue().splitlines()
    assert lines == [
        "  train vae: 100/400 images (25%), 10 images/s, 30 s left",
        "  train vae: 400/400 images (100%), took 40 s",
    ]


def test_going_on_counts_only_what_was_done_now(monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(
        "pipelines.recipe.progress.time", SimpleNamespace(monotonic=lambda: next(clock))
    )
    stream = io.StringIO()
    progress = Progress(stream, every_s=0.0)
    progress.update("x", 500, 1000, "rows")
    progress.update("x", 600, 1000, "rows")
    assert stream.getvalue().splitlines() == [
        "  x: 500/1,000 rows (50%), starting",
        "  x: 600/1,000 rows (60%), 10 rows/s, 40 s left",
    ]
