"""The selection job: writes the shards that change, shares the others, and publishes the dataset.

A shard whose rows are all kept is shared where the new folder can name its folder, and copied elsewhere; of
others, the kept rows are copied into a shard of their own. So any WebDataset reader of the new tars sees the
kept rows and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from genmod import receipts
from genmod.errors import ConfigError, DataError
from genmod.manifest import (
    SPLITS,
    DatasetManifest,
    FileEntry,
    RowStats,
    ShardEntry,
    Split,
    claim,
    dataset_metadata,
    load_manifest,
    publish,
)
from genmod.manifest.folders import folder_name
from genmod.manifest.publishing import check_done
from genmod.selection.rows import RowChoice, RowSelection
from genmod.selection.shard import SelectReceipt, write_selected

_REMEDY = "choose another folder with --out, or remove that folder"

OnRows = Callable[[int, int], None]
"""Receives the rows that are done, and their total."""


@dataclass
class RowCounts:
    """What a selection keeps, and what becomes of the shards."""

    kept: dict[Split, int] = field(default_factory=dict[Split, int])
    dropped: dict[Split, int] = field(default_factory=dict[Split, int])
    unscored: dict[Split, int] = field(default_factory=dict[Split, int])
    """Rows without a score; they are among those that are kept or dropped."""
    shared: int = 0
    """Shards whose tars the new dataset shares."""
    copied: int = 0
    """Shards that are copied whole, since the new folder cannot name their folder."""
    rewritten: int = 0
    """Shards of which some rows are copied."""
    emptied: int = 0
    """Shards of which no row is kept."""

    def add(self, choice: RowChoice, folders: Mapping[str, int]) -> None:
        """Count the rows of a shard, given the folders that the new dataset can name."""
        split, kept = choice.shard.entry.split, choice.kept
        for counts, rows in (
            (self.kept, kept),
            (self.dropped, choice.shard.rows - kept),
            (self.unscored, choice.unscored),
        ):
            counts[split] = counts.get(split, 0) + rows
        if kept == choice.shard.rows:
            is_shared = choice.shard.folder in folders
            self.shared, self.copied = self.shared + is_shared, self.copied + (not is_shared)
        else:
            self.rewritten, self.emptied = self.rewritten + bool(kept), self.emptied + (not kept)

    @property
    def rows(self) -> tuple[int, int]:
        """Number of rows that are kept, and that are dropped."""
        return sum(self.kept.values()), sum(self.dropped.values())

    def as_metadata(self) -> dict[str, Any]:
        """The counts as JSON values."""
        splits = {
            split: {
                "kept": self.kept[split],
                "dropped": self.dropped[split],
                "unscored": self.unscored[split],
            }
            for split in SPLITS
            if split in self.kept
        }
        shards = {name: getattr(self, name) for name in _SHARD_COUNTS}
        kept, dropped = self.rows
        return {"kept": kept, "dropped": dropped, "splits": splits, "shards": shards}


_SHARD_COUNTS = ("shared", "copied", "rewritten", "emptied")


def named_folders(selection: RowSelection, out: str) -> dict[str, int]:
    """The folders whose shards a dataset at ``out`` can share, with their numbers in its manifest.

    Empty if it cannot name the folder of the dataset itself.
    """
    folders = [selection.data_root]
    folders += [shard.folder for shard in selection.dataset.stored(selection.data_root)]
    named = [folder for folder in dict.fromkeys(folders) if folder_name(out, folder) is not None]
    if selection.data_root not in named:
        return {}
    return {folder: number for number, folder in enumerate(named, 1)}


def find_selected(selection: RowSelection, out: str) -> DatasetManifest | None:
    """The finished dataset at ``out``, None if it is not finished. ConfigError if there is other work."""
    manifest = load_manifest(DatasetManifest, out, "dataset")
    return check_done(manifest, out, "dataset", selection.fingerprint, _REMEDY)


def count_rows(selection: RowSelection, out: str) -> RowCounts:
    """What a selection keeps. Writes nothing.

    Raises:
        ConfigError: it keeps no row.
        DataError: an index or a table is damaged, or the scores are of other rows.
    """
    counts, folders = RowCounts(), named_folders(selection, out)
    for choice in selection.choices():
        counts.add(choice, folders)
    kept, dropped = counts.rows
    if not kept:
        raise ConfigError(
            f"select: none of {dropped:,} rows meets {selection.condition}; nothing was written, choose "
            "another condition"
        )
    return counts


def select_rows(
    selection: RowSelection, out: str, counts: RowCounts, on_rows: OnRows
) -> DatasetManifest:
    """Write the selected dataset. An interrupted selection resumes.

    Args:
        selection: as checked.
        out: URL of its folder.
        counts: of :func:`count_rows`.
        on_rows: receives the progress.

    Raises:
        ConfigError: another selection is writing to the folder.
        DataError: a shard is damaged.
    """
    expected = selection.fingerprint
    claim(out, expected)
    folders = named_folders(selection, out)
    shards: list[ShardEntry] = []
    files: list[FileEntry] = []
    lost: dict[Split, RowStats] = {}
    total, done = sum(counts.rows), 0
    for choice in selection.choices():
        split = choice.shard.entry.split
        number = folders.get(choice.shard.folder)
        if choice.kept == choice.shard.rows and number is not None:
            shards.append(choice.shard.entry.model_copy(update={"folder": number}))
        else:
            receipt = _written(selection, out, choice, expected)
            lost[split] = lost.get(split, RowStats()) + receipt.lost
            if receipt.shard is not None:
                shards.append(receipt.shard)
            if receipt.dropped is not None:
                files.append(receipt.dropped)
        done += choice.shard.rows
        on_rows(done, total)
    with receipts.together(out):
        manifest = _manifest(selection, out, counts, tuple(shards), lost)
    return publish(out, manifest.model_copy(update={"files": tuple(files)}))


def _written(selection: RowSelection, out: str, choice: RowChoice, expected: str) -> SelectReceipt:
    """The receipt of a shard, which is written if it has none."""
    name = f"{choice.shard.entry.split}-{choice.number:06d}"
    receipt = receipts.load_receipt(SelectReceipt, out, name, expected)
    if receipt is None:
        written = write_selected(out, choice, selection.dataset, expected)
        receipt = receipts.commit(out, name, written)
    rows = receipt.shard.rows if receipt.shard else 0
    if (rows, receipt.lost.rows) != (choice.kept, choice.shard.rows - choice.kept):
        raise DataError(
            f"{out}: the receipt of {name} is of other rows; remove that folder and select again"
        )
    return receipt


def _manifest(
    selection: RowSelection,
    out: str,
    counts: RowCounts,
    shards: tuple[ShardEntry, ...],
    lost: Mapping[Split, RowStats],
) -> DatasetManifest:
    dataset = selection.dataset
    folders = named_folders(selection, out) if any(shard.folder for shard in shards) else {}
    metadata: dict[str, Any] = {
        "selection": {
            "condition": str(selection.condition),
            "without_score": selection.unscored,
            "label": selection.scores[0].label.model_dump(mode="json"),
            **counts.as_metadata(),
        },
        **dataset_metadata(_remaining(selection, lost)),
    }
    parents = {"dataset": dataset.digest}
    parents |= {f"scores-{part.split}": part.manifest.digest for part in selection.scores}
    sample = dataset.metadata.get("sample")
    if isinstance(sample, dict):
        metadata["sample"] = sample | {"draws_from_p": False}
        if "model" in dataset.parents:
            parents["model"] = dataset.parents["model"]
    names = [folder_name(out, folder) for folder in folders]
    return DatasetManifest(
        fingerprint=selection.fingerprint,
        parents=parents,
        metadata=metadata,
        spec=dataset.spec,
        shards=shards,
        folders=tuple(name for name in names if name is not None),
        class_names=dataset.class_names,
    )


def _remaining(selection: RowSelection, lost: Mapping[Split, RowStats]) -> dict[Split, RowStats]:
    """Statistics of the kept rows: those of all rows without those of the dropped ones. Exact."""
    stats = selection.dataset.row_stats(selection.data_root)
    return {
        split: each - lost.get(split, RowStats())
        for split, each in stats.items()
        if each.rows > lost.get(split, RowStats()).rows
    }
