"""What a decision says besides its rules: why there was a retrain, and the gains on the newest test rows."""

from __future__ import annotations

from pydantic import BaseModel, Field

from genmod.config import Config
from genmod.documents import validate
from genmod.evaluation.differences import ReportedGain
from genmod.manifest import Manifest


class Retrained(Config):
    """The version of the dataset that a retrain made a candidate of, and why."""

    version: int = Field(ge=1, le=10**9)
    reason: str = Field(max_length=10_000)

    @property
    def text(self) -> str:
        """The reason as one sentence."""
        return f"retrained as version {self.version} of the dataset: {self.reason}"


class _Check(BaseModel):
    metric: str = Field(default="", max_length=500)


class Occasion(BaseModel):
    """Why a decision was made, and what the newest test rows say."""

    retrain: Retrained | None = None
    """None if no retrain made the decision."""
    fresh: tuple[ReportedGain, ...] = Field(default=(), max_length=1_000)
    """Gains on the test rows of that version, if others decided."""
    checks: tuple[_Check, ...] = Field(default=(), max_length=1_000)

    def lines(self) -> list[str]:
        """The retrain, and the gains of the metrics that have a rule, each as one sentence."""
        ruled = {check.metric for check in self.checks}
        where = f"version {self.retrain.version}" if self.retrain else "the newest version"
        return [
            *([self.retrain.text] if self.retrain else []),
            *(
                f"on the test rows of {where}, which decide nothing: {gain.text}"
                for gain in self.fresh
                if gain.metric in ruled
            ),
        ]


def occasion(decision: Manifest) -> Occasion:
    """Retrain and newest gains of a decision. DataError if its manifest has them in another form."""
    where, remedy = f"decision {decision.digest[:12]}", "remove its folder and run the stage again"
    return validate(Occasion, decision.metadata, "a decision on a model", where, remedy)
