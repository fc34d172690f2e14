"""Random access to the tars of a dataset: many small byte ranges, local or remote."""

from __future__ import annotations

import os
import resource
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

from fsspec.implementations.local import LocalFileSystem

from genmod import storage
from genmod.errors import DataError
from genmod.manifest import FileEntry
from genmod.storage.cache import open_copy

MEMORY_CACHE_BYTES = 1 << 30
"""Without a cache on the node, remote tars are kept whole in memory if all of them fit into this; otherwise
they are read by byte range."""

_OPEN_FILES_DIVISOR = 4
"""At most a fourth of the files that the process may open are tars or cached copies of them."""

_RETRY_CACHE_S = 60.0
"""After a tar did not fit into the node's cache, wait this long before the next attempt."""


class TarFiles:
    """The tars of several shards. Closed by :meth:`close` or garbage collection. Not thread-safe."""

    def __init__(self, urls: Sequence[str], entries: Sequence[FileEntry]) -> None:
        self.urls = tuple(urls)
        self._entries = tuple(entries)
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._whole: dict[int, bytes] = {}
        self._keep_whole = sum(entry.size_bytes for entry in entries) <= MEMORY_CACHE_BYTES
        max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = max(16, max_files // _OPEN_FILES_DIVISOR)
        self._retry_cache_at_s: dict[int, float] = {}

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
            size_bytes = self._entries[number].size_bytes
            raise DataError(f"{self.urls[number]} is truncated; expected {size_bytes} bytes")
        return blobs

    def _open_and_read(
        self, numbers: Sequence[int], offsets: list[int], lengths: list[int]
    ) -> list[bytes]:
        """Read ranges of open and of closed tars."""
        blobs = list[bytes]()
        remote: dict[int, list[int]] = {}
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

    def _open(self, number: int) -> int | None:
        """Open a local tar, or the node's copy of a remote one; None if there is no copy now."""
        url = self.urls[number]
        fs, path = storage.filesystem(url)
        try:
            if isinstance(fs, LocalFileSystem):
                return self._keep_open(number, os.open(path, os.O_RDONLY))
            return self._open_copy(number)
        except FileNotFoundError:
            raise _missing(url) from None

    def _fetch(self, number: int, offsets: list[int], lengths: list[int]) -> list[bytes]:
        """Byte ranges of a remote tar."""
        url = self.urls[number]
        try:
            if not self._keep_whole or storage.settings().cache is not None:
                return storage.read_ranges(url, offsets, lengths)
            if number not in self._whole:
                self._whole[number] = storage.read_bytes(url)
        except FileNotFoundError:
            raise _missing(url) from None
        whole = self._whole[number]
        return [whole[o : o + n] for o, n in zip(offsets, lengths, strict=True)]

    def _open_copy(self, number: int) -> int | None:
        """Open the node's copy of a remote tar; None without a cache, or if the cache is full for now."""
        if storage.settings().cache is None:
            return None
        if self._retry_cache_at_s.get(number, 0.0) >= time.monotonic():
            return None
        entry = self._entries[number]
        descriptor = open_copy(self.urls[number], entry.sha256, entry.size_bytes)
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


def _missing(url: str) -> DataError:
    return DataError(f"{url} does not exist, but the dataset's manifest lists it")
