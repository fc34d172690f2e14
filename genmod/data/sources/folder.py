"""A folder of image files; the class of an image is the folder that it lies in."""

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
"""A larger image file is not read."""

AT_ONCE = 32
"""Objects that are fetched together from a remote store."""


AT_ONCE_BYTES = 1 << 26
"""And not more bytes, unless one has them alone."""


def fetch_ranges(
    fs: Any, paths: Sequence[str], starts: Sequence[int], sizes: Sequence[int]
) -> Iterator[bytes | Rejected]:
    """Pieces of objects, several at a time. What is too large, missing or forbidden is refused."""
    some: list[int] = []
    for row, size in enumerate(sizes):
        together = sum(sizes[other] for other in some) + size
        if some and (len(some) == AT_ONCE or together > AT_ONCE_BYTES or size > MAX_FILE_BYTES):
            yield from _fetch_some(fs, paths, starts, sizes, some)
            some = []
        if size > MAX_FILE_BYTES:
            yield Rejected(f"a file of {size} bytes, more than {MAX_FILE_BYTES}")
        else:
            some.append(row)
    if some:
        yield from _fetch_some(fs, paths, starts, sizes, some)


def _fetch_some(
    fs: Any, paths: Sequence[str], starts: Sequence[int], sizes: Sequence[int], rows: Sequence[int]
) -> Iterator[bytes | Rejected]:
    ends = [starts[row] + sizes[row] for row in rows]
    got = fs.cat_ranges(
        [paths[row] for row in rows], [starts[row] for row in rows], ends, on_error="return"
    )
    for row, piece in zip(rows, cast("list[Any]", got), strict=True):
        if isinstance(piece, (FileNotFoundError, PermissionError, IsADirectoryError)):
            yield Rejected(f"cannot be read: {type(piece).__name__}")
        elif isinstance(piece, BaseException):
            raise piece
        elif len(piece) != sizes[row]:
            yield Rejected("changed its size after it was listed")
        else:
            yield cast(bytes, piece)


class Folder(Source):
    """Image files below a folder. Other files, and names that begin with a dot, are passed over."""

    kind = "folder"
    random_access = True

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """Every image file, in the order of paths; the class is the name of its folder."""
        fs, root = storage.filesystem(self.where)
        if not fs.isdir(root):
            raise DataError(f"{self.text}: no such folder")
        content = hashlib.sha256()
        found = False
        for file in files_below(self.where):
            if not _is_image(file.name):
                continue
            found, name = True, readable_name(file.name)
            content.update(f"{name}\x00{file.size_bytes}\n".encode())
            scan.size_bytes += file.size_bytes
            folder = posixpath.basename(posixpath.dirname(name))
            yield Entry(name, [file.name, file.size_bytes], folder or NO_LABEL, file.fault)
        if not found:
            raise DataError(f"{self.text}: no image files there ({', '.join(EXTENSIONS)})")
        scan.fingerprint = fingerprint(self.kind, content.hexdigest())

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Files by [name, size]."""
        fs, root = storage.filesystem(self.where)
        paths = [f"{root}/{name}" for name, _ in refs]
        yield from fetch_ranges(fs, paths, [0] * len(paths), [size for _, size in refs])


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS
