"""File patterns of sources: braces as in WebDataset, and the wildcards ``*`` and ``?``."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterator

from genmod import storage
from genmod.budget import BUDGET
from genmod.data.sources.census import Census
from genmod.data.sources.listing import files_below, is_regular
from genmod.data.sources.names import pass_over_file
from genmod.data.sources.wildcards import has_wildcard, wildcard_files
from genmod.errors import DataError, sanitize
from genmod.storage.urls import READ_ONLY_SCHEMES, scheme_of

_MAX_PATTERN = 4096
"""Characters of a pattern, with its variables."""

_MAX_SUBSTITUTIONS = 10
"""Variables may contain variables, up to this depth."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?$")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?$")
_ALPHABET = string.ascii_uppercase + string.ascii_lowercase


def expand_braces(pattern: str) -> list[str]:
    """Expand the braces of a pattern as the webdataset package does, in order.

    Braces contain a range or a list, and ``${NAME}`` is the value of the variable ``WDS_NAME``. The names are
    counted before they are made.

    >>> expand_braces("a{8..10}{x,y}")
    ['a8x', 'a8y', 'a9x', 'a9y', 'a10x', 'a10y']

    Raises:
        DataError: too many names, or a variable is not set.
    """
    if "{" not in pattern:
        return [pattern]
    text = _substitute(pattern)
    count = _count_names(text)
    if count is None:  # unbalanced braces: part of the name
        return [pattern]
    remedy = "use several datasets, or fewer and larger files"
    shown = sanitize(text[:80])
    BUDGET.check(shown, remedy, brace_names=count)
    BUDGET.check(f"{shown}: names", remedy, document_bytes=count * len(text))
    from braceexpand import braceexpand

    return list(braceexpand(text))


def _substitute(pattern: str) -> str:
    """Replace variables by their values."""

    def value(match: re.Match[str]) -> str:
        name = f"WDS_{match[1]}"
        if name not in os.environ:
            raise DataError(f"{sanitize(pattern[:80])}: missing environment variable {name}")
        return os.environ[name]

    text = pattern
    for _ in range(_MAX_SUBSTITUTIONS):
        if len(text) > _MAX_PATTERN:
            raise DataError(
                f"{sanitize(text[:80])}...: a pattern of {len(text)} characters, more than "
                f"{_MAX_PATTERN}; use ranges or wildcards"
            )
        text, previous = _VARIABLE.sub(value, text), text
        if text == previous:
            break
    return text


def _count_names(text: str) -> int | None:
    """Number of names that a pattern expands to; None if its braces do not match.

    Follows the grammar of the package braceexpand: a pair of braces is a range, a list, or else literal.
    """
    # For each open brace: position, names of the items before the last comma, names of the item after it.
    stack: list[tuple[int, int, int]] = []
    count, at = 1, 0
    before = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            stack.append((at, before, count))
            before, count = 0, 1
            if len(stack) > BUDGET.nesting:
                BUDGET.check(sanitize(text[:80]), "write fewer braces", nesting=len(stack))
        elif text[at] == "," and stack:
            before, count = before + count, 1
        elif text[at] == "}":
            if not stack:
                return None
            start, outer_before, outer_count = stack.pop()
            options = _count_range(text[start + 1 : at]) or before + count
            before, count = outer_before, outer_count * options
        at += 1
    return None if stack else count


def _count_range(group: str) -> int | None:
    """Number of texts of a range of numbers or letters; None if the inside of braces is none."""
    if bounds := _RANGE.match(group):
        first, last, step = int(bounds[1]), int(bounds[2]), int(bounds[3] or 1)
    elif bounds := _LETTERS.match(group):
        first, last = _ALPHABET.index(bounds[1]), _ALPHABET.index(bounds[2])
        step = int(bounds[3] or 1)
    else:
        return None
    return abs(last - first) // max(1, step) + 1


def literal_folder(pattern: str) -> str:
    """The folder in front of the first brace or wildcard of a pattern, with a slash at its end.

    >>> literal_folder("/data/{a,b}/{00..99}.tar"), literal_folder("/data/a.tar"), literal_folder("a.tar")
    ('/data/', '/data/', '')
    """
    text = _substitute(pattern)
    wildcards = "{*" if scheme_of(text) in READ_ONLY_SCHEMES else "{*?"
    at = min((text.find(char) for char in wildcards if char in text), default=len(text))
    return text[: text.rfind("/", 0, at) + 1]


