"""The difference of one metric between a candidate and the champion, with its standard error."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field

from genmod.budget import BUDGET
from genmod.config import Config
from genmod.metrics.intervals import symmetric_interval
from genmod.metrics.protocol import Better, Finite, MetricResult, MetricValue, Z, require_comparable


class MetricDifference(Config):
    """Difference of one metric between two models that were measured by the same protocol."""

    metric: str = Field(max_length=500)
    """Name of the metric with its feature space."""
    better: Better
    gain: Finite
    """Positive if the candidate is better, in the metric's unit."""
    stderr: float = Field(ge=0, allow_inf_nan=False)
    """Standard error of the gain over new draws of both models' samples, with the reference fixed."""
    freedom: float = Field(default=math.inf, ge=1)
    """Degrees of freedom of the standard error."""
    paired: bool = False
    """Whether both models' samples have the same noise, image by image, or both scored the same rows."""
    rows: int = Field(default=0, ge=0, le=BUDGET.rows)
    """Images, or reference rows of a likelihood, that were compared; 0 for those of the protocol."""

    def rows_of(self, champion: MetricValue) -> int:
        """Images, or reference rows of a likelihood, that were compared with the champion's."""
        return self.rows or champion.protocol.n_fake or champion.protocol.n_real

    def rows_text(self, champion: MetricValue, gain: float, needed: int) -> str:
        """How many rows a gain needs, to end a sentence; empty if there are as many."""
        rows = self.rows_of(champion)
        if needed <= rows:
            return ""
        unit = "images" if champion.protocol.n_fake else "reference rows"
        return f"; a gain of {gain:.3g} needs about {needed:,} {unit}, these are {rows:,}"


class ReportedGain(Config):
    """A gain that is reported next to a decision and decides nothing, with its interval."""

    metric: str = Field(max_length=500)
    gain: Finite
    """Positive if the candidate is better, in the metric's unit."""
    stderr: float = Field(ge=0, allow_inf_nan=False)
    low: Finite
    """Lower end of the interval of :data:`~genmod.metrics.protocol.LEVEL`."""
    high: Finite
    rows: int = Field(default=0, ge=0, le=BUDGET.rows)
    """Images, or reference rows of a likelihood, that were compared; 0 if unknown."""
    outcome: Literal["better", "worse", "no difference"]
    """Whether the interval is above, below or around 0."""

    @classmethod
    def of(cls, difference: MetricDifference) -> Self:
        """The report of a measured difference."""
        interval = symmetric_interval(
            difference.gain, difference.stderr, "", freedom=difference.freedom
        )
        outcome = "no difference"
        if interval.low > 0 or interval.high < 0:
            outcome = "better" if interval.low > 0 else "worse"
        return cls(
            metric=difference.metric,
            gain=difference.gain,
            stderr=difference.stderr,
            low=interval.low,
            high=interval.high,
            rows=difference.rows,
            outcome=outcome,
        )

    @property
    def text(self) -> str:
        """The gain as one sentence."""
        beyond = "" if self.outcome != "no difference" else " beyond the noise"
        return (
            f"{self.metric}: {self.outcome}{beyond}; gain {self.gain:.3g} with standard error "
            f"{self.stderr:.2g}"
        )


def independent_difference(candidate: MetricResult, champion: MetricValue) -> MetricDifference:
    """The gain of independent samples, with a standard error from both intervals.

    Raises:
        ConfigError: the protocols differ.
    """
    require_comparable(candidate.value, champion)
    difference = candidate.value.value - champion.value
    gain = -difference if candidate.better == "lower" else difference
    return MetricDifference(
        metric=champion.name,
        better=candidate.better,
        gain=gain + 0.0,  # no minus before a zero
        stderr=math.hypot(_half_width(candidate.value), _half_width(champion)) / Z,
    )


def _half_width(value: MetricValue) -> float:
    return (value.interval.high - value.interval.low) / 2
