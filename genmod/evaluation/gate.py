"""The gate: whether a candidate becomes the champion, by the rules in the recipe and their error rates.

The decision is a pure function of the measurements. A candidate is promoted if at least ``improvements``
metrics gain more than the gain that counts, and every metric rules out a loss larger than the tolerated one,
both beyond the noise of the measurement; see :mod:`genmod.evaluation.policy`. In doubt the champion stays.
Metrics of different protocols are an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from genmod.config import Config
from genmod.errors import ConfigError, did_you_mean
from genmod.evaluation.differences import MetricDifference, independent_difference
from genmod.evaluation.policy import ErrorRates, PromoteConfig, Rule
from genmod.evaluation.rows_needed import rows_for_gain
from genmod.metrics.protocol import MetricResult, MetricValue, require_comparable

Outcome = Literal["better", "equal", "undecided", "worse", "beyond limit", "within limit"]


class RuleResult(Config):
    """Outcome of one rule for one metric."""

    metric: str
    candidate: float
    champion: float | None
    outcome: Outcome
    reason: str
    """One sentence with the values."""
    gain: float | None = None
    """Positive if the candidate is better; None where nothing is compared."""
    stderr: float | None = None
    """Standard error of the gain."""
    low: float | None = None
    """Lower end of the gain's interval, by which it is shown to be larger than :attr:`needed`."""
    high: float | None = None
    """Its upper end, as far from it."""
    tolerated: float | None = None
    """Largest loss that the rule tolerates, in the metric's unit; None for any loss."""
    needed: float | None = None
    """Smallest gain that counts, in the metric's unit; None if a gain does not count."""
    detectable: float | None = None
    """True gain that such a comparison finds with a probability of 80 %."""
    rows_needed: int | None = None
    """Images, or reference rows of a likelihood, with which a gain of twice :attr:`needed` is found with that
    probability; None if a gain does not count."""
    loss_ruled_out: bool = True
    """Whether the loss is surely not larger than the tolerated one."""
    gain_ruled_out: bool = True
    """Whether the gain is surely not larger than the gain that counts, or does not count."""


class Decision(Config):
    """Whether the candidate becomes the champion, and why."""

    promote: bool
    reasons: tuple[str, ...]
    checks: tuple[RuleResult, ...] = ()
    undecided: bool = False
    """Whether more images may lead to a promotion."""
    error: float | None = None
    """Largest probability that such a decision promotes a model without the gain that counts."""
    number: int | None = None
    """Of this decision among those with the same reference rows; None for a first champion."""


def decide(
    candidate: Sequence[MetricResult],
    champion: Sequence[MetricResult] | None,
    config: PromoteConfig,
    paired: Iterable[MetricDifference] = (),
    number: int = 1,
) -> Decision:
    """Decide whether a candidate becomes the champion.

    Args:
        candidate: metrics of the candidate.
        champion: metrics of the champion, measured by the same protocols; None if there is no champion yet.
            Then only the limits count.
        config: the recipe's rules and error rates.
        paired: differences of the two models from samples with the same noise. Metrics without one are
            compared by their intervals, as independent.
        number: of this decision among those with the same reference rows, from 1. Beyond the planned number
            no candidate is promoted.

    Raises:
        ConfigError: a rule names a metric that was not measured, or the protocols differ.
    """
    rules = _rules(config, candidate)
    candidates = {name: _metric(name, candidate, "the candidate") for name in rules}
    if champion is None:
        checks = tuple(_check_limits(candidates[name], rule) for name, rule in rules.items())
        rejected = [c.reason for c in checks if c.outcome == "beyond limit"]
        reasons = tuple(rejected) or ("first champion: every metric is within its limits",)
        return Decision(promote=not rejected, reasons=reasons, checks=checks)
    rates = ErrorRates.of(config)
    differences = {difference.metric: difference for difference in paired}
    checks = tuple(
        _check(candidates[name], _champion_value(name, rule, champion), rule, differences, rates)
        for name, rule in rules.items()
    )
    decision = _combine(checks, config).model_copy(update={"number": number})
    if number > config.planned_decisions and decision.promote:
        spent = (
            f"the reference rows have served all {config.planned_decisions} planned decisions, so nothing is "
            "promoted by them; start a new root with new test rows, or raise promote.planned_decisions, "
            "which weakens the bound on false promotions"
        )
        return decision.model_copy(update={"promote": False, "reasons": (spent, *decision.reasons)})
    return decision


