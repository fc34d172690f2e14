"""Guesses the text of a source from the files at a path, for advice in errors."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice

from genmod import storage
from genmod.data.format.foreign import EXTENSIONS
from genmod.data.sources.listing import files_below
from genmod.data.sources.names import extension_of
from genmod.storage.urls import scheme_of

_FILES = 10_000
"""Files of a folder that are looked at."""


def guess_source(url: str) -> str | None:
    """``KIND:WHERE`` for a local file or folder, by the most common kind of file; None if none is known.

    Args:
        url: path of the file or folder; nothing is guessed for stores.
    """
    if scheme_of(url):
        return None
    where = storage.resolve(url)
    if os.path.isfile(where):
        kind = _kind(where)
        return f"{kind}:{where}" if kind in ("npz", "parquet", "webdataset") else None
    if not os.path.isdir(where):
        return None
    first: dict[str, str] = {}
    counts = Counter[str]()
    for file in islice(files_below(where), _FILES):
        if kind := _kind(file.name):
            counts[kind] += 1
            first.setdefault(kind, file.name)
    if not counts:
        return None
    kind = counts.most_common(1)[0][0]
    return f"{kind}:{storage.join(where, first[kind]) if kind == 'npz' else where}"


def _kind(name: str) -> str | None:
    """Kind of source that reads a file of this name."""
    if name.removesuffix(".gz").endswith("-ubyte"):
        return "idx"
    extension = extension_of(name)
    kinds = {"tar": "webdataset", "parquet": "parquet", "npz": "npz"}
    return kinds.get(extension) or ("folder" if extension in EXTENSIONS else None)
