"""The metric log: rank 0 appends what training measures, the driver follows it while training runs.

    metrics/000000.jsonl    the first ``SEGMENT_POINTS`` points, one JSON object a line
    metrics/000001.jsonl    the next ones; only the last segment is shorter

Local segments are appended to. Object stores cannot append, so there the last segment is rewritten, every
20 s at most. Both sides address segments by name and list nothing, so an hour of training costs a few
hundred requests. A line without its newline is unfinished, and readers ignore it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from fsspec.implementations.local import LocalFileSystem

from genmod import storage
from genmod.config import canonical_json
from genmod.errors import StorageError
from genmod.training.writer import storage_errors

METRICS_FOLDER = "metrics"
"""Folder of the metric log below a model's root."""

SEGMENT_POINTS = 1024
"""Points of a full segment."""

_LOCAL_FLUSH_S = 1.0
_STORE_FLUSH_S = 20.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricPoint:
    """What was measured after ``nimg`` images."""

    nimg: int
    metrics: Mapping[str, float]
    """Deterministic values: a resumed training measures the same ones."""
    timing: Mapping[str, float]
    """Speeds and durations, which differ from run to run."""


def flush_interval_s(root: str) -> float:
    """Seconds between two flushes of the metric log below ``root``: 1 on local files, 20 on a store."""
    return _LOCAL_FLUSH_S if _local_path(root) is not None else _STORE_FLUSH_S


def read_metrics(root: str, after_nimg: int = -1) -> list[MetricPoint]:
    """All points of a model's metric log with ``nimg > after_nimg``, in order, each once.

    A worker that outlives a killed driver may append for a while. Its points equal those of the resumed
    training, so of several with the same ``nimg`` the last one counts.
    """
    points: dict[int, MetricPoint] = {}
    number = 0
    while segment := _read_segment(root, number):
        points |= {point.nimg: point for point in segment if point.nimg > after_nimg}
        if len(segment) < SEGMENT_POINTS:
            break
        number += 1
    return [points[nimg] for nimg in sorted(points)]


class MetricWriter:
    """Appends points to a model's metric log. For rank 0 alone.

    Points beyond ``nimg`` are dropped first: training goes on from there and measures them again.

    Args:
        root: URL of the model's folder.
        nimg: images seen where training starts, that is, at its newest checkpoint.
        clock: monotonic seconds.

    Raises:
        StorageError: the log cannot be read or written.
    """

    def __init__(self, root: str, nimg: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._interval_s = flush_interval_s(root)
        self._flushed_s: float | None = None
        self._pending: list[bytes] = []
        self._last_nimg = nimg
        with storage_errors(self._folder, f"the metrics up to {nimg:,} images"):
            self._number, self._lines = self._truncate(nimg)
        self._durable = True

    def append(self, point: MetricPoint) -> None:
        """Add a point; it is written at once or, within the flush interval, later.

        Raises:
            StorageError: the log cannot be written.
        """
        values = {"nimg": point.nimg, "metrics": point.metrics, "timing": point.timing}
        self._pending.append(canonical_json(values) + b"\n")
        self._last_nimg = point.nimg
        now_s = self._clock()
        if self._flushed_s is None or now_s - self._flushed_s >= self._interval_s:
            self.flush()

    def flush(self, durable: bool = False) -> None:
        """Write all points that are pending.

        Args:
            durable: also sync local files to disk, so that the points survive a power cut.

        Raises:
            StorageError: the log cannot be written.
        """
        self._flushed_s = self._clock()
        with storage_errors(self._folder, f"the metrics at {self._last_nimg:,} images"):
            while self._pending:
                taken = self._pending[: SEGMENT_POINTS - len(self._lines)]
                self._write(taken)
                self._lines += taken
                del self._pending[: len(taken)]
                if len(self._lines) == SEGMENT_POINTS:
                    self._sync()
                    self._number, self._lines = self._number + 1, []
            if durable:
                self._sync()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush the last points. After an error of training, a storage error is only logged."""
        try:
            self.flush(durable=True)
        except StorageError as late:
            if error is None:
                raise
            if not isinstance(error, StorageError):
                logger.warning("the last metrics are lost: %s", late)

    @property
    def _folder(self) -> str:
        return storage.join(self._root, METRICS_FOLDER)

    def _truncate(self, nimg: int) -> tuple[int, list[bytes]]:
        """Drop points beyond ``nimg``, the last segment first; then the open segment's number and lines."""
        names = [name for name in storage.list_names(self._folder) if _is_segment(name)]
        for name in reversed(names):
            url = storage.join(self._folder, name)
            data = storage.read_bytes(url)
            lines = [line for line, point in _parse(data) if point.nimg <= nimg]
            if not lines:
                storage.remove(url)
                continue
            if b"".join(lines) != data:
                storage.write_bytes(url, b"".join(lines))
            number = int(name.partition(".")[0])
            return (number + 1, []) if len(lines) == SEGMENT_POINTS else (number, lines)
        return 0, []

    def _write(self, lines: list[bytes]) -> None:
        """Append lines to the open segment: to a local file, or by rewriting an object."""
        url = _segment_url(self._root, self._number)
        path = _local_path(url)
        if path is None:
            storage.write_bytes(url, b"".join((*self._lines, *lines)))
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "ab") as stream:
            stream.write(b"".join(lines))
        self._durable = False

    def _sync(self) -> None:
        """Make the open segment and its name survive a power cut. Objects in stores do."""
        path = _local_path(_segment_url(self._root, self._number))
        if path is None or self._durable:
            return
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
        storage.fsync_dir(self._folder)
        self._durable = True


