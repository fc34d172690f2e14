"""Measures limits, free space, servers and the token of the machine that calls it. Linux; elsewhere less."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil

from cluster.doctor.facts import Listener, Machine, TokenFile

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
# Only its size is read.
_SHM = "/dev/shm"  # nosec B108
_LIMITS = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
"""File of a memory limit -> file of what is used, of both versions of cgroups."""

_RAY_PROGRAMS = ("raylet", "gcs_server", "ray::")
_KNOWN_PROGRAMS = ("sshd", "systemd")
"""Servers of a machine that are no part of this work."""


def measure_machine(folders: Iterable[str] = (), session: Iterable[str] = ()) -> Machine:
    """Limits and free space of this machine.

    Args:
        folders: that are written during work, besides the one for temporary files.
        session: the folder of Ray, if this is a process of Ray.
    """
    limit, free = memory()
    shm = shutil.disk_usage(_SHM) if os.path.isdir(_SHM) else None
    host = socket.gethostname()
    return Machine(
        memory_bytes=limit,
        memory_free_bytes=free,
        shm_bytes=shm.total if shm else 0,
        shm_free_bytes=shm.free if shm else 0,
        disk_free_bytes=disk_free([tempfile.gettempdir(), *session, *folders]),
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        host=host,
        is_loopback_only=is_loopback_only(host),
        listeners=tuple(listeners(session)),
        token=token_file(),
        auth=os.environ.get("RAY_AUTH_MODE", ""),
    )


def memory() -> tuple[int, int]:
    """Memory that processes here may use, and how much of it is free, in bytes."""
    machine = psutil.virtual_memory()
    limit, free = machine.total, machine.available
    for folder in cgroup_folders():
        for name, used_name in _LIMITS.items():
            with suppress(OSError, ValueError):  # no such file, or "max"
                bound = int((folder / name).read_text())
                used = int((folder / used_name).read_text()) - _reclaimable(folder)
                limit, free = min(limit, bound), min(free, max(0, bound - used))
    return limit, free


def _reclaimable(folder: Path) -> int:
    """Bytes of files in a cgroup's memory that the system drops before it runs out."""
    with suppress(OSError, ValueError):
        lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
        values = {words[0]: int(words[1]) for words in lines if len(words) == 2}
        return values.get("total_inactive_file", values.get("inactive_file", 0))
    return 0


def cgroup_folders() -> list[Path]:
    """Folders of this process's memory cgroups, outermost last."""
    folders: list[Path] = []
    with suppress(OSError):
        for line in _OWN_CGROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            base = _CGROUPS / "memory" if controllers else _CGROUPS
            # In a container, the path may be one of the host; then the base is the container's own.
            inner = base / path.lstrip("/")
            while inner != base and base in inner.parents:
                folders.append(inner)
                inner = inner.parent
            folders.append(base)
    return folders


def disk_free(folders: Iterable[str]) -> dict[str, int]:
    """Free bytes at each folder, or at the nearest folder above it that exists."""
    free: dict[str, int] = {}
    for folder in dict.fromkeys(folders):
        path = Path(folder)
        while not path.exists() and path != path.parent:
            path = path.parent
        with suppress(OSError):
            free[folder] = shutil.disk_usage(path).free
    return free


def is_loopback_only(host: str) -> bool:
    """Whether a host name has loopback addresses alone, so that others are sent a wrong address."""
    try:
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(map(_is_loopback, found))


def listeners(session: Iterable[str] = ()) -> list[Listener]:
    """TCP servers of this user that accept connections from other machines, one of each port.

    Args:
        session: folder of this Ray; servers of other Rays on this machine are left out.
    """
    sessions = [Path(folder).name for folder in session]
    own_ray = _ray_tree()
    found: dict[int, Listener] = {}
    for process in psutil.process_iter(["uids", "name", "cmdline"]):
        uids, name = process.info["uids"], process.info["name"] or ""
        if uids is None or uids.real != os.getuid() or name.startswith(_KNOWN_PROGRAMS):
            continue
        words: list[str] = process.info["cmdline"] or [name]
        text = " ".join(words)
        is_own = process.pid in own_ray or any(each in text for each in sessions)
        if not is_own and _is_ray(process.pid, words):
            continue
        with suppress(psutil.Error):
            for connection in process.net_connections("tcp"):
                if connection.status != psutil.CONN_LISTEN or not connection.laddr:
                    continue
                address, port = str(connection.laddr[0]), int(connection.laddr[1])
                if not _is_loopback(address):
                    found.setdefault(
                        port,
                        Listener(port=port, address=address, program=text[:80], is_ray=is_own),
                    )
    return [found[port] for port in sorted(found)]


def _ray_tree() -> set[int]:
    """Ids of the raylet above this process and of all processes that it has started."""
    for parent in psutil.Process().parents():
        if "raylet" in parent.name():
            return {parent.pid, *(child.pid for child in parent.children(recursive=True))}
    return set()


def _is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address; one of IPv4 may be written as one of IPv6."""
    parsed = ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def _is_ray(pid: int, words: list[str]) -> bool:
    """Whether a process is one of Ray's, or a program that is connected to Ray."""
    if Path(words[0].split(" ")[0]).name.startswith(_RAY_PROGRAMS):
        return True
    if f"{os.sep}ray{os.sep}" in " ".join(words):
        return True
    try:
        return "/ray/_raylet" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def token_file() -> TokenFile:
    """Where Ray finds its token here: Ray's own order is variable, file of a variable, file of the user."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return TokenFile(source="environment")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        state = os.stat(path)
    except OSError:
        return TokenFile(source="")
    return TokenFile(source=path, mode=state.st_mode & 0o777, is_own=state.st_uid == os.getuid())
