"""Score tables beside the scores of rows that belong. Letters: B rows."""

from __future__ import annotations

from typing import Any

import torch

from genmod import storage
from genmod.errors import DataError
from genmod.manifest import ImageSpec, Manifest
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, OOD_COLUMN, BitsPerDim, Calibration
from genmod.scoring.table import Scores


def read_scores(root: str, manifest: Manifest) -> Scores:
    """All tables of a scores' manifest.

    Raises:
        DataError: one is missing or broken.
    """
    parts: list[Scores] = []
    for entry in manifest.files:
        url = storage.join(root, entry.path)
        try:
            parts.append(Scores.from_parquet(storage.read_bytes(url)))
        except (FileNotFoundError, DataError) as error:
            raise DataError(f"{url}: {error}; genmod verify says what else is wrong") from None
    return Scores.together(parts)


def add_ood_scores(scores: Scores, known: Scores, spec: ImageSpec, *, own: bool) -> Scores:
    """The same with the columns of :mod:`genmod.scoring.ood_scores`.

    Args:
        scores: rows to compare.
        known: calibration rows, scored by the same model in the same way.
        spec: of the images.
        own: both are rows of one split, so that a row may be a calibration row itself.
    """
    inside_B = torch.isin(scores.rows.index_B, known.rows.index_B) & own
    belongs = _calibration(known, spec)
    return scores.with_columns(
        belongs.columns(scores.nats_B, scores.columns[COMPRESSED_COLUMN], inside_B)
    )


def calibration_metadata(known: Scores, spec: ImageSpec) -> dict[str, Any]:
    """What a manifest says of the calibration rows and of the columns."""
    belongs = _calibration(known, spec)
    return {"calibrated": belongs.metadata(), "recommended": OOD_COLUMN}


def _calibration(known: Scores, spec: ImageSpec) -> Calibration:
    bits = BitsPerDim(spec.dims, known.label.measure, spec.levels)
    return Calibration.of(known.nats_B, known.columns[COMPRESSED_COLUMN], bits)
