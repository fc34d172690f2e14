"""Walks a local folder in the order of its paths, in bounded memory. Links are followed, not in circles."""

from __future__ import annotations

import errno
import heapq
import json
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import IO, Any, NamedTuple

from genmod.data.sources.census import Census
from genmod.data.sources.names import HIDDEN, is_hidden_name
from genmod.errors import DataError, sanitize

_SORT_NAMES = 100_000
"""Names of one folder that are sorted in memory; larger folders are merge-sorted in temporary files."""

_MAX_VISITS = 64
"""How often links may lead to one folder. Links in linked folders could multiply without end."""

NO_SIZE = -1
"""Size of a file that was not asked for it."""

EMPTY = "folders without files"
"""Kind in the census: an empty folder is no class."""

_LINK = "link"
"""State of a folder that is a link."""

_Row = tuple[str, int, str | None, str | None]
"""Path, size in bytes, reason why it cannot be read, state (see ``listing.File``)."""

_Inode = tuple[int, int]
"""Device and number of a folder."""


class _Level(NamedTuple):
    """A folder whose entries are being walked."""

    path: str
    """Relative to the root, with a slash at its end."""
    rows: Iterator[tuple[Any, ...]]
    inode: _Inode
    is_linked: bool
    """Whether a link leads to it or to a folder above it."""


def walk_local(
    root: str, census: Census, is_sizeless: Callable[[str], bool] | None = None
) -> Iterator[_Row]:
    """Files of a local folder and of its subfolders, in the order of paths.

    Args:
        root: path of the folder.
        census: counts hidden names and links to folders.
        is_sizeless: whether the size of a regular file of this name is not needed, which saves a request to
            the system; it is then -1, and there is no state.

    Yields:
        Path relative to the root, size in bytes, reason why the file cannot be read, and its state.
    """
    above = _inodes_above(root)
    visits = Counter[_Inode]()
    links = 0
    levels = [_Level("", ordered(_rows(root, census, is_sizeless)), _inode(root), False)]
    while levels:
        level = levels[-1]
        for name, size_bytes, reason, state in level.rows:
            if not name.endswith("/"):
                yield level.path + name, size_bytes, reason, state
                continue
            # Enter a folder, unless a link led back to it or led there too often.
            path = level.path + name
            folder = f"{root}/{path}"
            inode, is_linked = _inode(folder), level.is_linked or state == _LINK
            if is_linked:
                visits[inode] += 1
                if inode in above or any(inode == other.inode for other in levels):
                    yield path[:-1], 0, "is a link to a folder that contains it", None
                    continue
                if visits[inode] > _MAX_VISITS:
                    too_often = f"links lead to this folder more than {_MAX_VISITS} times"
                    yield path[:-1], 0, too_often, None
                    continue
            links += state == _LINK
            rows = ordered(_rows(folder, census, is_sizeless))
            if (first := next(rows, None)) is None:
                census.pass_over(EMPTY, path)
                continue
            levels.append(_Level(path, chain((first,), rows), inode, is_linked))
            break
        else:
            levels.pop()
    if links:
        census.decide(f"{links} links to folders are followed")


def _inodes_above(root: str) -> set[_Inode]:
    """The folders that contain the root."""
    path, inodes = os.path.realpath(root), set[_Inode]()
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        inodes.add(_inode(path))
    return inodes


def _inode(folder: str) -> _Inode:
    try:
        state = os.stat(folder)
    except OSError as error:
        raise _cannot_list(folder, error) from None
    return state.st_dev, state.st_ino


def _cannot_list(folder: str, error: OSError) -> DataError:
    return DataError(
        f"{sanitize(folder)} cannot be listed ({error.strerror}); change its permissions, or remove it"
    )


def _rows(folder: str, census: Census, is_sizeless: Callable[[str], bool] | None) -> Iterator[_Row]:
    """Entries in the system's order; a folder's name ends with a slash, to sort as in paths."""
    # In a folder that may be listed but not entered, each file is asked for the reason.
    if is_sizeless is not None and not os.access(folder, os.X_OK):
        is_sizeless = None
    try:
        scanned = os.scandir(folder)
    except OSError as error:
        raise _cannot_list(folder, error) from None
    with scanned as entries:
        for entry in entries:
            if is_hidden_name(entry.name):
                census.pass_over(HIDDEN, entry.name)
            elif entry.is_file(follow_symlinks=False):
                if is_sizeless is not None and is_sizeless(entry.name):
                    yield entry.name, NO_SIZE, None, None
                else:
                    yield _file_row(entry)
            elif _is_folder(entry):
                yield f"{entry.name}/", 0, None, _LINK if entry.is_symlink() else None
            else:
                yield _file_row(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _file_row(entry: os.DirEntry[str]) -> _Row:
    try:
        info = entry.stat()
    except OSError as error:
        reason = f"cannot be read: {type(error).__name__}"
        if entry.is_symlink():
            is_cycle = error.errno == errno.ELOOP
            reason = "is a link that leads back to itself" if is_cycle else "is a link to nothing"
        return entry.name, 0, reason, None
    if not stat.S_ISREG(info.st_mode):
        return entry.name, 0, "is not a regular file", None
    return entry.name, info.st_size, None, f"time {info.st_size} {info.st_mtime_ns}"


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
