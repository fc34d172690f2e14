"""Kernel distance: unbiased squared maximum mean discrepancy. Letters: N fake rows, M real rows, D features.

Kernel k(x, y) = (x·y / D + 1)³ (Bińkowski et al. 2018, Demystifying MMD GANs, sec. 4). All rows are used
instead of random subsets: the expectation is the same, the variance is smaller, and the jackknife estimates
the standard error over the samples, which overlapping subsets underestimate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.metrics.intervals import symmetric_interval
from genmod.metrics.protocol import Interval

KERNEL_BLOCK_ROWS = 1024
"""Rows of a kernel matrix that are in memory at a time."""


def cubic_kernel(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """(N, M) values of the cubic polynomial kernel."""
    return (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3


def kernel_distance(fake_ND: Tensor, real_MD: Tensor) -> tuple[float, Interval]:
    """Unbiased MMD² with a jackknife interval over the samples; 0 on average for equal distributions.

    Args:
        fake_ND: at least 3 rows.
        real_MD: at least 3 rows.

    Returns:
        the value, which may be negative, and its interval.
    """
    fake_ND, real_MD = fake_ND.to(torch.float64), real_MD.to(torch.float64)
    n, m = len(fake_ND), len(real_MD)
    within_N, within_M = _row_sums(fake_ND), _row_sums(real_MD)
    across_N = torch.cat(
        [cubic_kernel(b_BD, real_MD).sum(1) for b_BD in fake_ND.split(KERNEL_BLOCK_ROWS)]
    )
    fakes, reals, cross = within_N.sum(), within_M.sum(), across_N.sum()
    mean_fakes, mean_reals = fakes / (n * (n - 1)), reals / (m * (m - 1))
    value = float(mean_fakes + mean_reals - 2 * cross / (n * m))
    # The value without one sample, for every sample.
    without_N = (fakes - 2 * within_N) / ((n - 1) * (n - 2)) + mean_reals
    without_N -= 2 * (cross - across_N) / ((n - 1) * m)
    stderr = _jackknife_variance(without_N) ** 0.5
    return value, symmetric_interval(value, stderr, "jackknife standard error over the samples")


def _row_sums(rows_ND: Tensor) -> Tensor:
    """Sum over j != i of k(x_i, x_j), for every i."""
    sums_N = torch.cat(
        [cubic_kernel(b_BD, rows_ND).sum(1) for b_BD in rows_ND.split(KERNEL_BLOCK_ROWS)]
    )
    return sums_N - (rows_ND.square().mean(1) + 1) ** 3


def _jackknife_variance(without_N: Tensor) -> float:
    """Efron and Stein 1981: (N - 1) / N times the sum of squared deviations."""
    return float((without_N - without_N.mean()).square().sum()) * (1 - 1 / len(without_N))
