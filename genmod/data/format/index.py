"""Reads the tables of a dataset, checked against the manifest and in themselves. Letters: N rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from genmod import storage
from genmod.budget import BUDGET
from genmod.data.format.keys import KEY_PATTERN
from genmod.data.format.shards import INDEX_SCHEMA, QUARANTINE, QUARANTINE_SCHEMA
from genmod.data.format.tar import BLOCK
from genmod.errors import DataError, sanitize
from genmod.manifest import DatasetManifest, ImageSpec, StoredShard, read_checked
from genmod.manifest.files import read_entry
from genmod.tables import numbers, read_table

HINT = "run genmod verify to find all damage, then restore or re-create the dataset"


def read_index(shard: StoredShard, columns: Sequence[str] | None = None) -> Any:
    """Columns of a shard's index as a pyarrow table with as many rows as the manifest says.

    Raises:
        DataError: the file is missing, is not such a table, or does not match its digest (unless
            ``storage.check_digests`` is off).
    """
    check = storage.settings().check_digests
    data = read_entry(shard.folder, shard.entry.index, HINT, check=check)
    return read_table(data, shard.index_url, INDEX_SCHEMA, shard.rows, columns=columns)


def read_keys(shard: StoredShard) -> list[str]:
    """The keys of a shard's rows. DataError as :func:`read_index`, or if a key is invalid or repeated."""
    keys = cast("list[str]", read_index(shard, ["key"])["key"].to_pylist())
    for problem in key_problems(keys):
        raise DataError(f"{shard.index_url}: {problem}; {HINT}")
    return keys


def key_problems(keys: Sequence[str]) -> Iterator[str]:
    """What is wrong with the keys of a shard."""
    for row, key in enumerate(keys):
        if not KEY_PATTERN.match(key):
            yield f"row {row}: the key {sanitize(key[:80])!r} is not of letters, digits, - and _"
    if len(set(keys)) != len(keys):
        seen = set[str]()
        repeated = next(key for key in keys if key in seen or seen.add(key))
        yield f"the key {sanitize(repeated[:80])} occurs twice"


def column_problems(table: Any, tar_bytes: int, spec: ImageSpec) -> Iterator[str]:
    """What is wrong with the numbers of an index.

    Args:
        table: at least the columns index, offset, bytes and label.
        tar_bytes: size of the tar.
        spec: spec of the dataset.
    """
    offset_N: NDArray[np.int64] = numbers(table["offset"])
    length_N: NDArray[np.int64] = numbers(table["bytes"])
    # Images are inside the tar, each after its header, one after the other.
    end_N = offset_N + length_N
    if np.any((offset_N < BLOCK) | (offset_N % BLOCK != 0) | (length_N < 0)) or np.any(
        (offset_N > tar_bytes) | (length_N > tar_bytes - offset_N)
    ):
        yield "an offset or size points outside the tar"
    elif np.any(offset_N[1:] < end_N[:-1] + BLOCK):
        yield "images overlap, or rows are not in the order of the tar"
    elif length_N.max(initial=0) > BUDGET.image_file_bytes:
        yield f"an image has {length_N.max():,} bytes, more than {BUDGET.image_file_bytes:,}"
    # Labels are classes of the dataset.
    label_N, classes = numbers(table["label"]), spec.classes
    if np.any(label_N >= classes) or np.any(label_N < (0 if classes else -1)):
        yield f"a label is not one of the dataset's {classes} classes"
    # Each row has its own index.
    index_N: NDArray[np.int64] = numbers(table["index"])
    if np.any((index_N < 0) | (index_N >= BUDGET.rows)):
        yield "an index is negative or too large"
    elif np.any(np.diff(np.sort(index_N)) == 0):
        yield "two rows have the same index"


def read_rejected(root: str, manifest: DatasetManifest) -> list[tuple[str, str, str]]:
    """(key, name, reason) of every rejected input of a dataset.

    Raises:
        DataError: the list is missing or damaged, or not as long as the manifest says.
    """
    entry = next((entry for entry in manifest.files if entry.path == QUARANTINE), None)
    if entry is None:
        return []
    data = read_checked(root, entry, HINT)
    url = storage.join_below(root, QUARANTINE)
    table = read_table(data, url, QUARANTINE_SCHEMA, manifest.quarantined).to_pydict()
    return list(zip(table["key"], table["name"], table["reason"], strict=True))
