"""The previous version of a dataset: its keys, shards and classes, which the new version inherits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from genmod.data.format.index import read_keys, read_rejected
from genmod.data.sharding.row_contents import checked
from genmod.data.sources.config import NewClassesPolicy
from genmod.errors import DataError, sanitize
from genmod.manifest import DatasetManifest, RowStats, ShardEntry, Split, relative_folder

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
    def contents(self) -> str:
        """Of its rows, see :mod:`genmod.data.sharding.row_contents`; empty if they are not known."""
        return checked(self.manifest.metadata.get("contents"))

    @property
    def digests(self) -> dict[str, str]:
        """Digest of the dataset, for the fingerprint and the manifest of the new version."""
        return {"dataset": self.manifest.digest}

    def shared(self, root: str) -> tuple[tuple[ShardEntry, ...], tuple[str, ...]]:
        """Shards of this version as a new version at ``root`` lists them, and the folders that it names.

        Raises:
            ConfigError: the new version's folder is neither next to this one nor in the layout of versions.
        """
        folders: list[str] = []
        shards: list[ShardEntry] = []
        numbers: dict[str, int] = {}
        for shard in self.manifest.stored(self.root):
            if shard.folder not in numbers:
                folders.append(relative_folder(root, shard.folder))
                numbers[shard.folder] = len(folders)
            shards.append(shard.entry.model_copy(update={"folder": numbers[shard.folder]}))
        return tuple(shards), tuple(folders)

    def row_stats(self, split: Split) -> RowStats:
        """Statistics of the rows of a split."""
        return self.manifest.row_stats(self.root).get(split, RowStats())

    def match_classes(
        self, class_names: Sequence[str], count: int, new_classes: NewClassesPolicy = "refuse"
    ) -> tuple[str, ...]:
        """Return the class names of this version, after checking that its classes include the source's.

        Args:
            class_names: of the source; empty if its labels are numbers.
            count: number of classes of the source.
            new_classes: ``data.new_classes``.

        Raises:
            DataError: the source has a new class, which models of this version do not have, or only one of
                them has names.
        """
        known, known_count = self.manifest.class_names, self.manifest.spec.classes
        if bool(class_names) != bool(known) and known_count:
            kinds = [
                f"classes called {sanitize(names[0][:80])!r}, ..."
                if names
                else "classes with numbers only"
                for names in (known, class_names)
            ]
            raise DataError(
                f"the previous version {self.root} has {kinds[0]}, the source has {kinds[1]}; classes are "
                "matched by name: give the source labels of the same kind"
            )
        new = [sanitize(name[:80]) for name in class_names if name not in known]
        if not class_names and count > known_count > 0:
            new = [str(count - 1)]
        if new and new_classes == "refuse":
            raise DataError(
                f"the previous version {self.root} has no class {new[0]!r}; set data.new_classes=ignore to "
                "leave its images out, or data.new_classes=rebuild to rewrite the dataset with it"
            )
        return known

    def keys(self) -> Iterator[Sequence[str]]:
        """Read the keys of its samples, in parts."""
        shards = self.manifest.stored(self.root)
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            for first in range(0, len(shards), _READ_THREADS):
                yield from pool.map(read_keys, shards[first : first + _READ_THREADS])


def load_previous_version(root: str, manifest: DatasetManifest) -> PreviousVersion:
    """Open a dataset to append to, and read its rejected inputs."""
    return PreviousVersion(root, manifest, tuple(read_rejected(root, manifest)))
