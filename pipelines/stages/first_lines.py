"""Lines of a stage: the data that it uses, before work begins; what scores came to."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, FiniteFloat

from genmod.documents import validate
from genmod.errors import sanitize
from genmod.generation.labels import listed
from genmod.generation.request import SampleRequest
from genmod.manifest import SPLITS, ImageSpec, Manifest, Split
from pipelines.recipe.checks import Data

_MOST_CLASSES = 20


def train_lines(data: Data) -> list[str]:
    """Images, classes and rows of the dataset that models are trained on."""
    rows = ", ".join(f"{split} {data.rows[split]:,}" for split in SPLITS)
    lines = [f"train: images {data.spec}{_names(data.class_names)}; rows: {rows}"]
    if empty := data.empty_classes:
        lines.append(
            f"train: the dataset has no training rows of class {listed(empty, data.class_names)}; without a "
            "mixture that has some, it is not dealt out when labels are balanced"
        )
    return lines


def sample_line(
    name: str, request: SampleRequest, spec: ImageSpec, class_names: Sequence[str]
) -> str:
    """Images and labels that are requested of a model.

    Args:
        name: of the model.
        request: the recipe's, resolved against the model's classes.
        spec: of the model's images.
        class_names: names of the model's classes, if they have names.
    """
    labels = request.label_text(class_names)
    return f"sample {name}: {request.rows:,} images {spec}{_names(class_names)}; labels: {labels}"


def score_line(
    name: str, rows: int, spec: ImageSpec, split: Split, data_root: str, *, label_map: Sequence[int]
) -> str:
    """Rows that a model scores, and how their labels are read.

    Args:
        name: of the model.
        rows: how many.
        spec: of the dataset that is scored.
        split: whose rows are scored.
        data_root: URL of the dataset.
        label_map: the model's number of each of the dataset's classes; empty if they are equal.
    """
    labels = "matched to the model's by class name" if label_map else "as they are"
    text = f"; labels: {labels}" if spec.classes else ""
    return f"score {name}: {rows:,} rows of split {split} of {data_root}, images {spec}{text}"


class _Interval(BaseModel):
    low: FiniteFloat
    high: FiniteFloat


class _Mean(BaseModel):
    """What the line about finished scores says."""

    n: int
    split: str
    label: str
    estimator: str
    mean_nats: FiniteFloat
    mean_bits_per_dim: FiniteFloat
    quarantined: int = 0
    split_rows: int | None = None
    split_mean_nats: _Interval | None = None


def mean_line(title: str, manifest: Manifest) -> str:
    """The mean of finished scores, with its interval for the whole split."""
    where, remedy = f"the manifest of {title}", "remove its folder and score again"
    mean = validate(_Mean, manifest.metadata, "the manifest of scores", where, remedy)
    lost = f"{mean.quarantined:,} rows in quarantine; " if mean.quarantined else ""
    interval = ""
    if mean.split_mean_nats is not None:
        low, high = mean.split_mean_nats.low, mean.split_mean_nats.high
        rows = "the other" if mean.quarantined else f"all {mean.split_rows:,}"
        interval = f", 95 % interval {low:.2f} to {high:.2f} for {rows} rows of {mean.split}"
    kind = f"{sanitize(mean.label)} by {sanitize(mean.estimator)}"
    return (
        f"  {title}: {lost}mean of {mean.n:,} rows {mean.mean_nats:.2f} nats, "
        f"{mean.mean_bits_per_dim:.4f} bits per dimension ({kind}){interval}"
    )


def _names(class_names: Sequence[str]) -> str:
    return f": {listed(range(len(class_names)), class_names, _MOST_CLASSES)}" if class_names else ""
