"""Adds OOD scores to score tables, relative to calibration rows. Letters: B rows."""

from __future__ import annotations

from typing import Any

import torch

from genmod import storage
from genmod.errors import DataError
from genmod.manifest import ImageSpec, Manifest
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, OOD_COLUMN, BitsPerDim, Calibration
from genmod.scoring.table import Scores


def read_scores(root: str, manifest: Manifest) -> Scores:
    """Read all score tables of a manifest into one.

    Args:
        root: URL of the folder that contains the manifest.
        manifest: of the scores.

    Raises:
        DataError: a table is missing or damaged.
    """
    parts: list[Scores] = []
    for entry in manifest.files:
        url = storage.join(root, entry.path)
        try:
            parts.append(Scores.from_parquet(storage.read_bytes(url)))
        except (FileNotFoundError, DataError) as error:
            raise DataError(
                f"{url}: {error}; run genmod verify to find all damaged files"
            ) from None
    return Scores.concatenate(parts)


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
    compressed_B = scores.columns[COMPRESSED_COLUMN]
    return scores.with_columns(calibration.columns(scores.nats_B, compressed_B, inside_B))


def calibration_metadata(known: Scores, spec: ImageSpec) -> dict[str, Any]:
    """Metadata for a manifest: statistics of the calibration rows, and the recommended OOD column."""
    return {"calibrated": _calibration(known, spec).metadata(), "recommended": OOD_COLUMN}


def _calibration(known: Scores, spec: ImageSpec) -> Calibration:
    bits = BitsPerDim(spec.dims, known.label.measure, spec.levels)
    return Calibration.of(known.nats_B, known.columns[COMPRESSED_COLUMN], bits)
