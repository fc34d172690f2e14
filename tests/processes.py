"""Servers that tests start: their ports, and how to kill them."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

TIMEOUT_S = 900.0
"""Timeout for events that must happen, in seconds; long, because the machine may be busy."""


def free_ports(count: int) -> list[int]:
    """Different free ports of this machine, below the range that the system assigns."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 500):
        with suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError(f"{len(ports)} of {count} ports are free")


def kill_marked(name: str, mark: str) -> None:
    """Send SIGKILL to every process with NAME=mark in its environment."""
    entry_bytes = f"{name}={mark}".encode()
    for _ in range(3):  # a process may have started another one meanwhile
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if entry_bytes in (entry / "environ").read_bytes().split(b"\0"):
                        os.kill(int(entry.name), signal.SIGKILL)
        time.sleep(0.1)
