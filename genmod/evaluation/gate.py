"""Good or bad: whether a candidate takes the champion's place, decided by margins that the recipe declares.

A pure function of measured values. Values measured by unlike protocols are refused, not compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from genmod.config import Config
from genmod.errors import ConfigError, did_you_mean
from genmod.metrics.protocol import MetricResult, MetricValue, require_comparable


class Rule(Config):
    """What the gate asks of one metric. Margins count in the metric's better direction."""

    improve_by: float = Field(0.0, ge=0)
    """From here on a difference counts as an improvement."""
    max_regression: float = Field(0.0, ge=0)
    """A candidate that is worse by more than this is refused."""
    relative: bool = False
    """Margins are shares of the champion's value instead of the metric's own units."""
    limit: float | None = None
    """The worst value that is let through, champion or not."""
    max_relative_position: float | None = None
    """The same on the scale from 0 (real images) to 1 (noise), for metrics that were measured at both."""


class PromoteConfig(Config):
    """The recipe's ``promote``: the margins that make a champion."""

    rules: dict[str, Rule] = Field(
        default={
            "fd": Rule(
                improve_by=0.02, max_regression=0.02, relative=True, max_relative_position=0.9
            ),
            "coverage": Rule(improve_by=0.02, max_regression=0.05),
        },
        min_length=1,
    )
    """Metric, by name as ``fd`` or in full with its feature space, to what is asked of it."""
    improvements: int = Field(default=1, ge=0)
    """So many metrics must improve; 0 lets an equal candidate through."""
    beyond_noise: bool = True
    """An improvement must also be larger than the two values' intervals explain."""


Outcome = Literal["better", "equal", "worse", "beyond limit", "within limit"]


class RuleResult(Config):
    """One metric at the gate."""

    metric: str
    candidate: float
    champion: float | None
    outcome: Outcome
    reason: str
    """One sentence with the numbers."""


class Decision(Config):
    """Whether the candidate becomes the champion, and why."""

    promote: bool
    reasons: tuple[str, ...]
    checks: tuple[RuleResult, ...] = ()


def decide(
    candidate: Sequence[MetricResult],
    champion: Sequence[MetricResult] | None,
    config: PromoteConfig,
) -> Decision:
    """The decision on a candidate.

    Args:
        candidate: its measured values.
        champion: the champion's, measured by the same protocols; None if there is no champion yet:
            then the limits alone decide.
        config: the recipe's margins.

    Raises:
        ConfigError: a rule names a metric that was not measured, or the protocols differ.
    """
    mine = {name: _find(name, candidate, "the candidate") for name in config.rules}
    if champion is None:
        checks = tuple(_limits(mine[name], rule) for name, rule in config.rules.items())
        rejected = [c.reason for c in checks if c.outcome == "beyond limit"]
        first = ("there is no champion yet, and every limit holds",)
        return Decision(promote=not rejected, reasons=tuple(rejected) or first, checks=checks)
    theirs = {name: _find(name, champion, "the champion") for name in config.rules}
    checks = tuple(
        _compare(mine[name], theirs[name].value, rule, config.beyond_noise)
        for name, rule in config.rules.items()
    )
    return _sum_up(checks, config.improvements)


def _sum_up(checks: Sequence[RuleResult], wanted: int) -> Decision:
    rejected = tuple(c.reason for c in checks if c.outcome in ("worse", "beyond limit"))
    if rejected:
        return Decision(promote=False, reasons=rejected, checks=tuple(checks))
    better = tuple(c.reason for c in checks if c.outcome == "better")
    if len(better) < wanted:
        metrics = "metric is" if len(better) == 1 else "metrics are"
        count = f"{len(better)} {metrics} better, {wanted} wanted"
        equal = tuple(c.reason for c in checks if c.outcome == "equal")
        return Decision(promote=False, reasons=(count, *equal), checks=tuple(checks))
    reasons = better or ("no metric is worse, and no improvement is asked for",)
    return Decision(promote=True, reasons=reasons, checks=tuple(checks))


def _compare(mine: MetricResult, theirs: MetricValue, rule: Rule, beyond_noise: bool) -> RuleResult:
    """One metric of the candidate against the champion's."""
    require_comparable(mine.value, theirs)
    limits = _limits(mine, rule)
    if limits.outcome == "beyond limit":
        return limits.model_copy(update={"champion": theirs.value})
    difference = mine.value.value - theirs.value
    gain = -difference if mine.better == "lower" else difference
    scale = abs(theirs.value) if rule.relative else 1.0
    noise = math.hypot(_half_width(mine.value), _half_width(theirs)) if beyond_noise else 0.0
    numbers = f"{mine.value.name} {mine.value.value:.4g} against the champion's {theirs.value:.4g}"
    if gain < -rule.max_regression * scale:
        outcome, margin = "worse", f"worse by more than {rule.max_regression * scale:.3g}"
    elif gain <= 0 or gain < rule.improve_by * scale:
        outcome, margin = "equal", f"not better by {rule.improve_by * scale:.3g}"
    elif gain <= noise:
        outcome, margin = "equal", f"better by no more than noise explains ({noise:.3g})"
    else:
        outcome, margin = "better", f"better by {gain:.3g}"
    return RuleResult(
        metric=mine.value.name,
        candidate=mine.value.value,
        champion=theirs.value,
        outcome=outcome,
        reason=f"{numbers}: {margin}",
    )


def _limits(mine: MetricResult, rule: Rule) -> RuleResult:
    """One metric against what is asked of it whoever the champion is."""
    value, name = mine.value.value, mine.value.name
    faults: list[str] = []
    if rule.limit is not None:
        beyond = value > rule.limit if mine.better == "lower" else value < rule.limit
        if beyond:
            side = "most" if mine.better == "lower" else "least"
            faults.append(f"{name} is {value:.4g}, at {side} {rule.limit:.4g} is let through")
    if (
        rule.max_relative_position is not None
        and mine.relative_position is not None
        and mine.relative_position > rule.max_relative_position
    ):
        faults.append(
            f"{name} is {value:.4g}, at {mine.relative_position:.2f} of the way from real images to noise; "
            f"at most {rule.max_relative_position:.2f} is let through"
        )
    return RuleResult(
        metric=name,
        candidate=value,
        champion=None,
        outcome="beyond limit" if faults else "within limit",
        reason="; ".join(faults) or f"{name} is {value:.4g}, within its limits",
    )


def _half_width(value: MetricValue) -> float:
    return (value.interval.high - value.interval.low) / 2


def _find(name: str, metrics: Iterable[MetricResult], whose: str) -> MetricResult:
    """The reading that a rule's name means."""
    by_name: Mapping[str, MetricResult] = {
        key: reading
        for reading in metrics
        for key in (reading.value.protocol.metric, reading.value.name)
    }
    if name not in by_name:
        raise ConfigError(
            f"promote.rules.{name}: {whose} has no such metric; {did_you_mean(name, by_name)}"
        )
    return by_name[name]
