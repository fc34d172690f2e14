"""The page of a decision of the gate: one self-contained HTML file. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from genmod.report.decided import ShownDecision, ShownGain, ShownRule
from genmod.report.gain_chart import gain_chart
from genmod.report.metric_texts import METRIC_TEXTS, MetricText
from genmod.report.model_page import ModelPage, curve_charts, extreme_images, nfe_chart
from genmod.report.template import render_template

_TONES = {
    "better": "up",
    "within limit": "even",
    "no difference": "even",
    "worse": "down",
    "beyond limit": "down",
}
"""Outcome of a rule -> class of its colour."""


@dataclass(frozen=True)
class StatedErrors:
    """How often decisions by a recipe's rules may be wrong."""

    false_promotion: float
    """Of one decision, at most."""
    familywise_error: float
    """Of all planned decisions together, at most."""
    one_decision: float
    """Of one decision, so that both hold."""
    called_worse: float
    """Of equal candidates called worse, at most."""
    planned: int
    """Decisions that the reference rows must serve."""


@dataclass(frozen=True)
class DecisionContent:
    """Content of the whole page."""

    title: str
    headline: str
    """What was decided, in one sentence."""
    applied: str
    """Whether the decision was applied, by which entry of the ledger, in one or two sentences."""
    decision: ShownDecision
    errors: StatedErrors
    candidate: ModelPage
    champion: ModelPage | None
    """None if there was no champion, or if its files are gone."""
    same_noise: bool
    """Whether both models' samples have the same noise and labels, image by image."""
    provenance: Sequence[tuple[str, str, str]]
    """Name, URL and digest of each artifact."""
    tracking: str
    """Command or URL that shows the tracked runs."""

    @property
    def models(self) -> list[ModelPage]:
        """The champion, if its files are there, and the candidate."""
        return [model for model in (self.champion, self.candidate) if model is not None]


@dataclass(frozen=True)
class _RuleRow:
    """One rule, a row of the table."""

    rule: ShownRule
    text: MetricText
    chart: Markup | None


@dataclass(frozen=True)
class _FreshRow:
    """The gain of one metric on the newest test rows, next to that on the rows that decide."""

    gain: ShownGain
    text: MetricText
    rule: ShownRule | None
    """None if no rule compares the metric."""


def render_decision(content: DecisionContent) -> str:
    """The page as HTML. All text is escaped; its policy allows its own style and images alone."""
    models, number = content.models, content.decision.number
    return render_template(
        "decision.html",
        content=content,
        rows=[_rule_row(rule) for rule in content.decision.checks],
        fresh=_fresh_rows(content.decision),
        left=None if number is None else max(0, content.errors.planned - number),
        nfe_charts={model.name: nfe_chart(model) for model in models},
        losses={model.name: curve_charts(model.losses) for model in models},
        percent=_percent,
        tones=_TONES,
        extremes={content.candidate.name: extreme_images(content.candidate, 0)},
    )


def _rule_row(rule: ShownRule) -> _RuleRow:
    interval = rule.interval
    chart = gain_chart(interval) if interval is not None else None
    return _RuleRow(rule, _text(rule.metric), chart)


def _fresh_rows(decision: ShownDecision) -> list[_FreshRow]:
    """Metrics that have a rule first."""
    rules = {rule.metric: rule for rule in decision.checks if rule.gain is not None}
    rows = [_FreshRow(gain, _text(gain.metric), rules.get(gain.metric)) for gain in decision.fresh]
    return sorted(rows, key=lambda row: row.rule is None)


def _text(name: str) -> MetricText:
    metric = name.partition("[")[0]
    return METRIC_TEXTS.get(metric, MetricText(metric, ""))


def _percent(share: float) -> str:
    """A probability in per cent, with as many digits as small ones need."""
    return f"{100 * share:.3g} %"
