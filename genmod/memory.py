"""Settings of the C library's allocator and of Python's, for steps that make and free many objects."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_MAX_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more
_KEPT_BYTES = 512 * 2**20


def keep_freed() -> None:
    """Keep up to half a GiB of freed memory for later allocations, until this process ends.

    By default glibc returns large blocks to the system, which fills them with zeros at the next allocation:
    a tenth of the time of a GAN's training step, and up to half of the time of its samples. The price is that
    the process keeps memory that it no longer uses. Without glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


@contextmanager
def no_garbage_collection() -> Generator[None]:
    """Put off Python's cyclic garbage collection while many objects without cycles are made."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
