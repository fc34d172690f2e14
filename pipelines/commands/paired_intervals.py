"""The paired comparison of two models that a retrain has published, as intervals of their differences."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from genmod import storage
from genmod.evaluation.comparison import differences_from
from genmod.evaluation.differences import MetricDifference
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, Manifest
from genmod.metrics.intervals import symmetric_interval

_IMAGES = re.compile(r"images-[0-9]{1,9}")
"""Folder of a comparison of more images."""


@dataclass(frozen=True)
class PairedDifference:
    """The difference of one metric, second model minus first, with its interval."""

    difference: float
    low: float
    high: float
    rows: int
    """Images, or rows of a likelihood, that were compared."""


def paired_differences(
    first: tuple[str, Manifest], second: tuple[str, Manifest], snapshot: ManifestSnapshot
) -> dict[str, PairedDifference]:
    """The differences of two models that were compared by samples with the same noise, by metric.

    Args:
        first: URL and manifest of an evaluation of a model.
        second: the same of another one.
        snapshot: the manifests that the command has read.

    Returns:
        Nothing if no retrain has compared them.
    """
    for (candidate, champion), sign in (((second, first), 1), ((first, second), -1)):
        gains = _gains(candidate, champion, snapshot)
        if gains:
            return {gain.metric: _difference(gain, sign) for gain in gains}
    return {}


def _gains(
    candidate: tuple[str, Manifest], champion: tuple[str, Manifest], snapshot: ManifestSnapshot
) -> tuple[MetricDifference, ...]:
    """Gains of a candidate over a champion; those of the most images. Empty if they were not compared."""
    (root, evaluation), (_, of_champion) = candidate, champion
    top, _, name = root.rstrip("/").rpartition("/evaluation/")
    digest = str(of_champion.metadata.get("model_digest"))
    if not top or "/" in name or not re.fullmatch("[0-9a-f]{64}", digest):
        return ()
    folder = storage.join(top, "champion", name, digest[:16])
    grown = [name for name in storage.list_names(folder) if _IMAGES.fullmatch(name)]
    grown.sort(key=lambda name: int(name.partition("-")[2]), reverse=True)
    for place in (*(storage.join(folder, name) for name in grown), folder):
        where = storage.join(place, "comparison")
        comparison = snapshot.load(Manifest, where, "comparison")
        if comparison is None:
            continue
        drawn = storage.join(place, "samples")
        sides = {"candidate": evaluation, "champion": of_champion}
        if all(
            comparison.parents.get(side)
            in _samples(each, (drawn, storage.join(place, side, "samples")), snapshot)
            for side, each in sides.items()
        ):
            return differences_from(comparison, where)
    return ()


def _samples(evaluation: Manifest, roots: tuple[str, ...], snapshot: ManifestSnapshot) -> set[str]:
    """Digests of the samples of an evaluated model: those of its evaluation, and those at some URLs."""
    digests = {evaluation.parents.get("samples", "none")}
    for root in roots:
        data = snapshot.load(DatasetManifest, root, "dataset")
        if data is not None and data.parents.get("model") == evaluation.metadata["model_digest"]:
            digests.add(data.digest)
    return digests


def _difference(gain: MetricDifference, sign: int) -> PairedDifference:
    """The difference of candidate minus champion, with the sign of second minus first."""
    value = sign * (-gain.gain if gain.better == "lower" else gain.gain)
    freedom = gain.freedom if math.isfinite(gain.freedom) else None
    interval = symmetric_interval(value, gain.stderr, "paired", freedom)
    return PairedDifference(value + 0.0, interval.low, interval.high, gain.rows)
