"""Batches of images with labels and indices. Letters: B batch, C channels, H height, W width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from genmod import units


@dataclass(frozen=True)
class Batch:
    """Rows of a dataset, in order."""

    pixels_BCHW: Tensor
    """Images, uint8, (B, C, H, W)."""
    labels_B: Tensor | None
    """Labels, int64 in [0, classes); None for data without labels."""
    index_B: Tensor
    """Addresses of each row's random numbers, int64: the position in the training stream, or for scoring the
    row's index in its split."""

    def __len__(self) -> int:
        return self.pixels_BCHW.shape[0]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows of at least one batch, in order."""
        labels = [part.labels_B for part in parts if part.labels_B is not None]
        assert len(labels) in {0, len(parts)}, "either all batches have labels or none"
        return cls(
            torch.cat([part.pixels_BCHW for part in parts]),
            torch.cat(labels) if labels else None,
            torch.cat([part.index_B for part in parts]),
        )

    def x_BCHW(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The images in network units, in [-1, 1]."""
        return units.to_network(self.pixels_BCHW, dtype)

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device; asynchronous from pinned memory."""
        labels_B = self.labels_B
        return Batch(
            self.pixels_BCHW.to(device, non_blocking=True),
            None if labels_B is None else labels_B.to(device, non_blocking=True),
            self.index_B.to(device, non_blocking=True),
        )

    def pinned(self) -> Batch:
        """Copy the batch to page-locked memory, from which a GPU can copy it while computing."""
        labels_B = self.labels_B
        return Batch(
            self.pixels_BCHW.pin_memory(),
            None if labels_B is None else labels_B.pin_memory(),
            self.index_B.pin_memory(),
        )

    def rows(self, index: slice | Tensor) -> Batch:
        """Select rows by a slice, or by a tensor of their numbers."""
        labels_B = self.labels_B
        return Batch(
            self.pixels_BCHW[index],
            None if labels_B is None else labels_B[index],
            self.index_B[index],
        )
