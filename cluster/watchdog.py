"""Finds workers that hang, records their stacks, and ends them, so that Ray restarts the group.

Each worker has a thread that sends *heartbeats* through Ray: a tick that proves that the process runs, and
the count of its progress. The driver reads them with its own clock. A worker without new ticks is frozen. If
all workers tick but none makes progress, those with the lowest count hang, and the others wait for them in a
collective operation.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import compat
from cluster.heartbeats import HeartbeatCounts, WorkerProcess, read_heartbeats, remove_stack
from cluster.metrics import RECORDER
from genmod import storage
from genmod.errors import StorageError, sanitize

_FROZEN_S = 90.0
"""A worker without ticks for this long is frozen, in seconds, even if its hang timeout is longer. Shorter
than Ray's own limit, because Ray does not name the worker."""

_HEARTBEATS = 6
"""Heartbeats, and checks of them, in the time after which a worker is frozen."""

_STACK_S = 10.0
"""Time in which a process writes its stack, in seconds."""

_STACK_BYTES = 1 << 20
"""The part of a stack that is recorded."""

_NODE_S = 60.0
"""Time in which a node answers a request to end a process, in seconds."""

logger = logging.getLogger(__name__)


def frozen_after_s(hang_timeout_s: float) -> float:
    """Time without ticks after which a worker is frozen, in seconds."""
    return min(hang_timeout_s, _FROZEN_S)


def heartbeat_interval_s(hang_timeout_s: float) -> float:
    """Time between two heartbeats of a worker, and between two checks of them, in seconds."""
    return frozen_after_s(hang_timeout_s) / _HEARTBEATS


@dataclass(frozen=True)
class WorkerRecord:
    """A worker's process, its newest heartbeat, and when this process saw its counts change."""

    rank: int
    process: WorkerProcess
    counts: HeartbeatCounts
    tick_s: float
    """Time of the last new tick."""
    progress_s: float
    """Time of the last progress."""

    def updated(
        self, process: WorkerProcess, counts: HeartbeatCounts, now_s: float
    ) -> WorkerRecord:
        """The record with a newer heartbeat, perhaps of a newer process."""
        same = process == self.process
        return WorkerRecord(
            self.rank,
            process,
            counts,
            self.tick_s if same and counts.tick == self.counts.tick else now_s,
            self.progress_s if same and counts.count == self.counts.count else now_s,
        )


@dataclass
class Watchdog:
    """Checks the heartbeats of a group in a thread of the driver."""

    launch: str
    """The name that the workers of this launch use."""
    hang_timeout_s: float
    """A worker without progress for this long hangs, in seconds."""
    stacks: str
    """URL of a folder for stacks."""
    hangs: list[str] = field(default_factory=list[str])
    """One line per worker that hung."""
    _last: dict[int, WorkerRecord] = field(default_factory=dict[int, WorkerRecord])
    _ended: set[WorkerProcess] = field(default_factory=set[WorkerProcess])
    _reported: set[str] = field(default_factory=set[str])
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watchdog:
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=_NODE_S)
        with suppress(Exception):  # Ray's head may be gone, and the values with it
            compat.delete_values(f"{self.launch}/")

    def _run(self) -> None:
        while not self._stop.wait(heartbeat_interval_s(self.hang_timeout_s)):
            try:
                hanging, waiting = self._check(time.monotonic())
                if hanging:
                    self._end(hanging, waiting)
            except Exception as error:  # the watchdog must not end before the group
                self._report(
                    f"the watchdog cannot check the workers ({type(error).__name__}); it tries again"
                )
                self._last.clear()  # what happened meanwhile is unknown, so the times start again

    def _check(self, now_s: float) -> tuple[list[WorkerRecord], list[WorkerRecord]]:
        """The workers that hang, and those that wait for them."""
        live: dict[int, WorkerRecord] = {}
        for rank, (process, counts) in read_heartbeats(self.launch, self._report).items():
            if process not in self._ended:
                record = self._last.get(rank, WorkerRecord(rank, process, counts, now_s, now_s))
                live[rank] = record.updated(process, counts, now_s)
        self._last = live
        return find_hanging(list(live.values()), now_s, self.hang_timeout_s)

    def _report(self, line: str) -> None:
        """Warn, the first time."""
        if line not in self._reported:
            self._reported.add(line)
            logger.warning("%s", line)

    def _end(self, hanging: Sequence[WorkerRecord], waiting: Sequence[WorkerRecord]) -> None:
        """Record the stacks of all workers and kill those that hang. Ray then ends the group."""
        for record in (*waiting, *hanging):
            hangs, process = record in hanging, record.process
            stack = _request_stack(process, kill=hangs)
            if stack is None:
                continue  # the process has ended
            stack_url = storage.join(self.stacks, f"rank-{record.rank}-{process.pid}.txt")
            with suppress(OSError, StorageError):
                storage.write_bytes(stack_url, stack.encode())
            if hangs:
                self._ended.add(process)
                RECORDER.add("genmod_retries", stage="train")
                self.hangs.append(
                    f"rank {record.rank} (process {process.pid} on node {process.node[:12]}) made no "
                    f"progress for {self.hang_timeout_s:g} s, last at {sanitize(record.counts.at)}; its "
                    f"stack is in {stack_url}"
                )
                logger.warning("%s; the group is restarted", self.hangs[-1])


