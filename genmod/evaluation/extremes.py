"""The most and the least likely of the scored images, for the pages. Letters: N rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genmod.data.format.image_grid import grid, pixel_scale, png
from genmod.data.reading.reader import read_rows, split_reader
from genmod.errors import DataError, sanitize
from genmod.manifest import SPLITS, DatasetManifest, Split
from genmod.scoring.table import Scores

MOST_EXTREMES = 10
"""Images shown at either end."""


@dataclass(frozen=True)
class Extremes:
    """The most and the least likely rows, most extreme first."""

    metadata: dict[str, Any]
    """Key and log p in nats of each row, under ``most`` and ``least``."""
    picture: bytes
    """PNG file: a row of the most likely images above a row of the least likely ones."""


def read_extremes(
    scores: Scores, split: object, scored: tuple[str, DatasetManifest]
) -> Extremes | None:
    """The rows at both ends, and their images.

    Args:
        scores: log-likelihoods of rows of one split.
        split: its name.
        scored: URL and manifest of the dataset that was scored.

    Returns:
        None if there is no such split.

    Raises:
        DataError: the dataset has no such rows, or they are missing or damaged.
    """
    if split not in SPLITS:
        return None
    most, least = extreme_rows(scores)
    keys = [*most.rows.keys, *least.rows.keys]
    pixels_BCHW = read_rows(*scored, split, _positions(*scored, split, keys)).pixels_BCHW
    picture = grid(pixels_BCHW, len(most.rows.keys), pixel_scale(scored[1].spec))
    metadata = {"most": _keys_and_nats(most), "least": _keys_and_nats(least)}
    return Extremes(metadata, png(picture))


def _positions(root: str, data: DatasetManifest, split: Split, keys: Sequence[str]) -> list[int]:
    """Rows with these keys. The index of a score is no position where inputs were rejected."""
    reader = split_reader(root, data, split)
    position = {key: row for row, key in enumerate(reader.keys())}
    reader.close()
    if missing := [key for key in keys if key not in position]:
        raise DataError(
            f"{root}: split {split} has no row {sanitize(missing[0][:80])}, which was scored; score again"
        )
    return [position[key] for key in keys]


def extreme_rows(scores: Scores) -> tuple[Scores, Scores]:
    """The most likely and the least likely rows, most extreme first, :data:`MOST_EXTREMES` each at most."""
    order_N = scores.nats_B.argsort(descending=True, stable=True)
    return scores.take(order_N[:MOST_EXTREMES]), scores.take(order_N.flip(0)[:MOST_EXTREMES])


def _keys_and_nats(scores: Scores) -> list[dict[str, Any]]:
    rows = zip(scores.rows.keys, scores.nats_B.tolist(), strict=True)
    return [{"key": key, "nats": nats} for key, nats in rows]
