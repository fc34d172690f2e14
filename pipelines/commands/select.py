"""``genmod select URL``: a dataset of the rows whose scores meet a condition, which shares unchanged tars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genmod import storage
from genmod.errors import ConfigError
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, Manifest
from genmod.selection.expression import parse_condition
from genmod.selection.job import RowCounts, count_rows, find_selected, select_rows
from genmod.selection.rows import RowSelection, Unscored
from genmod.selection.split_scores import SplitScores
from pipelines.recipe.context import ALREADY_DONE, DONE
from pipelines.recipe.progress import ProgressDisplay

_MAX_SCORES = 3
"""One of each split."""


@dataclass(frozen=True)
class SelectRequest:
    """A selection as the command line names it."""

    url: str
    """Folder of the dataset."""
    scores: Sequence[str]
    """Folders of the scores, one of each split."""
    keep: str
    """The condition."""
    out: str
    """Folder of the new dataset."""
    unscored: Unscored = "refuse"


def select(
    request: SelectRequest, progress: ProgressDisplay, *, dry_run: bool = False
) -> dict[str, Any]:
    """Write the selected dataset, or with ``dry_run`` only count its rows; the command's JSON result.

    Raises:
        ConfigError: the condition, the scores and the dataset do not go together, no row is kept, or the
            folder contains other work. Nothing was written.
        DataError: the dataset or a table is damaged.
    """
    selection = open_selection(request)
    out = storage.resolve(request.out)
    found = find_selected(selection, out)
    if found is not None:
        progress.log(f"select: {ALREADY_DONE}: {out}")
        return _result(ALREADY_DONE, out, selection, found, found.metadata.get("selection"))
    counts = count_rows(selection, out)
    for line in _lines(counts, out):
        progress.log(line)
    if dry_run:
        return _result("planned", out, selection, None, counts.as_metadata())
    storage.check_writable(out)
    manifest = select_rows(
        selection, out, counts, lambda done, total: progress.update("select", done, total, "rows")
    )
    progress.log(f"select: {DONE}: {out}")
    return _result(DONE, out, selection, manifest, manifest.metadata.get("selection"))


def open_selection(request: SelectRequest) -> RowSelection:
    """The manifests and the condition of a request, checked. Raises ConfigError or DataError."""
    condition = parse_condition(request.keep)
    for url in (request.url, *request.scores, request.out):
        storage.check_url(url)
    if not 1 <= len(request.scores) <= _MAX_SCORES:
        raise ConfigError(
            f"select: got {len(request.scores)} --scores, expected 1 to {_MAX_SCORES}: one of each split"
        )
    snapshot = ManifestSnapshot()
    root = storage.resolve(request.url)
    dataset = snapshot.dataset(root)
    scores = [
        SplitScores(url, snapshot.require(Manifest, url, "scores", "score"))
        for url in map(storage.resolve, request.scores)
    ]
    selection = RowSelection(root, dataset, tuple(scores), condition, request.unscored)
    selection.check()
    return selection


def _lines(counts: RowCounts, out: str) -> list[str]:
    lines: list[str] = []
    for split, kept in counts.kept.items():
        rows, unscored = kept + counts.dropped[split], counts.unscored[split]
        without = f", {unscored:,} of all have no score" if unscored else ""
        lines.append(f"  {split}: {kept:,} of {rows:,} rows are kept{without}")
    if counts.copied:
        lines.append(
            f"  {counts.copied:,} whole shards are copied: {out} cannot name their folder; next to the "
            "dataset it would share them"
        )
    lines.append(
        f"  {counts.shared:,} shards are shared, {counts.rewritten:,} rewritten without the dropped rows, "
        f"{counts.emptied:,} left out"
    )
    return lines


def _result(
    status: str,
    out: str,
    selection: RowSelection,
    manifest: DatasetManifest | None,
    counts: Any,
) -> dict[str, Any]:
    return {
        "stage": "select",
        "status": status,
        "output": out,
        "fingerprint": selection.fingerprint,
        "digest": None if manifest is None else manifest.digest,
        "selection": counts,
    }
