"""One stage's run in MLflow: metrics by nimg, artifacts, a status. No method blocks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from genmod import storage
from genmod.errors import GenmodError, sanitize
from pipelines.tracking.records import (
    ArtifactRecord,
    EndRecord,
    MetricRow,
    MetricsRecord,
    RunRecord,
    RunStatus,
    SpoolRecord,
)
from pipelines.tracking.redact import redact

TAG_PREFIX = "genmod."
"""Prefix of the tags that genmod sets."""

LoggedMetric = tuple[str, float, int, int]
"""Name, value, time in ms, nimg."""

RecordMaker = Callable[[], SpoolRecord | None]
"""Makes the record of a call, when it is to be kept; None if there is nothing to keep."""


class TrackingQueue(Protocol):
    """Runs calls in the background and keeps records of what MLflow does not accept."""

    @property
    def is_full(self) -> bool:
        """Whether so many calls wait that further ones are only kept."""
        ...

    def submit(
        self, call: Callable[[], Any], record: RecordMaker | None = None, *, lazy: bool = False
    ) -> None:
        """Run a call in the background, after all earlier ones.

        Args:
            call: must be idempotent.
            record: of the call.
            lazy: whether the record takes long to make, so that it is only made if the call fails.
        """
        ...


class TrackingStore(Protocol):
    """What a run needs of MLflow. All methods wait for it."""

    def start(self, record: RunRecord, parent_id: str | None) -> tuple[str, bool, bool]:
        """Open a run: its id, whether it is finished, whether it existed before."""
        ...

    def last_nimg(self, run_id: str, key: str) -> int:
        """The last nimg that a run contains of a metric, -1 if none."""
        ...

    def log(self, run_id: str, values: Sequence[LoggedMetric]) -> None:
        """Log values of metrics."""
        ...

    def upload(self, run_id: str, url: str, folder: str) -> None:
        """Copy a file to a run's artifacts."""
        ...

    def terminate(
        self, run_id: str, status: RunStatus, tags: Mapping[str, str], time_ms: int
    ) -> None:
        """End a run with a status and tags."""
        ...


class RunNotOpened(GenmodError):
    """MLflow refused to open the run, so nothing else of it can be logged."""


