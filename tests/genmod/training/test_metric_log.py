"""The metric log: kills and resumes lose and double no point, and an hour costs few requests."""

from __future__ import annotations

import collections
import os
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from genmod import storage
from genmod.budget import BUDGET
from genmod.errors import StorageError
from genmod.storage import urls
from genmod.training import metric_log
from genmod.training.metric_log import (
    MetricFollower,
    MetricPoint,
    MetricWriter,
    flush_interval_s,
    read_metrics,
)

STEP = 10
"""Images between two points."""


def point(nimg: int, speed: float = 1.0) -> MetricPoint:
    return MetricPoint(nimg, {"train/fit/loss": nimg / 7}, {"images_per_s": speed})


def points(first: int, last: int) -> list[MetricPoint]:
    """Points at each multiple of ``STEP`` in [first, last]."""
    return [point(nimg) for nimg in range(first, last + 1, STEP)]


class Clock:
    """Seconds that pass only when a test says so."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=["file", "memory"])
def root(request, tmp_path) -> str:
    return str(tmp_path) if request.param == "file" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def short_segments(monkeypatch):
    monkeypatch.setattr(metric_log, "SEGMENT_POINTS", 4)


def read_to_the_end(follower: MetricFollower) -> list[MetricPoint]:
    """What a few reads return: the folder is listed again only after some without a new point."""
    return [each for _ in range(4) for each in follower.read()]


def write(root: str, nimg: int, new: list[MetricPoint]) -> None:
    """Resume at ``nimg`` and write points."""
    with MetricWriter(root, nimg) as log:
        for each in new:
            log.append(each)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 11])
def test_points_are_read_as_they_were_written(root, short_segments, count):
    written = points(STEP, count * STEP)
    write(root, 0, written)
    assert read_metrics(root) == written
    assert read_metrics(root, after_nimg=3 * STEP) == written[3:]
    folders = storage.list_names(storage.join(root, "metrics"))
    assert len(folders) == (count > 0)
    for folder in folders:
        names = storage.list_names(storage.join(root, "metrics", folder))
        assert names == [f"{number:06d}.jsonl" for number in range(-(-count // 4))]


def test_points_are_flushed_at_the_interval_and_on_request(root):
    clock = Clock()
    log = MetricWriter(root, 0, clock)
    written = points(STEP, 6 * STEP)
    log.append(written[0])
    assert read_metrics(root) == written[:1], "the first point is written at once"
    log.append(written[1])
    assert read_metrics(root) == written[:1]
    clock.now_s += flush_interval_s(root)
    log.append(written[2])
    assert read_metrics(root) == written[:3]
    log.append(written[3])
    log.flush(durable=True)
    assert read_metrics(root) == written[:4]
    log.append(written[4])
    with log:
        log.append(written[5])
    assert read_metrics(root) == written


@pytest.mark.parametrize("checkpoint", [0, 2, 4, 7, 8])
def test_a_log_that_is_cut_at_any_byte_resumes(tmp_path, short_segments, checkpoint):
    """What is beyond the checkpoint may be torn anywhere, and a follower has seen it before or not."""
    written = points(STEP, 10 * STEP)
    write(str(tmp_path / "straight"), 0, written)
    (folder,) = (tmp_path / "straight" / "metrics").iterdir()
    segments = [path.read_bytes() for path in sorted(folder.iterdir())]
    for number in range(checkpoint // 4, len(segments)):
        kept = segments[number].splitlines(keepends=True)[: max(0, checkpoint - 4 * number)]
        for cut in range(len(b"".join(kept)), len(segments[number]) + 1):
            root = str(tmp_path / f"{number}-{cut}")
            for index, data in enumerate((*segments[:number], segments[number][:cut])):
                url = storage.join(root, "metrics", folder.name, f"{index:06d}.jsonl")
                storage.write_bytes(url, data)
            follower = MetricFollower(root)
            seen = follower.read()
            write(root, checkpoint * STEP, written[checkpoint:])
            assert read_metrics(root) == written
            assert seen + read_to_the_end(follower) == written


def test_a_follower_changes_to_a_training_that_resumes(root, short_segments):
    written = points(STEP, 20 * STEP)
    follower = MetricFollower(root)
    assert follower.read() == []
    write(root, 0, written[:10])
    assert follower.read() == written[:10]
    write(root, 3 * STEP, [])
    assert follower.read() == []
    write(root, 3 * STEP, written[3:6])
    assert follower.read() == []
    write(root, 6 * STEP, written[6:])
    assert read_to_the_end(follower) == written[10:]
    assert read_metrics(root) == written


def test_another_cadence_after_a_resume_adds_its_points(root):
    write(root, 0, points(STEP, 9 * STEP))
    other = [point(nimg) for nimg in (65, 80, 95)]
    write(root, 6 * STEP, other)
    both = {each.nimg: each for each in (*points(STEP, 9 * STEP), *other)}
    assert read_metrics(root) == [both[nimg] for nimg in sorted(both)]


@pytest.mark.parametrize("order", ["old first", "new first"])
def test_a_worker_that_outlives_its_driver_does_no_harm(root, short_segments, order):
    """It appends and rewrites segments while the resumed training writes the same points."""
    written, clock = points(STEP, 20 * STEP), Clock()
    old = MetricWriter(root, 0, clock)
    for each in written[:6]:
        old.append(each)
    old.flush()
    follower, seen = MetricFollower(root), []
    new = MetricWriter(root, 4 * STEP, clock)
    for number in range(4, 20):
        writes = [(old, number + 2), (new, number)]
        for log, index in writes if order == "old first" else writes[::-1]:
            if index < 20:
                log.append(written[index])
                log.flush()
            seen += follower.read()
    assert seen + read_to_the_end(follower) == written
    assert read_metrics(root) == written


BROKEN = {
    "zeros": b"\0" * 40,
    "no json": b'{"nimg": 40, "metrics"',
    "a list": b"[40, {}, {}]",
    "no number": b'{"nimg": null, "metrics": {}, "timing": {}}',
    "negative": b'{"nimg": -40, "metrics": {}, "timing": {}}',
    "absurd": b'{"nimg": 1000000000000000, "metrics": {}, "timing": {}}',
    "NaN": b'{"nimg": 40, "metrics": {"loss": NaN}, "timing": {}}',
    "overflow": b'{"nimg": 40, "metrics": {"loss": 1e999}, "timing": {}}',
    "text": b'{"nimg": 40, "metrics": {"loss": "low"}, "timing": {}}',
    "name": b'{"nimg": 40, "metrics": {"\\u001b[2J": 1.0}, "timing": {}}',
    "long name": b'{"nimg": 40, "metrics": {"' + b"a" * 300 + b'": 1.0}, "timing": {}}',
    "missing": b'{"nimg": 40, "metrics": {}}',
    "more": b'{"nimg": 40, "metrics": {}, "timing": {}, "more": 1}',
    "deep": b"[" * 10_000,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_skipped_and_reported_once(broken, tmp_path, caplog):
    write(str(tmp_path), 0, points(STEP, 5 * STEP))
    (path,) = (tmp_path / "metrics").glob("*/000000.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    bad = BROKEN[broken] + b"\n"
    path.write_bytes(b"".join((*lines[:3], bad, *lines[3:], bad)))
    follower = MetricFollower(str(tmp_path))
    assert read_to_the_end(follower) == points(STEP, 5 * STEP)
    assert caplog.text.count("broken line") == 1
    assert f"{path}, line 4" in caplog.text


def test_a_log_without_end_is_not_read(tmp_path, caplog):
    write(str(tmp_path), 0, points(STEP, STEP))
    (path,) = (tmp_path / "metrics").glob("*/000000.jsonl")
    os.truncate(path, BUDGET.document_bytes + 1)
    follower = MetricFollower(str(tmp_path))
    assert [follower.read() for _ in range(5)] == [[]] * 5
    assert caplog.text.count("is longer than") == 1


def test_broken_lines_count_towards_a_full_segment(tmp_path, short_segments):
    write(str(tmp_path), 0, points(STEP, 6 * STEP))
    path = next((tmp_path / "metrics").glob("*/000000.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join((b"{}\n", *lines[1:])))
    assert read_metrics(str(tmp_path)) == points(2 * STEP, 6 * STEP)


def test_only_folders_of_a_training_are_read(tmp_path):
    write(str(tmp_path), 0, points(STEP, 2 * STEP))
    (tmp_path / "metrics" / "copy").mkdir()
    (tmp_path / "metrics" / "copy" / "000000.jsonl").write_text(
        '{"nimg": 99, "metrics": {}, "timing": {}}\n'
    )
    assert read_metrics(str(tmp_path)) == points(STEP, 2 * STEP)


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "metrics").write_bytes(b"not a folder")
    with pytest.raises(
        StorageError, match=r"cannot write the metrics at 10 images to \S+metrics/\S+ \("
    ):
        MetricWriter(str(tmp_path), 0).append(point(STEP))


class Counting(MemoryFileSystem):
    """A store in memory that counts its requests."""

    protocol = "counting"
    store: dict = {}
    pseudo_dirs = [""]
    requests: collections.Counter[str] = collections.Counter()

    def pipe_file(self, *arguments, **options):
        Counting.requests["put"] += 1
        return super().pipe_file(*arguments, **options)

    def cat_file(self, *arguments, **options):
        Counting.requests["get"] += 1
        return super().cat_file(*arguments, **options)

    def ls(self, *arguments, **options):
        Counting.requests["list"] += 1
        return super().ls(*arguments, **options)

    def rm(self, *arguments, **options):
        Counting.requests["delete"] += 1
        return super().rm(*arguments, **options)


@pytest.mark.parametrize("points_per_s", [0.2, 1, 5])
def test_an_hour_of_training_on_a_store_costs_few_requests(points_per_s, monkeypatch):
    """Writer and follower together, with a checkpoint each five minutes and the reads at the end."""
    monkeypatch.setattr(urls, "SCHEMES", (*urls.SCHEMES, "counting"))
    fsspec.register_implementation("counting", Counting, clobber=True)
    Counting.requests.clear()
    root, clock = f"counting://{uuid.uuid4().hex}", Clock()
    written = [point(nimg) for nimg in range(1, int(3600 * points_per_s) + 1)]
    follower, seen = MetricFollower(root), []
    followed_s = saved_s = clock.now_s
    with MetricWriter(root, 0, clock) as log:
        for each in written:
            clock.now_s += 1 / points_per_s
            log.append(each)
            if clock.now_s - saved_s >= 300:
                log.flush(durable=True)
                saved_s = clock.now_s
            while clock.now_s - followed_s >= flush_interval_s(root):
                followed_s += flush_interval_s(root)
                seen += follower.read()
    seen += follower.read()
    assert seen == read_metrics(root) == written
    assert Counting.requests["list"] <= 75
    assert sum(Counting.requests.values()) <= 450, Counting.requests
