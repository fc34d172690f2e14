"""Source of image files below a folder; the class of an image is the name of its parent folder."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, cast

from genmod import storage
from genmod.config import fingerprint
from genmod.data.format.codecs import EXTENSIONS, Rejected
from genmod.data.sources.listing import files_below
from genmod.data.sources.source import NO_LABEL, Entry, Image, Ref, Scan, Source, readable_name
from genmod.errors import DataError

MAX_FILE_BYTES = 1 << 28
"""Larger image files are rejected without reading them."""

_BATCH_OBJECTS = 32
"""Maximum number of byte ranges in one request to a store."""

_BATCH_BYTES = 1 << 26
"""Maximum size of one request, except for a single larger range."""


def fetch_ranges(
    fs: Any, paths: Sequence[str], starts: Sequence[int], sizes: Sequence[int]
) -> Iterator[bytes | Rejected]:
    """Fetch byte ranges of objects, several per request.

    Args:
        fs: file system of the objects.
        paths: object of each range.
        starts: first byte of each range.
        sizes: bytes of each range.

    Yields:
        The bytes of each range, in order; Rejected if it is too large, missing, forbidden or has changed.
    """
    batch: list[int] = []
    for row, size in enumerate(sizes):
        # Fetch the batch when it is full, and before a rejected row, to keep the order.
        batch_bytes = sum(sizes[other] for other in batch) + size
        is_full = len(batch) == _BATCH_OBJECTS or batch_bytes > _BATCH_BYTES
        if batch and (is_full or size > MAX_FILE_BYTES):
            yield from _fetch_batch(fs, paths, starts, sizes, batch)
            batch = []
        if size > MAX_FILE_BYTES:
            yield Rejected(f"a file of {size} bytes, more than {MAX_FILE_BYTES}")
        else:
            batch.append(row)
    if batch:
        yield from _fetch_batch(fs, paths, starts, sizes, batch)


def _fetch_batch(
    fs: Any, paths: Sequence[str], starts: Sequence[int], sizes: Sequence[int], rows: Sequence[int]
) -> Iterator[bytes | Rejected]:
    ends = [starts[row] + sizes[row] for row in rows]
    results = fs.cat_ranges(
        [paths[row] for row in rows], [starts[row] for row in rows], ends, on_error="return"
    )
    for row, blob in zip(rows, cast("list[Any]", results), strict=True):
        if isinstance(blob, (FileNotFoundError, PermissionError, IsADirectoryError)):
            yield Rejected(f"cannot be read: {type(blob).__name__}")
        elif isinstance(blob, BaseException):
            raise blob
        elif len(blob) != sizes[row]:
            yield Rejected("its size has changed since it was listed")
        else:
            yield cast(bytes, blob)


class Folder(Source):
    """Image files below a folder. Other files, and names that start with a dot, are ignored."""

    kind = "folder"
    random_access = True

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """List every image file in the order of paths; the class is the name of its folder."""
        fs, root = storage.filesystem(self.where)
        if not fs.isdir(root):
            raise DataError(f"{self.text}: no such folder")
        content = hashlib.sha256()
        is_empty = True
        for file in files_below(self.where):
            if not _is_image(file.name):
                continue
            is_empty, name = False, readable_name(file.name)
            content.update(f"{name}\x00{file.size_bytes}\n".encode())
            scan.size_bytes += file.size_bytes
            folder = posixpath.basename(posixpath.dirname(name))
            yield Entry(name, [file.name, file.size_bytes], folder or NO_LABEL, file.reason)
        if is_empty:
            raise DataError(f"{self.text}: contains no image files ({', '.join(EXTENSIONS)})")
        scan.fingerprint = fingerprint(self.kind, content.hexdigest())

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Fetch files; a ref is [name, size]."""
        fs, root = storage.filesystem(self.where)
        paths = [f"{root}/{name}" for name, _ in refs]
        yield from fetch_ranges(fs, paths, [0] * len(paths), [size for _, size in refs])


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS
