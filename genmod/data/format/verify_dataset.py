"""Verifies a dataset as a whole, for ``genmod verify``: its files, shards, versions and statistics.

Needs 16 bytes of memory for each row. Letters: N rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from genmod.data.format.index import HINT, read_index
from genmod.data.format.verify import check_shard
from genmod.errors import DataError, sanitize
from genmod.manifest import (
    SPLITS,
    DatasetManifest,
    FileEntry,
    RowStats,
    Split,
    StoredShard,
    find_problems,
    load_manifest,
)


def dataset_problems(root: str, manifest: DatasetManifest) -> Iterator[str]:
    """Compare all files with their digests, every tar with its index, and the statistics with the images.

    Returns:
        One line per problem.
    """
    shards = manifest.stored(root)
    files: dict[str, list[FileEntry]] = defaultdict(list)
    files[root] += manifest.files
    for shard in shards:
        files[shard.folder] += shard.entry.files
    for folder, entries in files.items():
        yield from find_problems(folder, entries)
    yield from _version_problems(root, manifest, shards)
    total: dict[Split, RowStats] = {}
    numbers = {split: _Numbers() for split in SPLITS}
    is_complete = True
    for shard in shards:
        check, split = check_shard(manifest, shard), shard.entry.split
        yield from check.problems
        numbers[split].add(shard, check.keys, check.indices)
        if check.stats is None:
            is_complete = False
        else:
            total[split] = total.get(split, RowStats()) + check.stats
    for split_numbers in numbers.values():
        yield from split_numbers.problems()
    if is_complete and "splits" in manifest.metadata:
        yield from _statistics_problems(root, manifest, total)


def _version_problems(
    root: str, manifest: DatasetManifest, shards: Sequence[StoredShard]
) -> Iterator[str]:
    """Compare shared shards with the manifests of the versions that wrote them."""
    shared: dict[str, list[StoredShard]] = {url: [] for url in manifest.shared_folders(root)}
    for shard in shards:
        if shard.entry.folder:
            shared[shard.folder].append(shard)
    digests = set[str]()
    for folder, its_shards in shared.items():
        try:
            version = load_manifest(DatasetManifest, folder, "dataset")
        except DataError as error:
            yield str(error)
            continue
        if version is None:
            yield f"{folder}: no dataset, but {root} shares its shards; {HINT}"
            continue
        digests.add(version.digest)
        own = {shard.tar.path: shard for shard in version.shards if not shard.folder}
        for shard in its_shards:
            if own.get(shard.entry.tar.path) != shard.entry.model_copy(update={"folder": 0}):
                yield f"{shard.tar_url}: the manifest in its folder lists another shard than {root}"
    if shared and manifest.parents.get("dataset") not in digests:
        yield f"{root}: none of the versions that it shares shards of is its parent; {HINT}"


def _statistics_problems(
    root: str, manifest: DatasetManifest, total: dict[Split, RowStats]
) -> Iterator[str]:
    for split, stated in manifest.row_stats(root).items():
        actual = total.get(split, RowStats())
        for name in RowStats.model_fields:
            got, expected = getattr(stated, name), getattr(actual, name)
            # Rejected inputs have an index too.
            if got < expected if name == "next_index" else got != expected:
                yield (
                    f"{root}: metadata.splits.{split}.{name} is {str(got)[:80]}, "
                    f"the images have {str(expected)[:80]}"
                )


class _Numbers:
    """Keys and indices of a split, each of which is unique."""

    def __init__(self) -> None:
        self._shards: list[StoredShard] = []
        self._ends: list[int] = []
        self._keys: list[NDArray[np.uint64]] = []
        self._indices: list[NDArray[np.uint64]] = []

    def add(self, shard: StoredShard, keys: Sequence[str], indices: Sequence[int]) -> None:
        """Add the rows of a shard. Keys are represented by their digests."""
        digests = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
        self._shards.append(shard)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(keys))
        self._keys.append(np.frombuffer(digests, np.uint64))
        self._indices.append(np.array(indices, np.int64).view(np.uint64))

    def problems(self) -> Iterator[str]:
        """The first row of two shards with the same key or index."""
        for name, parts in (("key", self._keys), ("index", self._indices)):
            shards = self._shared_by(np.concatenate(parts)) if parts else None
            if shards is None:
                continue
            first, second = (set(read_index(shard, [name])[name].to_pylist()) for shard in shards)
            for value in sorted(first & second)[:1]:  # none if only the digests are equal
                text = sanitize(str(value)[:80])
                yield f"{shards[1].index_url}: {name} {text} is also in {shards[0].index_url}"

    def _shared_by(self, value_N: NDArray[np.uint64]) -> tuple[StoredShard, StoredShard] | None:
        """Two shards that share a value; equal values within a shard are reported by its own check."""
        order_N = np.argsort(value_N, kind="stable")
        shard_N = np.searchsorted(self._ends, order_N, side="right")
        is_same_N = (np.diff(value_N[order_N]) == 0) & (np.diff(shard_N) != 0)
        if not is_same_N.any():
            return None
        at = int(is_same_N.argmax())
        return self._shards[int(shard_N[at])], self._shards[int(shard_N[at + 1])]
