"""First lines of a stage: the data that it uses, before work begins."""

from __future__ import annotations

from collections.abc import Sequence

from genmod.generation.labels import listed
from genmod.manifest import SPLITS, DatasetManifest
from pipelines.jobs.sampling import SamplePlan
from pipelines.jobs.score_plan import ScorePlan

_MOST_CLASSES = 20


def train_lines(data: DatasetManifest) -> list[str]:
    """Images, classes and rows of the dataset that models are trained on."""
    rows = ", ".join(f"{split} {data.rows(split):,}" for split in SPLITS)
    lines = [f"train: images {data.spec}{_names(data.class_names)}; rows: {rows}"]
    if empty := data.empty_classes("train"):
        lines.append(
            f"train: the dataset has no training rows of class {listed(empty, data.class_names)}; without a "
            "mixture that has some, it is not dealt out when labels are balanced"
        )
    return lines


def sample_line(plan: SamplePlan) -> str:
    """Images and labels that are requested of a model."""
    labels = plan.labels.description(plan.class_names)
    return f"sample {plan.name}: {plan.rows:,} images {plan.spec}; labels: {labels}"


def score_line(plan: ScorePlan) -> str:
    """Rows that a model scores, and how their labels are read."""
    labels = "as they are" if not plan.label_map else "matched to the model's by class name"
    text = f"; labels: {labels}" if plan.spec.classes else ""
    return f"score {plan.name}: {plan.rows:,} rows of split {plan.config.split} of {plan.data_root}{text}"


def _names(class_names: Sequence[str]) -> str:
    return f": {listed(range(len(class_names)), class_names, _MOST_CLASSES)}" if class_names else ""
