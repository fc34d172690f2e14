"""Standard errors of neighbour statistics from disjoint groups of rows. Letters: A, B groups, S statistics.

Statistics of nearest neighbours are no smooth functions of the rows: resampled rows repeat, so bootstrap and
jackknife are biased even for many rows. But such a statistic is an average over the reference of what happens
within a few neighbours. So fakes and reals are both split into g groups, with balls of k neighbours within
the group. One group of reals with each group of fakes shows the variance over new draws of samples, the
reference fixed, which is g times that of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.permutation import shuffle

FREEDOM = 12
"""Least degrees of freedom of a standard error; each random partition into g groups gives g - 1."""

GROUP_ROWS = 400
"""Rows that a group should have; smaller groups see coarser neighbourhoods than all rows do."""


RowGroups = tuple[Tensor, ...]
"""Row numbers of each group."""


@dataclass(frozen=True)
class Spread:
    """Standard errors of S statistics, and their degrees of freedom."""

    stderr_S: Tensor
    freedom: int


def random_groups(rows: int, groups: int, seed: int, purpose: str) -> RowGroups:
    """Row numbers of disjoint random groups of about equal size, a pure function of the arguments."""
    shuffled_N = shuffle(torch.arange(rows), rows, seed, f"evaluate/groups/{purpose}")
    return shuffled_N.tensor_split(groups)


def group_spread(
    statistics: Callable[[RowGroups, RowGroups], Tensor], rows: int, least: int, seed: int
) -> Spread | None:
    """Standard errors of local statistics of equally many fakes and reals.

    Args:
        statistics: of each group of fakes with each group of reals, given by their row numbers, (A, B, S).
        rows: number of fakes, and of reals.
        least: rows that a group must have.
        seed: seed of the partitions.

    Returns:
        None if the rows are too few for two groups.
    """
    groups = min(max(2, rows // GROUP_ROWS), FREEDOM + 1)
    if rows < groups * least:
        return None
    partitions = math.ceil(FREEDOM / (groups - 1))
    variances: list[Tensor] = []
    for partition in range(partitions):
        fakes = random_groups(rows, groups, seed, f"fake/{partition}")
        reals = random_groups(rows, groups, seed, f"real/{partition}")
        variances.append(statistics(fakes, reals).var(0).mean(0) / groups)
    return Spread(torch.stack(variances).mean(0).sqrt(), partitions * (groups - 1))
