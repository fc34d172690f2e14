"""A point of the metric log, and the types of its values in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from genmod.budget import BUDGET
from genmod.config import Config

MAX_METRICS = 100_000
"""Metrics of one point; a VAE has one for each unit of its latents."""


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("expected a printable name")
    return name


Nimg = Annotated[int, Field(ge=0, le=BUDGET.nimg)]
"""Images seen."""

MetricName = Annotated[str, Field(min_length=1, max_length=250), AfterValidator(_printable)]
"""``phase/quantity`` or ``group/phase/quantity``."""

MetricValues = Annotated[
    dict[MetricName, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=MAX_METRICS)
]
"""Finite values by name."""


@dataclass(frozen=True)
class MetricPoint:
    """What was measured after ``nimg`` images."""

    nimg: int
    metrics: Mapping[str, float]
    """Deterministic values: a resumed training measures the same ones."""
    timing: Mapping[str, float]
    """Speeds and durations, which differ from run to run."""


class MetricLine(Config):
    """A line of the log, the fields of a :class:`MetricPoint`."""

    nimg: Nimg
    metrics: MetricValues
    timing: MetricValues
