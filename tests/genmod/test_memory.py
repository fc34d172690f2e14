"""Freed memory is kept: a second round of the same work asks the system for nothing."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ROUNDS = """
import ctypes, resource, sys
from genmod.memory import keep_freed

if sys.argv[1] == "kept":
    keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(8 << 20) for _ in range(8)]
    for block in blocks:
        libc.memset(block, 1, 8 << 20)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(), faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries differ")
def test_a_second_round_takes_no_new_pages():
    def faults(options: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", ROUNDS, options], capture_output=True, check=True
        )
        return int(done.stdout)

    assert faults("kept") < faults("as it comes") / 10