class MetricFollower:
    """Reads a metric log while it grows. Each point is returned once, even if training resumes.

    Args:
        root: URL of the model's folder; the log need not exist yet.
    """

    def __init__(self, root: str) -> None:
        self.last_nimg = -1
        """``nimg`` of the newest point that was read."""
        self._root = root
        self._number = 0

    def read(self) -> list[MetricPoint]:
        """The points since the last call, in order of ``nimg``. Costs one request if the log has not grown.

        Raises:
            OSError: the log cannot be read.
            StorageError: likewise.
        """
        points: list[MetricPoint] = []
        while True:
            segment = self._segment(self._number)
            if (
                not segment
                and self._number
                and len(self._segment(self._number - 1)) < SEGMENT_POINTS
            ):
                self._number -= 1  # training resumed from a checkpoint in an earlier segment
                continue
            for point in segment:
                if point.nimg > self.last_nimg:
                    points.append(point)
                    self.last_nimg = point.nimg
            if len(segment) < SEGMENT_POINTS:
                return points
            self._number += 1

    def _segment(self, number: int) -> list[MetricPoint]:
        return _read_segment(self._root, number)


def _read_segment(root: str, number: int) -> list[MetricPoint]:
    """The points of one segment, in the order of the file; empty if it does not exist."""
    try:
        data = storage.read_bytes(_segment_url(root, number))
    except FileNotFoundError:
        return []
    return [point for _, point in _parse(data)]


def _segment_url(root: str, number: int) -> str:
    return storage.join(root, METRICS_FOLDER, f"{number:06d}.jsonl")


def _is_segment(name: str) -> bool:
    stem, _, extension = name.partition(".")
    return stem.isdecimal() and extension == "jsonl"


def _parse(data: bytes) -> list[tuple[bytes, MetricPoint]]:
    """The lines of a segment and their points, up to the first line that is unfinished or damaged."""
    parsed: list[tuple[bytes, MetricPoint]] = []
    for line in data.splitlines(keepends=True):
        try:
            values = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            values = None
        if values is None:
            break
        parsed.append((line, MetricPoint(values["nimg"], values["metrics"], values["timing"])))
    return parsed


def _local_path(url: str) -> str | None:
    """The path of a local URL, None for a store."""
    fs, path = storage.filesystem(url)
    return path if isinstance(fs, LocalFileSystem) else None
