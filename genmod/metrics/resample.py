"""Bootstrap intervals over new draws of the samples. Letters: N rows, R resamplings."""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.metrics.protocol import LEVEL, Interval, Z
from genmod.rng import rng_for


def bootstrap_counts(rows: int, replicates: int, seed: int) -> Tensor:
    """Number of times that each row is drawn in each resampling with replacement.

    Returns:
        float64 of shape (R, N); each resampling sums to N.
    """
    drawn_RN = rng_for(seed, "evaluate/bootstrap", range(replicates)).integers(rows, rows)
    counts_RN = torch.zeros(replicates, rows, dtype=torch.float64)
    return counts_RN.scatter_add_(1, drawn_RN, torch.ones_like(counts_RN))


def spread_interval(
    value: float, replicate_R: Tensor, low: float = -torch.inf, high: float = torch.inf
) -> Interval:
    """``value`` plus and minus z standard errors, estimated by the standard deviation of the resamplings.

    Only the standard deviation of the resamplings counts, not their mean: repeated rows shift statistics that
    depend on the number of distinct rows (Fréchet distance upward, coverage downward).

    Args:
        value: the statistic of the original rows.
        replicate_R: the statistic of each resampling, (R,).
        low: smallest possible value of the statistic, which limits the interval.
        high: largest possible value.
    """
    half_width = Z * float(replicate_R.std())
    return Interval(
        low=max(low, value - half_width),
        high=min(high, value + half_width),
        level=LEVEL,
        method=f"normal, standard error from {len(replicate_R)} resamplings of the samples",
    )
