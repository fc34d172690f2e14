"""Nearest neighbours: fidelity, diversity and memorisation.

Precision and recall: Kynkäänniemi et al. 2019, Improved precision and recall metric for assessing
generative models, Eq. 1 and 2. Density and coverage: Naeem et al. 2020, Reliable fidelity and diversity
metrics for generative models, Eq. 3 and 4.
Letters: N fake rows, M real rows, T training rows, D features, R resamplings, B rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.metrics.protocol import Interval
from genmod.metrics.resample import bootstrap_counts, spread_interval

DISTANCE_BLOCK_ROWS = 1024
"""Rows of a distance matrix that are in memory at a time."""

CONTROL_SHARE = 0.05
"""Share of held-out real images below the threshold of :func:`memorisation`, by construction."""


def squared_distances(a_BD: Tensor, b_MD: Tensor) -> Tensor:
    """(B, M) squared Euclidean distances, at least 0; exact for whole numbers below 2**26 in float64."""
    squares_BM = a_BD.square().sum(1)[:, None] + b_MD.square().sum(1) - 2 * a_BD @ b_MD.T
    return squares_BM.clamp_(min=0)


def neighbour_radii(rows_ND: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row. Needs more than k rows."""
    radii: list[Tensor] = []
    for begin in range(0, len(rows_ND), DISTANCE_BLOCK_ROWS):
        squares_BN = squared_distances(rows_ND[begin : begin + DISTANCE_BLOCK_ROWS], rows_ND)
        block = torch.arange(len(squares_BN))
        squares_BN[block, begin + block] = torch.inf
        radii.append(squares_BN.kthvalue(k, dim=1).values)
    return torch.cat(radii)


@dataclass(frozen=True)
class Neighbourhoods:
    """The four metrics, each with its interval over resampled fake rows; balls keep their radii."""

    precision: tuple[float, Interval]
    """Share of fake rows inside the ball of a real row: do samples look real?"""
    recall: tuple[float, Interval]
    """Share of real rows inside the ball of a fake row: could the model generate them?"""
    density: tuple[float, Interval]
    """Mean number of real balls that contain a fake row, divided by k: fidelity that is robust to outliers;
    about 1 for equal distributions."""
    coverage: tuple[float, Interval]
    """Share of real rows whose ball contains a fake row: falls when modes are dropped."""


def neighbourhoods(
    fake_ND: Tensor, real_MD: Tensor, k: int, replicates: int, seed: int
) -> Neighbourhoods:
    """Precision, recall, density and coverage of equally many fake and real rows.

    Args:
        fake_ND: features of samples.
        real_MD: features of real images, M = N.
        k: the ball of a row reaches to its k-th nearest row of the same kind.
        replicates: resamplings for the intervals.
        seed: seed of the resamplings.
    """
    fake_ND, real_MD = _centred(fake_ND, real_MD)
    radius_N, radius_M = neighbour_radii(fake_ND, k), neighbour_radii(real_MD, k)
    counts_RN = bootstrap_counts(len(fake_ND), replicates, seed)
    counts_NR = counts_RN.T.to(torch.float32).contiguous()
    balls_N = torch.zeros(len(fake_ND), dtype=torch.float64)
    recalled: list[Tensor] = []
    covered: list[Tensor] = []
    recalled_R = torch.zeros(replicates, dtype=torch.float64)
    covered_R = torch.zeros(replicates, dtype=torch.float64)
    for begin in range(0, len(real_MD), DISTANCE_BLOCK_ROWS):
        squares_BN = squared_distances(real_MD[begin : begin + DISTANCE_BLOCK_ROWS], fake_ND)
        in_real_BN = squares_BN < radius_M[begin : begin + DISTANCE_BLOCK_ROWS, None]
        in_fake_BN = squares_BN < radius_N
        balls_N += in_real_BN.sum(0)
        covered.append(in_real_BN.any(1))
        recalled.append(in_fake_BN.any(1))
        covered_R += (in_real_BN.to(torch.float32) @ counts_NR > 0).sum(0)
        recalled_R += (in_fake_BN.to(torch.float32) @ counts_NR > 0).sum(0)
    inside_N = (balls_N > 0).to(torch.float64)
    n, m = len(fake_ND), len(real_MD)

    def share(hits_N: Tensor, hits_R: Tensor) -> tuple[float, Interval]:
        value = float(hits_N.to(torch.float64).mean())
        return value, spread_interval(value, hits_R, low=0.0, high=1.0)

    density = float(balls_N.mean()) / k
    return Neighbourhoods(
        precision=share(inside_N, counts_RN @ inside_N / n),
        recall=share(torch.cat(recalled), recalled_R / m),
        density=(density, spread_interval(density, counts_RN @ balls_N / (n * k), low=0.0)),
        coverage=share(torch.cat(covered), covered_R / m),
    )


@dataclass(frozen=True)
class Memorisation:
    """Share of samples that are unusually close to a training image."""

    share: float
    interval: Interval
    threshold: float
    """Ratio below which a sample counts."""
    ratio_N: Tensor
    """For each sample: distance to the nearest training image over distance to the nearest held-out one."""
    nearest_N: Tensor
    """For each sample: number of the nearest training row."""


def memorisation(
    fake_ND: Tensor, train_TD: Tensor, held_MD: Tensor, replicates: int, seed: int
) -> Memorisation:
    """Share of samples closer to the training set, relative to held-out images, than real images are.

    The ratio of a sample is its distance to the nearest training image over that to the nearest held-out
    image. A blurred sample is close to both, so blur does not lower its ratio. Samples count whose ratio
    is below that of :data:`CONTROL_SHARE` of the held-out images themselves. A model that draws from the true
    distribution scores about that share, one that copies its training set scores 1.

    Args:
        fake_ND: samples, e.g. pixels.
        train_TD: training rows.
        held_MD: real rows that are not in the training set, at least 20.
        replicates: resamplings for the interval.
        seed: seed of the resamplings.
    """
    fake_ND, train_TD, held_MD = (rows.to(torch.float64) for rows in (fake_ND, train_TD, held_MD))
    to_train_N, nearest_N = _nearest(fake_ND, train_TD)
    ratio_N = _ratio(to_train_N, _nearest(fake_ND, held_MD)[0])
    to_train_M, _ = _nearest(held_MD, train_TD)
    ratio_M = _ratio(to_train_M, neighbour_radii(held_MD, 1))
    threshold = float(ratio_M.quantile(CONTROL_SHARE))
    hits_N = (ratio_N < threshold).to(torch.float64)
    share = float(hits_N.mean())
    counts_RN = bootstrap_counts(len(hits_N), replicates, seed)
    interval = spread_interval(share, counts_RN @ hits_N / len(hits_N), low=0.0, high=1.0)
    return Memorisation(share, interval, threshold, ratio_N, nearest_N)


def _nearest(a_ND: Tensor, b_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance of each row of a to its nearest row of b, and the number of that row."""
    best = [
        squared_distances(block_BD, b_MD).min(dim=1) for block_BD in a_ND.split(DISTANCE_BLOCK_ROWS)
    ]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


def _ratio(to_train_N: Tensor, to_held_N: Tensor) -> Tensor:
    """Root of the ratio of squared distances; 0 for an exact copy of a training image."""
    return torch.where(to_train_N > 0, (to_train_N / to_held_N).sqrt(), 0.0)


def _centred(fake_ND: Tensor, real_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 about the real mean, so that small distances keep their digits."""
    mean_D = real_MD.to(torch.float64).mean(0)
    return fake_ND.to(torch.float64) - mean_D, real_MD.to(torch.float64) - mean_D
