"""What a spool contains: one JSON line for each thing that a run logs, enough to log it later."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from genmod import storage
from genmod.config import Config
from genmod.serving.settings import ServingSettings

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_Text = Annotated[str, Field(max_length=65_536)]
_Time = Annotated[int, Field(ge=0, le=1 << 53)]
_Number = Annotated[int, Field(ge=0, le=1 << 40)]
_Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]

MetricRow = tuple[_Time, Annotated[int, Field(ge=0, le=1 << 60)], dict[_Text, float]]
"""Time in ms, nimg, and values by metric."""


class RunRecord(Config):
    """A run was opened."""

    kind: Literal["run"] = "run"
    run: _Number
    """Number of the run in this spool; later records name it."""
    parent: _Number | None = None
    """Number of the run that this one is a part of."""
    stage: str = Field(pattern=r"^[a-z]+$", max_length=32)
    name: str = Field(pattern=r"^[^'\\]*$", max_length=5_000)
    fingerprint: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=250)
    params: dict[_Text, _Text]
    inputs: dict[_Text, tuple[_Text, _Text]]
    """Name of an input -> (URL, digest)."""
    time_ms: _Time


class MetricsRecord(Config):
    """Metrics of a run were logged."""

    kind: Literal["metrics"] = "metrics"
    run: _Number
    points: tuple[MetricRow, ...]


class ArtifactRecord(Config):
    """A file was logged: its address and digest, not its content."""

    kind: Literal["artifact"] = "artifact"
    run: _Number
    url: storage.Url
    folder: str = Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$", max_length=200)
    digest: _Sha256
    """SHA-256 of the file; empty if it could not be read."""


class ModelRecord(Config):
    """A model was to be registered."""

    kind: Literal["model"] = "model"
    run: _Number
    name: storage.Name
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of the model's manifest."""
    root: storage.Url
    recipe_yaml: str = Field(max_length=1 << 20)
    serving: ServingSettings | None = None


class EndRecord(Config):
    """A run ended, with a status and tags."""

    kind: Literal["end"] = "end"
    run: _Number
    status: RunStatus
    tags: dict[_Text, _Text]
    time_ms: _Time


class OutcomeRecord(Config):
    """A report about a command is for the webhook."""

    kind: Literal["outcome"] = "outcome"
    delivery: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Id of the report, the same each time that it is sent."""
    body: _Text


class DeliveredRecord(Config):
    """The webhook has accepted a report."""

    kind: Literal["delivered"] = "delivered"
    delivery: str = Field(pattern=r"^[0-9a-f]{32}$")


class ClosedRecord(Config):
    """The command ended: nothing is added to the spool after this."""

    kind: Literal["closed"] = "closed"


OwnRecord = MetricsRecord | ArtifactRecord | ModelRecord | EndRecord
"""A record of a run that names its number."""

SpoolRecord = RunRecord | OwnRecord | OutcomeRecord | DeliveredRecord | ClosedRecord


class SpoolLine(RootModel[Annotated[SpoolRecord, Field(discriminator="kind")]]):
    """One line of a spool's file."""
