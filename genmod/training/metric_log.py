"""The metric log: rank 0 appends what training measures, the driver follows it while training runs.

    metrics/000000000000-1f0c2a9d77e1/000000.jsonl    the first ``SEGMENT_POINTS`` points of a training that
                                                      started at image 0, one JSON object a line
    metrics/000000000000-1f0c2a9d77e1/000001.jsonl    its next points; only the last segment is shorter
    metrics/000000020000-77b3e01c52d0/000000.jsonl    a training that resumed at image 20,000

Each training process has a folder of its own, so one that outlives a killed driver does no harm. Metrics are
deterministic: where two trainings measured at the same ``nimg``, either point counts.

Local segments are appended to. Object stores cannot append, so there the last segment is rewritten, every
20 s at most. Readers address segments by name and rarely list, so an hour of training costs a few hundred
requests. A line without its newline is unfinished, and readers ignore it. A broken line is skipped.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from fsspec.implementations.local import LocalFileSystem

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import canonical_json
from genmod.documents import parse_document
from genmod.errors import DataError, StorageError
from genmod.training.metric_point import MetricLine, MetricPoint
from genmod.training.writer import storage_errors

METRICS_FOLDER = "metrics"
"""Folder of the metric log below a model's root."""

SEGMENT_POINTS = 1024
"""Points of a full segment."""

_LOCAL_FLUSH_S = 1.0
_STORE_FLUSH_S = 20.0

logger = logging.getLogger(__name__)


_FOLDER = re.compile(r"[0-9]{12}-[0-9a-f]{12}")
"""Names of the folders that :class:`MetricWriter` makes. Readers open no other ones."""


def flush_interval_s(root: str) -> float:
    """Seconds between two flushes of the metric log below ``root``: 1 on local files, 20 on a store."""
    return _LOCAL_FLUSH_S if _local_path(root) is not None else _STORE_FLUSH_S


def read_metrics(root: str, after_nimg: int = -1) -> list[MetricPoint]:
    """All points of a model's metric log with ``nimg > after_nimg``, in order, each once."""
    return [point for point in MetricFollower(root).read() if point.nimg > after_nimg]


class MetricWriter:
    """Appends points to a model's metric log. For rank 0 alone.

    Args:
        root: URL of the model's folder.
        nimg: images seen where training starts, that is, at its newest checkpoint.
        clock: monotonic seconds.
    """

    def __init__(self, root: str, nimg: int, clock: Callable[[], float] = time.monotonic) -> None:
        name = f"{nimg:012d}-{uuid.uuid4().hex[:12]}"
        self._folder = storage.join(root, METRICS_FOLDER, name)
        self._clock = clock
        self._interval_s = flush_interval_s(root)
        self._flushed_s: float | None = None
        self._pending: list[bytes] = []
        self._number = 0
        self._lines: list[bytes] = []
        self._last_nimg = nimg
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

    def _write(self, lines: list[bytes]) -> None:
        """Append lines to the open segment: to a local file, or by rewriting an object."""
        url = _segment_url(self._folder, self._number)
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
        path = _local_path(_segment_url(self._folder, self._number))
        if path is None or self._durable:
            return
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
        storage.fsync_dir(self._folder)
        self._durable = True


@dataclass
class _Tail:
    """Where a follower is in the log of one training process."""

    folder: str
    number: int = 0
    reported: bool = False
    """Whether a broken line was reported."""

    def read(self) -> list[MetricPoint]:
        """The points of the current segment, and of the next ones if it is full."""
        points: list[MetricPoint] = []
        while True:
            url = _segment_url(self.folder, self.number)
            try:
                data = storage.read_bytes(url, BUDGET.document_bytes)
            except FileNotFoundError:
                return points
            except DataError as error:  # too long for a segment
                self._report(error)
                return points
            lines = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
            points += self._parsed(lines[:SEGMENT_POINTS], url)
            if len(lines) < SEGMENT_POINTS:
                return points
            self.number += 1

    def _parsed(self, lines: list[bytes], url: str) -> Iterator[MetricPoint]:
        """The points of complete lines. A broken line is skipped; the first one is reported."""
        for number, line in enumerate(lines, start=1):
            try:
                where = f"{url}, line {number}"
                point = parse_document(
                    MetricLine, line, "a point of the metric log", where, "skipped"
                )
            except DataError as error:
                self._report(error)
                continue
            yield MetricPoint(point.nimg, point.metrics, point.timing)

    def _report(self, error: DataError) -> None:
        """Warn, the first time."""
        if not self.reported:
            logger.warning("the metric log has a broken line: %s", error)
        self.reported = True


class MetricFollower:
    """Reads a metric log while it grows. Each point is returned once, even if training resumes.

    It moves forward only: if ``train.log_every_nimg`` was lowered before a resume, the additional points up
    to ``last_nimg`` are in the log, but not returned.

    Args:
        root: URL of the model's folder; the log need not exist yet.
    """

    _LIST_EVERY = 3
    """Reads without a new point until the folder is listed again."""

    def __init__(self, root: str) -> None:
        self.last_nimg = -1
        """``nimg`` of the newest point that was read."""
        self._root = root
        self._tails: dict[str, _Tail] = {}
        self._current: _Tail | None = None
        self._idle_reads = 0

    def read(self) -> list[MetricPoint]:
        """The points since the last call, in order of ``nimg``.

        Costs one request while the log grows, a few more after some reads without a new point.

        Raises:
            OSError: the log cannot be read.
            StorageError: likewise.
        """
        points = [] if self._current is None else self._new(self._current.read())
        if points:
            self._idle_reads = 0
            return points
        self._idle_reads += 1
        if self._tails and self._idle_reads < self._LIST_EVERY:
            return []
        self._idle_reads = 0
        return self._read_all()

    def _read_all(self) -> list[MetricPoint]:
        """List the folder for trainings that started since, and read the ends of all."""
        folder = storage.join(self._root, METRICS_FOLDER)
        for name in storage.list_names(folder):
            if name not in self._tails and _FOLDER.fullmatch(name):
                self._tails[name] = _Tail(storage.join(folder, name))
        points: dict[int, MetricPoint] = {}
        for name in sorted(self._tails):
            new = [point for point in self._tails[name].read() if point.nimg > self.last_nimg]
            if new:
                self._current = self._tails[name]
            points |= {point.nimg: point for point in new}
        return self._new([points[nimg] for nimg in sorted(points)])

    def _new(self, points: list[MetricPoint]) -> list[MetricPoint]:
        """Those beyond the newest point so far, which moves on."""
        new = [point for point in points if point.nimg > self.last_nimg]
        if new:
            self.last_nimg = new[-1].nimg
        return new


def _segment_url(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:06d}.jsonl")


def _local_path(url: str) -> str | None:
    """The path of a local URL, None for a store."""
    fs, path = storage.filesystem(url)
    return path if isinstance(fs, LocalFileSystem) else None
