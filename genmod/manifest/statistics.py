"""Statistics of a dataset's rows, which its manifest carries. Letters: C channels, K classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from genmod.budget import BUDGET
from genmod.config import Config
from genmod.units import LEVELS

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_Count = Annotated[int, Field(ge=0, le=BUDGET.rows)]
_Sum = Annotated[int, Field(ge=0, lt=1 << 80)]


class RowStats(Config):
    """Statistics of rows of a split. Pixels are 0..255 and sums are exact integers, so statistics add up."""

    rows: _Count = 0
    next_index: _Count = 0
    """Greater than every ``index`` in use."""
    pixels: _Sum = 0
    """Number of pixels per channel."""
    pixel_sum_C: tuple[_Sum, ...] = Field(default=(), fail_fast=True)
    pixel_square_sum_C: tuple[_Sum, ...] = Field(default=(), fail_fast=True)
    rows_K: tuple[_Count, ...] = Field(default=(), fail_fast=True)
    """Number of rows of each class."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self._are_sums_possible():
            raise ValueError("the sums of the pixels are impossible")
        return self

    def _are_sums_possible(self) -> bool:
        """Whether some pixels have these sums: Cauchy-Schwarz, and no value above 255."""
        if len(self.pixel_sum_C) != len(self.pixel_square_sum_C):
            return False
        return all(
            total <= (LEVELS - 1) * self.pixels
            and total**2 <= squares * self.pixels
            and total <= squares <= (LEVELS - 1) * total
            for total, squares in zip(self.pixel_sum_C, self.pixel_square_sum_C, strict=True)
        )

    def __add__(self, other: RowStats) -> RowStats:
        """Statistics of the union of two disjoint sets of rows."""
        return RowStats(
            rows=self.rows + other.rows,
            next_index=max(self.next_index, other.next_index),
            pixels=self.pixels + other.pixels,
            pixel_sum_C=_add(self.pixel_sum_C, other.pixel_sum_C),
            pixel_square_sum_C=_add(self.pixel_square_sum_C, other.pixel_square_sum_C),
            rows_K=_add(self.rows_K, other.rows_K),
        )

    def __sub__(self, other: RowStats) -> RowStats:
        """Statistics of the rows that are left without some of them, which keep their numbers.

        Raises:
            ValidationError: the others are not some of these rows.
        """
        return RowStats(
            rows=self.rows - other.rows,
            next_index=self.next_index,
            pixels=self.pixels - other.pixels,
            pixel_sum_C=_add(self.pixel_sum_C, tuple(-x for x in other.pixel_sum_C)),
            pixel_square_sum_C=_add(
                self.pixel_square_sum_C, tuple(-x for x in other.pixel_square_sum_C)
            ),
            rows_K=_add(self.rows_K, tuple(-x for x in other.rows_K)),
        )

    def problem(self, rows: int, channels: int, pixels_per_row: int, classes: int) -> str:
        """Why these cannot be the statistics of so many rows; empty if they can.

        Args:
            rows: number of rows that the shards have.
            channels: C.
            pixels_per_row: H W.
            classes: K; 0 without labels.
        """
        if self.rows != rows:
            return f"{self.rows} rows, the shards have {rows}"
        if self.pixels != rows * pixels_per_row:
            return f"{self.pixels} pixels, the shards have {rows * pixels_per_row}"
        if self.next_index < rows:
            return f"next_index is {self.next_index}, but {rows} rows have different indices"
        if len(self.rows_K) != classes or (classes and sum(self.rows_K) != rows):
            return f"rows_K counts {sum(self.rows_K)} rows of {len(self.rows_K)} classes"
        if len(self.pixel_sum_C) != channels:
            return f"sums of {len(self.pixel_sum_C)} channels, the images have {channels}"
        return ""


def _add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip_longest(a, b, fillvalue=0))


def dataset_metadata(stats: Mapping[Split, RowStats]) -> dict[str, Any]:
    """Metadata of a dataset's manifest: row and pixel statistics.

    Args:
        stats: for each split with rows, the sum of the statistics of its shards.

    Returns:
        ``splits``: the statistics of each split as JSON; ``stats``: ``mean`` and ``std`` of each channel over
        the train split in network units, [-1, 1] (absent if that split is empty).
    """
    metadata: dict[str, Any] = {
        "splits": {split: stats[split].model_dump(mode="json") for split in stats}
    }
    if "train" in stats:
        metadata["stats"] = network_stats(stats["train"])
    return metadata


def network_stats(stats: RowStats) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel in network units.

    Exact integers until the last division; pixel p is x = 2 (p + 1/2) / 256 - 1, as in genmod.units.
    """
    scale, count = 2.0 / LEVELS, stats.pixels
    sums = zip(stats.pixel_sum_C, stats.pixel_square_sum_C, strict=True)
    std = [math.sqrt(squares * count - total * total) / count * scale for total, squares in sums]
    mean = [(total / count + 0.5) * scale - 1.0 for total in stats.pixel_sum_C]
    return {"mean": mean, "std": std}
