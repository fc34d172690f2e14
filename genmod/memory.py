"""The C library's memory, which each step of training, each batch of samples takes and gives back."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_MOST_MMAP = 32 * 2**20  # glibc refuses more
KEPT = 512 * 2**20


def keep_freed() -> None:
    """Keep up to half a GiB of what is freed for what comes next, for the rest of this process.

    By itself glibc returns large blocks to the system, which fills them with zeros when the next step asks
    for them again: a tenth of a GAN's step, up to as long again as its samples take. The price: a process
    that has once used much memory goes on holding so much of it. Where there is no glibc, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _MOST_MMAP)
        mallopt(_TRIM_THRESHOLD, KEPT)
