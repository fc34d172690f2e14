"""Finds workers that hang, records their stacks, and ends them, so that Ray restarts the group.

Each worker has a thread that writes *heartbeats* to a file: a tick that proves that the process runs, and the
count of its progress. The driver reads the files with its own clock. A worker without new ticks is frozen. If
all workers tick but none makes progress, those with the lowest count hang, and the others wait for them in a
collective operation.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from genmod import storage
from genmod.config import canonical_json
from genmod.errors import StorageError
from genmod.world import World

_FROZEN_S = 90.0
"""A worker without ticks for this long is frozen, in seconds, even if its hang timeout is longer. Shorter
than Ray's own limit, because Ray does not name the worker."""

_HEARTBEATS = 6
"""Heartbeats, and checks of them, in the time after which a worker is frozen."""

_STACK_S = 10.0
"""Time in which a process writes its stack, in seconds."""

_NODE_S = 60.0
"""Time in which a node answers a request to end a process, in seconds."""

logger = logging.getLogger(__name__)

HeartbeatRecord = dict[str, Any]
"""A heartbeat file: rank, pid, born_s (start of the process), node, stack (path), tick, count, at."""


def frozen_after_s(hang_timeout_s: float) -> float:
    """Time without ticks after which a worker is frozen, in seconds."""
    return min(hang_timeout_s, _FROZEN_S)


@contextmanager
def send_heartbeats(url: str, world: World, hang_timeout_s: float, node: str) -> Generator[None]:
    """Send heartbeats from a thread while the body runs.

    Args:
        url: a folder for the heartbeats of this launch.
        world: its heartbeat counts the progress.
        hang_timeout_s: the same as the driver's.
        node: Ray's id of this node.
    """
    import psutil

    handle, stack = tempfile.mkstemp(prefix="genmod-stack-")
    faulthandler.register(signal.SIGUSR1, file=handle, all_threads=True)
    process = psutil.Process()
    constant = {
        "rank": world.rank,
        "pid": process.pid,
        "born_s": process.create_time(),
        "node": node,
        "stack": stack,
    }
    file_url, ended = storage.join(url, f"{world.rank:06d}.json"), threading.Event()

    def send() -> None:
        tick = 0
        while True:
            progress = {"tick": tick, "count": world.heartbeat.count, "at": world.heartbeat.at}
            with suppress(OSError, StorageError):  # transient; the next heartbeat follows soon
                storage.write_bytes(file_url, canonical_json({**constant, **progress}))
            tick += 1
            if ended.wait(frozen_after_s(hang_timeout_s) / _HEARTBEATS):
                return

    thread = threading.Thread(target=send, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=_STACK_S)
        with suppress(OSError, StorageError):
            storage.remove(file_url)
        faulthandler.unregister(signal.SIGUSR1)
        os.close(handle)
        os.unlink(stack)


