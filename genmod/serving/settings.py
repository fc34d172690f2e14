"""How a registered model answers: the settings of its jobs, and the limits of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from genmod import storage
from genmod.budget import ReadBudget
from genmod.config import Config
from genmod.generation.config import MAX_MICRO_BATCH, RequestValue, SampleConfig
from genmod.generation.filters import FilterConfig
from genmod.generation.labels import LabelRequest
from genmod.generation.request import resolve_request
from genmod.interface.model_store import CONFIG, WEIGHTS, ModelClasses, Weights
from genmod.manifest import MANIFEST_NAMES, ImageSpec

SETTINGS_FILE = "serving.json"
"""Name of the file with the settings, next to the model's files."""

_MAX_ROWS = 256
_MAX_PIXELS = 1 << 22
"""Values of the images of one request, at most."""

_IMAGE_OVERHEAD = 4096
"""Bytes of an encoded image beyond its pixels, at most."""

_MAX_BODY_BYTES = 64 << 20

MAX_MICRO_BATCHES = 16
"""Micro-batches that one request makes the model compute, at most."""

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class SampleSettings(Config):
    """Settings of the sampling job that an index belongs to."""

    seed: Seed
    micro_batch: int = Field(gt=0, le=MAX_MICRO_BATCH)
    weights: Weights
    options: dict[str, Any]
    """Of the family's sampler."""
    labels: int | str
    """The recipe's ``sample.labels``."""
    request: RequestValue | None = None
    """The recipe's ``sample.request``; one by class decides which labels indices have."""
    filters: FilterConfig = FilterConfig()
    """The recipe's ``sample.filters``, which decide the same; requests get rejected images too."""

    def label_request(self, spec: ImageSpec, classes: ModelClasses) -> LabelRequest:
        """The labels of the job's images. ConfigError if the model lacks one of its classes.

        Args:
            spec: of the model's images.
            classes: of the model.
        """
        config = SampleConfig(
            labels=self.labels,
            request=self.request,
            filters=self.filters,
            micro_batch=self.micro_batch,
        )
        names, empty = classes.class_names, classes.empty_classes
        return resolve_request(config, spec, names, empty).labels


class ScoreSettings(Config):
    """Settings of the scoring job that an image would be a row of."""

    seed: Seed
    micro_batch: int = Field(gt=0, le=MAX_MICRO_BATCH)
    weights: Weights
    options: dict[str, Any]
    """Of the family's estimator of log p."""


class ServingSettings(Config):
    """Everything that a registered model answers requests with, besides its files."""

    format: Literal[1] = 1
    model_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of the model's manifest."""
    root: storage.Url
    """URL of the folder that the model was trained into; read for weights that were not copied."""
    sample: SampleSettings
    score: ScoreSettings

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files of the model's folder that requests need."""
        weights = sorted({WEIGHTS[self.sample.weights], WEIGHTS[self.score.weights]})
        return CONFIG, MANIFEST_NAMES["model"], *weights


@dataclass(frozen=True)
class Overrides:
    """Settings that one request changes; None where it does not."""

    seed: int | None = None
    micro_batch: int | None = None
    """Images that are generated together: at most as many as in the job."""
    options: str | None = None
    """JSON object with options of the sampler."""


@dataclass(frozen=True)
class Limits:
    """Upper limits of one request, which bound the memory that it takes."""

    rows: int
    body_bytes: int

    @classmethod
    def of(cls, spec: ImageSpec) -> Self:
        """Limits for images of a format: the larger they are, the fewer fit into a request."""
        rows = max(1, min(_MAX_ROWS, _MAX_PIXELS // spec.dims))
        base64_bytes = (spec.dims + _IMAGE_OVERHEAD) * 4 // 3
        return cls(rows, min(_MAX_BODY_BYTES, (1 << 16) + rows * base64_bytes))

    @property
    def budget(self) -> ReadBudget:
        """Limits of the JSON document of a request."""
        return ReadBudget(
            document_bytes=self.body_bytes, json_values=16 * self.rows + 256, nesting=8
        )
