"""The dataset that a new version grows from: what it knows already, and what the new one takes over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from genmod import storage
from genmod.data.format.shards import QUARANTINE, RowStats, read_table
from genmod.errors import DataError
from genmod.manifest import DatasetManifest, FileEntry, ShardEntry, Split

READERS = 16
"""Index files that are fetched at the same time."""


@dataclass(frozen=True)
class PreviousVersion:
    """A dataset, open to be grown."""

    root: str
    manifest: DatasetManifest
    rejected: tuple[tuple[str, str, str], ...]
    """(key, name, reason) from its quarantine."""

    @property
    def version(self) -> int:
        """1 for a dataset that did not grow from another."""
        return int(self.manifest.metadata.get("version", 1))

    @property
    def digests(self) -> dict[str, str]:
        """For the fingerprint and the manifest of the new version."""
        return {"dataset": self.manifest.digest}

    @property
    def shards(self) -> tuple[ShardEntry, ...]:
        """Its shards, by absolute path or URL."""

        def absolute(entry: FileEntry) -> FileEntry:
            path = storage.join(storage.resolve(self.root), entry.path)
            return entry.model_copy(update={"path": path})

        return tuple(
            shard.model_copy(update={"tar": absolute(shard.tar), "index": absolute(shard.index)})
            for shard in self.manifest.shards
        )

    def metadata(self, split: Split) -> RowStats:
        """Of the rows that a split has already."""
        return RowStats.model_validate(self.manifest.metadata["splits"].get(split, {}))

    def match_classes(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """The names and numbers of classes that a source with these has to take over.

        Raises:
            DataError: it has a class that the parent lacks, so models of the parent could not learn it.
        """
        mine = self.manifest.class_names
        if new := [name for name in class_names if name not in mine]:
            raise DataError(
                f"class {new[0]!r} is not one of the dataset's that grows, {self.root}; "
                "make a new dataset under another root"
            )
        return mine

    def keys(self) -> Iterator[Sequence[str]]:
        """Of its samples and of the inputs that it refused, in parts."""

        def read(shard: ShardEntry) -> Sequence[str]:
            url = storage.join(self.root, shard.index.path)
            return cast(
                "list[str]", read_table(storage.read_bytes(url), url, ["key"])["key"].to_pylist()
            )

        yield [key for key, _, _ in self.rejected]
        shards = self.manifest.shards
        with ThreadPoolExecutor(READERS) as pool:
            for at in range(0, len(shards), READERS):
                yield from pool.map(read, shards[at : at + READERS])


def load_previous_version(root: str, manifest: DatasetManifest) -> PreviousVersion:
    """Open a dataset, and read what it refused."""
    rejected: list[tuple[str, str, str]] = []
    if any(entry.path == QUARANTINE for entry in manifest.files):
        url = storage.join(root, QUARANTINE)
        table = read_table(storage.read_bytes(url), url).to_pydict()
        rejected = list(zip(table["key"], table["name"], table["reason"], strict=True))
    return PreviousVersion(root, manifest, tuple(rejected))
