"""Settings of evaluation, and metric values that are labelled with the protocol of their measurement.

A protocol is the feature space, reference, split, numbers of rows and settings of a metric. Comparing values
of different protocols is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config, fingerprint
from genmod.errors import ConfigError
from genmod.manifest import Split
from genmod.metrics.features import FeaturesConfig

LEVEL = 0.95
"""Nominal coverage of all intervals."""

Z = 1.959963984540054
"""Half width of a normal interval of :data:`LEVEL`, in standard errors."""

LIKELIHOOD = "likelihood"
"""Setting of a protocol with the kind of a likelihood: label, estimator, density and measure."""

Better = Literal["lower", "higher"]

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that is neither NaN nor infinite, which would compare as no value does."""


class EvaluateConfig(Config):
    """The recipe's ``evaluate``: the reference, and the numbers of images and resamplings."""

    reference: Split = "test"
    """Split of the real data with which samples are compared. Nothing may be trained on it."""
    images: int = Field(default=10_000, ge=10, le=100_000_000)
    """Most samples, and most reference images, that are used."""
    neighbours: int = Field(default=5, ge=1, le=10_000)
    """k of precision, recall, density and coverage."""
    memorisation_fdr: float = Field(default=0.05, gt=0, lt=1)
    """Largest expected share of false ones among the samples that are named as copies of training images."""
    memorisation_calibration: int = Field(default=60_000, ge=10, le=BUDGET.rows)
    """Most real images on which the p-values of copies are measured: rows of the reference, then training
    rows against all others. Few make copies harder to find; the time is that of as many samples."""
    ood: storage.OutputFolder | None = None
    """Folder (a ``score.output``) with scores of other data by every model that has a density, for
    out-of-distribution detection in the report; null for none."""
    curve_images: int | None = Field(default=None, ge=10, le=100_000_000)
    """Samples for each point of the curve of quality against network evaluations; null for no curve."""
    utility_images: int | None = Field(default=None, ge=1, le=BUDGET.nimg)
    """Images that each of two classifiers sees in training, for the metric ``utility`` of labelled samples;
    null for no such metric. 16000 take 4 CPU seconds for each model at 28x28 pixels."""
    deadline_s: float = Field(default=3600.0, gt=0, le=1e7)
    """Longest time for fitting the features, and for evaluating one model."""
    features: FeaturesConfig = FeaturesConfig()

    def result(self) -> dict[str, Any]:
        """The fields, without those of the features, that change an evaluation; for the fingerprint."""
        unset = {name for name in ("curve_images", "utility_images") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude={"deadline_s", "features", "ood", *unset})


class Interval(Config):
    """Interval of the value over new draws of the samples, with the reference fixed."""

    low: Finite
    high: Finite
    level: float = Field(default=LEVEL, gt=0, lt=1)
    method: str = Field(max_length=200)


class Protocol(Config):
    """Conditions of a measurement. Values can be compared only if their protocols are equal."""

    metric: str = Field(max_length=200)
    features: str = Field(max_length=200)
    """Name of the feature space with the start of its digest, e.g. ``classifier-v1@1a2b3c4d``."""
    features_digest: str
    reference_digest: str
    """Digest of the reference images."""
    reference_split: Split
    n_real: int = Field(ge=0, le=BUDGET.rows)
    n_fake: int = Field(ge=0, le=BUDGET.rows)
    pixels: Literal["uint8"] = "uint8"
    settings: dict[str, int | Finite | str] = Field(default={}, max_length=100)

    @property
    def digest(self) -> str:
        """Fingerprint of the protocol, 64 hex digits."""
        return fingerprint(self)

    @property
    def name(self) -> str:
        """Metric and feature space, e.g. ``fd[classifier-v1@1a2b3c4d]``."""
        return f"{self.metric}[{self.features}]"


class MetricValue(Config):
    """A value with its interval and protocol."""

    name: str = Field(max_length=500)
    value: Finite
    interval: Interval
    protocol: Protocol
    protocol_digest: str

    @classmethod
    def of(cls, protocol: Protocol, value: float, interval: Interval) -> Self:
        """A value that was measured by a protocol."""
        return cls(
            name=protocol.name,
            value=value,
            interval=interval,
            protocol=protocol,
            protocol_digest=protocol.digest,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.protocol_digest != self.protocol.digest or self.name != self.protocol.name:
            raise ValueError(f"{self.name}: digest or name does not fit its protocol")
        return self


class MetricResult(Config):
    """A metric of a model with its floor and ceiling by the same protocol."""

    value: MetricValue
    floor: MetricValue | None
    """Value of real training images: the best that can be expected with this number of rows."""
    ceiling: MetricValue | None
    """Value of uniform noise."""
    better: Better

    @property
    def relative_position(self) -> float | None:
        """Position between floor (0) and ceiling (1); may be outside. None if one of them is absent."""
        if self.floor is None or self.ceiling is None:
            return None
        width = self.ceiling.value - self.floor.value
        return (self.value.value - self.floor.value) / width if width else None


def protocol_differences(a: Protocol, b: Protocol) -> list[str]:
    """Differences of two protocols as texts, e.g. ``n_fake 1000 against 500``."""
    left, right = _flat(a), _flat(b)
    return [
        f"{key} {_short(left.get(key))} against {_short(right.get(key))}"
        for key in left | right
        if left.get(key) != right.get(key)
    ]


def require_comparable(a: MetricValue, b: MetricValue) -> None:
    """Check that two values were measured by the same protocol.

    Raises:
        ConfigError: their protocols differ; the text lists the differences.
    """
    kinds = [value.protocol.settings.get(LIKELIHOOD) for value in (a, b)]
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"likelihoods of two kinds: {a.name} is {kinds[0]}, {b.name} is {kinds[1]}; score both models "
            "with the same options, or remove promote.rules.bits_per_dim"
        )
    if a.protocol_digest != b.protocol_digest:
        differences = "; ".join(protocol_differences(a.protocol, b.protocol))
        raise ConfigError(
            f"{a.name} and {b.name} are not comparable: {differences}; evaluate both with one recipe"
        )


def difference(a: MetricValue, b: MetricValue) -> float:
    """``a - b``. ConfigError if the protocols differ."""
    require_comparable(a, b)
    return a.value - b.value


def _flat(protocol: Protocol) -> dict[str, Any]:
    """The fields of a protocol, each of its settings as one field."""
    settings = {f"settings.{key}": value for key, value in protocol.settings.items()}
    return protocol.model_dump(mode="json", exclude={"settings"}) | settings


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
