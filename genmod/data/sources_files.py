"""A folder of image files; the class of an image is the folder that it lies in."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from genmod import storage
from genmod.config import fingerprint
from genmod.data.codecs import EXTENSIONS, Refused
from genmod.data.sources import Image, Listing, Ref, Source
from genmod.errors import DataError

MAX_FILE_BYTES = 1 << 28
"""A larger image file is not read."""

AT_ONCE = 32
"""Objects that are fetched together from a remote store."""


def fetch_ranges(
    fs: Any, paths: Sequence[str], starts: Sequence[int], ends: Sequence[int]
) -> Iterator[bytes | Refused]:
    """Pieces of objects, several at a time. What is missing or forbidden is refused, the rest raises."""
    for at in range(0, len(paths), AT_ONCE):
        some = slice(at, at + AT_ONCE)
        got = fs.cat_ranges(
            list(paths[some]), list(starts[some]), list(ends[some]), on_error="return"
        )
        wanted = (end - start for start, end in zip(starts[some], ends[some], strict=True))
        for piece, length in zip(cast("list[Any]", got), wanted, strict=True):
            if isinstance(piece, (FileNotFoundError, PermissionError)):
                yield Refused(f"cannot be read: {type(piece).__name__}")
            elif isinstance(piece, BaseException):
                raise piece
            elif len(piece) != length:
                yield Refused("changed its size after it was listed")
            else:
                yield cast(bytes, piece)


class Folder(Source):
    """Image files below a folder. Other files, and names that begin with a dot, are passed over."""

    kind = "folder"
    scattered = True

    def listing(self) -> Listing:
        """Every image file, sorted by path; classes sorted by name."""
        fs, root = storage.filesystem(self.where)
        fs.invalidate_cache()
        if not fs.isdir(root):
            raise DataError(f"{self.text}: no such folder")
        found = cast("dict[str, dict[str, Any]]", fs.find(root, detail=True))
        files = {
            name: int(info["size"])
            for path, info in found.items()
            if _is_image(name := posixpath.relpath(path, root))
        }
        if not files:
            raise DataError(f"{self.text}: no image files there ({', '.join(EXTENSIONS)})")
        names = sorted(files)
        folders = [posixpath.basename(posixpath.dirname(name)) for name in names]
        class_names = tuple(sorted({folder for folder in folders if folder}))
        number = {name: label for label, name in enumerate(class_names)}
        labels_N = np.array([number.get(folder, -1) for folder in folders], dtype=np.int64)
        content = hashlib.sha256()
        for name in names:
            content.update(f"{name}\x00{files[name]}\n".encode("utf-8", "surrogatepass"))
        return Listing(
            names=names,
            refs=[[name, files[name]] for name in names],
            labels_N=labels_N if class_names else None,
            fingerprint=fingerprint(self.kind, content.hexdigest()),
            size_bytes=sum(files.values()),
            class_names=class_names,
        )

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Files by [name, size]."""
        fs, root = storage.filesystem(self.where)
        small = [(name, size) for name, size in refs if size <= MAX_FILE_BYTES]
        paths = [f"{root}/{name}" for name, _ in small]
        pieces = fetch_ranges(fs, paths, [0] * len(small), [size for _, size in small])
        for _, size in refs:
            if size > MAX_FILE_BYTES:
                yield Refused(f"a file of {size} bytes, more than {MAX_FILE_BYTES}")
            else:
                yield next(pieces)


def _is_image(name: str) -> bool:
    extension = name.rpartition(".")[2].lower()
    hidden = any(part.startswith(".") for part in name.split("/"))
    return extension in EXTENSIONS and not hidden


KINDS = {Folder.kind: Folder}
