"""Adds OOD scores to score tables, relative to calibration rows. Letters: B rows."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, Field

from genmod import storage
from genmod.documents import validate
from genmod.errors import DataError
from genmod.manifest import FileEntry, ImageSpec, Manifest, read_checked
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, OOD_COLUMN, BitsPerDim, Calibration
from genmod.scoring.receipt import table_entries
from genmod.scoring.table import Scores


class _Counts(BaseModel):
    rows_of_files: tuple[int, ...] = Field(fail_fast=True)


def read_scores(root: str, manifest: Manifest) -> Scores:
    """Read all score tables of a manifest into one.

    Args:
        root: URL of the folder that contains the manifest.
        manifest: of the scores.

    Raises:
        DataError: a table is missing or damaged.
    """
    return Scores.concatenate(
        [_read(root, entry, count) for entry, count in counted_tables(root, manifest)]
    )


def counted_tables(root: str, manifest: Manifest) -> list[tuple[FileEntry, int]]:
    """The tables of a manifest, and the number of rows of each. DataError if they are not counted."""
    entries = table_entries(manifest)
    if not entries:
        raise DataError(f"{root}: its manifest lists no tables; score again")
    counts = validate(_Counts, manifest.metadata, "the manifest of scores", root, "score again")
    if len(counts.rows_of_files) != len(entries):
        raise DataError(f"{root}: its manifest does not count the rows of its tables; score again")
    return list(zip(entries, counts.rows_of_files, strict=True))


def _read(root: str, entry: FileEntry, rows: int) -> Scores:
    data = read_checked(root, entry, "run genmod verify to find all damaged files")
    return Scores.from_parquet(data, storage.join_below(root, entry.path), rows)


def add_ood_scores(scores: Scores, known: Scores, spec: ImageSpec, *, own: bool) -> Scores:
    """Add the columns of :mod:`genmod.scoring.ood_scores` to a table.

    Args:
        scores: rows to compare with the calibration rows.
        known: calibration rows, scored by the same model with the same options.
        spec: image format.
        own: whether both are rows of one split, so that a row may itself be a calibration row.
    """
    inside_B = torch.isin(scores.rows.index_B, known.rows.index_B) & own
    calibration = _calibration(known, spec)
    compressed_B = scores.column(COMPRESSED_COLUMN)
    return scores.with_columns(calibration.columns(scores.nats_B, compressed_B, inside_B))


def calibration_metadata(known: Scores, spec: ImageSpec) -> dict[str, Any]:
    """Metadata for a manifest: statistics of the calibration rows, and the recommended OOD column."""
    return {"calibrated": _calibration(known, spec).metadata(), "recommended": OOD_COLUMN}


def _calibration(known: Scores, spec: ImageSpec) -> Calibration:
    bits = BitsPerDim(spec.dims, known.label.measure, spec.levels)
    return Calibration.of(known.nats_B, known.column(COMPRESSED_COLUMN), bits)
