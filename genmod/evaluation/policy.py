"""The recipe's ``promote``: margins and limits of the gate, and how often a decision may be wrong.

A false promotion is one of a model whose true gain is not larger than the gain that counts, or whose true
loss is larger than the tolerated one. Its probability in one decision is at most ``false_promotion``, and
at most ``familywise_error`` in all planned decisions on the same reference rows together (Bonferroni), so
that a long chain of retrains that change nothing promotes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator
from scipy.stats import t as student

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config, as_json

CALLED_WORSE = 0.05
"""Largest probability that an equal candidate is called worse, over all rules together."""

POWER = 0.8
"""Probability with which the stated gain is found; for the number of images that it needs."""


class Rule(Config):
    """Margins and limits of one metric, in the direction in which the metric is better."""

    improve_by: float | None = Field(default=None, ge=0, le=1e12)
    """Smallest gain that counts; null if a gain in this metric does not count."""
    max_regression: float | None = Field(default=None, ge=0, le=1e12)
    """Largest loss that is tolerated: a candidate is promoted only if a larger loss is ruled out. Null for
    any loss."""
    relative: bool = False
    """Margins are shares of the champion's value instead of values in the metric's unit."""
    limit: float | None = Field(default=None, ge=-1e12, le=1e12)
    """Worst value that is allowed, with or without a champion."""
    max_relative_position: float | None = Field(default=None, ge=-1e12, le=1e12)
    """Largest relative position that is allowed, from 0 (real images) to 1 (noise)."""
    optional: bool = False
    """Whether the rule is left out where the metric was not measured, e.g. for data without labels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        margins = self.improve_by, self.max_regression, self.limit, self.max_relative_position
        if all(margin is None for margin in margins):
            raise ValueError(
                "the rule allows everything; set improve_by, max_regression, limit or "
                "max_relative_position"
            )
        return self

    @property
    def compares(self) -> bool:
        """Whether the rule compares with the champion."""
        return self.improve_by is not None or self.max_regression is not None


def default_rules() -> dict[str, Rule]:
    """The rules where the recipe has none: gains, tolerated losses, and alarms."""
    alarm = Rule(max_relative_position=0.5, optional=True)
    return {
        "fd": Rule(improve_by=0.05, max_regression=0.05, relative=True, max_relative_position=0.5),
        "coverage": Rule(improve_by=0.03, max_regression=0.05, max_relative_position=0.7),
        "class_coverage": alarm,
        "label_accuracy": alarm.model_copy(update={"max_regression": 0.05}),
        "memorisation": Rule(limit=0, optional=True),
        "leakage": Rule(limit=0, optional=True),
    }


class PromoteConfig(Config):
    """The recipe's ``promote``: when a candidate becomes the champion."""

    rules: dict[str, Rule] = Field(default_factory=default_rules, min_length=1, max_length=100)
    """Name of a metric, ``fd`` or in full with its feature space -> its margins and limits."""
    improvements: int = Field(default=1, ge=0, le=1_000)
    """Number of metrics that must improve; 0 also promotes a candidate that is not worse."""
    false_promotion: float = Field(default=0.01, gt=0, le=0.5)
    """Largest probability that one decision promotes a model that does not have the gain that counts."""
    familywise_error: float = Field(default=0.05, gt=0, le=0.5)
    """Largest probability of a false promotion in all planned decisions together."""
    planned_decisions: int = Field(default=100, ge=1, le=1_000_000)
    """Number of decisions that the reference rows must serve."""
    max_images: int | None = Field(
        default=None, ge=10, le=BUDGET.rows, exclude_if=lambda images: images is None
    )
    """If a retrain's decision is undecided, both models are sampled and compared again with this many images,
    once; that counts as another decision. Null: the champion stays."""
    ledger: storage.RootUrl | None = None
    """URL of the folder with the history of champions. Default: ``promotions`` below the root. Recipes
    that share registered models in MLflow must share it."""

    def result(self) -> dict[str, Any]:
        """The fields that change a decision; for its fingerprint."""
        return {key: value for key, value in as_json(self).items() if key != "ledger"}

    @model_validator(mode="after")
    def _check(self) -> Self:
        gains = sum(rule.improve_by is not None for rule in self.rules.values())
        if self.improvements > gains:
            raise ValueError(
                f"improvements: got {self.improvements}, but {gains} rules have improve_by; "
                "lower it, or set improve_by for more metrics"
            )
        return self

    @property
    def error(self) -> float:
        """Largest probability of a false promotion in one decision."""
        return min(self.false_promotion, self.familywise_error / self.planned_decisions)


@dataclass(frozen=True)
class ErrorRates:
    """Probabilities of error of one comparison of one metric."""

    gain: float
    """Of a gain that is shown and is not there."""
    loss: float
    """Of a loss that is ruled out and is there. Every rule must rule out its loss, so the error is not
    divided (intersection-union test, Berger 1982)."""
    worse: float
    """Of an equal candidate that is called worse."""

    @classmethod
    def of(cls, config: PromoteConfig) -> ErrorRates:
        """The error rates of a policy."""
        rules = config.rules.values()
        gains = sum(rule.improve_by is not None for rule in rules)
        compared = sum(rule.compares for rule in rules)
        # If all but one of the required gains are real, chance has this many ways to give the last one.
        ways = max(1, gains - max(0, config.improvements - 1))
        return cls(
            gain=config.error / ways,
            loss=config.error,
            worse=CALLED_WORSE / max(1, compared),
        )

    def quantiles(self, freedom: float) -> Quantiles:
        """The quantiles for a standard error with some degrees of freedom."""
        gain, loss, worse, power = (
            float(student.isf(p, freedom)) for p in (self.gain, self.loss, self.worse, 1 - POWER)
        )
        return Quantiles(gain, loss, worse, power)


@dataclass(frozen=True)
class Quantiles:
    """One-sided quantiles of Student's t, in standard errors."""

    gain: float
    """A gain must exceed the gain that counts by this."""
    loss: float
    """A loss must stay below the tolerated loss by this."""
    worse: float
    """A loss that exceeds the tolerated one by this is called worse."""
    power: float
    """A true gain that is larger by this and :attr:`gain` is found with the probability :data:`POWER`."""
