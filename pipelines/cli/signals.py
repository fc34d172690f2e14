"""Ctrl-C and SIGTERM: the first ends the command in order, a second one at once; no process is left."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType

from genmod.terminal import print_line

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
"""Handlers that the user has not changed; a signal that is ignored, as under nohup, stays so."""


class Interrupted(KeyboardInterrupt):
    """The user or the system asks the command to end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        """As shells report a signal."""


@contextmanager
def interruptible() -> Generator[None]:
    """In the body, the first signal raises :class:`Interrupted`, and a second one ends all processes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    # Runs after what is registered later, which ends processes in order.
    atexit.register(_end_rest, received)

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if len(received) > 1:
            end_now(received[0])
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler in _DEFAULTS:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_now(number: int) -> None:
    """Kill all processes below this one, among them a local Ray, and exit as after this signal."""
    print_line(
        "genmod: error: interrupted twice, ended at once; run the same command again to resume"
    )
    _kill_below()
    os._exit(128 + number)


def _end_rest(received: list[int]) -> None:
    """After an interruption, kill what the command has not ended, e.g. since it was just being started."""
    if received:
        _kill_below()


def _kill_below() -> None:
    import psutil

    below = psutil.Process().children(recursive=True)
    for process in below:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(below, timeout=5)
