"""What one machine knows about jobs of genmod: the ends of Ray's logs, and stacks of training workers."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from cluster.heartbeats import WorkerProcess
from cluster.private_folder import PREFIX
from cluster.ray_log import log_folder
from cluster.watchdog import stack_of

_TAIL_BYTES = 256 << 10
"""Of a log file that are kept, from its end."""

_MAX_FILES = 200
"""Log files of a machine, newest first."""

_TOTAL_BYTES = 8 << 20
"""Of all log files of a machine."""

_OF_NODE = ("raylet.", "gcs_server.")
"""Logs of Ray's processes that serve all jobs."""

_WORKER_LOG = re.compile(r"worker-([0-9a-f]{56})-([0-9a-f]{8})-")
_STACK = re.compile(r"/genmod-stack-[^/]{1,64}/stack\.txt")

_STACKS = 64
"""Workers of a machine whose stacks are taken."""

_RECIPE_FILES = "runtime_resources/working_dir_files/*/recipe.yaml"

Clean = Callable[[str], str]


def node_texts(session: str | None, jobs: Collection[str], clean: Clean) -> dict[str, str]:
    """Texts of this machine by name: logs of jobs, stacks of this user's training workers.

    Args:
        session: folder of Ray's session; None for the local Rays of this user's commands, which run nothing
            else.
        jobs: Ray's ids of the jobs; logs of other jobs are left out.
        clean: removes credentials. It is applied before a text is cut.
    """
    texts: dict[str, str] = {}
    for name, path in _newest(_log_files(session, jobs)):
        if (text := read_tail(path, clean)) and sum(map(len, texts.values())) < _TOTAL_BYTES:
            texts[f"logs/{name}"] = text
    for name, text in worker_stacks():
        texts[f"stacks/{name}"] = clean(text)
    return texts


def read_tail(path: Path, clean: Clean, limit_bytes: int = _TAIL_BYTES) -> str:
    """The last whole lines of a regular file of this user; empty for another one.

    Args:
        path: the file.
        clean: removes credentials from the lines.
        limit_bytes: that are read. A first line that is cut is left out, since its beginning may say that
            the rest is a credential.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid():
        os.close(handle)
        return ""
    with os.fdopen(handle, "rb") as stream:
        stream.seek(left := max(0, info.st_size - limit_bytes))
        text = stream.read(limit_bytes).decode(errors="replace")
    if left:
        _, _, text = text.partition("\n")
        text = f"({left:,} bytes before this and the rest of a line are left out)\n{text}"
    return clean(text)


def worker_stacks() -> list[tuple[str, str]]:
    """Name and stack of each of this user's processes that writes its stack after a signal."""
    import psutil

    found: list[tuple[str, str]] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.uids().real != os.getuid() or len(found) == _STACKS:
                continue
            paths = [each.path for each in process.open_files() if _STACK.search(each.path)]
            if not paths or not _handles_signal(process.pid):
                continue
            worker = WorkerProcess(
                node="0", pid=process.pid, born_s=process.create_time(), stack=paths[0]
            )
            if (text := stack_of(worker, kill=False)) is not None:
                found.append((f"{process.pid}.txt", f"{process.name()}\n{text}"))
    return found


def _handles_signal(pid: int) -> bool:
    """Whether a process has a handler for SIGUSR1, which ends others."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> 9 & 1)


def _newest(files: Iterator[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The files that were written last."""
    dated: list[tuple[float, str, Path]] = []
    for name, path in files:
        with suppress(OSError):
            dated.append((path.lstat().st_mtime, name, path))
    return [(name, path) for _, name, path in sorted(dated, reverse=True)[:_MAX_FILES]]


def _log_files(session: str | None, jobs: Collection[str]) -> Iterator[tuple[str, Path]]:
    """Name in the bundle and path of each log that belongs to genmod."""
    for path in log_folder().glob("*.log"):
        yield f"commands/{path.name}", path
    if session is not None:
        yield from _of_jobs(Path(session), jobs)
        return
    parents = {os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), tempfile.gettempdir()}
    for folder in sorted(each for parent in parents for each in Path(parent).glob(f"{PREFIX}*")):
        for path in folder.glob("r/session_2*/logs/*"):
            yield f"{folder.name}/{path.name}", path


def _of_jobs(session: Path, jobs: Collection[str]) -> Iterator[tuple[str, Path]]:
    """Logs of these jobs in a session that others use too, and the recipes of submitted ones."""
    files = sorted((session / "logs").glob("*"))
    named = {path: _WORKER_LOG.match(path.name) for path in files}
    workers = {found[1] for found in named.values() if found is not None and found[2] in jobs}
    for path in files:
        found = named[path]
        is_worker = found is not None and found[2] in jobs
        is_core = any(worker in path.name for worker in workers)
        is_driver = path.name.startswith("job-driver-genmod-") or any(
            f"-{job}" in path.name for job in jobs if found is None
        )
        if is_worker or is_core or is_driver or path.name.startswith(_OF_NODE):
            yield path.name, path
    for path in session.glob(_RECIPE_FILES):
        yield f"recipes/{path.parent.name}.yaml", path
