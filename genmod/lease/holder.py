"""Who holds a lease: names for people, and what tells on the same machine whether the process has ended."""

from __future__ import annotations

import getpass
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from genmod.config import Config
from genmod.errors import sanitize

_MAX_CHARS = 255


class LeaseHolder(Config):
    """A process that holds a lease, or held it."""

    user: str = Field(max_length=_MAX_CHARS)
    host: str = Field(max_length=_MAX_CHARS)
    pid: int = Field(ge=0, le=1 << 31)
    since: str = Field(max_length=40)
    """UTC by the holder's clock; only shown, never compared."""
    machine: str = Field(default="", max_length=_MAX_CHARS)
    """Start of the machine, namespace of the process id, and user id; empty where the system tells none."""
    started: int = Field(default=0, ge=0, le=1 << 62)
    """When the process started, in the kernel's ticks since the machine did."""

    def __str__(self) -> str:
        return sanitize(f"{self.user}@{self.host}, pid {self.pid}, since {self.since}")

    def has_ended(self) -> bool:
        """Whether the process certainly has ended: it was one of this user on this machine, and is gone.

        Reads facts of the process from /proc, and never signals it.
        """
        return (
            bool(self.machine) and self.machine == _machine() and self.started != _started(self.pid)
        )


def this_process() -> LeaseHolder:
    """The running process as a holder from now on."""
    started = _started("self")
    return LeaseHolder(
        user=_user()[:_MAX_CHARS],
        host=socket.gethostname()[:_MAX_CHARS],
        pid=os.getpid(),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        machine=_machine() if started else "",
        started=started,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    except OSError:
        return ""


def _started(pid: int | str) -> int:
    """When a process started; 0 if it has ended or the system does not tell."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if state in ("Z", "X") else int(fields[18])
    except (OSError, ValueError, IndexError):
        return 0
