"""One stage's run in MLflow: metrics by nimg, artifacts, a status. No method blocks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from genmod.errors import sanitize

TAG_PREFIX = "genmod."
"""Prefix of the tags that genmod sets."""

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

LoggedMetric = tuple[str, float, int, int]
"""Name, value, time in ms, nimg."""


class TrackingClient(Protocol):
    """What a run needs of MLflow. All but ``submit`` run in the background."""

    def submit(self, call: Callable[[], Any]) -> None:
        """Run a call in the background, after all earlier ones."""
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

    def terminate(self, run_id: str, status: RunStatus, tags: Mapping[str, str]) -> None:
        """End a run with a status and tags."""
        ...


class TrackedRun:
    """A run that is logged in the background. Every method returns at once, and none raises.

    Args:
        client: MLflow.
        start: opens the run and returns its id, whether it is finished, and whether it existed before; None
            if tracking is off.
    """

    def __init__(
        self, client: TrackingClient, start: Callable[[], tuple[str, bool, bool]] | None
    ) -> None:
        self._client = client
        self._start = start
        self.run_id: str | None = None
        """Set once the run was opened in the background."""
        self._open = False
        self._resumed = False
        self._last_nimg: dict[str, int] = {}
        """Metric -> nimg of its newest value in MLflow."""
        self._received_nimg = -1
        self._pending: list[tuple[int, int, dict[str, float]]] = []
        """Time in ms, nimg, values."""
        if start is not None:
            client.submit(self._begin)

    def submit(self, call: Callable[[str], Any]) -> None:
        """Run a call with the run's id in the background; skipped if the run was already finished."""
        if self._start is not None:
            self._client.submit(lambda: call(self.run_id or "") if self._open else None)

    def log_metrics(self, values: Mapping[str, float], nimg: int) -> None:
        """Log values at ``nimg`` images, which increases from call to call.

        Values that the run already contains, from before an interruption, are not logged twice.
        """
        self._received_nimg = nimg
        self._pending.append((_now_ms(), nimg, dict(values)))
        self.submit(self._flush)

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

        def log(run_id: str) -> None:
            now_ms = _now_ms()
            self._log(run_id, [(now_ms, nimg, values) for nimg, values in points(after_nimg)])

        self.submit(log)

    def log_artifact(self, url: str, folder: str = "") -> None:
        """Copy a file to the run's artifacts; of a large file, store only its URL."""
        self.submit(lambda run_id: self._client.upload(run_id, url, folder))

    def finish(
        self, status: RunStatus = "FINISHED", metadata: Mapping[str, Any] | None = None
    ) -> None:
        """End the run. ``metadata`` become its tags."""
        tags = {f"{TAG_PREFIX}{key}": _text(value) for key, value in (metadata or {}).items()}
        self.submit(lambda run_id: self._client.terminate(run_id, status, tags))

    def _begin(self) -> None:
        assert self._start is not None
        self.run_id, finished, self._resumed = self._start()
        self._open = not finished

    def _flush(self, run_id: str) -> None:
        """Log all pending points in one batch."""
        points = list(self._pending)
        self._log(run_id, points)
        del self._pending[: len(points)]

    def _log(self, run_id: str, points: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
        """Log the values that are newer than the run's last ones."""
        fresh: list[LoggedMetric] = []
        try:
            for time_ms, nimg, values in points:
                for name, value in values.items():
                    key = metric_key(name)
                    if nimg > self._last(run_id, key):
                        self._last_nimg[key] = nimg
                        fresh.append((key, float(value), time_ms, nimg))
            self._client.log(run_id, fresh)
        except Exception:
            self._last_nimg.clear()  # some values may have arrived: query them before the retry
            self._resumed = True
            raise

    def _last(self, run_id: str, key: str) -> int:
        if key not in self._last_nimg:
            self._last_nimg[key] = self._client.last_nimg(run_id, key) if self._resumed else -1
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
    return sanitize(lines[0][:_REASON_CHARS]) if lines else type(error).__name__


def _text(value: Any) -> str:
    """A value as the text of a tag or parameter, of the length that MLflow allows."""
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:6000]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
