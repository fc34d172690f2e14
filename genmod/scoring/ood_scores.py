"""Out-of-distribution (OOD) scores of rows: log p compared with that of in-distribution calibration rows.

A high log p alone does not mean that an image is in-distribution. A model of clothes assigns digits a higher
log p than clothes, because they are simpler (Nalisnick et al. 2019a): the mean log p is minus a divergence
minus an entropy, and simple images have a low entropy (Caterini and Loaiza-Ganem 2021). So each row x has
further scores:

    percentile                 rank of log p(x) among the calibration rows, 0 .. 100
    p_two_sided                conformal p-value of a log p as low or as high as this
    typicality_bits_per_dim    | bits/dim of x - mean bits/dim of the calibration rows |
    corrected_bits_per_dim     (-log2 p(x) - L(x)) / D, with L(x) the compressed size of x in bits: the bits
                               that the model needs beyond those of a compressor; high is OOD
    p_corrected                conformal p-value of a corrected score as high as this, one-sided

The conformal p-value of an in-distribution row is at most a with probability at most a, for any model. A row
that is itself a calibration row is compared with the others. Letters: B rows, N calibration rows,
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
"""The column of L(x): size in bits of the pixels' bytes, compressed by zlib at level 9."""

OOD_COLUMN = "corrected_bits_per_dim"
"""The recommended column for OOD detection; high is OOD."""

RARE_P = 0.05
"""Summaries count the rows whose p-value is below this."""


class CalibrationConfig(Config):
    """The recipe's ``score.calibration``: in-distribution rows that OOD scores are relative to."""

    split: Split = "val"
    """Split of the recipe's own data with the calibration rows; it must not be trained on."""
    rows: int = Field(default=500, ge=20, le=100_000_000)
    """Largest number of calibration rows, drawn by the seed. The smallest p-value is 1 / (rows + 1)."""


def compressed_bits(pixels_BCHW: Tensor) -> Tensor:
    """L(x): compressed size of each image in bits, (B,) float64.

    Args:
        pixels_BCHW: uint8 pixels.
    """
    images_BHWC = pixels_BCHW.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    sizes = [8.0 * len(zlib.compress(image_HWC.tobytes(), 9)) for image_HWC in images_BHWC]
    return torch.tensor(sizes, dtype=torch.float64)


@dataclass(frozen=True)
class BitsPerDim:
    """Converts log-likelihoods of rows from nats to bits per dimension."""

    dims: int
    """D, number of dimensions of an image."""
    measure: str = units.COUNTS
    """Measure of the likelihood, see :mod:`genmod.units`."""
    levels: int = units.LEVELS
    """Number of values of a pixel."""

    def per_dim(self, nats_B: Tensor) -> Tensor:
        """Bits per dimension of rows, (B,)."""
        bits_B = units.bits_per_dim(nats_B, self.dims, self.measure, self.levels)
        assert isinstance(bits_B, Tensor)
        return bits_B

    def corrected(self, nats_B: Tensor, compressed_B: Tensor) -> Tensor:
        """The corrected score (-log2 P - L) / D of rows, (B,) (Eq. 2, Serra et al. 2020)."""
        return self.per_dim(nats_B) - compressed_B / self.dims


