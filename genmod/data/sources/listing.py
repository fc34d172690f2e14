"""Lists the files below a folder in the order of their paths, in bounded memory."""

from __future__ import annotations

import heapq
import json
import os
import posixpath
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import IO, Any, NamedTuple, cast

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from genmod import storage

_SORT_NAMES = 100_000
"""Names of one folder that are sorted in memory; larger folders are merge-sorted in temporary files."""


class File(NamedTuple):
    """One file below a folder."""

    name: str
    """Path relative to the folder."""
    size_bytes: int
    reason: str | None = None
    """Why it cannot be read; None if it can."""


def files_below(url: str) -> Iterator[File]:
    """List every file below a folder, sorted by path. Names that start with a dot are skipped.

    Local folders are listed incrementally and S3 buckets page by page, so memory does not grow with the
    number of files; other stores are listed in one request. Links to local files are followed; links to
    folders are not, since they may form a cycle.
    """
    fs, root = storage.filesystem(url)
    if isinstance(fs, LocalFileSystem):
        yield from _local(root, "")
        return
    fs.invalidate_cache()
    files = _s3_pages(fs, root) if "s3" in _protocols(fs) else _find_all(fs, root)
    for name, size_bytes in files:
        if not any(part.startswith(".") for part in name.split("/")):
            yield File(name, size_bytes)


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else protocol


def _find_all(fs: AbstractFileSystem, root: str) -> list[tuple[str, int]]:
    files = cast("dict[str, dict[str, Any]]", fs.find(root, detail=True))
    return sorted(
        (posixpath.relpath(path, root), int(info["size"])) for path, info in files.items()
    )


def _s3_pages(fs: Any, root: str) -> Iterator[tuple[str, int]]:
    """Objects below a prefix, a page of at most a thousand at a time, in the order of their UTF-8 bytes."""
    bucket, _, prefix = root.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    continuation: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **continuation)
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield entry["Key"].removeprefix(prefix), int(entry["Size"])
        if not page.get("IsTruncated"):
            return
        continuation = {"ContinuationToken": page["NextContinuationToken"]}


def _local(root: str, below: str) -> Iterator[File]:
    """Files of a local folder and of its subfolders, in the order of paths."""
    for name, size_bytes, reason in ordered(_entries(f"{root}/{below}" if below else root)):
        path = f"{below}{name}"
        if name.endswith("/"):
            yield from _local(root, path)
        else:
            yield File(path, size_bytes, reason)


def _entries(folder: str) -> Iterator[tuple[str, int, str | None]]:
    """(name, size, reason) in the system's order; a folder's name ends with a slash, to sort as in paths."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield f"{entry.name}/", 0, None
                continue
            try:
                info = entry.stat()
            except OSError as error:
                yield entry.name, 0, f"cannot be read: {type(error).__name__}"
                continue
            if stat.S_ISREG(info.st_mode):
                yield entry.name, info.st_size, None
            else:
                linked = "a link to a folder" if entry.is_dir() else "not a regular file"
                yield entry.name, 0, f"is {linked}"


def ordered(
    values: Iterable[tuple[Any, ...]], run_names: int = _SORT_NAMES
) -> Iterator[tuple[Any, ...]]:
    """Sort tuples of JSON values by an external merge sort, ``run_names`` at a time in memory."""
    with ExitStack() as stack:
        runs: list[IO[str]] = []
        run: list[tuple[Any, ...]] = []
        # Write sorted runs to unnamed temporary files.
        for value in values:
            run.append(value)
            if len(run) >= run_names:
                file = stack.enter_context(tempfile.TemporaryFile("w+", encoding="ascii"))
                file.writelines(json.dumps(value) + "\n" for value in sorted(run))
                file.seek(0)
                runs.append(file)
                run = []
        run.sort()
        if not runs:
            yield from run
            return
        # Merge the runs.
        stored = (map(tuple, map(json.loads, file)) for file in runs)
        yield from heapq.merge(run, *stored)
