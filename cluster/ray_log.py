"""What Ray itself writes goes to a log file: its Python loggers, its raylet lines, and its C++ core.

The C++ core writes to file descriptor 2. So the command keeps a copy of that descriptor for its own output,
and while it is connected to Ray, descriptor 2 is the log file.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.compat import send_raylet_lines

_KEPT = 20
"""Log files of earlier commands that stay."""

_PREFIX = "ray-"

_STDERR = 2


class _State:
    """State of this process."""

    own_stderr: int | None = None
    """The descriptor of our own output while descriptor 2 may be the log file."""
    file: Path | None = None


@contextmanager
def separate_stderr() -> Generator[None]:
    """In the body, ``sys.stderr`` has a descriptor of its own. Does nothing if it is not descriptor 2."""
    stream = sys.stderr
    try:
        is_plain = isinstance(stream, io.TextIOWrapper) and stream.fileno() == _STDERR
    except (OSError, ValueError):
        is_plain = False
    if not is_plain or _State.own_stderr is not None:
        yield
        return
    stream.flush()
    own = os.dup(_STDERR)
    sys.stderr = own_stream = open(  # noqa: SIM115
        own, "w", encoding=stream.encoding, errors=stream.errors, buffering=1, closefd=False
    )
    _State.own_stderr = own
    try:
        yield
    finally:
        stop_log()
        with suppress(OSError, ValueError):
            own_stream.flush()
        # The descriptor stays open: a thread may still write to it, and a number is soon used again.
        sys.stderr, _State.own_stderr = stream, None


def start_log() -> None:
    """From now on, what Ray writes goes to a new log file. Ray is imported.

    Does nothing outside of :func:`separate_stderr`, or if no log file can be written.
    """
    if _State.own_stderr is None or _State.file is not None:
        return
    try:
        handle, _State.file = _new_file()
    except OSError:
        return
    os.dup2(handle, _STDERR)
    os.close(handle)


def take_loggers() -> None:
    """Send Ray's Python loggers and raylet lines to the log file.

    Ray sets up handlers in ``ray.init`` and while ``ray.data`` or ``ray.train`` is imported.
    """
    if _State.file is None:
        return
    ours = logging.getLogger("genmod.ray")
    if not ours.handlers:
        stream = os.fdopen(os.dup(_STDERR), "w", buffering=1)
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        ours.addHandler(handler)
        ours.propagate = False
    send_raylet_lines(ours)  # imports Ray, which sets up handlers
    for name in ("ray", "ray.data", "ray.train"):
        logger = logging.getLogger(name)
        logger.handlers = list(ours.handlers)
        logger.propagate = False


def stop_log() -> None:
    """Descriptor 2 is that of our own output again."""
    if _State.file is None or _State.own_stderr is None:
        return
    os.dup2(_State.own_stderr, _STDERR)
    logging.getLogger("genmod.ray").handlers.clear()
    with suppress(OSError):
        if not _State.file.stat().st_size:
            _State.file.unlink()
    _State.file = None


def hint() -> str:
    """Where Ray's own messages are, for an error; empty without a log file."""
    return f"; Ray's own messages: {_State.file}" if _State.file is not None else ""


def log_folder() -> Path:
    """The folder of this user's log files, which may not exist."""
    return Path(tempfile.gettempdir(), f"genmod-log-{os.getuid()}")


def _new_file() -> tuple[int, Path]:
    """A new log file in a folder of this user alone, and its descriptor. Old files are removed."""
    folder = log_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if info.st_uid != os.getuid() or folder.is_symlink() or info.st_mode & 0o077:
        raise OSError(f"{folder} is not for this user alone")
    files = sorted(folder.glob(f"{_PREFIX}*.log"), key=lambda path: path.stat().st_mtime)
    for old in files[:-_KEPT]:
        old.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(".log", _PREFIX, folder)  # mode 0600
    return handle, Path(name)