def relative_name(url: str, folder: str) -> str:
    """Name of a file of a pattern relative to the pattern's :func:`literal_folder`.

    >>> relative_name("file:///data/a/00.tar", "/data/"), relative_name("s3://b/00.tar", "s3://b/")
    ('a/00.tar', '00.tar')
    """
    path = storage.filesystem(url)[1]
    root = storage.filesystem(folder)[1].rstrip("/") + "/" if folder else "/"
    return path.removeprefix(root) if path.startswith(root) else path.lstrip("/")


def expand_files(source: str, pattern: str, census: Census | None = None) -> list[str]:
    """List the files of a pattern: braces expanded first, then wildcards matched.

    Args:
        source: name of the source in errors.
        pattern: URL or path with braces and wildcards; no wildcards over http, which has no listings. All
            other characters are letters of names, brackets too.
        census: counts hidden files that a wildcard matches; they are passed over.

    Returns:
        URLs in the order of the braces; the matches of a wildcard are sorted.

    Raises:
        DataError: a file does not exist or is not a regular file, a wildcard matches no file, or braces or
            wildcards are also part of a name that exists.
    """
    urls: list[str] = []
    start = _literal_start(source, pattern)
    for candidate in (start + end for end in expand_braces(pattern[len(start) :])):
        fs, path = storage.filesystem(candidate)
        is_http = scheme_of(candidate) in READ_ONLY_SCHEMES
        if "*" in path or (has_wildcard(path) and not is_http):
            found = wildcard_files(source, candidate, census or Census())
        else:
            fs.invalidate_cache()
            found = [candidate] if fs.exists(path) else []
        if not found:
            raise DataError(f"{source}: no such file: {candidate}")
        for url in found:
            if not is_regular(fs, storage.filesystem(url)[1]):
                raise DataError(f"{source}: {sanitize(url)} is not a regular file; remove it")
        urls += found
    return urls


def _literal_start(source: str, pattern: str) -> str:
    """Start of a pattern whose braces are in names of folders or files that exist; empty if none are.

    Raises:
        DataError: the braces also mean others that exist.
    """
    start = ""
    if scheme_of(pattern) in READ_ONLY_SCHEMES:
        return start
    for slash in [match.start() for match in re.finditer("/|$", pattern)]:
        name = pattern[:slash]
        if "{" not in name[len(start) :]:
            continue
        names = [start + end for end in expand_braces(name[len(start) :])]
        if names == [name]:
            continue
        if not storage.exists(name):
            break
        if other := next(filter(storage.exists, names), None):
            raise DataError(
                f"{source}: {sanitize(name)} exists, and its braces also mean {sanitize(other)}, which "
                "exists too; rename one"
            )
        start = name
    return start


def source_files(
    source: str, pattern: str, suffix: str, census: Census
) -> Iterator[tuple[str, str]]:
    """List the files that a pattern means, or those with a suffix in a folder and below it.

    Args:
        source: name of the source in errors.
        pattern: URL or path of a folder, or a pattern as in :func:`expand_files`.
        suffix: end of the names of files in a folder; others are counted, as are those in folders that start
            with ``_``, where programs write what is not finished.
        census: counts what is passed over.

    Yields:
        Path and URL of each file; the path is relative to the folder, or to the pattern's
        :func:`literal_folder`.

    Raises:
        DataError: there is no such file, or one that cannot be read.
    """
    fs, path = storage.filesystem(pattern)
    if scheme_of(pattern) in READ_ONLY_SCHEMES or not fs.isdir(path):
        folder = literal_folder(pattern)
        for url in expand_files(source, pattern, census):
            yield relative_name(url, folder), url
        return
    is_empty = True
    for file in files_below(pattern, census):
        name = file.name
        if any(part.startswith("_") for part in name.split("/")[:-1]):
            census.pass_over("files of folders that start with _", name)
        elif not name.endswith(suffix):
            pass_over_file(census, name)
        elif file.reason is not None:
            raise DataError(f"{source}: {sanitize(name)} {file.reason}; remove it")
        else:
            is_empty = False
            yield name, storage.join(pattern, name)
    if is_empty:
        others = f", but {census.summary()}" if census.passed_over else ""
        raise DataError(
            f"{source}: no such file: *{suffix} in that folder or below{others}; check the path, or give a "
            "pattern"
        )
