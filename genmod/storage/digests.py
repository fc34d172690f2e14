"""Digests of open files, computed once in a process for each unchanged file."""

from __future__ import annotations

import hashlib
import os

_BLOCK_BYTES = 1 << 20

_checked: set[tuple[str, int, int, int, int]] = set()
"""Files with this digest: digest, device, inode, time of change, size."""


def matches(handle: int, sha256: str) -> bool:
    """Whether an open local file has this SHA-256.

    A file that matched once is not read again by this process, unless its time of change or size differs.
    Safe to call from threads.
    """
    key = _key(handle, sha256)
    if key in _checked:
        return True
    if file_sha256(handle) != sha256:
        return False
    _checked.add(key)
    return True


def remember(handle: int, sha256: str) -> None:
    """Say that an open file has this SHA-256, which was computed while it was written."""
    _checked.add(_key(handle, sha256))


def file_sha256(handle: int) -> str:
    """SHA-256 of an open local file, in hex; the file's position does not change."""
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(handle, _BLOCK_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _key(handle: int, sha256: str) -> tuple[str, int, int, int, int]:
    metadata = os.fstat(handle)
    return sha256, metadata.st_dev, metadata.st_ino, metadata.st_mtime_ns, metadata.st_size
