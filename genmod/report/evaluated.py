"""What the page shows of an evaluation and of a training, checked before it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, model_validator

from genmod import units
from genmod.budget import BUDGET
from genmod.documents import parse_document, validate
from genmod.report.charts import Histogram

_REMEDY = "remove that folder and run its stage again"

_MAX_CURVE_POINTS = 10_000
"""Points of quality against network evaluations."""

_MAX_BINS = 1_000
_MAX_PAIRS = 1_000
_MAX_EVENTS = 10_000

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e100, le=1e100)]
"""A number that charts can scale."""

Count = Annotated[int, Field(ge=0, le=BUDGET.rows)]
Text = Annotated[str, Field(max_length=10_000)]


def _known_measure(measure: str) -> str:
    try:
        units.bits_per_dim(0.0, 1, measure)
    except ArithmeticError as error:
        raise ValueError(f"the range of {measure} is empty") from error
    return measure


Measure = Annotated[str, Field(max_length=100), AfterValidator(_known_measure)]
"""As :mod:`genmod.units` names measures."""


class _Shown(BaseModel):
    """Some of the fields of an object; others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Samples(_Shown):
    rows: Count
    sampler: Text = ""
    draws_from_p: bool = False


class _Features(_Shown):
    label: Text
    rows: Count
    val_accuracy: Number = 0.0
    val_rows: Count = 0
    refused: Text = ""
    """Why the features are not those of a classifier."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if ("val_accuracy" in self.model_fields_set) != ("val_rows" in self.model_fields_set):
            raise ValueError("val_accuracy and val_rows go together")
        return self


class _Classes(_Shown):
    samples: tuple[Count, ...] = Field(min_length=1, max_length=BUDGET.classes)
    reference: tuple[Count, ...] = Field(min_length=1, max_length=BUDGET.classes)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.samples) != len(self.reference):
            raise ValueError("samples and reference have different classes")
        return self


class _ClassShares(_Shown):
    """How samples and reference were brought to equal class shares."""

    classes: Text
    samples: Count
    of_samples: Count
    reference: Count
    of_reference: Count


class _Histogram(Histogram):
    low: Number
    high: Number
    counts: tuple[Count, ...] = Field(min_length=1, max_length=_MAX_BINS)
    below: Count = 0
    above: Count = 0


class _Prepared(_Shown):
    gap_nats: Number = 0.0
    gap_nats_stderr: Number = 0.0
    gap_rows: Number = 0.0


class _Scores(_Shown):
    label: Text
    estimator: Text
    of: Text
    measure: Measure
    budget: dict[Text, Annotated[int, Field(ge=-(2**63), lt=2**63)] | Number | Text]
    n: Count
    split: Text = ""
    mean_nats: Number
    mean_nats_stderr: Number
    mean_bits_per_dim: Number
    mean_bits_per_dim_stderr: Number
    prepared: _Prepared = _Prepared()
    histogram: _Histogram


class _Column(_Shown):
    name: Text
    meaning: Text
    auroc: Number
    stderr: Number
    own: Number
    other: Number
    recommended: bool


class _RowsOf(_Shown):
    own: Count
    other: Count


class _Rare(_Shown):
    p_corrected: Number


class _RareOf(_Shown):
    own: _Rare
    other: _Rare


class _Ood(_Shown):
    dataset: Text
    split: Text
    rows: _RowsOf
    columns: tuple[_Column, ...] = Field(max_length=100)
    rare_below: Number
    rare: _RareOf


class _CurvePoint(_Shown):
    curve: Text
    nfe: Number
    fd: Number


class _Pair(_Shown):
    """A sample and the training image that it is most like."""

    sample: Count
    sample_key: Text
    train_key: Text
    named: bool
    kind: Text
    p_value: Number
    q_value: Number
    distance: Number


class _Memorised(_Shown):
    samples: Count
    named: Count
    fdr: Number
    train_rows: Count
    held_out: Count
    train_against_others: Count
    shown: tuple[_Pair, ...] = Field(max_length=_MAX_PAIRS)


class _Extreme(_Shown):
    key: Text
    nats: Number


class _Extremes(_Shown):
    """The most and the least likely of the scored images."""

    most: tuple[_Extreme, ...] = Field(min_length=1, max_length=_MAX_PAIRS)
    least: tuple[_Extreme, ...] = Field(min_length=1, max_length=_MAX_PAIRS)


class _Evaluation(_Shown):
    """The metadata of an evaluation's manifest, without its metrics."""

    samples: _Samples
    features: _Features
    class_counts: _Classes | None = None
    class_shares: _ClassShares | None = None
    class_names: tuple[Text, ...] = Field(default=(), max_length=BUDGET.classes)
    scores: _Scores | None = None
    extremes: _Extremes | None = None
    unscored: Text = ""
    ood: _Ood | None = None
    memorisation: _Memorised | None = None
    quality_vs_nfe: tuple[_CurvePoint, ...] = Field(default=(), max_length=_MAX_CURVE_POINTS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        classes = len(self.class_counts.samples) if self.class_counts else 0
        if classes and len(self.class_names) not in (0, classes):
            raise ValueError(f"{len(self.class_names)} class names, {classes} classes")
        return self


class HistoryEntry(_Shown):
    """What was measured after some images, an element of history.json."""

    nimg: Annotated[int, Field(ge=0, lt=2**63)]
    metrics: dict[Annotated[str, Field(max_length=1000)], Number]


class _History(RootModel[Annotated[tuple[HistoryEntry, ...], Field(fail_fast=True)]]):
    pass


class _Trained(_Shown):
    """The metadata of a model's manifest."""

    family: Text
    monitor_events: tuple[Text, ...] = Field(default=(), max_length=_MAX_EVENTS)


class _LatentUse(_Shown):
    """The use of latents at the end of training."""

    active_units: Number
    kl_nats: Number
    mutual_information_nats: Number
    mutual_information_limit_nats: Number
    collapsed: Number


def shown_evaluation(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of an evaluation's metadata that the page shows, as JSON values that it can draw.

    Args:
        metadata: of the evaluation's manifest.
        where: name of the manifest, for the error.

    Raises:
        DataError: a field is missing, or of another type or size.
    """
    found = validate(_Evaluation, metadata, "an evaluation", where, _REMEDY)
    return found.model_dump(exclude_unset=True)


def read_history(data: bytes, where: str) -> tuple[HistoryEntry, ...]:
    """The content of a model's history.json. DataError if it is none."""
    return parse_document(_History, data, "a training history", where, _REMEDY).root


def family_and_events(metadata: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    """A model's family, and the events of its monitors, from its manifest. DataError if they are none."""
    found = validate(_Trained, metadata, "a trained model", where, _REMEDY)
    return found.family, found.monitor_events


def check_latent_use(values: Mapping[str, float], where: str) -> None:
    """Check that the page can show the use of latents. DataError if a number is missing."""
    validate(_LatentUse, dict(values), "the use of latents", where, _REMEDY)
