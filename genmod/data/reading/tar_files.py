"""Random access to the tars of a dataset: many small pieces by offset, local or remote."""

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

OPEN_SHARE = 4
"""One part in so many of the files that the process may open are tars, or the cache's copies of them."""

CACHE_BYTES = 1 << 30
"""Without a cache on the node, remote tars are fetched whole and kept where all of them fit in this; else
they are read by ranges."""

FULL_S = 60.0
"""How long the cache is not asked for a tar again that it had no room for."""


class TarFiles:
    """The tars of some shards. Close it, or let it be collected; not to be shared by threads."""

    def __init__(self, urls: Sequence[str], entries: Sequence[FileEntry]) -> None:
        self.urls = tuple(urls)
        self._entries = tuple(entries)
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._whole: dict[int, bytes] = {}
        self._keep_whole = sum(entry.size_bytes for entry in entries) <= CACHE_BYTES
        self._most = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // OPEN_SHARE)
        self._no_room_until_s: dict[int, float] = {}

    def read(self, numbers: Sequence[int], offsets: list[int], lengths: list[int]) -> list[bytes]:
        """Pieces, each of one tar.

        Raises:
            DataError: a tar is not there, or shorter than the pieces say.
        """
        handles = list(map(self._descriptors.get, numbers))
        if None in handles:
            pieces = self._read_where_they_are(numbers, offsets, lengths)
        else:
            pieces = list(map(os.pread, cast(list[int], handles), lengths, offsets))
        if list(map(len, pieces)) != lengths:
            whole = [len(piece) == n for piece, n in zip(pieces, lengths, strict=True)]
            number = numbers[whole.index(False)]
            size_bytes = self._entries[number].size_bytes
            raise DataError(f"{self.urls[number]} is cut off; wanted {size_bytes} bytes")
        return pieces

    def _read_where_they_are(
        self, numbers: Sequence[int], offsets: list[int], lengths: list[int]
    ) -> list[bytes]:
        """Opens what is not open, and asks the store for the rest."""
        pieces = list[bytes]()
        elsewhere: dict[int, list[int]] = {}
        for number, offset, length in zip(numbers, offsets, lengths, strict=True):
            handle = self._descriptors.get(number)
            if handle is None and number not in elsewhere:
                handle = self._open(number)
            if handle is None:
                elsewhere.setdefault(number, []).append(len(pieces))
                pieces.append(b"")
            else:
                pieces.append(os.pread(handle, length, offset))
        for number, which in elsewhere.items():
            found = self._fetch(number, [offsets[i] for i in which], [lengths[i] for i in which])
            for i, piece in zip(which, found, strict=True):
                pieces[i] = piece
        return pieces

    def _open(self, number: int) -> int | None:
        """A descriptor of a local tar, or of the node's copy of a remote one; None if there is none now."""
        url = self.urls[number]
        fs, path = storage.filesystem(url)
        try:
            if isinstance(fs, LocalFileSystem):
                return self._hold(number, os.open(path, os.O_RDONLY))
            return self._copy(number)
        except FileNotFoundError:
            raise _missing(url) from None

    def _fetch(self, number: int, offsets: list[int], lengths: list[int]) -> list[bytes]:
        """Pieces of a remote tar."""
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

    def _copy(self, number: int) -> int | None:
        """The node's copy of a remote tar; None if there is no cache, or no room in it for now."""
        if storage.settings().cache is None:
            return None
        if self._no_room_until_s.get(number, 0.0) >= time.monotonic():
            return None
        entry = self._entries[number]
        handle = open_copy(self.urls[number], entry.sha256, entry.size_bytes)
        if handle is None:
            self._no_room_until_s[number] = time.monotonic() + FULL_S
            return None
        return self._hold(number, handle)

    def _hold(self, number: int, handle: int) -> int:
        """Keep a file open, and close the one that was opened longest ago if there are too many."""
        self._descriptors[number] = handle
        if len(self._descriptors) > self._most:
            os.close(self._descriptors.popitem(last=False)[1])
        return handle

    def close(self) -> None:
        """Close files and drop what is cached."""
        self._whole.clear()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _missing(url: str) -> DataError:
    return DataError(f"{url} is not there, but the dataset's manifest names it")
