"""Fréchet distance between Gaussians fitted to features, in float64.

Letters: N rows, P rows of a part, D features.

d² = |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁^½ Σ₂ Σ₁^½)^½)
(Dowson and Landau 1982, The Fréchet distance between multivariate normal distributions, Eq. 4).
The value is the squared distance, as usual. It is biased upward for few rows, so it is meaningful only in
comparison with the value of real images by the same protocol.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.metrics.groups import random_groups
from genmod.metrics.intervals import symmetric_interval
from genmod.metrics.protocol import Interval

PARTITIONS = 2
"""Random partitions of the samples for each size of FD-infinity."""

MOST_PARTS = 3
"""Parts of the smallest size of FD-infinity."""

_METHOD = "infinitesimal jackknife standard error over the samples"


@dataclass(frozen=True)
class FeatureMoments:
    """Mean and covariance of features, in float64."""

    mean_D: Tensor
    cov_DD: Tensor
    """Unbiased: sums are divided by N - 1."""


def feature_moments(features_ND: Tensor) -> FeatureMoments:
    """Mean and unbiased covariance in float64, of at least two rows."""
    rows_ND = features_ND.to(torch.float64)
    mean_D = rows_ND.mean(0)
    centred_ND = rows_ND - mean_D
    return FeatureMoments(mean_D, centred_ND.T @ centred_ND / (len(rows_ND) - 1))


def covariance_root(cov_DD: Tensor) -> Tensor:
    """The symmetric square root of a covariance matrix, which may be singular."""
    values_D, vectors_DD = torch.linalg.eigh(cov_DD)
    # Rounding makes the eigenvalues of a singular covariance slightly negative.
    return (vectors_DD * values_D.clamp(min=0).sqrt()) @ vectors_DD.T


def frechet(a: FeatureMoments, b: FeatureMoments, root_a_DD: Tensor | None = None) -> float:
    """Squared Fréchet distance of two Gaussians, at least 0.

    The trace of the square root is the sum of the roots of the eigenvalues of the symmetric product
    Σ₁^½ Σ₂ Σ₁^½, which is well defined for singular covariances.

    Args:
        a: first Gaussian.
        b: second Gaussian.
        root_a_DD: :func:`covariance_root` of the covariance of ``a``, to avoid computing it again.
    """
    root_DD = covariance_root(a.cov_DD) if root_a_DD is None else root_a_DD
    product_DD = root_DD @ b.cov_DD @ root_DD
    values_D = torch.linalg.eigvalsh((product_DD + product_DD.T) / 2).clamp(min=0)
    mean_part = (a.mean_D - b.mean_D).square().sum()
    cov_part = a.cov_DD.trace() + b.cov_DD.trace() - 2 * values_D.sqrt().sum()
    return max(0.0, float(mean_part + cov_part))


@dataclass(frozen=True)
class FrechetDistances:
    """The distance at this number of rows, and its extrapolation to infinitely many; with intervals."""

    fd: tuple[float, Interval]
    """Biased upward by about 1/N."""
    fd_infinity: tuple[float, Interval]
    """Without the bias of the samples' number; may be slightly negative."""


def frechet_distance(fake_ND: Tensor, real_ND: Tensor) -> tuple[float, Interval]:
    """Squared Fréchet distance of two sets of features, with its interval, see :func:`influence_stderr`."""
    real, fake = feature_moments(real_ND), feature_moments(fake_ND)
    root_DD = covariance_root(real.cov_DD)
    value = frechet(real, fake, root_DD)
    stderr = influence_stderr(fake_ND, real, fake, root_DD)
    return value, symmetric_interval(value, stderr, _METHOD, bounds=(0.0, math.inf))


def frechet_distances(fake_ND: Tensor, real_ND: Tensor, seed: int) -> FrechetDistances:
    """The squared Fréchet distance and FD-infinity.

    FD-infinity is the intercept of a least-squares line through the mean distances of the N samples and of
    their halves and thirds, against 1 over their number of rows (Chong and Forsyth 2020, Effectively unbiased
    FID and Inception score, sec. 4). The parts are disjoint, in :data:`PARTITIONS` random partitions, so
    that every sample counts at every size. A bias of order 1/N² stays, and so does the reference's.

    Args:
        fake_ND: features of samples.
        real_ND: features of real images, which stay the same at every size.
        seed: seed of the partitions.
    """
    real, fake = feature_moments(real_ND), feature_moments(fake_ND)
    root_DD = covariance_root(real.cov_DD)
    value = frechet(real, fake, root_DD)
    stderr = influence_stderr(fake_ND, real, fake, root_DD)
    fd = value, symmetric_interval(value, stderr, _METHOD, bounds=(0.0, math.inf))
    n = len(fake_ND)
    inverse, means = [1 / n], [value]
    for parts in range(2, min(MOST_PARTS, n // 2) + 1):
        distances = [
            frechet(real, feature_moments(fake_ND[row_P]), root_DD)
            for partition in range(PARTITIONS)
            for row_P in random_groups(n, parts, seed, f"fd/{parts}/{partition}")
        ]
        inverse.append(parts / n)
        means.append(sum(distances) / len(distances))
    intercept = _intercept(inverse, means)
    return FrechetDistances(fd, (intercept, symmetric_interval(intercept, stderr, _METHOD)))


def _intercept(x: list[float], y: list[float]) -> float:
    """Of the least-squares line; the only y of a single point."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    square = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * b for a, b in zip(x, y, strict=True)) / square if square else 0.0
    return mean_y - slope * mean_x


def influence_stderr(
    fake_ND: Tensor, real: FeatureMoments, fake: FeatureMoments, root_DD: Tensor
) -> float:
    """Standard error of the squared Fréchet distance over new draws of the samples, the reference fixed.

    The infinitesimal jackknife (Efron 1982, The jackknife, the bootstrap and other resampling plans):
    the root of the sum of squared influences of the rows, over N. The influence of a row x, with c = x - μ₂,
    is 2 (μ₂ - μ₁)·c + cᵀ (I - T) c, where T = Σ₁^½ (Σ₁^½ Σ₂ Σ₁^½)^-½ Σ₁^½ is the optimal transport map of the
    second Gaussian to the first: the gradient of the distance with respect to Σ₂ is I - T. For equal
    distributions the standard error is up to √2 times too large, because second-order terms count twice;
    they also skew the distance, and the interval keeps its level.

    Args:
        fake_ND: the samples.
        real: moments of the reference, μ₁ and Σ₁.
        fake: moments of the samples, μ₂ and Σ₂.
        root_DD: :func:`covariance_root` of Σ₁.
    """
    centred_ND = fake_ND.to(torch.float64) - fake.mean_D
    product_DD = root_DD @ fake.cov_DD @ root_DD
    values_D, vectors_DD = torch.linalg.eigh((product_DD + product_DD.T) / 2)
    # Directions without variance have no influence.
    known_D = values_D > values_D.max() * len(values_D) * torch.finfo(torch.float64).eps
    inverse_D = torch.where(known_D, values_D, 1.0).rsqrt() * known_D
    mapped_ND = centred_ND @ (root_DD @ vectors_DD)
    influence_N = 2 * (centred_ND @ (fake.mean_D - real.mean_D))
    influence_N += centred_ND.square().sum(1) - mapped_ND.square() @ inverse_D
    return float((influence_N - influence_N.mean()).square().sum().sqrt()) / len(fake_ND)