class TrackedRun:
    """A run that is logged in the background. Every method returns at once, and none raises.

    Args:
        queue: runs the calls.
        store: MLflow.
        record: describes the run; None if tracking is off.
        parent: the run that this one is a part of.
    """

    def __init__(
        self,
        queue: TrackingQueue,
        store: TrackingStore,
        record: RunRecord | None,
        parent: TrackedRun | None = None,
    ) -> None:
        self._queue = queue
        self._store = store
        self._record = record
        self._parent = parent
        self.run_id: str | None = None
        """Set once the run was opened in the background."""
        self._open = False
        self._resumed = False
        self._last_nimg: dict[str, int] = {}
        """Metric -> nimg of its newest value in MLflow."""
        self._received_nimg = -1
        self._pending: list[MetricRow] = []
        if record is not None:
            queue.submit(self._begin, lambda: record)

    @property
    def number(self) -> int | None:
        """Number of the run in the command's spool; None if tracking is off."""
        return None if self._record is None else self._record.run

    def submit(
        self,
        call: Callable[[str], Any],
        record: Callable[[int], SpoolRecord | None] | None = None,
        *,
        lazy: bool = False,
    ) -> None:
        """Run a call with the run's id in the background; skipped if the run was already finished.

        Args:
            call: idempotent; its argument is the run's id.
            record: makes the call's record; its argument is the run's number.
            lazy: as for :class:`TrackingQueue`.
        """
        if self._record is None:
            return
        number = self._record.run

        def run() -> None:
            if self.run_id is None:
                raise RunNotOpened("the run could not be opened")
            if self._open:
                call(self.run_id)

        self._queue.submit(run, None if record is None else lambda: record(number), lazy=lazy)

    def log_metrics(self, values: Mapping[str, float], nimg: int) -> None:
        """Log values at ``nimg`` images, which increases from call to call.

        Values that the run already contains, from before an interruption, are not logged twice.
        """
        self._received_nimg = nimg
        point = _point(now_ms(), nimg, values)
        if not self._queue.is_full:
            self._pending.append(point)
        self.submit(self._flush, lambda run: MetricsRecord(run=run, points=(point,)))

    def catch_up(
        self, final_nimg: int, points: Callable[[int], Iterable[tuple[int, Mapping[str, float]]]]
    ) -> None:
        """Log what :meth:`log_metrics` has not received, e.g. of work that an earlier command finished.

        Args:
            final_nimg: of the last point; nothing is read if :meth:`log_metrics` has received it.
            points: returns (nimg, values) for all points beyond an nimg, in order. Called in the background,
                and only if the run is not finished.
        """
        after_nimg = self._received_nimg
        if after_nimg >= final_nimg:
            return

        time_ms = now_ms()

        def missing() -> tuple[MetricRow, ...]:
            return tuple(_point(time_ms, nimg, values) for nimg, values in points(after_nimg))

        self.submit(
            lambda run_id: self._log(run_id, missing()),
            lambda run: MetricsRecord(run=run, points=missing()),
            lazy=True,
        )

    def log_artifact(self, url: str, folder: str = "") -> None:
        """Copy a file to the run's artifacts; of a large file, store only its URL."""

        def record(run: int) -> ArtifactRecord:
            return ArtifactRecord(run=run, url=url, folder=folder, digest=_digest_of(url))

        self.submit(lambda run_id: self._store.upload(run_id, url, folder), record)

    def finish(
        self, status: RunStatus = "FINISHED", metadata: Mapping[str, Any] | None = None
    ) -> None:
        """End the run. ``metadata`` become its tags."""
        tags = {f"{TAG_PREFIX}{key}": _text(value) for key, value in (metadata or {}).items()}
        time_ms = now_ms()
        self.submit(
            lambda run_id: self._store.terminate(run_id, status, tags, time_ms),
            lambda run: EndRecord(run=run, status=status, tags=tags, time_ms=time_ms),
        )

    def _begin(self) -> None:
        assert self._record is not None
        parent_id = None if self._parent is None else self._parent.run_id
        run_id, finished, self._resumed = self._store.start(self._record, parent_id)
        self.run_id, self._open = run_id, not finished

    def _flush(self, run_id: str) -> None:
        """Log all pending points in one batch."""
        points = list(self._pending)
        self._log(run_id, points)
        del self._pending[: len(points)]

    def _log(self, run_id: str, points: Sequence[MetricRow]) -> None:
        """Log the values that are newer than the run's last ones."""
        fresh: list[LoggedMetric] = []
        try:
            for time_ms, nimg, values in points:
                for key, value in values.items():
                    if nimg > self._last(run_id, key):
                        self._last_nimg[key] = nimg
                        fresh.append((key, value, time_ms, nimg))
            self._store.log(run_id, fresh)
        except Exception:
            self._last_nimg.clear()  # some values may have arrived: query them before the retry
            self._resumed = True
            raise

    def _last(self, run_id: str, key: str) -> int:
        if key not in self._last_nimg:
            self._last_nimg[key] = self._store.last_nimg(run_id, key) if self._resumed else -1
        return self._last_nimg[key]


_REASON_CHARS = 600
"""Characters of an error of MLflow that a warning shows."""


def metric_key(name: str) -> str:
    """A metric's name in the characters that MLflow allows.

    >>> metric_key("fd[cls@1a]")
    'fd_cls_1a'
    """
    return re.sub(r"[^\w\-. :/]+", "_", name).strip("_")[:250]


def flatten_params(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested sections as ``section.key`` -> text.

    >>> flatten_params({"train": {"lr": 0.1}})
    {'train.lr': '0.1'}
    """
    params: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            params |= flatten_params(value, f"{prefix}{key}.")
        else:
            params[metric_key(f"{prefix}{key}")] = _text(value)
    return params


def root_cause(error: BaseException) -> str:
    """The first line of the error that started a chain, e.g. ``Connection refused``."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    lines = str(error).strip().splitlines()
    return sanitize(redact(lines[0])[:_REASON_CHARS]) if lines else type(error).__name__


def _text(value: Any) -> str:
    """A value as the text of a tag or parameter, of the length that MLflow allows."""
    return redact(value if isinstance(value, str) else json.dumps(value, default=str))[:6000]


def now_ms() -> int:
    """The time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _point(time_ms: int, nimg: int, values: Mapping[str, float]) -> MetricRow:
    """Values with names that MLflow accepts."""
    return time_ms, nimg, {metric_key(name): float(value) for name, value in values.items()}


def _digest_of(url: str) -> str:
    """SHA-256 of a file; empty if it cannot be read."""
    try:
        return storage.sha256_of(url)
    except (OSError, GenmodError):
        return ""
