"""The gate: whether a candidate becomes the champion, by the margins in the recipe.

The decision is a pure function of the metrics. Metrics of different protocols are an error.
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
    """Margins of one metric, in the direction in which the metric is better."""

    improve_by: float = Field(0.0, ge=0)
    """Least difference that counts as an improvement."""
    max_regression: float = Field(0.0, ge=0)
    """A candidate that is worse by more than this is rejected."""
    relative: bool = False
    """Margins are shares of the champion's value instead of values in the metric's unit."""
    limit: float | None = None
    """Worst value that is allowed, with or without a champion."""
    max_relative_position: float | None = None
    """Largest relative position that is allowed, from 0 (real images) to 1 (noise)."""


class PromoteConfig(Config):
    """The recipe's ``promote``: the margins by which a candidate becomes the champion."""

    rules: dict[str, Rule] = Field(
        default={
            "fd": Rule(
                improve_by=0.02, max_regression=0.02, relative=True, max_relative_position=0.9
            ),
            "coverage": Rule(improve_by=0.02, max_regression=0.05),
        },
        min_length=1,
    )
    """Name of a metric, ``fd`` or in full with its feature space -> its margins."""
    improvements: int = Field(default=1, ge=0)
    """Number of metrics that must improve; 0 also promotes an equal candidate."""
    beyond_noise: bool = True
    """An improvement must also exceed the noise of both values, from their intervals."""


Outcome = Literal["better", "equal", "worse", "beyond limit", "within limit"]


class RuleResult(Config):
    """Outcome of one rule for one metric."""

    metric: str
    candidate: float
    champion: float | None
    outcome: Outcome
    reason: str
    """One sentence with the values."""


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
    """Decide whether a candidate becomes the champion.

    Args:
        candidate: metrics of the candidate.
        champion: metrics of the champion, measured by the same protocols; None if there is no champion yet.
            Then only the limits count.
        config: the recipe's margins.

    Raises:
        ConfigError: a rule names a metric that was not measured, or the protocols differ.
    """
    candidates = {name: _metric(name, candidate, "the candidate") for name in config.rules}
    if champion is None:
        checks = tuple(_check_limits(candidates[name], rule) for name, rule in config.rules.items())
        rejected = [c.reason for c in checks if c.outcome == "beyond limit"]
        reasons = tuple(rejected) or ("first champion: every metric is within its limits",)
        return Decision(promote=not rejected, reasons=reasons, checks=checks)
    champions = {name: _metric(name, champion, "the champion") for name in config.rules}
    checks = tuple(
        _compare(candidates[name], champions[name].value, rule, config.beyond_noise)
        for name, rule in config.rules.items()
    )
    return _combine(checks, config.improvements)


def _combine(checks: Sequence[RuleResult], improvements: int) -> Decision:
    rejected = tuple(c.reason for c in checks if c.outcome in ("worse", "beyond limit"))
    if rejected:
        return Decision(promote=False, reasons=rejected, checks=tuple(checks))
    better = tuple(c.reason for c in checks if c.outcome == "better")
    if len(better) < improvements:
        metrics = "metric is" if len(better) == 1 else "metrics are"
        count = f"{len(better)} {metrics} better, expected at least {improvements}"
        equal = tuple(c.reason for c in checks if c.outcome == "equal")
        return Decision(promote=False, reasons=(count, *equal), checks=tuple(checks))
    reasons = better or ("no metric is worse, and no improvement is required",)
    return Decision(promote=True, reasons=reasons, checks=tuple(checks))


def _compare(
    candidate: MetricResult, champion: MetricValue, rule: Rule, beyond_noise: bool
) -> RuleResult:
    """Compare one metric of the candidate with the champion's."""
    require_comparable(candidate.value, champion)
    limits = _check_limits(candidate, rule)
    if limits.outcome == "beyond limit":
        return limits.model_copy(update={"champion": champion.value})
    difference = candidate.value.value - champion.value
    gain = -difference if candidate.better == "lower" else difference
    scale = abs(champion.value) if rule.relative else 1.0
    noise = math.hypot(_half_width(candidate.value), _half_width(champion)) if beyond_noise else 0.0
    values = f"{candidate.value.name} {candidate.value.value:.4g} (champion {champion.value:.4g})"
    if gain < -rule.max_regression * scale:
        outcome, margin = "worse", f"worse by more than {rule.max_regression * scale:.3g}"
    elif gain <= 0 or gain < rule.improve_by * scale:
        outcome, margin = "equal", f"not better by {rule.improve_by * scale:.3g}"
    elif gain <= noise:
        outcome, margin = "equal", f"better, but within the noise of {noise:.3g}"
    else:
        outcome, margin = "better", f"better by {gain:.3g}"
    return RuleResult(
        metric=candidate.value.name,
        candidate=candidate.value.value,
        champion=champion.value,
        outcome=outcome,
        reason=f"{values}: {margin}",
    )


def _check_limits(candidate: MetricResult, rule: Rule) -> RuleResult:
    """Check one metric against the limits that do not depend on the champion."""
    value, name = candidate.value.value, candidate.value.name
    violations: list[str] = []
    if rule.limit is not None:
        beyond = value > rule.limit if candidate.better == "lower" else value < rule.limit
        if beyond:
            side = "most" if candidate.better == "lower" else "least"
            violations.append(f"{name} {value:.4g}: allowed is at {side} {rule.limit:.4g}")
    if (
        rule.max_relative_position is not None
        and candidate.relative_position is not None
        and candidate.relative_position > rule.max_relative_position
    ):
        violations.append(
            f"{name} {value:.4g}: relative position {candidate.relative_position:.2f} between real images "
            f"(0) and noise (1), allowed is at most {rule.max_relative_position:.2f}"
        )
    return RuleResult(
        metric=name,
        candidate=value,
        champion=None,
        outcome="beyond limit" if violations else "within limit",
        reason="; ".join(violations) or f"{name} {value:.4g}: within its limits",
    )


def _half_width(value: MetricValue) -> float:
    return (value.interval.high - value.interval.low) / 2


def _metric(name: str, metrics: Iterable[MetricResult], whose: str) -> MetricResult:
    """The metric that a rule names. ConfigError if it was not measured."""
    by_name: Mapping[str, MetricResult] = {
        key: metric
        for metric in metrics
        for key in (metric.value.protocol.metric, metric.value.name)
    }
    if name not in by_name:
        raise ConfigError(
            f"promote.rules.{name}: {whose} has no such metric; {did_you_mean(name, by_name)}"
        )
    return by_name[name]