def find_hanging(
    records: Sequence[WorkerRecord], now_s: float, hang_timeout_s: float
) -> tuple[list[WorkerRecord], list[WorkerRecord]]:
    """Records of the workers that hang, and of those that wait for them; both empty if none hangs.

    Args:
        records: of all workers.
        now_s: the current time.
        hang_timeout_s: how long a worker may make no progress, in seconds.
    """
    hanging = [r for r in records if now_s - r.tick_s >= frozen_after_s(hang_timeout_s)]
    stalled = all(now_s - record.progress_s >= hang_timeout_s for record in records)
    if not hanging and records and stalled:
        lowest = min(record.counts.count for record in records)
        hanging = [record for record in records if record.counts.count == lowest]
    return hanging, [record for record in records if record not in hanging] if hanging else []


def _request_stack(process: WorkerProcess, kill: bool) -> str | None:
    """Run :func:`stack_of` on the worker's node; None if the process has ended."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on_node: Any = NodeAffinitySchedulingStrategy(node_id=process.node, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_node)(stack_of)
    try:
        return ray.get(task.remote(process, kill), timeout=_NODE_S)
    except RayError as error:
        return f"its node does not answer ({type(error).__name__})"


def stack_of(process: WorkerProcess, kill: bool) -> str | None:
    """The stack of a process on this node, frozen or not.

    Args:
        process: as it has registered itself.
        kill: whether to kill the process after that.

    Returns:
        None if the process has ended.
    """
    import psutil

    path = Path(process.stack)
    try:
        if psutil.Process(process.pid).create_time() != process.born_s:
            return None
        os.kill(process.pid, signal.SIGUSR1)  # faulthandler writes the stack in any state
        if kill:
            os.kill(process.pid, signal.SIGCONT)  # a stopped process receives signals after this
        text = _written(path)
        if kill:
            os.kill(process.pid, signal.SIGKILL)
            remove_stack(path)
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
        return None
    return text or "it wrote no stack in time"


def _written(path: Path) -> str:
    """Content of a file after its writer has been idle for a moment."""
    deadline_s, text = time.monotonic() + _STACK_S, ""
    while time.monotonic() < deadline_s:
        time.sleep(0.2)
        before, text = text, _read_own_file(path)
        if text and text == before:
            break
    return text


def _read_own_file(path: Path) -> str:
    """The beginning of a regular file of this user; empty for another one."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as stream:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid():
            return ""
        return stream.read(_STACK_BYTES).decode(errors="replace")
