"""The previous version of a dataset: its keys, shards and classes, which the new version inherits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from genmod import storage
from genmod.data.format.shards import QUARANTINE, RowStats, read_table
from genmod.errors import DataError
from genmod.manifest import DatasetManifest, FileEntry, ShardEntry, Split

_READ_THREADS = 16
"""Index files to read in parallel."""


@dataclass(frozen=True)
class PreviousVersion:
    """A dataset to append to."""

    root: str
    manifest: DatasetManifest
    rejected: tuple[tuple[str, str, str], ...]
    """(key, name, reason) of its rejected inputs."""

    @property
    def version(self) -> int:
        """Number of the version; the first one is 1."""
        return int(self.manifest.metadata.get("version", 1))

    @property
    def digests(self) -> dict[str, str]:
        """Digest of the dataset, for the fingerprint and the manifest of the new version."""
        return {"dataset": self.manifest.digest}

    @property
    def shards(self) -> tuple[ShardEntry, ...]:
        """Shards of the dataset, by absolute path or URL."""

        def absolute(entry: FileEntry) -> FileEntry:
            path = storage.join(storage.resolve(self.root), entry.path)
            return entry.model_copy(update={"path": path})

        return tuple(
            shard.model_copy(update={"tar": absolute(shard.tar), "index": absolute(shard.index)})
            for shard in self.manifest.shards
        )

    def row_stats(self, split: Split) -> RowStats:
        """Statistics of the rows of a split."""
        return RowStats.model_validate(self.manifest.metadata["splits"].get(split, {}))

    def match_classes(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """Return the class names of this version, after checking that they include those of the source.

        Raises:
            DataError: the source has a new class, which models of this version do not have.
        """
        known = self.manifest.class_names
        if new := [name for name in class_names if name not in known]:
            raise DataError(
                f"the previous version {self.root} has no class {new[0]!r}; "
                "shard into a new dataset under another root"
            )
        return known

    def keys(self) -> Iterator[Sequence[str]]:
        """Read the keys of its samples and of its rejected inputs, in parts."""

        def read(shard: ShardEntry) -> Sequence[str]:
            url = storage.join(self.root, shard.index.path)
            return cast(
                "list[str]", read_table(storage.read_bytes(url), url, ["key"])["key"].to_pylist()
            )

        yield [key for key, _, _ in self.rejected]
        shards = self.manifest.shards
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            for first in range(0, len(shards), _READ_THREADS):
                yield from pool.map(read, shards[first : first + _READ_THREADS])


def load_previous_version(root: str, manifest: DatasetManifest) -> PreviousVersion:
    """Open a dataset to append to, and read its rejected inputs."""
    rejected: list[tuple[str, str, str]] = []
    if any(entry.path == QUARANTINE for entry in manifest.files):
        url = storage.join(root, QUARANTINE)
        table = read_table(storage.read_bytes(url), url).to_pydict()
        rejected = list(zip(table["key"], table["name"], table["reason"], strict=True))
    return PreviousVersion(root, manifest, tuple(rejected))
