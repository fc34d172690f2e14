"""The recipe's ``sample``: what is generated, and how the work is divided."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config
from genmod.data.format.encodings import DEFAULT_JPEG_QUALITY, Encoding, ImageFormat
from genmod.data.format.image_table import ImageTable
from genmod.data.format.shards import ShardFormat
from genmod.generation.filters import FilterConfig
from genmod.numerics import NumericsMode

MAX_MICRO_BATCH = 1 << 16
"""Images that are generated together, at most."""

_MODEL_URI = re.compile(r"models:/[^/@'\\]{1,200}(@[A-Za-z0-9_-]{1,100}|/[0-9]{1,9})")
_LICENCE = re.compile(r"[A-Za-z0-9._+-]{0,100}")

_Count = Annotated[int, Field(gt=0, le=BUDGET.rows)]
_Index = Annotated[int, Field(ge=0, le=BUDGET.rows)]
_Class = (
    Annotated[int, Field(ge=0, lt=BUDGET.classes)]
    | Annotated[str, Field(min_length=1, max_length=BUDGET.name_chars)]
)

RequestValue = (
    _Count
    | Annotated[dict[_Class, _Count], Field(min_length=1, max_length=BUDGET.classes)]
    | Annotated[list[tuple[_Index, _Index]], Field(min_length=1, max_length=10_000)]
)
"""A number of images, a number for each class, or ranges of indices."""


class SampleBudget(Config):
    """Limits of a job, after which it publishes the dataset that it has by then."""

    hours: float = Field(gt=0, le=1e5)
    """Time from the start of the workers."""


class SampleConfig(Config):
    """The recipe's ``sample``: number of images, their labels, and the division of the work."""

    count: int = Field(default=10_000, gt=0, le=BUDGET.rows)
    """Images to generate with each model."""
    request: RequestValue | None = None
    """What to generate instead of ``count`` images: a number; a number for each class, ``{cat: 5000, dog:
    200}`` (by name or number, as for ``labels``); or ranges of indices, ``[[0, 1000], [5000, 6000]]``, each
    without its end. A larger request contains the images of a smaller one."""
    labels: int | str = "auto"
    """``balanced`` cycles through the classes with training rows; the name or number of a class generates
    that class only (``name:10`` or ``number:9`` where a number is also the name of another class); ``none``
    is for models without labels. ``auto``: balanced if the model has classes, else none."""
    filters: FilterConfig = FilterConfig()
    """Images that are rejected. The dataset then has the first images that are not, in the order of their
    indices and exactly as many as requested of each class; ``rejected.parquet`` lists the others."""
    max_tries: float = Field(default=20.0, ge=1, le=1e6)
    """With filters: images generated for each image requested, at most. A request that cannot be met within
    this limit ends after a small part of the work."""
    max_quarantined: int = Field(default=0, ge=0, le=BUDGET.rows)
    """Images that may be missing because they cannot be generated (NaN, or past the deadline alone). With
    more of them, the dataset without them is published and the command exits with 1."""
    shard_rows: int = Field(default=1_000, gt=0, le=BUDGET.shard_rows)
    """Images per shard, the unit of work. Multiples of ``micro_batch`` are the most efficient. Does not
    affect the images."""
    micro_batch: int = Field(default=100, gt=0, le=MAX_MICRO_BATCH)
    """Images that the model generates together. Affects the result: it determines how sums are rounded."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Addresses the random numbers of the samples alone; other images of the same models, in another
    ``output``. Default: the recipe's ``seed``."""
    workers: int = Field(default=1, gt=0, le=65_536)
    """Number of Ray actors, each with the model on its own device. Does not affect the result."""
    numerics: NumericsMode = "strict"
    """Which processors may work on one dataset. Another kind of CPU or GPU may round pixels differently.
    ``strict``: only those that compute the same bits as the first one. ``portable``: only instructions that
    every x86 CPU has, slower and the same bits on all. ``any``: all; the manifest lists the kinds."""
    weights: Literal["ema", "raw"] = "ema"
    """``ema``: the moving average; ``raw``: the trained weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: cuda where the recipe's ``cluster.gpus_per_worker`` is above 0."""
    output: storage.OutputFolder = "samples"
    """Folder below the root, or a URL, with a folder per model. ``evaluate`` reads the default one."""
    deadline_s: float = Field(default=3600.0, gt=0, le=1e7)
    """Time limit of one shard. A shard beyond it is tried on another node, then in halves."""
    model: storage.Line | None = None
    """A version in MLflow's registry to sample instead of the recipe's own model:
    ``models:/NAME@champion`` or ``models:/NAME/3``. Select one model with ``--model``, and another
    ``output``."""
    image_format: ImageFormat = "png"
    """How images are stored in the tars. ``png``, ``webp`` (without loss) and ``npy`` (uint8 arrays of
    height, width, channels) keep every pixel. ``jpeg`` is lossy: filters, statistics and every reader see
    the decoded images."""
    jpeg_quality: int = Field(default=DEFAULT_JPEG_QUALITY, ge=1, le=100)
    """Quality of ``image_format: jpeg``; colours are not subsampled."""
    parquet: bool = False
    """Also write the images as Parquet, ``NAME.images.parquet`` next to each tar, with the columns image,
    label, index and key as Hugging Face's ``datasets`` reads them. Not with ``image_format: npy``."""
    licence: storage.Line = ""
    """Licence in the card of the dataset, an identifier of the Hugging Face Hub, e.g. ``cc-by-4.0``."""
    budget: SampleBudget | None = None
    """Limits of the job. Where one is reached, and on Ctrl-C, the images that are done become a valid smaller
    dataset; the same command grows it."""

    @field_validator("model")
    @classmethod
    def _check_model(cls, text: str | None) -> str | None:
        if text is not None and not _MODEL_URI.fullmatch(text):
            raise ValueError("expected models:/NAME@ALIAS or models:/NAME/VERSION")
        return text

    @field_validator("licence")
    @classmethod
    def _check_licence(cls, text: str) -> str:
        if not _LICENCE.fullmatch(text):
            raise ValueError("expected an identifier of letters, digits and . _ + -")
        return text

    @model_validator(mode="after")
    def _check_formats(self) -> SampleConfig:
        if self.parquet and self.image_format == "npy":
            raise ValueError(
                "parquet needs images that readers of tables decode: image_format png, jpeg or webp, got npy"
            )
        return self

    @property
    def encoding(self) -> Encoding:
        """How images are encoded."""
        return Encoding(self.image_format, self.jpeg_quality)

    def stored_as(self, classes: int, class_names: tuple[str, ...] = ()) -> ShardFormat:
        """How images of a dataset with these classes are stored."""
        table = ImageTable(classes, class_names) if self.parquet else None
        return ShardFormat(self.encoding, table)

    def stream(self) -> dict[str, Any]:
        """Fields that determine the images; labels and seed are part of the fingerprint by their values."""
        values = self.model_dump(mode="json", include={"micro_batch", "weights"})
        if filters := self.filters.result():
            values["filters"] = filters
        if self.numerics == "portable":
            values["numerics_mode"] = self.numerics
        if self.image_format != "png":
            values["image_format"] = self.image_format
        if self.encoding.is_lossy:
            values["jpeg_quality"] = self.jpeg_quality
        if self.parquet:
            values["parquet"] = True
        return values

    def with_count(self, count: int) -> SampleConfig:
        """The same settings for the first ``count`` images, without filters."""
        changes = {"count": count, "request": None, "filters": FilterConfig()}
        return self.model_copy(update=changes)