def _combine(checks: Sequence[RuleResult], config: PromoteConfig) -> Decision:
    def reasons(*outcomes: Outcome) -> tuple[str, ...]:
        return tuple(check.reason for check in checks if check.outcome in outcomes)

    def decision(promote: bool, reasons: tuple[str, ...], undecided: bool = False) -> Decision:
        checked = tuple(checks)
        return Decision(
            promote=promote,
            reasons=reasons,
            checks=checked,
            undecided=undecided,
            error=config.error,
        )

    if rejected := reasons("worse", "beyond limit"):
        return decision(False, rejected)
    better = reasons("better")
    uncertain = tuple(check.reason for check in checks if not check.loss_ruled_out)
    if len(better) < config.improvements:
        metrics = "metric is" if len(better) == 1 else "metrics are"
        count = f"{len(better)} {metrics} better, expected at least {config.improvements}"
        possible = sum(c.outcome == "better" or not c.gain_ruled_out for c in checks)
        others = count, *reasons("undecided", "equal")
        return decision(False, others, undecided=possible >= config.improvements)
    if uncertain:
        return decision(False, uncertain, undecided=True)
    return decision(True, better or ("no metric is worse, and no improvement is required",))


def _check(
    candidate: MetricResult,
    champion: MetricValue | None,
    rule: Rule,
    paired: Mapping[str, MetricDifference],
    rates: ErrorRates,
) -> RuleResult:
    """Check one metric of the candidate against its limits, then against the champion's."""
    result = _check_limits(candidate, rule)
    if champion is None:
        return result
    require_comparable(candidate.value, champion)
    difference = paired.get(champion.name) or independent_difference(candidate, champion)
    gain, stderr = difference.gain, difference.stderr
    scale = abs(champion.value) if rule.relative else 1.0
    margin = rates.quantiles(difference.freedom).gain * stderr
    update: dict[str, object] = {
        "champion": champion.value,
        "gain": gain,
        "stderr": stderr,
        "low": gain - margin,
        "high": gain + margin,
        "tolerated": None if rule.max_regression is None else rule.max_regression * scale,
        "needed": None if rule.improve_by is None else rule.improve_by * scale,
    }
    if result.outcome == "beyond limit":
        return result.model_copy(update=update)
    return result.model_copy(update=update | _compared(difference, champion, rule, rates))


def _compared(
    difference: MetricDifference, measured: MetricValue, rule: Rule, rates: ErrorRates
) -> dict[str, object]:
    """Outcome of a rule's margins, as fields of :class:`RuleResult`."""
    gain, stderr, champion = difference.gain, difference.stderr, measured.value
    quantiles = rates.quantiles(difference.freedom)
    scale = abs(champion) if rule.relative else 1.0
    # Without a margin, any loss is tolerated, and no gain counts.
    tolerated = math.inf if rule.max_regression is None else rule.max_regression * scale
    counts = math.inf if rule.improve_by is None else rule.improve_by * scale
    loss_ruled_out = gain - quantiles.loss * stderr >= -tolerated
    gain_ruled_out = gain + quantiles.loss * stderr <= counts
    if gain + quantiles.worse * stderr < -tolerated:
        outcome, text = "worse", f"worse by more than the tolerated {tolerated:.3g}"
    elif gain - quantiles.gain * stderr > counts:
        outcome, text = "better", f"better by more than {counts:.3g}"
    elif not loss_ruled_out:
        outcome, text = "undecided", f"a loss of more than {tolerated:.3g} is not ruled out"
    elif not gain_ruled_out:
        outcome, text = "undecided", f"a gain of more than {counts:.3g} is not shown"
    else:
        outcome, text = "equal", "no gain or loss that counts"
    detectable = None
    if rule.improve_by is not None:
        detectable = counts + (quantiles.gain + quantiles.power) * stderr
    rows_needed = rows_for_gain(difference.rows_of(measured), stderr, counts, quantiles)
    more = ""
    if not gain_ruled_out and outcome != "better" and rows_needed:
        more = difference.rows_text(measured, 2 * counts, rows_needed)
    value = champion - gain if difference.better == "lower" else champion + gain
    values = f"{difference.metric} {value:.4g} (champion {champion:.4g})"
    return {
        "outcome": outcome,
        "reason": f"{values}: {text}; gain {gain:.3g} with standard error {stderr:.2g}{more}",
        "detectable": detectable,
        "rows_needed": rows_needed,
        "loss_ruled_out": loss_ruled_out,
        "gain_ruled_out": gain_ruled_out,
    }


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


def _rules(config: PromoteConfig, candidate: Sequence[MetricResult]) -> dict[str, Rule]:
    """The rules whose metrics were measured, or must have been."""
    measured = _by_name(candidate)
    return {n: rule for n, rule in config.rules.items() if not rule.optional or n in measured}


def _champion_value(name: str, rule: Rule, champion: Sequence[MetricResult]) -> MetricValue | None:
    """The champion's value of a metric, None if the rule compares nothing."""
    return _metric(name, champion, "the champion").value if rule.compares else None


def _by_name(metrics: Iterable[MetricResult]) -> Mapping[str, MetricResult]:
    return {
        key: metric
        for metric in metrics
        for key in (metric.value.protocol.metric, metric.value.name)
    }


def _metric(name: str, metrics: Iterable[MetricResult], whose: str) -> MetricResult:
    """The metric that a rule names. ConfigError if it was not measured."""
    by_name = _by_name(metrics)
    if name not in by_name:
        raise ConfigError(
            f"promote.rules.{name}: {whose} has no such metric; {did_you_mean(name, by_name)}"
        )
    return by_name[name]
