"""Random access to the tars of a dataset: many small pieces by offset, local or remote."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Sequence

from fsspec.implementations.local import LocalFileSystem

from genmod import storage
from genmod.errors import DataError
from genmod.manifest import FileEntry
from genmod.storage.cache import open_copy

MAX_OPEN = 128
"""Local files held open, the cache's copies among them."""

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
        self._no_room_until_s: dict[int, float] = {}

    def read(self, number: int, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Pieces of one tar.

        Raises:
            DataError: the tar is not there, or shorter than the pieces say.
        """
        url = self.urls[number]
        fs, path = storage.filesystem(url)
        try:
            local = isinstance(fs, LocalFileSystem)
            handle = self._open(number, path) if local else self._copy(number)
            if handle is not None:
                pairs = zip(offsets, lengths, strict=True)
                pieces = [os.pread(handle, length, offset) for offset, length in pairs]
            elif self._keep_whole and storage.settings().cache is None:
                if number not in self._whole:
                    self._whole[number] = storage.read_bytes(url)
                whole = self._whole[number]
                pieces = [whole[o : o + n] for o, n in zip(offsets, lengths, strict=True)]
            else:
                pieces = storage.read_ranges(url, offsets, lengths)
        except FileNotFoundError:
            raise DataError(f"{url} is not there, but the dataset's manifest names it") from None
        for piece, length in zip(pieces, lengths, strict=True):
            if len(piece) != length:
                raise DataError(
                    f"{url} is cut off; wanted {self._entries[number].size_bytes} bytes"
                )
        return pieces

    def _open(self, number: int, path: str) -> int:
        handle = self._descriptors.get(number)
        if handle is None:
            handle = self._hold(number, os.open(path, os.O_RDONLY))
        else:
            self._descriptors.move_to_end(number)
        return handle

    def _copy(self, number: int) -> int | None:
        """The node's copy of a remote tar; None if there is no cache, or no room in it for now."""
        if storage.settings().cache is None:
            return None
        handle = self._descriptors.get(number)
        if handle is not None:
            self._descriptors.move_to_end(number)
        elif self._no_room_until_s.get(number, 0.0) < time.monotonic():
            entry = self._entries[number]
            handle = open_copy(self.urls[number], entry.sha256, entry.size_bytes)
            if handle is None:
                self._no_room_until_s[number] = time.monotonic() + FULL_S
            else:
                self._hold(number, handle)
        return handle

    def _hold(self, number: int, handle: int) -> int:
        """Keep a file open, and close the one that was used longest ago if there are too many."""
        self._descriptors[number] = handle
        if len(self._descriptors) > MAX_OPEN:
            os.close(self._descriptors.popitem(last=False)[1])
        return handle

    def close(self) -> None:
        """Close files and drop what is cached."""
        self._whole.clear()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()
