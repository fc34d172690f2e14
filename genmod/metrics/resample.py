"""Bootstrap: where a statistic would lie if the samples were drawn again. Letters: N rows, R resamplings."""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.metrics.protocol import LEVEL, Interval, Z
from genmod.rng import rng_for


def bootstrap_counts(rows: int, replicates: int, seed: int) -> Tensor:
    """How often each row is drawn in each resampling with replacement.

    Returns:
        float64 of shape (R, N); each resampling sums to N.
    """
    drawn_RN = rng_for(seed, "evaluate/bootstrap", range(replicates)).integers(rows, rows)
    counts_RN = torch.zeros(replicates, rows, dtype=torch.float64)
    return counts_RN.scatter_add_(1, drawn_RN, torch.ones_like(counts_RN))


def spread_interval(
    value: float, replicate_R: Tensor, low: float = -torch.inf, high: float = torch.inf
) -> Interval:
    """``value`` plus and minus z standard errors, those being the spread of the resamplings.

    The spread alone is used and not the place of the resamplings: doubled rows shift a statistic that
    depends on how many rows there are (Fréchet distance upward, coverage downward), and the value's own
    protocol fixes that number.

    Args:
        value: the statistic of the rows as they are.
        replicate_R: the statistic of each resampling.
        low: the least value that the statistic can take; an interval does not go below.
        high: the greatest.
    """
    half_width = Z * float(replicate_R.std())
    return Interval(
        low=max(low, value - half_width),
        high=min(high, value + half_width),
        level=LEVEL,
        method=f"normal, standard error from {len(replicate_R)} resamplings of the samples",
    )
