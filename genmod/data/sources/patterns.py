"""File patterns of sources: braces as in WebDataset, and the wildcards ``*`` and ``?``."""

from __future__ import annotations

import math
import re
from itertools import product
from typing import cast

from genmod import storage
from genmod.errors import DataError

MAX_FILES = 1_000_000
"""Maximum number of files that the braces of a pattern may expand to."""

_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\Z")


def expand_braces(pattern: str) -> list[str]:
    """Expand the braces of a pattern as the webdataset package does, in order.

    Braces contain a range or a list, and ``${NAME}`` is the value of the variable ``WDS_NAME``. A chained URL
    of fsspec (``zip://*.tar::s3://bucket/a.zip``) stays one URL.

    >>> expand_braces("a{8..10}{x,y}")
    ['a8x', 'a8y', 'a9x', 'a9y', 'a10x', 'a10y']

    Raises:
        DataError: more than ``MAX_FILES`` files, or a variable is not set.
    """
    if "{" not in pattern:
        return [pattern]
    if math.prod(map(_options, _GROUP.findall(pattern))) > MAX_FILES:
        raise DataError(f"{pattern}: more than {MAX_FILES} files")
    from webdataset.shardlists import expand_urls

    try:
        links = [expand_urls(link) for link in pattern.split("::")]
    except AssertionError as error:
        raise DataError(f"{pattern}: {error}") from None
    except ValueError:  # unbalanced braces: part of the name
        return [pattern]
    return ["::".join(chain) for chain in product(*links)]


def _options(group: str) -> int:
    """Number of texts that the inside of a pair of braces stands for."""
    bounds = _RANGE.match(group)
    if bounds is None:
        return group.count(",") + 1
    first, last, step = bounds.groups()
    return abs(int(last) - int(first)) // max(1, int(step or 1)) + 1


def expand_files(source: str, pattern: str) -> list[str]:
    """List the files of a pattern: braces expanded first, then wildcards matched.

    Args:
        source: name of the source in errors.
        pattern: URL or path with braces and wildcards.

    Returns:
        URLs in the order of the braces; the matches of a wildcard are sorted.

    Raises:
        DataError: a file does not exist, or a wildcard matches no file.
    """
    urls: list[str] = []
    for candidate in expand_braces(pattern):
        fs, path = storage.filesystem(candidate)
        fs.invalidate_cache()
        if any(wildcard in path for wildcard in "*?"):
            matches = sorted(cast("list[str]", fs.glob(path)))
            files = [str(fs.unstrip_protocol(match)) for match in matches]
        else:
            files = [candidate] if fs.isfile(path) else []
        if not files:
            raise DataError(f"{source}: no such file: {candidate}")
        urls += files
    return urls
