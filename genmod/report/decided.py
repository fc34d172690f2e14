"""What the page shows of a decision's manifest, checked before it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from genmod.documents import validate
from genmod.report.evaluated import Count, Number, Text
from genmod.report.gain_chart import Gain

_MAX_RULES = 1_000


class ShownRule(BaseModel):
    """The outcome of one rule."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: Text
    candidate: Number
    champion: Number | None = None
    outcome: Text
    reason: Text
    gain: Number | None = None
    stderr: Annotated[Number, Field(ge=0)] | None = None
    low: Number | None = None
    high: Number | None = None
    tolerated: Annotated[Number, Field(ge=0)] | None = None
    needed: Annotated[Number, Field(ge=0)] | None = None
    detectable: Number | None = None

    @property
    def interval(self) -> Gain | None:
        """The gain to draw; None where nothing was compared."""
        if self.gain is None or self.stderr is None or self.low is None or self.high is None:
            return None
        return Gain(self.gain, self.stderr, self.low, self.high, self.tolerated, self.needed)


class ShownRetrain(BaseModel):
    """The version of the dataset that a retrain made the candidate of, and why."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Count
    reason: Text


class ShownGain(BaseModel):
    """The gain of one metric on the newest test rows, which decide nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: Text
    gain: Number
    stderr: Annotated[Number, Field(ge=0)]
    low: Number
    high: Number
    rows: Count = 0
    outcome: Text


class ShownDecision(BaseModel):
    """Whether a candidate becomes the champion, and why."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    promote: bool
    reasons: tuple[Text, ...] = Field(max_length=_MAX_RULES)
    checks: tuple[ShownRule, ...] = Field(default=(), max_length=_MAX_RULES)
    undecided: bool = False
    number: Count | None = None
    images: Count | None = None
    """Images that were compared because a decision with fewer was undecided."""
    retrain: ShownRetrain | None = None
    """None if no retrain made the decision."""
    fresh: tuple[ShownGain, ...] = Field(default=(), max_length=_MAX_RULES)
    """Gains on the newest test rows, if others decided."""

    @property
    def alarms(self) -> tuple[str, ...]:
        """The reasons of the rules whose limit the candidate is beyond."""
        return tuple(rule.reason for rule in self.checks if rule.outcome == "beyond limit")


def shown_decision(metadata: Mapping[str, Any], where: str) -> ShownDecision:
    """The fields of a decision's metadata that the page shows.

    Args:
        metadata: of the decision's manifest.
        where: name of the manifest, for the error.

    Raises:
        DataError: a field is missing, or of another type or size.
    """
    remedy = "remove that folder and promote again"
    return validate(ShownDecision, metadata, "a decision on a model", where, remedy)
