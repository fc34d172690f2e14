"""How familiar an image is to a model: what log p alone does not say, against rows that are known to belong.

Likely is not familiar. A model of clothes finds digits likelier than clothes, for they have less in them
(Nalisnick et al. 2019a): mean log p is minus a divergence minus an entropy, and simple images have little
entropy (Caterini and Loaiza-Ganem 2021). So beside log p there are, of every row x,

    percentile                 where log p(x) lies among the calibration rows' (0 .. 100)
    p_two_sided                how rare so low or so high a log p is among them: a conformal p
    typicality_bits_per_dim    | bits/dim of x - mean bits/dim of the calibration rows |
    corrected_bits_per_dim     (-log2 p(x) - L(x)) / D, L(x) the bits of x compressed: what the model needs
                               beyond what any image so simple would; high is unfamiliar
    p_corrected                how rare so high a corrected score is among them: a conformal p, one-sided

A conformal p of a row that belongs is at most a with probability at most a, whatever the model is worth. A
row that is itself a calibration row is compared with the others. Letters: B rows, N calibration rows,
C channels, H height, W width.

References:
    Do deep generative models know what they don't know? Nalisnick et al. 2019a, https://arxiv.org/abs/1810.09136
    Detecting out-of-distribution inputs using typicality, Nalisnick et al. 2019b, https://arxiv.org/abs/1906.02994
    Input complexity and out-of-distribution detection with likelihood-based generative models (Eq. 2),
    Serra et al. 2020, https://arxiv.org/abs/1909.11480
    Entropic issues in likelihood-based OOD detection, Caterini and Loaiza-Ganem 2021,
    https://arxiv.org/abs/2109.10794
    Algorithmic learning in a random world (sec. 2.2), Vovk et al. 2005
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from genmod import units
from genmod.config import Config
from genmod.manifest import Split

COMPRESSED_COLUMN = "compressed_bits"
"""The column of L(x): zlib, level 9, of the pixels' bytes row by row."""

OOD_COLUMN = "corrected_bits_per_dim"
"""The column to tell unfamiliar images by."""

RARE_P = 0.05
"""A p below this counts as rare in summaries."""


class CalibrationConfig(Config):
    """The recipe's ``score.calibration``: rows that are known to belong."""

    split: Split = "val"
    """Of the recipe's own data. Nothing may be trained on it."""
    rows: int = Field(default=500, ge=20)
    """At most so many, drawn by the seed. A p is at least 1 / (rows + 1)."""


def compressed_bits(pixels_BCHW: Tensor) -> Tensor:
    """L(x) of each image, (B,) float64."""
    images_BHWC = pixels_BCHW.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    sizes = [8.0 * len(zlib.compress(image_HWC.tobytes(), 9)) for image_HWC in images_BHWC]
    return torch.tensor(sizes, dtype=torch.float64)


@dataclass(frozen=True)
class BitsPerDim:
    """How bits per dimension follow from nats: of which images, by which measure."""

    dims: int
    measure: str = units.COUNTS
    levels: int = units.LEVELS

    def per_dim(self, nats_B: Tensor) -> Tensor:
        """Of rows."""
        bits_B = units.bits_per_dim(nats_B, self.dims, self.measure, self.levels)
        assert isinstance(bits_B, Tensor)
        return bits_B

    def corrected(self, nats_B: Tensor, compressed_B: Tensor) -> Tensor:
        """(-log2 P - L) / D (Eq. 2, Serra et al. 2020)."""
        return self.per_dim(nats_B) - compressed_B / self.dims


@dataclass(frozen=True)
class Calibration:
    """Numbers of rows that belong, in ascending order each."""

    nats_N: Tensor
    corrected_N: Tensor
    bits: BitsPerDim

    @classmethod
    def of(cls, nats_N: Tensor, compressed_N: Tensor, bits: BitsPerDim) -> Self:
        """From the rows' columns."""
        corrected_N = bits.corrected(nats_N, compressed_N)
        return cls(nats_N.sort().values, corrected_N.sort().values, bits)

    @property
    def mean_bits_per_dim(self) -> float:
        """The estimate of the cross entropy that typicality is measured from."""
        return float(self.bits.per_dim(self.nats_N).mean())

    def columns(self, nats_B: Tensor, compressed_B: Tensor, inside_B: Tensor) -> dict[str, Tensor]:
        """All columns, (B,) float64.

        Args:
            nats_B: log p.
            compressed_B: L(x).
            inside_B: which rows are calibration rows themselves.
        """
        own_B = inside_B.long()
        below_B, upto_B = _ranks(self.nats_N, nats_B)
        others_B = (len(self.nats_N) - own_B).double()
        no_more_B, no_less_B = upto_B - own_B, len(self.nats_N) - below_B - own_B
        corrected_B = self.bits.corrected(nats_B, compressed_B)
        smaller_B, _ = _ranks(self.corrected_N, corrected_B)
        as_high_B = len(self.corrected_N) - smaller_B - own_B
        least_B = torch.minimum(no_more_B, no_less_B)
        bits_B = self.bits.per_dim(nats_B)
        return {
            "percentile": 100 * 0.5 * (below_B + no_more_B) / others_B,
            "p_two_sided": (2 * (1 + least_B) / (others_B + 1)).clamp(max=1.0),
            "typicality_bits_per_dim": (bits_B - self.mean_bits_per_dim).abs(),
            OOD_COLUMN: corrected_B,
            "p_corrected": (1 + as_high_B) / (others_B + 1),
        }

    def metadata(self) -> dict[str, float | int]:
        """What a manifest says of them, with the typicality that one row in twenty exceeds."""
        bits_N = self.bits.per_dim(self.nats_N)
        off_N = (bits_N - self.mean_bits_per_dim).abs()
        return {
            "rows": len(self.nats_N),
            "mean_bits_per_dim": self.mean_bits_per_dim,
            "mean_corrected_bits_per_dim": float(self.corrected_N.mean()),
            "typicality_95_bits_per_dim": float(off_N.quantile(1 - RARE_P)),
        }


def count_rare(columns: Mapping[str, Tensor]) -> dict[str, int]:
    """How many rows have a p below :data:`RARE_P`, for each column of p."""
    names = [name for name in ("p_two_sided", "p_corrected") if name in columns]
    return {name: int((columns[name] < RARE_P).sum()) for name in names}


def _ranks(sorted_N: Tensor, value_B: Tensor) -> tuple[Tensor, Tensor]:
    """How many of N are below each value, and how many at most it."""
    value_B = value_B.contiguous()
    return (
        torch.searchsorted(sorted_N, value_B, side="left"),
        torch.searchsorted(sorted_N, value_B, side="right"),
    )


def auroc(inside_N: Tensor, outside_M: Tensor) -> tuple[float, float]:
    """Probability that a row from outside has the larger number, ties by half, with its standard error.

    The error is DeLong's: of the means of both sides' placements (DeLong, DeLong and Clarke-Pearson 1988).
    """
    below_M, upto_M = _ranks(inside_N.sort().values, outside_M)
    place_M = 0.5 * (below_M + upto_M).double() / len(inside_N)
    under_N, most_N = _ranks(outside_M.sort().values, inside_N)
    place_N = 1 - 0.5 * (under_N + most_N).double() / len(outside_M)
    variance = place_M.var() / len(outside_M) + place_N.var() / len(inside_N)
    return float(place_M.mean()), math.sqrt(float(variance))
