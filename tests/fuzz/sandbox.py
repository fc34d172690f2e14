"""The limits of a call that reads a hostile document: the working folder, some seconds, 2 GiB.

An audit hook sees every file that is opened, changed or listed, every connection and every process. Memory is
limited by the process's address space, CPU time by a timer.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import genmod

CPU_S, WALL_S = 10.0, 240.0
"""Limits of one call. The wall clock only ends a call that waits, so a busy machine changes no result."""

MEMORY_BYTES = 2 << 30
"""Limit of what one call adds to the memory of the process."""

_REPOSITORY = Path(genmod.__file__).resolve().parents[1]
_PYTHON = {
    Path(p).resolve() for p in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())
}
_PACKAGES = {Path(p).resolve() for p in sys.path if "site-packages" in p}
_MACHINE = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/", "/dev/null")
_MACHINE += (
    "/proc/sys/kernel/random/boot_id",
    "/dev/urandom",
    "/usr/lib",
    "/usr/share/zoneinfo",
    "/etc/localtime",
    "/lib",
)
READABLE = (str(_REPOSITORY), *map(str, _PYTHON | _PACKAGES), *_MACHINE)
"""What Python and its packages read, besides the working folder."""

_FILES = {
    "open": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "os.listdir": 1,
    "os.scandir": 1,
    "os.walk": 1,
    "shutil.rmtree": 1,
    "shutil.copyfile": 2,
    "shutil.move": 2,
    "tempfile.mkstemp": 1,
}
"""Audit event -> how many of its first arguments are paths."""

_READS = {"open", "os.listdir", "os.scandir", "os.walk"}
_NEVER = (
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostby",
)
_NEVER += (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.kill",
)
_NEVER += ("os.killpg", "signal.pthread_kill", "ctypes.dlsym/handle", "webbrowser.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(BaseException):
    """A call did something that no document may cause."""


class TimeLimit(BaseException):
    """A call took too long."""


class Sandbox:
    """The limits of calls in this process. The audit hook cannot be removed, but only acts inside a call.

    Args:
        folders: the working folders.
        place: names the innermost line of the product in a stack.
    """

    def __init__(
        self, folders: Sequence[Path], place: Callable[[traceback.StackSummary], str] = str
    ) -> None:
        self.folders = tuple(str(folder.resolve()) for folder in folders)
        self.violations: list[tuple[str, str]] = []
        self._armed, self._place = False, place
        self._main = threading.main_thread()
        signal.signal(signal.SIGPROF, self._late)
        signal.signal(signal.SIGALRM, self._late)
        sys.addaudithook(self._hook)

    @contextmanager
    def call(self) -> Generator[None]:
        """Apply the limits to the body, which is one call of the product."""
        self.violations = []
        self._limit_memory()
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        signal.setitimer(signal.ITIMER_REAL, WALL_S)
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _limit_memory(self) -> None:
        """Let allocations fail that add more than :data:`MEMORY_BYTES` to what this process has now."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

    def _late(self, number: int, frame: object) -> None:
        if self._armed:
            limit = CPU_S if number == signal.SIGPROF else WALL_S
            raise TimeLimit(f"more than {limit:g} s")

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if not self._armed:
            return
        if event in _FILES:
            mode, flags = (args[1], args[2]) if event == "open" else (None, 0)
            writes = event not in _READS or _writes(mode, flags)
            for path in args[: _FILES[event]]:
                if isinstance(path, (str, bytes)):
                    self._check_path(event, os.fsdecode(path), writes)
        elif event.startswith(_NEVER):
            self._refuse(f"{event} {args[-1]!r}"[:200])

    def _check_path(self, event: str, path: str, writes: bool) -> None:
        real = os.path.realpath(path)
        inside = any(real == each or real.startswith(each + os.sep) for each in self.folders)
        if inside and event == "open" and _is_special(real):
            self._refuse(f"{event} of a device or FIFO")
        is_readable = real.startswith(READABLE) or real == f"/proc/{os.getpid()}/stat"
        if not inside and (writes or not is_readable) and real != "/dev/null":
            self._refuse(f"{event}{' for writing' if writes else ''} of {path!r}"[:200])

    def _refuse(self, what: str) -> None:
        self.violations.append((what, self._place(traceback.extract_stack())))
        if threading.current_thread() is self._main:
            raise Refused(what)
        raise PermissionError(what)  # a thread of a pool or of asyncio must not die in silence


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITING)


def _is_special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path)
    except OSError:
        return False
