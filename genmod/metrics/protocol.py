"""How a model is judged, and what a number must say of itself before it may be compared.

A value carries the protocol it was measured by: feature space, reference, split, how many rows on either
side, settings. Two values with unlike protocols are not comparable, and asking for it is an error.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from genmod.config import Config, fingerprint
from genmod.errors import ConfigError
from genmod.manifest import Split
from genmod.metrics.features import FeaturesConfig

LEVEL = 0.95
"""Coverage that every interval aims at."""

Z = 1.959963984540054
"""Half width of a normal interval of :data:`LEVEL`, in standard errors."""

Better = Literal["lower", "higher"]


class EvaluateConfig(Config):
    """The recipe's ``evaluate``: what samples are compared with, and how finely."""

    reference: Split = "test"
    """The split of the real data that stands for the truth. Nothing may be trained on it."""
    images: int = Field(default=10_000, ge=10)
    """At most so many rows of the samples and of the reference are used."""
    neighbours: int = Field(default=5, ge=1)
    """k of precision, recall, density and coverage."""
    bootstrap: int = Field(default=200, ge=20)
    """Resamplings behind an interval."""
    memorisation_images: int = Field(default=2_000, ge=10)
    """At most so many samples are searched for among the training images."""
    memorisation_train_images: int = Field(default=20_000, ge=10)
    """At most so many training images are searched."""
    ood: str | None = None
    """Folder (a ``score.output``) with scores of other data, to report how well they are told from the
    model's own; of every model that has a density."""
    curve_images: int | None = Field(default=None, ge=10)
    """Samples for each point of the report's curve of quality against calls of the net; null for no curve."""
    deadline_s: float = Field(default=3600.0, gt=0)
    """For fitting the features, and for judging one model."""
    features: FeaturesConfig = FeaturesConfig()

    def result(self) -> dict[str, Any]:
        """The fields that a judgement depends on beside the features, for the fingerprint."""
        curve = set() if self.curve_images else {"curve_images"}
        return self.model_dump(mode="json", exclude={"deadline_s", "features", "ood", *curve})


class Interval(Config):
    """Where the value would lie if the samples were drawn again; the reference stays."""

    low: float
    high: float
    level: float = LEVEL
    method: str


class Protocol(Config):
    """Everything that two values must share before they may be compared."""

    metric: str
    features: str
    """Name of the feature space with the head of its digest, e.g. ``classifier-v1@1a2b3c4d``."""
    features_digest: str
    reference_digest: str
    """Of the manifest of the real data."""
    reference_split: Split
    n_real: int
    n_fake: int
    pixels: Literal["uint8"] = "uint8"
    settings: dict[str, int | float | str] = {}

    @property
    def digest(self) -> str:
        """64 hex digits."""
        return fingerprint(self)

    @property
    def name(self) -> str:
        """As it is shown with every number: ``fd[classifier-v1@1a2b3c4d]``."""
        return f"{self.metric}[{self.features}]"


class MetricValue(Config):
    """A number with its label."""

    name: str
    value: float
    interval: Interval
    protocol: Protocol
    protocol_digest: str

    @classmethod
    def of(cls, protocol: Protocol, value: float, interval: Interval) -> Self:
        """A value measured by a protocol."""
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
            raise ValueError(f"{self.name} does not fit the protocol it claims")
        return self


class MetricResult(Config):
    """A model's value beside what is possible by the same protocol."""

    value: MetricValue
    floor: MetricValue | None
    """Real training images in the samples' place: as good as it gets with so many rows."""
    ceiling: MetricValue | None
    """Uniform noise in the samples' place."""
    better: Better

    @property
    def relative_position(self) -> float | None:
        """0 where real images are, 1 where noise is; may lie outside. None without both ends."""
        if self.floor is None or self.ceiling is None:
            return None
        width = self.ceiling.value - self.floor.value
        return (self.value.value - self.floor.value) / width if width else None


def protocol_differences(a: Protocol, b: Protocol) -> list[str]:
    """Where two protocols differ, as texts ``n_fake 1000 against 500``."""
    mine, theirs = a.model_dump(mode="json"), b.model_dump(mode="json")
    return [
        f"{key} {_short(mine[key])} against {_short(theirs[key])}"
        for key in mine
        if mine[key] != theirs[key]
    ]


def require_comparable(a: MetricValue, b: MetricValue) -> None:
    """Refuse two values that were not measured alike.

    Raises:
        ConfigError: and says in what their protocols differ.
    """
    if a.protocol_digest != b.protocol_digest:
        differences = "; ".join(protocol_differences(a.protocol, b.protocol))
        raise ConfigError(
            f"{a.name} and {b.name} are not comparable: {differences}; evaluate both with one recipe"
        )


def difference(a: MetricValue, b: MetricValue) -> float:
    """``a - b``, if they were measured alike. Raises ConfigError otherwise."""
    require_comparable(a, b)
    return a.value - b.value


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
