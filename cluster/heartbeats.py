"""What workers tell their driver through Ray: which processes they are, and that they make progress.

Both are values in the memory of Ray's head, which only holders of the cluster's token can write, and no file:
they decide which process the watchdog kills, which is not for everyone who can write to the store.
"""

from __future__ import annotations

import faulthandler
import logging
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from pydantic import Field

from cluster import compat
from genmod.budget import ReadBudget
from genmod.config import Config, ConfigT, canonical_json
from genmod.documents import parse_json, validate
from genmod.errors import DataError, sanitize
from genmod.world import World

_AT_CHARS = 120
"""Characters of the name of an operation; longer ones are cut."""

_BUDGET = ReadBudget(document_bytes=4096, json_values=16, nesting=2)
"""Limits of one value."""

_KEY = re.compile(r"([0-9]{6})/(process|heartbeat)")
"""The end of a key: rank and kind of the value."""

_END_S = 10.0
"""How long the last heartbeat may take, in seconds."""

logger = logging.getLogger(__name__)


class WorkerProcess(Config):
    """The process of a rank, which the watchdog may kill."""

    node: str = Field(pattern="^[0-9a-f]{1,64}$")
    """Ray's id of its node."""
    pid: int = Field(gt=1)
    born_s: float
    """When the process started, because a pid may be used again."""
    stack: str = Field(max_length=1024)
    """Path of the file to which it writes its stack after a signal."""


class HeartbeatCounts(Config):
    """One heartbeat: counts, and a name for messages."""

    size: int = Field(default=1, gt=0)
    """Workers of the group; a restart may change it."""

    tick: int = Field(ge=0)
    """Heartbeats since the worker started."""
    count: int = Field(ge=0)
    """Progress: operations that the worker has started."""
    at: str = Field(max_length=_AT_CHARS)
    """The newest of these operations."""


@contextmanager
def send_heartbeats(
    launch: str, world: World, node: str, interval_s: float, folder: str | None
) -> Generator[None]:
    """Register this process, and send heartbeats from a thread while the body runs.

    Args:
        launch: a name that only this launch of a group uses.
        world: its heartbeat counts the progress.
        node: Ray's id of this node.
        interval_s: time between two heartbeats, in seconds.
        folder: for the file with the stack; default: the folder for temporary files.
    """
    ended = threading.Event()
    with stack_file(folder) as stack:
        this, key = psutil.Process(), f"{launch}/{world.rank:06d}"
        process = WorkerProcess(
            node=node, pid=this.pid, born_s=this.create_time(), stack=str(stack)
        )

        def send() -> None:
            tick = 0
            while True:
                at = sanitize(world.heartbeat.at)[:_AT_CHARS]
                counts = HeartbeatCounts(
                    size=world.size, tick=tick, count=world.heartbeat.count, at=at
                )
                # Any error: Ray's head is briefly unavailable, and the next heartbeat follows soon.
                with suppress(Exception):
                    # The process again, because its predecessor, which ends late, may have deleted it.
                    compat.put_value(f"{key}/process", canonical_json(process.model_dump()))
                    compat.put_value(f"{key}/heartbeat", canonical_json(counts.model_dump()))
                tick += 1
                if ended.wait(interval_s):
                    break
            with suppress(Exception):
                compat.delete_values(f"{key}/")

        thread = threading.Thread(target=send, name="heartbeats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=_END_S)


@contextmanager
def stack_file(folder: str | None) -> Generator[Path]:
    """A file in a private folder, to which this process writes its stack when it receives SIGUSR1."""
    path = Path(tempfile.mkdtemp(prefix="genmod-stack-", dir=folder)) / "stack.txt"  # mode 0700
    with path.open("xb") as stream:
        faulthandler.register(signal.SIGUSR1, file=stream, all_threads=True)
        try:
            yield path
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            remove_stack(path)


def remove_stack(path: Path) -> None:
    """Remove a file with a stack, and its folder."""
    with suppress(FileNotFoundError):
        path.unlink()
        path.parent.rmdir()


def read_heartbeats(
    launch: str, report: Callable[[str], None]
) -> dict[int, tuple[WorkerProcess, HeartbeatCounts]]:
    """Process and newest heartbeat of each rank of a launch; broken ones are reported and skipped.

    Args:
        launch: the name that the workers use.
        report: called with one line per broken value.
    """
    values: dict[int, dict[str, bytes]] = {}
    for key, value in compat.read_values(f"{launch}/").items():
        if match := _KEY.fullmatch(key.removeprefix(f"{launch}/")):
            values.setdefault(int(match[1]), {})[match[2]] = value
        else:
            report(f"heartbeats: the key {sanitize(key)[:_AT_CHARS]} has an unknown form")
    workers: dict[int, tuple[WorkerProcess, HeartbeatCounts]] = {}
    for rank, value in values.items():
        if len(value) < 2:
            continue  # it is starting or ending
        try:
            workers[rank] = (
                _parse(WorkerProcess, value["process"], rank),
                _parse(HeartbeatCounts, value["heartbeat"], rank),
            )
        except DataError as error:
            report(str(error))
    if 0 not in workers:
        return workers
    # Ranks beyond the size are of a larger group that this one has replaced.
    size = workers[0][1].size
    return {rank: worker for rank, worker in workers.items() if rank < size}


def _parse(schema: type[ConfigT], value: bytes, rank: int) -> ConfigT:
    where, remedy = f"the heartbeat of rank {rank}", "it is skipped"
    content = parse_json(value, where, remedy, _BUDGET)
    return validate(schema, content, "a heartbeat", where, remedy)
