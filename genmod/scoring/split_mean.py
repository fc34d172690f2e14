"""The mean log-likelihood of a whole split, of which all or some rows were scored, with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from genmod.metrics.intervals import symmetric_interval
from genmod.metrics.protocol import Interval
from genmod.scoring.moments import RunningMoments


def split_interval(total: RunningMoments, split_rows: int, noise: float) -> Interval | None:
    """Student's interval for the mean log-likelihood of a whole split, of which some rows were scored.

    The rows are drawn without replacement, so the variance of the mean of n of N exact scores is
    (1 - n/N) S^2 / n, with S^2 the variance over all rows (Cochran 1977, Sampling techniques, Eq. 2.13).
    Monte Carlo errors with a mean variance v are independent: they add v to what S^2 is estimated from, and
    v/n to the variance of the mean. Both together are (1 - n/N) s^2 / n + (n/N) v / n.

    Args:
        total: moments of the nats of the n scored rows.
        split_rows: N, rows of the split.
        noise: sum of the squared Monte Carlo standard errors of the scored rows, in nats^2.

    Returns:
        None for one row of several, which says nothing about the others.
    """
    n = total.n
    assert 0 < n <= split_rows
    if n == 1 < split_rows:
        return None
    share, spread = n / split_rows, total.squares / max(1, n - 1)
    variance = ((1 - share) * spread + share * noise / n) / n
    method = f"{n} of {split_rows} rows drawn without replacement, finite-population correction"
    if n == split_rows:
        method = f"all {n} rows, Monte Carlo error alone"
    return symmetric_interval(total.mean, math.sqrt(variance), method, max(1, n - 1))


def split_metadata(
    parts: Sequence[RunningMoments],
    split_rows: int,
    noise: float,
    bits_per_dim: Callable[[float], float],
    *,
    unscored: int = 0,
) -> dict[str, Any]:
    """Metadata: the interval for the mean of the whole split, in nats and in bits per dimension.

    Args:
        parts: moments of the nats of each table.
        split_rows: rows of the split.
        noise: as for :func:`split_interval`.
        bits_per_dim: converts nats; more nats are fewer bits.
        unscored: rows without a score. The interval is then for the mean of the split without such rows.
    """
    total = RunningMoments()
    for part in parts:
        total = total.merged(part)
    interval = split_interval(total, split_rows - unscored, noise)
    if interval is None:
        return {"split_rows": split_rows}
    ends = {"low": bits_per_dim(interval.high), "high": bits_per_dim(interval.low)}
    return {
        "split_rows": split_rows,
        "split_mean_nats": interval.model_dump(mode="json"),
        "split_mean_bits_per_dim": interval.model_dump(mode="json") | ends,
    }
