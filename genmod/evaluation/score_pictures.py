"""Pictures of the scores of a dataset: a histogram, and the most and the least likely images.

They are files next to the tables and no part of the result: if they are removed, scoring again draws them
again. Letters: N rows, B rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genmod import storage, units
from genmod.data.format.image_grid import grid, pixel_scale, png
from genmod.data.reading.reader import RowReader
from genmod.errors import DataError, sanitize
from genmod.evaluation.extremes import MOST_EXTREMES, extreme_rows
from genmod.evaluation.likelihood import histogram
from genmod.manifest import FileEntry, ImageSpec, StoredShard, read_checked
from genmod.report.charts import histogram_chart
from genmod.report.svg_file import svg_file
from genmod.scoring.table import Scores

PICTURED_ROWS = 1_000_000
"""Most rows that are read for the pictures; of more, tables at equal distances."""

HISTOGRAM_FILE = "histogram.svg"
EXTREMES_FILE = "extremes.png"
PICTURE_FILES = (HISTOGRAM_FILE, EXTREMES_FILE)
"""Files below the folder of the scores."""


@dataclass(frozen=True)
class ScoredTable:
    """A table of scores, and the shard whose rows it has."""

    entry: FileEntry
    rows: int
    shard: StoredShard


@dataclass(frozen=True)
class _ExtremeRow:
    nats: float
    key: str
    shard: StoredShard


def draw_scores(root: str, tables: Sequence[ScoredTable], spec: ImageSpec) -> list[str]:
    """Draw the pictures that are not there yet. The same scores give the same bytes.

    Args:
        root: URL of the scores' folder.
        tables: all tables, at least one.
        spec: of the images.

    Returns:
        URLs of the pictures.

    Raises:
        DataError: a table, an index or an image is missing or damaged.
    """
    urls = [storage.join_below(root, name) for name in PICTURE_FILES]
    if all(storage.exists(url) for url in urls):
        return urls
    read = _spread(tables)
    nats: list[Tensor] = []
    most: list[_ExtremeRow] = []
    least: list[_ExtremeRow] = []
    label = None
    for table in read:
        data = read_checked(root, table.entry, "run genmod verify to find all damaged files")
        url = storage.join_below(root, table.entry.path)
        scores = Scores.from_parquet(data, url, table.rows)
        label = scores.label
        nats.append(scores.nats_B)
        for found, part in zip((most, least), extreme_rows(scores), strict=True):
            pairs = zip(part.nats_B.tolist(), part.rows.keys, strict=True)
            found += [_ExtremeRow(value, key, table.shard) for value, key in pairs]
        most = sorted(most, key=lambda row: -row.nats)[:MOST_EXTREMES]
        least = sorted(least, key=lambda row: row.nats)[:MOST_EXTREMES]
    assert label is not None, "there is a table"
    nats_N = torch.cat(nats)

    def bits(value: float) -> float:
        return float(units.bits_per_dim(value, spec.dims, label.measure, spec.levels))

    all_rows = sum(table.rows for table in tables)
    of = "" if len(nats_N) == all_rows else f", {len(nats_N):,} of {all_rows:,} rows"
    axis = f"log p in nats (above: bits per dimension), {label.label} by {label.estimator}{of}"
    chart = histogram_chart(histogram(nats_N), axis, bits)
    storage.write_bytes(urls[0], svg_file(chart))
    pixels_NCHW = torch.cat(list(_images([*most, *least], spec)))
    picture = grid(pixels_NCHW, len(most), pixel_scale(spec))
    storage.write_bytes(urls[1], png(picture))
    return urls


def _spread(tables: Sequence[ScoredTable]) -> list[ScoredTable]:
    """All tables, or some at equal distances that have :data:`PICTURED_ROWS` together, about."""
    total = sum(table.rows for table in tables)
    step = max(1, -(-total // PICTURED_ROWS))
    return list(tables[::step])


def _images(rows: Sequence[_ExtremeRow], spec: ImageSpec) -> Iterator[Tensor]:
    """The images of rows, uint8 (1, C, H, W) each. Reads the index of each shard once."""
    positions: dict[str, dict[str, int]] = {}
    for row in rows:
        reader = RowReader(spec, [row.shard])
        url = row.shard.index_url
        if url not in positions:
            positions[url] = {key: number for number, key in enumerate(reader.keys())}
        if row.key not in positions[url]:
            raise DataError(
                f"{url}: no row {sanitize(row.key[:80])}, which was scored; score again"
            )
        yield reader.read(np.array([positions[url][row.key]])).pixels_BCHW
        reader.close()
