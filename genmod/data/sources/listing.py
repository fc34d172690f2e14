"""Lists the files below a folder in the order of their paths, in bounded memory."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Mapping
from itertools import starmap
from typing import Any, NamedTuple, cast

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from genmod import storage
from genmod.data.sources.census import Census
from genmod.data.sources.identity import store_identity
from genmod.data.sources.local_folder import walk_local
from genmod.data.sources.names import HIDDEN, is_hidden
from genmod.errors import DataError
from genmod.storage.urls import READ_ONLY_SCHEMES, scheme_of


class File(NamedTuple):
    """One file below a folder."""

    name: str
    """Path relative to the folder."""
    size_bytes: int
    reason: str | None = None
    """Why it cannot be read; None if it can."""
    state: str | None = None
    """What the listing says about its content: a store's checksum, a local file's time of modification."""


def files_below(
    url: str, census: Census | None = None, is_sizeless: Callable[[str], bool] | None = None
) -> Iterator[File]:
    """List every file below a folder, sorted by path. Hidden names are passed over.

    Local folders are listed incrementally and S3 buckets page by page, so memory does not grow with the
    number of files; other stores are listed in one request. Links to local files and folders are followed; a
    link to a folder that contains it is listed as a file that cannot be read.

    Args:
        url: of the folder.
        census: counts hidden names and links.
        is_sizeless: whether the size of a file of this name is not needed; of a local one it is then -1.
    """
    census = census or Census()
    fs, root = storage.filesystem(url)
    if isinstance(fs, LocalFileSystem):
        yield from starmap(File, walk_local(root, census, is_sizeless))
        return
    fs.invalidate_cache()
    files = _s3_pages(fs, root) if "s3" in _protocols(fs) else _find_all(fs, root)
    for name, info in files:
        if is_hidden(name):
            census.pass_over(HIDDEN, name)
        else:
            yield File(name, int(info["size"]), None, store_identity(info))


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else protocol


def _find_all(fs: AbstractFileSystem, root: str) -> list[tuple[str, Mapping[str, Any]]]:
    files = cast("dict[str, dict[str, Any]]", fs.find(root, detail=True))
    return sorted(
        ((posixpath.relpath(path, root), info) for path, info in files.items()), key=_path
    )


def _path(file: tuple[str, Mapping[str, Any]]) -> str:
    return file[0]


def _s3_pages(fs: Any, root: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Objects below a prefix, a page of at most a thousand at a time, in the order of their UTF-8 bytes."""
    bucket, _, prefix = root.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    continuation: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **continuation)
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                info = {"size": entry["Size"], "ETag": entry.get("ETag")}
                yield entry["Key"].removeprefix(prefix), info
        if not page.get("IsTruncated"):
            return
        continuation = {"ContinuationToken": page["NextContinuationToken"]}


def is_regular(fs: AbstractFileSystem, path: str) -> bool:
    """Whether a path is a file that can be opened: no folder, FIFO, socket or device. Links are followed."""
    return not isinstance(fs, LocalFileSystem) or os.path.isfile(path)


def check_listable(source: str, url: str) -> None:
    """Raise DataError for http, where listing means to follow the links of a page to any address."""
    scheme = scheme_of(url)
    if scheme in READ_ONLY_SCHEMES:
        raise DataError(
            f"{source}: {scheme} has no listings; name each file, e.g. with braces {{000..099}}"
        )