@dataclass
class Watchdog:
    """Checks the heartbeats of a group in a thread of the driver."""

    url: str
    """Folder of the heartbeats."""
    hang_timeout_s: float
    """A worker without progress for this long hangs, in seconds."""
    stacks: str
    """URL of a folder for stacks."""
    hangs: list[str] = field(default_factory=list[str])
    """One line per worker that hung."""
    _last: dict[tuple[int, int], HeartbeatRecord] = field(
        default_factory=dict[tuple[int, int], HeartbeatRecord]
    )
    _ended: set[int] = field(default_factory=set[int])
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watchdog:
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=_NODE_S)

    def _run(self) -> None:
        while not self._stop.wait(frozen_after_s(self.hang_timeout_s) / _HEARTBEATS):
            try:
                hanging, waiting = self._check(time.monotonic())
            except (OSError, StorageError):
                continue  # transient; the next check follows soon
            if hanging:
                self._end(hanging, waiting)

    def _check(self, now_s: float) -> tuple[list[HeartbeatRecord], list[HeartbeatRecord]]:
        """Heartbeats of the workers that hang, and of those that wait for them."""
        live: list[HeartbeatRecord] = []
        for name in storage.list_names(self.url):
            with suppress(FileNotFoundError):  # a worker has ended meanwhile
                record = json.loads(storage.read_bytes(storage.join(self.url, name)))
                if record["pid"] not in self._ended:
                    live.append(self._with_times(record, now_s))
        self._last = {(record["rank"], record["pid"]): record for record in live}
        return find_hanging(live, now_s, self.hang_timeout_s)

    def _with_times(self, record: HeartbeatRecord, now_s: float) -> HeartbeatRecord:
        """The record with the times at which this process saw its tick and its count change."""
        last = self._last.get((record["rank"], record["pid"]))
        for key, time_key in (("tick", "tick_s"), ("count", "progress_s")):
            unchanged = last is not None and last[key] == record[key]
            record[time_key] = last[time_key] if last is not None and unchanged else now_s
        return record

    def _end(self, hanging: Sequence[HeartbeatRecord], waiting: Sequence[HeartbeatRecord]) -> None:
        """Record the stacks of all workers and kill those that hang. Ray then ends the group."""
        for record in (*waiting, *hanging):
            hangs = record in hanging
            stack = _request_stack(record, kill=hangs)
            if stack is None:
                continue  # the process has ended
            stack_url = storage.join(self.stacks, f"rank-{record['rank']}-{record['pid']}.txt")
            with suppress(OSError, StorageError):
                storage.write_bytes(stack_url, stack.encode())
            if hangs:
                self._ended.add(record["pid"])
                self.hangs.append(
                    f"rank {record['rank']} (process {record['pid']} on node {record['node'][:12]}) made "
                    f"no progress for {self.hang_timeout_s:g} s, last at {record['at']}; its stack is in "
                    f"{stack_url}"
                )
                logger.warning("%s; the group is restarted", self.hangs[-1])


def find_hanging(
    records: Sequence[HeartbeatRecord], now_s: float, hang_timeout_s: float
) -> tuple[list[HeartbeatRecord], list[HeartbeatRecord]]:
    """Records of the workers that hang, and of those that wait for them; both empty if none hangs.

    Args:
        records: of all workers; ``tick_s`` and ``progress_s`` are the times of the last tick and of the last
            progress.
        now_s: the current time.
        hang_timeout_s: how long a worker may make no progress, in seconds.
    """
    hanging = [r for r in records if now_s - r["tick_s"] >= frozen_after_s(hang_timeout_s)]
    stalled = all(now_s - record["progress_s"] >= hang_timeout_s for record in records)
    if not hanging and records and stalled:
        lowest = min(record["count"] for record in records)
        hanging = [record for record in records if record["count"] == lowest]
    return hanging, [record for record in records if record not in hanging] if hanging else []


def _request_stack(record: HeartbeatRecord, kill: bool) -> str | None:
    """Run :func:`stack_of` on the worker's node; None if the process has ended."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on_node: Any = NodeAffinitySchedulingStrategy(node_id=record["node"], soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_node)(stack_of)
    try:
        return ray.get(task.remote(record, kill), timeout=_NODE_S)
    except RayError as error:
        return f"its node does not answer ({type(error).__name__})"


def stack_of(record: HeartbeatRecord, kill: bool) -> str | None:
    """The stack of a process on this node, frozen or not.

    Args:
        record: the heartbeat of the process.
        kill: whether to kill the process after that.

    Returns:
        None if the process has ended.
    """
    import psutil

    try:
        if psutil.Process(record["pid"]).create_time() != record["born_s"]:
            return None
        os.kill(record["pid"], signal.SIGUSR1)  # faulthandler writes the stack in any state
        if kill:
            os.kill(record["pid"], signal.SIGCONT)  # a stopped process receives signals after this
        text = _written(record["stack"])
        if kill:
            os.kill(record["pid"], signal.SIGKILL)
            os.unlink(record["stack"])
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
        return None
    return text or "it wrote no stack in time"


def _written(path: str) -> str:
    """Content of a file after its writer has been idle for a moment."""
    deadline_s, text = time.monotonic() + _STACK_S, ""
    while time.monotonic() < deadline_s:
        time.sleep(0.2)
        with open(path, encoding="utf-8", errors="replace") as stream:
            before, text = text, stream.read()
        if text and text == before:
            break
    return text
