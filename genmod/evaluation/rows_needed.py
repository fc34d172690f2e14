"""How many rows the stated gains of a policy need: before anything is measured, and afterwards.

Shares of the reference rows, such as coverage, change in steps of one row. If a candidate truly gains a share
g of them, it gains a binomial number of rows. Chance gives D or more gained rows without a lost one with
probability 2^-D or less (sign test), so D must be at least log2(1 / error), and the rows must be enough for
D gained ones. This is the best case: every other row is unchanged. Fewer rows can never show the gain.
"""

from __future__ import annotations

import math

from scipy.special import bdtrc

from genmod.evaluation.policy import POWER, ErrorRates, PromoteConfig, Quantiles

_SHARES = frozenset({"coverage", "clipped_coverage", "recall"})
"""Metrics that are shares of the reference rows, from 0 to 1."""

_MEANS = frozenset({"bits_per_dim"})
"""Metrics that are means over the reference rows, whose spread is not known before."""


def least_rows(metric: str, config: PromoteConfig) -> int | None:
    """Reference rows below which a rule's gain cannot be shown; None if nothing is known before measuring.

    Args:
        metric: of the rule, with or without its feature space.
        config: the policy.

    >>> least_rows("coverage", PromoteConfig())
    491
    """
    gain, name = config.rules[metric].improve_by, metric.partition("[")[0]
    if gain is None or name not in _SHARES | _MEANS:
        return None
    gained = math.ceil(math.log2(1 / ErrorRates.of(config).gain))
    if name in _MEANS or gain == 0:
        return gained
    # A relative gain is of a share that is at most 1, so it is at most this.
    share = min(gain, 1.0)
    low, high = gained, gained
    while bdtrc(gained - 1, high, share) < POWER:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if bdtrc(gained - 1, middle, share) < POWER:
            low = middle + 1
        else:
            high = middle
    return low


def smallest_gain(metric: str, config: PromoteConfig, rows: int) -> float | None:
    """The smallest gain of a share that so many rows can show; None if there is none."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        rule = config.rules[metric].model_copy(update={"improve_by": middle or 1e-9})
        policy = config.model_copy(update={"rules": {**config.rules, metric: rule}})
        if (least_rows(metric, policy) or 0) > rows:
            low = middle
        else:
            high = middle
    return high if high < 1 else None


def rows_for_gain(rows: int, stderr: float, counts: float, quantiles: Quantiles) -> int | None:
    """Rows with which a gain of twice the one that counts is found with :data:`POWER`.

    The standard error of a mean falls with the root of the rows.

    Args:
        rows: of the measurement.
        stderr: of the gain.
        counts: smallest gain that counts, in the metric's unit.
        quantiles: of the policy.

    Returns:
        None if a gain does not count, or any gain does.
    """
    if not 0 < counts < math.inf or not rows:
        return None
    return math.ceil(rows * ((quantiles.gain + quantiles.power) * stderr / counts) ** 2)
