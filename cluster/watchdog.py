"""Workers that hang are named, their stacks written down, and ended, so that the group is started again.

Each worker has a thread that writes a *beat* now and then: how far its pulse has come, and that it lives. The
driver reads the beats by its own clock. A worker whose beats stop is frozen. If all beat and none comes
further, those that are the furthest behind hang, and the others wait for them in a collective.
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

FROZEN_S = 90.0
"""Without beats for so long a worker is frozen, even where it may take longer to come further. Less than
Ray's own limit, which names nobody."""

HEARTBEATS = 6
"""In the time after which a worker is frozen."""

STACK_S = 10.0
"""A process that is asked for its stack has written it by then."""

ASK_S = 60.0
"""A node on which a process is to be ended answers within this."""

logger = logging.getLogger(__name__)

HeartbeatRecord = dict[str, Any]


def frozen_after_s(hang_timeout_s: float) -> float:
    """How long a worker may be without beats."""
    return min(hang_timeout_s, FROZEN_S)


@contextmanager
def send_heartbeats(url: str, world: World, hang_timeout_s: float, node: str) -> Generator[None]:
    """Send heartbeats while the work goes on.

    Args:
        url: a folder for the beats of this launch.
        world: whose pulse it is.
        hang_timeout_s: as the driver is told it.
        node: where this process is, as Ray names it.
    """
    import psutil

    handle, stack = tempfile.mkstemp(prefix="genmod-stack-")
    faulthandler.register(signal.SIGUSR1, file=handle, all_threads=True)
    process = psutil.Process()
    me = {"rank": world.rank, "pid": process.pid, "born_s": process.create_time(), "node": node}
    mine, ended = storage.join(url, f"{world.rank:06d}.json"), threading.Event()

    def beat() -> None:
        tick = 0
        while True:
            heartbeat = {"tick": tick, "count": world.heartbeat.count, "at": world.heartbeat.at}
            with suppress(OSError, StorageError):  # a store's hiccup; the next beat is soon
                storage.write_bytes(mine, canonical_json({**me, "stack": stack, **heartbeat}))
            tick += 1
            if ended.wait(frozen_after_s(hang_timeout_s) / HEARTBEATS):
                return

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=STACK_S)
        with suppress(OSError, StorageError):
            storage.remove(mine)
        faulthandler.unregister(signal.SIGUSR1)
        os.close(handle)
        os.unlink(stack)


@dataclass
class Watchdog:
    """Watches the beats of a group from the driver, in a thread of its own."""

    url: str
    """Folder of the beats."""
    hang_timeout_s: float
    """A worker that comes no further for so long hangs."""
    stacks: str
    """URL of a folder for stacks."""
    hangs: list[str] = field(default_factory=list[str])
    """What was found, a line each."""
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
        self._thread.join(timeout=ASK_S)

    def _run(self) -> None:
        while not self._stop.wait(frozen_after_s(self.hang_timeout_s) / HEARTBEATS):
            try:
                late, others = self._look(time.monotonic())
            except (OSError, StorageError):
                continue  # a store's hiccup; the next look is soon
            if late:
                self._end(late, others)

    def _look(self, now_s: float) -> tuple[list[HeartbeatRecord], list[HeartbeatRecord]]:
        """Beats of the workers that hang, and of those that wait for them."""
        live: list[HeartbeatRecord] = []
        for name in storage.list_names(self.url):
            with suppress(FileNotFoundError):  # a worker has ended meanwhile
                beat = json.loads(storage.read_bytes(storage.join(self.url, name)))
                if beat["pid"] not in self._ended:
                    live.append(self._timed(beat, now_s))
        self._last = {(beat["rank"], beat["pid"]): beat for beat in live}
        return choose(live, now_s, self.hang_timeout_s)

    def _timed(self, beat: HeartbeatRecord, now_s: float) -> HeartbeatRecord:
        """The beat, with the times at which this process saw it change."""
        last = self._last.get((beat["rank"], beat["pid"]))
        for what, changed in (("tick", "beat_s"), ("count", "moved_s")):
            same = last is not None and last[what] == beat[what]
            beat[changed] = last[changed] if last is not None and same else now_s
        return beat

    def _end(self, late: Sequence[HeartbeatRecord], others: Sequence[HeartbeatRecord]) -> None:
        """Name them, write their stacks down, end them. Ray then takes the group down."""
        for beat in (*others, *late):
            hangs = beat in late
            stack = _ask(beat, end=hangs)
            if stack is None:
                continue  # it has ended by itself
            where = storage.join(self.stacks, f"rank-{beat['rank']}-{beat['pid']}.txt")
            with suppress(OSError, StorageError):
                storage.write_bytes(where, stack.encode())
            if hangs:
                self._ended.add(beat["pid"])
                self.hangs.append(
                    f"rank {beat['rank']} (process {beat['pid']} on node {beat['node'][:12]}) came no "
                    f"further for {self.hang_timeout_s:g} s, last at {beat['at']}; its stack is in {where}"
                )
                logger.warning("%s; the group is started again", self.hangs[-1])


def choose(
    beats: Sequence[HeartbeatRecord], now_s: float, hang_timeout_s: float
) -> tuple[list[HeartbeatRecord], list[HeartbeatRecord]]:
    """Who hangs, and who waits for them.

    Args:
        beats: of all workers; ``beat_s`` and ``moved_s`` are the times of the last beat and of the last
            progress.
        now_s: the time.
        hang_timeout_s: how long a worker may be without progress.
    """
    late = [beat for beat in beats if now_s - beat["beat_s"] >= frozen_after_s(hang_timeout_s)]
    if not late and beats and all(now_s - beat["moved_s"] >= hang_timeout_s for beat in beats):
        behind = min(beat["count"] for beat in beats)
        late = [beat for beat in beats if beat["count"] == behind]
    return late, [beat for beat in beats if beat not in late] if late else []


def _ask(beat: HeartbeatRecord, end: bool) -> str | None:
    """Have a process's stack written on its node, and the process ended. None if it is no more."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there: Any = NodeAffinitySchedulingStrategy(node_id=beat["node"], soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(stack_of)
    try:
        return ray.get(task.remote(beat, end), timeout=ASK_S)
    except RayError as error:
        return f"its node does not answer ({type(error).__name__})"


def stack_of(beat: HeartbeatRecord, end: bool) -> str | None:
    """The stack of a process on this node, frozen or not, and perhaps its end. None if it is no more."""
    import psutil

    try:
        if psutil.Process(beat["pid"]).create_time() != beat["born_s"]:
            return None
        os.kill(
            beat["pid"], signal.SIGUSR1
        )  # faulthandler writes the stack, whatever the process does
        if end:
            os.kill(
                beat["pid"], signal.SIGCONT
            )  # a stopped process gets its signals when it goes on
        text = _written(beat["stack"])
        if end:
            os.kill(beat["pid"], signal.SIGKILL)
            os.unlink(beat["stack"])
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
        return None
    return text or "it wrote no stack in time"


def _written(path: str) -> str:
    """What a file holds when nobody has written to it for a while."""
    deadline_s, text = time.monotonic() + STACK_S, ""
    while time.monotonic() < deadline_s:
        time.sleep(0.2)
        with open(path, encoding="utf-8", errors="replace") as stream:
            before, text = text, stream.read()
        if text and text == before:
            break
    return text
