"""Fréchet distance between Gaussians fitted to features, in float64.

Letters: N rows, D features, R resamplings.

d² = |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁^½ Σ₂ Σ₁^½)^½)
(Dowson and Landau 1982, The Fréchet distance between multivariate normal distributions, Eq. 4).
The value is the squared distance, as usual. It is biased upward for few rows, so it is meaningful only in
comparison with the value of real images by the same protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.metrics.protocol import Interval
from genmod.metrics.resample import bootstrap_counts, spread_interval


@dataclass(frozen=True)
class FeatureMoments:
    """Mean and covariance of features, in float64."""

    mean_D: Tensor
    cov_DD: Tensor
    """Unbiased: sums are divided by N - 1."""


def feature_moments(features_ND: Tensor, counts_N: Tensor | None = None) -> FeatureMoments:
    """Mean and unbiased covariance in float64.

    Args:
        features_ND: at least two rows.
        counts_N: number of times that each row counts; once if not given.
    """
    rows_ND = features_ND.to(torch.float64)
    if counts_N is None:
        total = float(len(rows_ND))
        mean_D = rows_ND.mean(0)
        centred_ND = rows_ND - mean_D
        return FeatureMoments(mean_D, centred_ND.T @ centred_ND / (total - 1))
    total = float(counts_N.sum())
    mean_D = counts_N @ rows_ND / total
    centred_ND = rows_ND - mean_D
    return FeatureMoments(mean_D, (centred_ND * counts_N[:, None]).T @ centred_ND / (total - 1))


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


def frechet_distance(
    fake_ND: Tensor, real_ND: Tensor, replicates: int, seed: int
) -> tuple[float, Interval]:
    """Squared Fréchet distance of two sets of features, with its interval over resampled fake rows."""
    real = feature_moments(real_ND)
    root_DD = covariance_root(real.cov_DD)
    value = frechet(real, feature_moments(fake_ND), root_DD)
    counts_RN = bootstrap_counts(len(fake_ND), replicates, seed)
    resampled = [
        frechet(real, feature_moments(fake_ND, counts_N), root_DD) for counts_N in counts_RN
    ]
    return value, spread_interval(value, torch.tensor(resampled, dtype=torch.float64), low=0.0)
