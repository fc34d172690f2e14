"""Random access to the tars of a dataset: many small byte ranges, local or remote.

A tar is compared with its digest when this process first opens it: local files, the node's copies, and tars
that are kept in memory. Tars that are read by byte range are not; each image has a CRC-32 in its index, whose
own digest is compared. ``storage.check_digests`` turns this off.
"""

from __future__ import annotations

import os
import resource
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from genmod import storage
from genmod.data.format.index import HINT
from genmod.errors import DataError
from genmod.manifest import StoredShard
from genmod.manifest.files import read_entry
from genmod.storage import digests
from genmod.storage.cache import open_copy

MEMORY_CACHE_BYTES = 1 << 30
"""Without a cache on the node, remote tars are kept whole in memory if all of them fit into this; otherwise
they are read by byte range."""

_OPEN_FILES_DIVISOR = 4
"""At most a fourth of the files that the process may open are tars or cached copies of them."""

_CHECK_THREADS = 8
"""Tars whose digests are computed at the same time."""

_RETRY_CACHE_S = 60.0
"""After a tar did not fit into the node's cache, wait this long before the next attempt."""


class TarFiles:
    """The tars of several shards. Closed by :meth:`close` or garbage collection. Not thread-safe."""

    def __init__(self, shards: Sequence[StoredShard]) -> None:
        self._shards = shards
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._whole: dict[int, bytes] = {}
        total = sum(shard.entry.tar.size_bytes for shard in shards)
        self._keep_whole = total <= MEMORY_CACHE_BYTES
        max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = max(16, max_files // _OPEN_FILES_DIVISOR)
        self._retry_cache_at_s: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._shards)

    def url(self, number: int) -> str:
        """URL of a tar."""
        return self._shards[number].tar_url

    def read(self, numbers: Sequence[int], offsets: list[int], lengths: list[int]) -> list[bytes]:
        """Read byte ranges, each of one tar.

        Args:
            numbers: number of the tar of each range.
            offsets: first byte of each range.
            lengths: bytes of each range.

        Raises:
            DataError: a tar is missing or shorter than expected.
        """
        descriptors = list(map(self._descriptors.get, numbers))
        if None in descriptors:
            blobs = self._open_and_read(numbers, offsets, lengths)
        else:
            blobs = list(map(os.pread, cast(list[int], descriptors), lengths, offsets))
        if list(map(len, blobs)) != lengths:
            is_whole = [len(blob) == n for blob, n in zip(blobs, lengths, strict=True)]
            number = numbers[is_whole.index(False)]
            size_bytes = self._shards[number].entry.tar.size_bytes
            raise DataError(f"{self.url(number)} is truncated; expected {size_bytes} bytes")
        return blobs

    def _open_and_read(
        self, numbers: Sequence[int], offsets: list[int], lengths: list[int]
    ) -> list[bytes]:
        """Read ranges of open and of closed tars."""
        blobs = list[bytes]()
        remote: dict[int, list[int]] = {}
        self._check_local([n for n in dict.fromkeys(numbers) if n not in self._descriptors])
        # Read local tars and cached copies; collect the ranges of the others.
        for number, offset, length in zip(numbers, offsets, lengths, strict=True):
            descriptor = self._descriptors.get(number)
            if descriptor is None and number not in remote:
                descriptor = self._open(number)
            if descriptor is None:
                remote.setdefault(number, []).append(len(blobs))
                blobs.append(b"")
            else:
                blobs.append(os.pread(descriptor, length, offset))
        # Fetch the ranges of each remote tar together.
        for number, positions in remote.items():
            fetched = self._fetch(
                number, [offsets[i] for i in positions], [lengths[i] for i in positions]
            )
            for i, blob in zip(positions, fetched, strict=True):
                blobs[i] = blob
        return blobs

    def _check_local(self, numbers: Sequence[int]) -> None:
        """Compare local tars with their digests, in parallel, unless this process has done so before."""
        if len(numbers) < 2 or not storage.settings().check_digests:
            return

        def check(number: int) -> None:
            if (descriptor := open_local(self._shards[number])) is not None:
                os.close(descriptor)

        with ThreadPoolExecutor(_CHECK_THREADS) as pool:
            deque(pool.map(check, numbers), maxlen=0)

    def _open(self, number: int) -> int | None:
        """Open a local tar, or the node's copy of a remote one; None if there is no copy now."""
        descriptor = open_local(self._shards[number])
        if descriptor is not None:
            return self._keep_open(number, descriptor)
        try:
            return self._open_copy(number)
        except FileNotFoundError:
            raise _missing(self.url(number)) from None

    def _fetch(self, number: int, offsets: list[int], lengths: list[int]) -> list[bytes]:
        """Byte ranges of a remote tar."""
        shard = self._shards[number]
        if not self._keep_whole or storage.settings().cache is not None:
            try:
                return storage.read_ranges(shard.tar_url, offsets, lengths)
            except FileNotFoundError:
                raise _missing(shard.tar_url) from None
        if number not in self._whole:
            check = storage.settings().check_digests
            self._whole[number] = read_entry(shard.folder, shard.entry.tar, HINT, check=check)
        whole = self._whole[number]
        return [whole[o : o + n] for o, n in zip(offsets, lengths, strict=True)]

    def _open_copy(self, number: int) -> int | None:
        """Open the node's copy of a remote tar; None without a cache, or if the cache is full for now."""
        if storage.settings().cache is None:
            return None
        if self._retry_cache_at_s.get(number, 0.0) >= time.monotonic():
            return None
        entry = self._shards[number].entry.tar
        descriptor = open_copy(self.url(number), entry.sha256, entry.size_bytes)
        if descriptor is None:
            self._retry_cache_at_s[number] = time.monotonic() + _RETRY_CACHE_S
            return None
        return self._keep_open(number, descriptor)

    def _keep_open(self, number: int, descriptor: int) -> int:
        """Keep a file open; close the file opened longest ago if too many are open."""
        self._descriptors[number] = descriptor
        if len(self._descriptors) > self._max_open:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """Close the files and free the cached tars."""
        self._whole.clear()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()


def open_local(shard: StoredShard) -> int | None:
    """A descriptor of a local tar, compared with its size and digest; None if the tar is remote.

    Raises:
        DataError: the tar is missing, or was changed.
        StorageError: it is a device, or a link out of its folder.
    """
    entry = shard.entry.tar
    try:
        descriptor = storage.open_below(shard.folder, entry.path)
    except FileNotFoundError:
        raise _missing(shard.tar_url) from None
    if descriptor is None:
        return None
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes != entry.size_bytes:
            problem = "is truncated" if size_bytes < entry.size_bytes else "is too long"
            raise DataError(
                f"{shard.tar_url} {problem}: {size_bytes} bytes, expected {entry.size_bytes}; {HINT}"
            )
        if storage.settings().check_digests and not digests.matches(descriptor, entry.sha256):
            raise DataError(f"{shard.tar_url} does not match its digest: it was changed; {HINT}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _missing(url: str) -> DataError:
    return DataError(f"{url} is missing, but its manifest lists it; {HINT}")
