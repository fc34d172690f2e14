"""The files below a folder, one by one in the order of their paths, however many there are."""

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

RUN_NAMES = 100_000
"""So many names of one folder are sorted in memory; more are merged from temporary files."""


class File(NamedTuple):
    """One file."""

    name: str
    """Path below the folder."""
    size_bytes: int
    fault: str | None = None
    """Why it cannot be read as a file."""


def files_below(url: str) -> Iterator[File]:
    """Every file below a folder. Names that begin with a dot are passed over.

    A local folder is read piece by piece, a bucket of S3 page by page, so memory does not grow with the
    number of files; other stores are listed in one go. Links to local files are followed, links to folders
    are not: they could lead round in a circle.
    """
    fs, root = storage.filesystem(url)
    if isinstance(fs, LocalFileSystem):
        yield from _local(root, "")
        return
    fs.invalidate_cache()
    found = _s3_pages(fs, root) if "s3" in _protocols(fs) else _at_once(fs, root)
    for name, size_bytes in found:
        if not any(part.startswith(".") for part in name.split("/")):
            yield File(name, size_bytes)


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else protocol


def _at_once(fs: AbstractFileSystem, root: str) -> list[tuple[str, int]]:
    found = cast("dict[str, dict[str, Any]]", fs.find(root, detail=True))
    return sorted(
        (posixpath.relpath(path, root), int(info["size"])) for path, info in found.items()
    )


def _s3_pages(fs: Any, root: str) -> Iterator[tuple[str, int]]:
    """Objects of a prefix as S3 gives them: a thousand a page, in the order of their UTF-8 bytes."""
    bucket, _, prefix = root.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    more: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        for found in page.get("Contents", ()):
            if not found["Key"].endswith("/"):
                yield found["Key"].removeprefix(prefix), int(found["Size"])
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _local(root: str, below: str) -> Iterator[File]:
    """A folder's files and, in their place, those of its folders."""
    for name, size_bytes, fault in ordered(_entries(f"{root}/{below}" if below else root)):
        path = f"{below}{name}"
        if name.endswith("/"):
            yield from _local(root, path)
        else:
            yield File(path, size_bytes, fault)


def _entries(folder: str) -> Iterator[tuple[str, int, str | None]]:
    """(name, size, fault) as the system gives them; a folder's name ends with a slash, as in paths."""
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
    values: Iterable[tuple[Any, ...]], run_names: int = RUN_NAMES
) -> Iterator[tuple[Any, ...]]:
    """Tuples of JSON values, sorted; all but a part of them wait in temporary files without a name."""
    with ExitStack() as stack:
        runs: list[IO[str]] = []
        run: list[tuple[Any, ...]] = []
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
        waiting = (map(tuple, map(json.loads, file)) for file in runs)
        yield from heapq.merge(run, *waiting)
