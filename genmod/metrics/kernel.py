"""Kernel distance: unbiased squared maximum mean discrepancy. Letters: N fake rows, M real rows, D features.

Kernel k(x, y) = (x·y / D + 1)³ (Bińkowski et al. 2018, Demystifying MMD GANs, sec. 4). All rows are used
instead of random subsets: the expectation is the same, the variance is smaller, and the jackknife estimates
the standard error, which overlapping subsets underestimate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.metrics.protocol import LEVEL, Interval, Z

KERNEL_BLOCK_ROWS = 1024
"""Rows of a kernel matrix that are in memory at a time."""


def cubic_kernel(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """(N, M) values of the cubic polynomial kernel."""
    return (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3


def kernel_distance(fake_ND: Tensor, real_MD: Tensor) -> tuple[float, Interval]:
    """Unbiased MMD² with a jackknife interval over both sides; 0 on average for equal distributions.

    Args:
        fake_ND: at least 3 rows.
        real_MD: at least 3 rows.

    Returns:
        the value, which may be negative, and its interval.
    """
    fake_ND, real_MD = fake_ND.to(torch.float64), real_MD.to(torch.float64)
    n, m = len(fake_ND), len(real_MD)
    within_N, within_M = _row_sums(fake_ND), _row_sums(real_MD)
    across_N, across_M = torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    for begin in range(0, n, KERNEL_BLOCK_ROWS):
        block_BM = cubic_kernel(fake_ND[begin : begin + KERNEL_BLOCK_ROWS], real_MD)
        across_N[begin : begin + KERNEL_BLOCK_ROWS] = block_BM.sum(1)
        across_M += block_BM.sum(0)
    fakes, reals, cross = within_N.sum(), within_M.sum(), across_N.sum()
    mean_fakes, mean_reals = fakes / (n * (n - 1)), reals / (m * (m - 1))
    value = float(mean_fakes + mean_reals - 2 * cross / (n * m))
    # The value without one row, for every row of either side.
    without_N = (fakes - 2 * within_N) / ((n - 1) * (n - 2)) + mean_reals
    without_N -= 2 * (cross - across_N) / ((n - 1) * m)
    without_M = (reals - 2 * within_M) / ((m - 1) * (m - 2)) + mean_fakes
    without_M -= 2 * (cross - across_M) / (n * (m - 1))
    variance = _jackknife_variance(without_N) + _jackknife_variance(without_M)
    half_width = Z * variance**0.5
    return value, Interval(
        low=value - half_width,
        high=value + half_width,
        level=LEVEL,
        method="normal, jackknife standard error over samples and reference",
    )


def _row_sums(rows_ND: Tensor) -> Tensor:
    """Sum over j != i of k(x_i, x_j), for every i."""
    sums_N = torch.cat(
        [cubic_kernel(b_BD, rows_ND).sum(1) for b_BD in rows_ND.split(KERNEL_BLOCK_ROWS)]
    )
    return sums_N - (rows_ND.square().mean(1) + 1) ** 3


def _jackknife_variance(without_N: Tensor) -> float:
    """Efron and Stein 1981: (N - 1) / N times the sum of squared deviations."""
    return float((without_N - without_N.mean()).square().sum()) * (1 - 1 / len(without_N))
