"""Filters of samples: which images are rejected, and why. Letters: B images, C channels, H height, W width.

Whether an image is rejected depends on its index alone, except by ``earlier_copies``, which depends on the
images of its class with smaller indices. So the accepted images do not depend on the division of the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from genmod.config import Config
from genmod.interface.batch import Batch

RejectReason = Literal[
    "flat",
    "saturated",
    "training copy",
    "earlier copy",
    "other class",
    "likelihood",
    "typicality",
    "not finite",
]
"""Why an image was rejected; ``not finite``: it has NaN or infinite values."""

TABLES = 4
"""Signatures of an image; one that is equal makes a near copy."""

_CELL = 32
"""Grey levels that a signature does not tell apart."""

_SIDE = 8
"""Side of the thumbnail of which signatures are made."""

_Bits = Annotated[float, Field(ge=-1e6, le=1e6)]


class FilterConfig(Config):
    """The recipe's ``sample.filters``. Without any, every image is accepted."""

    min_contrast: float | None = Field(default=None, gt=0, le=255)
    """Rejects flat images: standard deviation of all pixels below this, in grey levels of 0 to 255."""
    max_saturated: float | None = Field(default=None, ge=0, lt=1)
    """Rejects saturated images: a larger share of the pixel values is 0 or 255."""
    training_copies: bool = False
    """Rejects copies of training rows: exact, shifted by a pixel, flipped, noisy or with other contrast."""
    earlier_copies: bool = False
    """Rejects an image whose 8x8 thumbnail is that of an accepted image of its class with a smaller index, to
    within 32 grey levels in each of its pixels."""
    classifier: bool = False
    """Rejects images in which the classifier of ``evaluate.features`` sees another class than requested."""
    bits_per_dim: tuple[_Bits, _Bits] | None = None
    """Rejects images outside this band, ends included, of the bits per dimension that the model gives them
    under ``model.NAME.score``. Unlikely images have many bits."""
    typicality_bits_per_dim: float | None = Field(default=None, gt=0, le=1e6)
    """Rejects images whose bits per dimension are further than this from the mean of the calibration rows of
    ``genmod score``; too likely images are no more typical than too unlikely ones."""

    @model_validator(mode="after")
    def _check(self) -> FilterConfig:
        band = self.bits_per_dim
        if band is not None and band[0] >= band[1]:
            raise ValueError(f"bits_per_dim is {list(band)}, expected [LOW, HIGH] with LOW < HIGH")
        return self

    def result(self) -> dict[str, Any]:
        """The filters that are on; empty if none is."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def needs_likelihood(self) -> bool:
        """Whether images are judged by what the model gives them."""
        return self.bits_per_dim is not None or self.typicality_bits_per_dim is not None

    @property
    def is_on(self) -> bool:
        """Whether there is any filter."""
        return bool(self.result())


@dataclass(frozen=True)
class Filters:
    """The filters of a job, with what they need."""

    config: FilterConfig
    is_training_copy: Callable[[Tensor], Tensor] | None = None
    """Of uint8 images (B, C, H, W): bool (B,)."""
    classes_of: Callable[[Tensor], Tensor] | None = None
    """Classes that the classifier sees in uint8 images: int64 (B,)."""
    bits_of: Callable[[Batch], Tensor] | None = None
    """Bits per dimension of images: float64 (B,)."""
    mean_bits_per_dim: float = 0.0
    """Of the calibration rows."""

    def reasons(self, batch: Batch) -> list[RejectReason | None]:
        """Why each image of a complete micro-batch is rejected; None if it is not, so far.

        Earlier copies are found later, by :func:`signatures`.
        """
        rejected: list[tuple[RejectReason, Tensor]] = []
        config, pixels_BCHW = self.config, batch.pixels_BCHW
        flat_BD = pixels_BCHW.flatten(1).to(torch.float64)
        if config.min_contrast is not None:
            rejected.append(("flat", flat_BD.std(1, correction=0) < config.min_contrast))
        if config.max_saturated is not None:
            share_B = ((flat_BD == 0) | (flat_BD == 255)).to(torch.float64).mean(1)
            rejected.append(("saturated", share_B > config.max_saturated))
        if self.classes_of is not None:
            rejected.append(("other class", self.classes_of(pixels_BCHW) != batch.labels_B))
        if self.bits_of is not None:
            bits_B = self.bits_of(batch)
            if config.bits_per_dim is not None:
                low, high = config.bits_per_dim
                rejected.append(("likelihood", ~((bits_B >= low) & (bits_B <= high))))
            if config.typicality_bits_per_dim is not None:
                away_B = (bits_B - self.mean_bits_per_dim).abs()
                rejected.append(("typicality", ~(away_B <= config.typicality_bits_per_dim)))
        if self.is_training_copy is not None:
            rejected.append(("training copy", self.is_training_copy(pixels_BCHW)))
        reasons: list[RejectReason | None] = [None] * len(batch)
        for reason, is_rejected_B in reversed(rejected):  # the first one that applies is named
            for row in is_rejected_B.nonzero()[:, 0].tolist():
                reasons[row] = reason
        return reasons


def signatures(pixels_BCHW: Tensor) -> NDArray[np.uint64]:
    """Signatures of images, (B, :data:`TABLES`). Images that are nearly equal share at least one of them.

    Each is of the thumbnail in cells of 32 grey levels, which start at another level in each table.

    Args:
        pixels_BCHW: uint8 images.
    """
    thumbnail_BD = torch.nn.functional.adaptive_avg_pool2d(
        pixels_BCHW.to(torch.float64), _SIDE
    ).flatten(1)
    columns: list[list[int]] = []
    for table in range(TABLES):
        offset = table * _CELL / TABLES
        cell_BD = ((thumbnail_BD + offset) / _CELL).floor().to(torch.uint8).numpy()
        columns.append([_hash(row_D, table) for row_D in cell_BD])
    return np.array(columns, dtype=np.uint64).T.copy()


def _hash(cells_D: NDArray[np.uint8], table: int) -> int:
    data = cells_D.tobytes() + bytes([table])
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class EarlierCopies:
    """Finds near copies of the images of one class that were accepted before."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_copy(self, signature_T: Sequence[int]) -> bool:
        """Whether an image shares a signature with one that was accepted."""
        return not self._seen.isdisjoint(signature_T)

    def add(self, signature_T: Sequence[int]) -> None:
        """Remember an accepted image."""
        self._seen.update(signature_T)
