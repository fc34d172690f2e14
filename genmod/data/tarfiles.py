"""Random access to the tars of a dataset: many small pieces by offset, local or remote."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

from fsspec.implementations.local import LocalFileSystem

from genmod import storage
from genmod.errors import DataError
from genmod.manifest import FileEntry

MAX_OPEN = 128
"""Local files held open."""

CACHE_BYTES = 1 << 30
"""Remote tars are fetched whole and kept where all of them fit in this; else piece by piece."""


class TarFiles:
    """The tars of some shards. Close it, or let it be collected; not to be shared by threads."""

    def __init__(self, urls: Sequence[str], entries: Sequence[FileEntry]) -> None:
        self.urls = tuple(urls)
        self._sizes = [entry.size_bytes for entry in entries]
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._whole: dict[int, bytes] = {}
        self._keep_whole = sum(self._sizes) <= CACHE_BYTES

    def read(self, number: int, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Pieces of one tar.

        Raises:
            DataError: the tar is not there, or shorter than the pieces say.
        """
        url = self.urls[number]
        fs, path = storage.filesystem(url)
        try:
            if isinstance(fs, LocalFileSystem):
                handle = self._open(number, path)
                pairs = zip(offsets, lengths, strict=True)
                pieces = [os.pread(handle, length, offset) for offset, length in pairs]
            elif self._keep_whole:
                if number not in self._whole:
                    self._whole[number] = cast(bytes, fs.cat_file(path))
                whole = self._whole[number]
                pieces = [whole[o : o + n] for o, n in zip(offsets, lengths, strict=True)]
            else:
                ends = [o + n for o, n in zip(offsets, lengths, strict=True)]
                paths = [path] * len(ends)
                pieces = cast(list[bytes], fs.cat_ranges(paths, list(offsets), ends))
        except FileNotFoundError:
            raise DataError(f"{url} is not there, but the dataset's manifest names it") from None
        for piece, length in zip(pieces, lengths, strict=True):
            if len(piece) != length:
                raise DataError(f"{url} is cut off; wanted {self._sizes[number]} bytes")
        return pieces

    def _open(self, number: int, path: str) -> int:
        handle = self._descriptors.get(number)
        if handle is None:
            handle = os.open(path, os.O_RDONLY)
            self._descriptors[number] = handle
            if len(self._descriptors) > MAX_OPEN:
                os.close(self._descriptors.popitem(last=False)[1])
        else:
            self._descriptors.move_to_end(number)
        return handle

    def close(self) -> None:
        """Close files and drop what is cached."""
        self._whole.clear()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()
