"""What a command reports to Ray's metrics, which Prometheus scrapes from each node.

Values are kept in this process until it is connected to Ray, and written at most once a second. Ray sends
them to the agent of the node, every ten seconds and when the process disconnects. So the last values of a
command of two seconds are sent too. The agent serves counters as long as it runs, and gauges for twenty
seconds after they were last written. So a thread writes them again while a command runs. Scrape at least
every fifteen seconds.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

logger = logging.getLogger(__name__)

_EVERY_S = 1.0
"""Between two writings of values, in seconds."""

_KEEP_S = 5.0
"""Between two writings of values that do not change, in seconds."""

_MAX_SERIES = 200
"""Series of one metric; the values of further models are left out."""

_LABEL_CHARS = 100

LABELS = ("stage", "model")
"""Of every metric; empty where they mean nothing."""

_Kind = Literal["gauge", "counter"]

METRICS: dict[str, tuple[_Kind, str]] = {
    "genmod_rows": ("gauge", "Images, or models, of the running work that are done"),
    "genmod_rows_planned": ("gauge", "Images, or models, of the running work in all"),
    "genmod_progress_time_seconds": ("gauge", "When the work last made progress, since 1970"),
    "genmod_images": ("counter", "Images that were sharded, trained on, generated or scored"),
    "genmod_images_per_second": ("gauge", "Images per second since the last report"),
    "genmod_loss": ("gauge", "Newest training loss, the sum over phases"),
    "genmod_step_seconds": ("gauge", "Duration of a training step"),
    "genmod_data_wait_share": ("gauge", "Share of the time in which training waits for data"),
    "genmod_memory_bytes": ("gauge", "Peak memory of the process of rank 0"),
    "genmod_units": ("counter", "Shards and other work units that are done"),
    "genmod_retries": ("counter", "Work units that failed and are tried again; restarted groups"),
    "genmod_quarantined": ("counter", "Inputs and images that were put into quarantine"),
    "genmod_tracking_backlog": ("gauge", "Calls to MLflow that wait"),
    "genmod_looks_left": ("gauge", "Planned decisions with the reference rows that are left"),
    "genmod_done": ("counter", "Commands that ended well"),
    "genmod_failed": ("counter", "Commands that failed"),
}
"""Name, kind and help text. Ray puts ``ray_`` before a name and ``_total`` after that of a counter."""

_Key = tuple[str, str, str]
"""Name, stage and model."""


@dataclass
class Recorder:
    """The values of this process. Any thread may use it; it never raises an error of Ray."""

    now: Callable[[], float] = time.monotonic
    _gauges: dict[_Key, float] = field(default_factory=dict[_Key, float])
    _added: dict[_Key, float] = field(default_factory=dict[_Key, float])
    """Of counters, since the last writing."""
    _watched: dict[_Key, Callable[[], float]] = field(
        default_factory=dict[_Key, Callable[[], float]]
    )
    _instruments: dict[str, Any] = field(default_factory=dict[str, Any])
    _connection: str = ""
    _written_s: float = float("-inf")
    _keeper: threading.Thread | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def set(self, name: str, value: float, stage: str = "", model: str = "") -> None:
        """Set a gauge.

        Args:
            name: one of ``METRICS``.
            value: finite.
            stage: of the command line.
            model: its name in the recipe.
        """
        assert METRICS[name][0] == "gauge"
        with self._lock:
            if (key := self._key(self._gauges, name, stage, model)) is not None:
                self._gauges[key] = float(value)
        self.write()

    def add(self, name: str, value: float = 1.0, stage: str = "", model: str = "") -> None:
        """Add to a counter. Arguments as for :meth:`set`; values that are not positive are ignored."""
        assert METRICS[name][0] == "counter"
        with self._lock:
            key = self._key(self._added, name, stage, model)
            if key is not None and value > 0:
                self._added[key] = self._added.get(key, 0.0) + float(value)
        self.write()

    def watch(self, name: str, value: Callable[[], float]) -> None:
        """Set a gauge to what a function returns, whenever values are written."""
        with self._lock:
            self._watched[name, "", ""] = value

    def unwatch(self, name: str) -> None:
        """Keep the last value of a function, and call it no more."""
        with self._lock:
            if (value := self._watched.pop((name, "", ""), None)) is not None:
                self._gauges[name, "", ""] = value()
        self.write(force=True)

    @property
    def has_values(self) -> bool:
        """Whether values wait for a connection to Ray."""
        return bool(self._gauges or self._added) and not _is_connected()

    def values(self) -> dict[_Key, float]:
        """The newest values of gauges, by name, stage and model."""
        with self._lock:
            return dict(self._gauges)

    def write(self, *, force: bool = False) -> None:
        """Hand new values to Ray, if this process is connected.

        Args:
            force: also if values were written just before.
        """
        with self._lock:
            if not force and self.now() - self._written_s < _EVERY_S:
                return
            self._written_s = self.now()
            if self._keeper is None and (self._gauges or self._watched):
                self._keeper = threading.Thread(target=self._keep, name="metrics", daemon=True)
                self._keeper.start()
            try:
                self._write()
            except Exception as error:  # metrics must not end the work
                logger.debug("metrics are not written: %s", error)

    def _keep(self) -> None:
        """Write the gauges again and again, as long as there are any: Ray drops those that stay silent."""
        while True:
            time.sleep(_KEEP_S)
            with self._lock:
                if not self._gauges and not self._watched:
                    self._keeper = None
                    return
            self.write(force=True)

    def forget_work(self) -> None:
        """Forget the gauges of the command, so that the next one in this process starts without them."""
        with self._lock:
            self._gauges.clear()

    def _write(self) -> None:
        if not _is_connected():
            return
        import ray

        context = ray.get_runtime_context()
        connection = f"{context.get_node_id()} {context.get_job_id()}"
        if connection != self._connection:
            self._instruments, self._connection = {}, connection
        for key, value in self._watched.items():
            self._gauges[key] = float(value())
        for key, value in self._gauges.items():
            self._instrument(key[0]).set(value, dict(zip(LABELS, key[1:], strict=True)))
        added, self._added = self._added, {}
        for key, value in added.items():
            self._instrument(key[0]).inc(value, dict(zip(LABELS, key[1:], strict=True)))

    def _instrument(self, name: str) -> Any:
        from ray.util.metrics import Counter, Gauge

        if name not in self._instruments:
            kind, text = METRICS[name]
            make: Any = Gauge if kind == "gauge" else Counter
            self._instruments[name] = make(name, text, LABELS)
        return self._instruments[name]

    def _key(self, known: dict[_Key, float], name: str, stage: str, model: str) -> _Key | None:
        key = (name, stage[:_LABEL_CHARS], model[:_LABEL_CHARS])
        is_full = key not in known and sum(k[0] == name for k in known) >= _MAX_SERIES
        return None if is_full else key


def _is_connected() -> bool:
    """Whether this process is connected to Ray, without importing it."""
    if "ray" not in sys.modules:
        return False
    import ray

    return ray.is_initialized()


RECORDER = Recorder()
"""The values of this process."""
