"""Metrics on their way from rank 0 to whoever watches: one small JSON object per logged step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from genmod import storage
from genmod.config import canonical_json
from genmod.training.writer import storage_errors

FOLDER = "metrics"
"""Below a model's root."""


@dataclass(frozen=True)
class MetricPoint:
    """What was measured after ``nimg`` images."""

    nimg: int
    metrics: Mapping[str, float]
    """The same whenever and wherever this step is computed."""
    timing: Mapping[str, float]
    """Speeds and waits, which are not."""


def write_metrics(root: str, point: MetricPoint) -> None:
    """Put a point into the spool. After a restart it is written again, with the same metrics."""
    values = {"nimg": point.nimg, "metrics": point.metrics, "timing": point.timing}
    folder = storage.join(root, FOLDER)
    with storage_errors(folder, f"the metrics at {point.nimg:,} images"):
        storage.write_bytes(storage.join(folder, f"{point.nimg:012d}.json"), canonical_json(values))


def read_metrics(root: str, after_nimg: int = -1) -> list[MetricPoint]:
    """The points of a model's folder that come after ``after_nimg``, in order."""
    folder = storage.join(root, FOLDER)
    points: list[MetricPoint] = []
    for name in storage.list_names(folder):
        stem = name.removesuffix(".json")
        if stem.isdecimal() and int(stem) > after_nimg:
            values = json.loads(storage.read_bytes(storage.join(folder, name)))
            points.append(MetricPoint(int(values["nimg"]), values["metrics"], values["timing"]))
    return points
