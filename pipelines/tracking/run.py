"""One run of a stage as MLflow will show it: metrics by nimg, artifacts, an end. Nothing here blocks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

TAG_PREFIX = "genmod."
"""What our tags begin with."""

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

Point = tuple[int, Mapping[str, float]]
"""nimg and the values of metrics there."""

MetricValue = tuple[str, float, int, int]
"""Name, value, time in ms, nimg."""


class TrackingClient(Protocol):
    """What a run needs of MLflow; called in the background only."""

    def submit(self, call: Callable[[], Any]) -> None:
        """Make a call in the background, after those before it."""
        ...

    def last_nimg(self, run_id: str, key: str) -> int:
        """The last nimg that a run holds of a metric, -1 if none."""
        ...

    def log(self, run_id: str, samples: Sequence[MetricValue]) -> None:
        """Log values of metrics."""
        ...

    def upload(self, run_id: str, url: str, folder: str) -> None:
        """Put a file among a run's artifacts."""
        ...

    def terminate(self, run_id: str, status: RunStatus, tags: Mapping[str, str]) -> None:
        """End a run."""
        ...


class TrackedRun:
    """A run that is logged in the background. Every method returns at once and none raises.

    Args:
        service: MLflow.
        start: opens the run and gives its id, whether it is finished, and whether it was there before;
            None if tracking is off.
    """

    def __init__(
        self, service: TrackingClient, start: Callable[[], tuple[str, bool, bool]] | None
    ) -> None:
        self._service = service
        self._start = start
        self.run_id: str | None = None
        """Known once the run was opened in the background."""
        self._open = False
        self._resumed = False
        self._last_nimg: dict[str, int] = {}
        self._points: list[tuple[int, Point]] = []
        if start is not None:
            service.submit(self._begin)

    def submit(self, call: Callable[[str], Any]) -> None:
        """Call with the run's id when it is its turn; not at all if the run was logged before."""
        if self._start is not None:
            self._service.submit(lambda: call(self.run_id or "") if self._open else None)

    def log_metrics(self, values: Mapping[str, float], nimg: int) -> None:
        """Values at ``nimg`` images seen, which grows from call to call."""
        self._points.append((_now_ms(), (nimg, dict(values))))
        self.submit(self._flush)

    def replay(self, points: Callable[[], Iterable[Point]]) -> None:
        """Log those of the points that are not logged yet; asked for only if the run is still open."""

        def log(run_id: str) -> None:
            now_ms = _now_ms()
            ordered = sorted(points(), key=lambda point: point[0])
            self._log(run_id, [(now_ms, point) for point in ordered])

        self.submit(log)

    def log_artifact(self, url: str, folder: str = "") -> None:
        """Copy a file to the run's artifacts; a large one is named there by its URL."""
        self.submit(lambda run_id: self._service.upload(run_id, url, folder))

    def finish(
        self, status: RunStatus = "FINISHED", metadata: Mapping[str, Any] | None = None
    ) -> None:
        """End the run. ``metadata`` become its tags."""
        tags = {f"{TAG_PREFIX}{key}": text(value) for key, value in (metadata or {}).items()}
        self.submit(lambda run_id: self._service.terminate(run_id, status, tags))

    def _begin(self) -> None:
        assert self._start is not None
        self.run_id, finished, self._resumed = self._start()
        self._open = not finished

    def _flush(self, run_id: str) -> None:
        """All that has come since the last flush, in one batch."""
        storage_errors = list(self._points)
        self._log(run_id, storage_errors)
        del self._points[: len(storage_errors)]

    def _log(self, run_id: str, points: Sequence[tuple[int, Point]]) -> None:
        fresh: list[MetricValue] = []
        try:
            for time_ms, (nimg, values) in points:
                for name, value in values.items():
                    key = metric_key(name)
                    if nimg > self._last(run_id, key):
                        self._last_nimg[key] = nimg
                        fresh.append((key, float(value), time_ms, nimg))
            self._service.log(run_id, fresh)
        except Exception:
            self._last_nimg.clear()  # some may have arrived: ask again
            self._resumed = True
            raise

    def _last(self, run_id: str, key: str) -> int:
        if key not in self._last_nimg:
            self._last_nimg[key] = self._service.last_nimg(run_id, key) if self._resumed else -1
        return self._last_nimg[key]


def metric_key(name: str) -> str:
    """A name in the characters that MLflow allows: ``fd[cls@1a]`` becomes ``fd_cls_1a``."""
    return re.sub(r"[^\w\-. :/]+", "_", name).strip("_")[:250]


def flatten_params(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested sections as ``section.key`` -> text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten_params(value, f"{prefix}{key}.")
        else:
            found[metric_key(f"{prefix}{key}")] = text(value)
    return found


def text(value: Any) -> str:
    """A value as a tag or parameter holds it."""
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:6000]


def root_cause(error: BaseException) -> str:
    """The first line of what an error began with, e.g. ``Connection refused``."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
