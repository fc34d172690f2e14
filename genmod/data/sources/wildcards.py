"""Wildcards of file patterns: ``*`` and ``?`` in names, ``**`` for any folders. Brackets are letters."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from fsspec.spec import AbstractFileSystem

from genmod import storage
from genmod.data.sources.census import Census
from genmod.data.sources.listing import check_listable, files_below
from genmod.data.sources.names import HIDDEN, is_hidden_name
from genmod.errors import DataError, sanitize
from genmod.storage.urls import scheme_of

_WILD = re.compile(r"[*?]")


def has_wildcard(path: str) -> bool:
    """Whether a path contains ``*`` or ``?``."""
    return bool(_WILD.search(path))


def wildcard_files(source: str, pattern: str, census: Census) -> list[str]:
    """URLs of what a pattern with wildcards matches, sorted; links to folders are followed.

    Args:
        source: name of the source in errors.
        pattern: URL or path with wildcards, without braces.
        census: counts hidden names that a wildcard matches; they are passed over.

    Raises:
        DataError: a wildcard is part of the name of a file or folder that exists, and matches others too; a
            folder cannot be listed.
    """
    check_listable(source, pattern)
    scheme = scheme_of(pattern) or "file"
    fs, path = storage.filesystem(pattern)
    fs.invalidate_cache()
    segments = path.split("/")
    first = next(i for i, segment in enumerate(segments) if has_wildcard(segment))
    if not any(segments[:first]) and scheme not in ("file", "memory"):
        raise DataError(f"{source}: a wildcard in the name of a bucket; name the bucket")
    names = _Names(source, fs, census)
    paths = ["/".join(segments[:first])]
    for at, segment in enumerate(segments[first:], first):
        is_last = at == len(segments) - 1
        if segment == "**":
            below = _regex("/".join(segments[at:]))
            urls = (f"{scheme}://{path}" for path in paths)
            found = ((url, file.name) for url in urls for file in files_below(url, census))
            return sorted(f"{url}/{name}" for url, name in found if below.fullmatch(name))
        if has_wildcard(segment):
            paths = [
                f"{folder}/{name}"
                for folder in paths
                for name in names.matching(folder, segment, is_last)
            ]
        else:
            paths = [f"{folder}/{segment}" for folder in paths]
            if is_last:
                paths = list(filter(fs.exists, paths))
    return sorted(f"{scheme}://{path}" for path in paths)


class _Names(NamedTuple):
    """Matches names of one folder."""

    source: str
    fs: AbstractFileSystem
    census: Census

    def matching(self, folder: str, segment: str, is_last: bool) -> list[str]:
        """Names in a folder that a segment of a pattern matches; files only for the last segment."""
        regex = _regex(segment)
        names: list[str] = []
        for name, kind in self._entries(folder):
            if not regex.fullmatch(name) or (kind == "file" and not is_last):
                continue
            if is_hidden_name(name) and not segment.startswith("."):
                self.census.pass_over(HIDDEN, name)
            else:
                names.append(name)
        if segment in names and len(names) > 1:
            other = min(name for name in names if name != segment)
            wildcard = "?" if "?" in segment else "*"
            advice = "" if is_last else ", or name it alone, without a pattern below it"
            raise DataError(
                f"{self.source}: {sanitize(folder)} contains {sanitize(segment)!r}, and as a wildcard its "
                f"{wildcard} also matches {sanitize(other)!r}; rename it{advice}"
            )
        return names

    def _entries(self, folder: str) -> Iterator[tuple[str, str]]:
        """Name and type of everything in a folder; nothing if there is no such folder."""
        try:
            entries = cast("list[dict[str, Any]]", self.fs.ls(folder or "/", detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise DataError(
                f"{self.source}: {sanitize(folder)} cannot be listed "
                f"({error.strerror or type(error).__name__}); change its permissions, or the pattern"
            ) from None
        for entry in entries:
            path = str(entry["name"]).rstrip("/")
            # Some stores list a folder in itself, and a file as the only entry of itself.
            if path != folder:
                yield posixpath.basename(path), entry["type"]


def _regex(pattern: str) -> re.Pattern[str]:
    """Regular expression of the names that a pattern matches.

    >>> bool(_regex("a[1]?.tar").fullmatch("a[1]x.tar")), bool(_regex("**/*.tar").fullmatch("a/b/c.tar"))
    (True, True)
    """
    segments = pattern.split("/")
    text = ""
    for at, segment in enumerate(segments):
        is_last = at == len(segments) - 1
        if segment == "**":
            text += ".*" if is_last else "(?:.+/)?"
            continue
        for part in re.split(r"(\*+|\?)", segment):
            text += "[^/]*" if part[:1] == "*" else "[^/]" if part == "?" else re.escape(part)
        text += "" if is_last else "/"
    return re.compile(text, re.DOTALL)