@dataclass(frozen=True)
class Calibration:
    """Sorted scores of the calibration rows, for ranks and p-values of other rows."""

    nats_N: Tensor
    """log p, ascending."""
    corrected_N: Tensor
    """Corrected scores in bits per dimension, ascending."""
    bits: BitsPerDim

    @classmethod
    def of(cls, nats_N: Tensor, compressed_N: Tensor, bits: BitsPerDim) -> Self:
        """Calibrate with rows, given their log p in nats and their compressed sizes in bits."""
        corrected_N = bits.corrected(nats_N, compressed_N)
        return cls(nats_N.sort().values, corrected_N.sort().values, bits)

    @property
    def mean_bits_per_dim(self) -> float:
        """Mean bits per dimension of the calibration rows: the reference of typicality."""
        return float(self.bits.per_dim(self.nats_N).mean())

    def columns(self, nats_B: Tensor, compressed_B: Tensor, inside_B: Tensor) -> dict[str, Tensor]:
        """All OOD scores of rows, by column, (B,) float64 each.

        Args:
            nats_B: log p.
            compressed_B: L(x) in bits.
            inside_B: which rows are calibration rows themselves.
        """
        own_B = inside_B.long()  # a row is not compared with itself
        others_B = (len(self.nats_N) - own_B).double()
        # Numbers of calibration rows whose log p is at most, or at least, that of each row.
        below_B, at_most_B = _ranks(self.nats_N, nats_B)
        at_most_B, at_least_B = at_most_B - own_B, len(self.nats_N) - below_B - own_B
        smaller_tail_B = torch.minimum(at_most_B, at_least_B)
        # The same for the corrected score, in the upper tail.
        corrected_B = self.bits.corrected(nats_B, compressed_B)
        smaller_B, _ = _ranks(self.corrected_N, corrected_B)
        as_high_B = len(self.corrected_N) - smaller_B - own_B
        bits_B = self.bits.per_dim(nats_B)
        return {
            "percentile": 100 * 0.5 * (below_B + at_most_B) / others_B,
            "p_two_sided": (2 * (1 + smaller_tail_B) / (others_B + 1)).clamp(max=1.0),
            "typicality_bits_per_dim": (bits_B - self.mean_bits_per_dim).abs(),
            OOD_COLUMN: corrected_B,
            "p_corrected": (1 + as_high_B) / (others_B + 1),
        }

    def metadata(self) -> dict[str, float | int]:
        """Statistics of the calibration rows for a manifest, with the 95 % quantile of typicality."""
        bits_N = self.bits.per_dim(self.nats_N)
        typicality_N = (bits_N - self.mean_bits_per_dim).abs()
        return {
            "rows": len(self.nats_N),
            "mean_bits_per_dim": self.mean_bits_per_dim,
            "mean_corrected_bits_per_dim": float(self.corrected_N.mean()),
            "typicality_95_bits_per_dim": float(typicality_N.quantile(1 - RARE_P)),
        }


def count_rare(columns: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of rows with a p-value below :data:`RARE_P`, by column of p-values."""
    names = [name for name in ("p_two_sided", "p_corrected") if name in columns]
    return {name: int((columns[name] < RARE_P).sum()) for name in names}


def _ranks(sorted_N: Tensor, value_B: Tensor) -> tuple[Tensor, Tensor]:
    """For each of B values, the number of sorted values below it, and the number at most it."""
    value_B = value_B.contiguous()
    return (
        torch.searchsorted(sorted_N, value_B, side="left"),
        torch.searchsorted(sorted_N, value_B, side="right"),
    )


def auroc(inside_N: Tensor, outside_M: Tensor) -> tuple[float, float]:
    """AUROC of a score that is higher for OOD rows, with its standard error.

    It is the probability that an OOD row has the higher score; ties count one half. The standard error is
    DeLong's (DeLong, DeLong and Clarke-Pearson 1988).

    Args:
        inside_N: scores of in-distribution rows.
        outside_M: scores of OOD rows.

    >>> auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0]))[0]
    0.8333333333333333
    """
    below_M, at_most_M = _ranks(inside_N.sort().values, outside_M)
    placement_M = 0.5 * (below_M + at_most_M).double() / len(inside_N)
    below_N, at_most_N = _ranks(outside_M.sort().values, inside_N)
    placement_N = 1 - 0.5 * (below_N + at_most_N).double() / len(outside_M)
    variance = placement_M.var() / len(outside_M) + placement_N.var() / len(inside_N)
    return float(placement_M.mean()), math.sqrt(float(variance))
