"""Servers beside the tests: ports for them, and their end."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 900.0
"""For what comes surely: how late tells of the machine, not of the program."""


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on, below those that it gives out itself."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 500):
        with suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"{len(found)} of {count} ports are free")


def kill_marked(name: str, mark: str) -> None:
    """Kill every process that was started with NAME=mark in its environment, as a power cut would."""
    wanted = f"{name}={mark}".encode()
    for _ in range(3):  # one may have started another meanwhile
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        os.kill(int(entry.name), signal.SIGKILL)
        time.sleep(0.1)
