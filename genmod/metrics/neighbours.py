"""Nearest neighbours: fidelity and diversity.

Precision and recall: Kynkäänniemi et al. 2019, Improved precision and recall metric for assessing
generative models, Eq. 1 and 2. Density and coverage: Naeem et al. 2020, Reliable fidelity and diversity
metrics for generative models, Eq. 3 and 4. A ball contains its surface (distance <= radius, as in
the former's Eq. 1), so an image counts as near to its own copies, also where balls have radius 0 because
data repeats images. The package prdc has open balls (<), which are empty then.
Letters: N fake rows, M real rows, D features, R resamplings, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from genmod.metrics.clipped import clipped_coverage, clipped_density
from genmod.metrics.groups import RowGroups, group_spread
from genmod.metrics.intervals import (
    mean_interval,
    share,
    symmetric_interval,
    unknown_interval,
)
from genmod.metrics.protocol import Interval

DISTANCE_BLOCK_ROWS = 1024
"""Most rows of a distance matrix that are in memory at a time."""

DISTANCE_CELLS = 1 << 24
"""Most distances that are in memory at a time, unless one row has more."""

TILE_ROWS = 8192
"""Rows with which distances are computed at a time."""

TIE = 1e-6
"""Distances are equal if they differ by less than this share of the root mean square of the rows' norms: the
rounding of features in float32, and that of distances of about 0 in float64."""

GROUP_METHOD = "standard error from disjoint groups of rows"
"""Of intervals by :mod:`genmod.metrics.groups`."""


@dataclass(frozen=True)
class CentredRows:
    """Rows about an origin, in float64, so that small distances keep their digits.

    Only those that are asked for are computed, because a copy of all may not fit into memory.
    """

    rows_ND: Tensor
    origin_D: Tensor

    def __len__(self) -> int:
        return len(self.rows_ND)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """(B, D) rows of a slice, or of row numbers."""
        return self.rows_ND[index].to(torch.float64) - self.origin_D


FeatureRows = Tensor | CentredRows


def _slices(rows: int, block_rows: int) -> Iterator[slice]:
    for begin in range(0, rows, block_rows):
        yield slice(begin, begin + block_rows)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a distance matrix in blocks that fit into memory."""
    return _slices(rows, min(DISTANCE_BLOCK_ROWS, max(1, DISTANCE_CELLS // max(1, columns))))


def squared_distances(a_BD: Tensor, b_MD: FeatureRows) -> Tensor:
    """(B, M) squared Euclidean distances, at least 0; exact for whole numbers below 2**26 in float64."""
    squares_BM = a_BD.new_empty(len(a_BD), len(b_MD))
    squares_B1 = a_BD.square().sum(1)[:, None]
    for tile in _slices(len(b_MD), TILE_ROWS):
        b_TD = b_MD[tile]
        squares_BM[:, tile] = squares_B1 + b_TD.square().sum(1) - 2 * a_BD @ b_TD.T
    return squares_BM.clamp_(min=0)


def neighbour_radii(rows_ND: FeatureRows, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row. Needs more than k rows."""
    radii: list[Tensor] = []
    for block in _blocks(len(rows_ND), len(rows_ND)):
        squares_BN = squared_distances(rows_ND[block], rows_ND)
        row_B = torch.arange(len(squares_BN))
        squares_BN[row_B, block.start + row_B] = torch.inf
        radii.append(squares_BN.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def widened(radius_N: Tensor, rows_ND: FeatureRows) -> Tensor:
    """Squared radii of closed balls: enlarged by :data:`TIE`, so that rounding decides no tie.

    Args:
        radius_N: squared radii.
        rows_ND: rows of the feature space, about any origin near them.
    """
    squares = [rows_ND[tile].square().sum(1) for tile in _slices(len(rows_ND), TILE_ROWS)]
    margin = TIE * torch.cat(squares).mean().sqrt()
    return (radius_N.sqrt() + margin).square()


@dataclass(frozen=True)
class Neighbourhoods:
    """The six metrics, each with its interval over new draws of the samples, the reference fixed."""

    precision: tuple[float, Interval]
    """Share of fake rows inside the ball of a real row: do samples look real?"""
    recall: tuple[float, Interval]
    """Share of real rows inside the ball of a fake row: could the model generate them?"""
    density: tuple[float, Interval]
    """Mean number of real balls that contain a fake row, divided by k: fidelity that is robust to outliers;
    about 1 for equal distributions, more if images repeat."""
    coverage: tuple[float, Interval]
    """Share of real rows whose ball contains a fake row: falls when modes are dropped."""
    clipped_density: tuple[float, Interval]
    """Share of fake rows that are as good as real ones, see :mod:`genmod.metrics.clipped`."""
    clipped_coverage: tuple[float, Interval]
    """Share of real draws that would cover the real rows as well."""


def neighbourhoods(fakes_ND: Tensor, reals_MD: Tensor, k: int, seed: int) -> Neighbourhoods:
    """Precision, recall, density, coverage, clipped density and coverage of equally many fake and real rows.

    Fake rows are independent of one another given the reference, so precision has an exact interval, density
    and clipped density those of a mean. The others' standard errors are from groups of rows, see
    :mod:`genmod.metrics.groups`.

    Args:
        fakes_ND: features of samples.
        reals_MD: features of real images, M = N.
        k: the ball of a row reaches to its k-th nearest row of the same kind.
        seed: seed of the groups.
    """
    origin_D = reals_MD.mean(0, dtype=torch.float64)
    fake_ND, real_MD = CentredRows(fakes_ND, origin_D), CentredRows(reals_MD, origin_D)
    radii = Radii.of(fake_ND, real_MD, real_MD, k)
    hits = ball_hits(fake_ND, real_MD, radii)
    spread = group_spread(partial(_group_values, fake_ND, real_MD, k), len(real_MD), k + 1, seed)
    real_share = real_clipped_density(real_MD, radii, k)

    def of_reals(place: int, value_M: Tensor) -> tuple[float, Interval]:
        value = float(value_M.to(torch.float64).mean())
        if spread is None:
            return value, unknown_interval(0.0, 1.0)
        stderr = float(spread.stderr_S[place])
        return value, symmetric_interval(value, stderr, GROUP_METHOD, spread.freedom, (0.0, 1.0))

    return Neighbourhoods(
        precision=share(hits.real_balls_N > 0),
        recall=of_reals(0, hits.recalled_M),
        density=mean_interval(hits.real_balls_N.to(torch.float64) / k, low=0.0),
        coverage=of_reals(1, hits.fakes_M > 0),
        clipped_density=clipped_density(hits.clipped_balls_N, k, real_share),
        clipped_coverage=clipped_coverage(
            *of_reals(2, hits.fakes_M.clamp(max=k) / k), k, len(fake_ND), len(real_MD)
        ),
    )


@dataclass(frozen=True)
class Radii:
    """Squared radii of the closed balls."""

    fake_N: Tensor
    real_M: Tensor
    clipped_M: Tensor
    """Those of real rows, at most their median, so that outliers have no large balls."""

    @classmethod
    def of(cls, fake_ND: FeatureRows, real_MD: FeatureRows, all_MD: FeatureRows, k: int) -> Radii:
        """Radii of fake and real rows; ``all_MD`` are all real rows, for the size of ties."""
        fake_N, real_M = neighbour_radii(fake_ND, k), neighbour_radii(real_MD, k)
        clipped_M = real_M.clamp(max=float(real_M.sqrt().quantile(0.5)) ** 2)
        widen = partial(widened, rows_ND=all_MD)
        return cls(widen(fake_N), widen(real_M), widen(clipped_M))


@dataclass(frozen=True)
class BallHits:
    """How often rows are in balls of the other kind."""

    real_balls_N: Tensor
    """Real balls that contain a fake row."""
    clipped_balls_N: Tensor
    """Of them, with clipped radii."""
    fakes_M: Tensor
    """Fake rows in the ball of a real row."""
    recalled_M: Tensor
    """Whether a fake ball contains a real row."""


def ball_hits(fake_ND: FeatureRows, real_MD: FeatureRows, radii: Radii) -> BallHits:
    """Count in blocks of rows: memory of a few times :data:`DISTANCE_CELLS` numbers."""
    balls_N, clipped_N = (torch.zeros(len(fake_ND), dtype=torch.int64) for _ in range(2))
    fakes: list[Tensor] = []
    recalled: list[Tensor] = []
    for block in _blocks(len(real_MD), len(fake_ND)):
        squares_BN = squared_distances(real_MD[block], fake_ND)
        in_real_BN = squares_BN <= radii.real_M[block, None]
        balls_N += in_real_BN.sum(0)
        clipped_N += (squares_BN <= radii.clipped_M[block, None]).sum(0)
        fakes.append(in_real_BN.sum(1))
        recalled.append((squares_BN <= radii.fake_N).any(1))
    return BallHits(balls_N, clipped_N, torch.cat(fakes), torch.cat(recalled))


def real_clipped_density(real_MD: FeatureRows, radii: Radii, k: int) -> float:
    """Mean of min(balls / k, 1) over real rows, each without its own ball: what real rows reach."""
    total = 0.0
    for block in _blocks(len(real_MD), len(real_MD)):
        squares_BM = squared_distances(real_MD[block], real_MD)
        balls_B = (squares_BM <= radii.clipped_M).sum(1) - 1
        total += float((balls_B / k).clamp(max=1).sum())
    return total / len(real_MD)


def _group_values(
    fake_ND: FeatureRows, real_MD: FeatureRows, k: int, fakes: RowGroups, reals: RowGroups
) -> Tensor:
    """Recall, coverage and unscaled clipped coverage of each pair of groups, (A, B, 3)."""
    fake_radii = [widened(neighbour_radii(fake_ND[row_N], k), real_MD) for row_N in fakes]
    real_radii = [widened(neighbour_radii(real_MD[row_M], k), real_MD) for row_M in reals]

    def values(a: int, b: int) -> Tensor:
        radii = Radii(fake_radii[a], real_radii[b], real_radii[b])
        hits = ball_hits(fake_ND[fakes[a]], real_MD[reals[b]], radii)
        found = hits.recalled_M, hits.fakes_M > 0, hits.fakes_M.clamp(max=k) / k
        return torch.stack([value_M.to(torch.float64).mean() for value_M in found])

    return torch.stack(
        [torch.stack([values(a, b) for b in range(len(reals))]) for a in range(len(fakes))]
    )
