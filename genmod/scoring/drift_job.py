"""The check of new rows of a source for drift, without Ray: reads and scores them, publishes a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from genmod.config import Config, fingerprint, parse
from genmod.data.format import binary
from genmod.data.format.foreign import Rejected, Resize
from genmod.data.sources.config import SourceOptions
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import converted
from genmod.documents import validate
from genmod.errors import DataError
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb
from genmod.interface.manifest_job import ManifestJob
from genmod.interface.model_store import load_model
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import ImageSpec, Manifest
from genmod.rng import rng_for
from genmod.scoring.calibrated import read_scores
from genmod.scoring.config import ScoreConfig
from genmod.scoring.drift import Drift, measure_drift
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, compressed_bits
from genmod.scoring.table import Rows, Scores
from genmod.scoring.work_units import SCORE_PURPOSE, prepare

_FIRST_INDEX = 1 << 40
"""Address of the random numbers of the first new row; rows of a dataset have smaller ones."""


class NewRows(Config):
    """Rows of a source that no version of the dataset has."""

    source: str
    """``KIND:WHERE``, absolute."""
    options: SourceOptions
    source_fingerprint: str
    resize: Resize
    refs: tuple[Any, ...]
    """Where each image is in the source."""
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    """Class of each row; None for data without labels."""


class DriftJob(ManifestJob):
    """Score new rows with a champion, and compare them with held-out rows that it has scored."""

    kind = "drift"
    name: str
    """Of the model."""
    model_root: str
    scores_root: str
    """URL of the champion's scores of held-out rows."""
    data_root: str
    """URL of the dataset that the champion belongs to."""
    spec: ImageSpec
    rows: NewRows
    config: ScoreConfig
    seed: int = 0

    def inputs(self, snapshot: ManifestSnapshot) -> dict[str, Manifest]:
        """The manifests of all inputs, by name. ConfigError if one is absent."""
        return {
            "model": snapshot.model(self.model_root).manifest,
            "scores": snapshot.require(Manifest, self.scores_root, "scores", "score"),
            "data": snapshot.dataset(self.data_root),
        }

    def fingerprint(self, inputs: Mapping[str, Manifest]) -> str:
        """Fingerprint of the work on these inputs."""
        digests = {name: manifest.digest for name, manifest in inputs.items()}
        rows = {"names": self.rows.names, "source": self.rows.source_fingerprint}
        return fingerprint("drift", digests, rows, self.seed)

    def make(
        self, inputs: Mapping[str, Manifest], expected: str, snapshot: ManifestSnapshot
    ) -> Manifest:
        """Score the new rows, and compare them."""
        known = read_scores(self.scores_root, inputs["scores"])
        drift = measure_drift(known, self._score(inputs["scores"], snapshot), self.spec)
        return Manifest(
            kind=self.kind,
            fingerprint=expected,
            parents={name: manifest.digest for name, manifest in inputs.items()},
            metadata={"model": self.name, "drift": drift.model_dump(mode="json")},
        )

    def _score(self, scores: Manifest, snapshot: ManifestSnapshot) -> Scores:
        """Scores of the new rows, with the options of the known scores."""
        model = load_model(self.model_root, self.config.weights)
        given: Any = scores.metadata.get("options", {})
        options = parse(type(model).Score, given, f"model.{self.name}.score")
        data = snapshot.dataset(self.data_root)
        prepared = prepare(model, options, self.data_root, data, seed=self.seed).options
        batch = read_new_rows(self.rows, self.spec)
        parts: list[LogProb] = []
        for first in range(0, len(batch), self.config.micro_batch):
            part = batch.rows(slice(first, first + self.config.micro_batch))
            rng = rng_for(self.seed, SCORE_PURPOSE, part.index_B)
            parts.append(model.log_prob(part, rng, prepared))
        names = [str(index) for index in batch.index_B.tolist()]
        found = Scores.from_log_probs(Rows(names, batch.index_B, batch.labels_B), parts)
        return found.with_columns({COMPRESSED_COLUMN: compressed_bits(batch.pixels_BCHW)})


def read_new_rows(rows: NewRows, spec: ImageSpec) -> Batch:
    """The new images that can be used, as the dataset will have them.

    Raises:
        DataError: none can be used, or the source has changed.
    """
    images: list[torch.Tensor] = []
    taken: list[int] = []
    fetched = open_source(rows.source, rows.options).fetch(rows.refs, rows.source_fingerprint)
    for position, image in enumerate(fetched):
        try:
            pixels_HWC = converted(image, spec, rows.resize)
        except Rejected:
            continue
        images.append(torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1))
        taken.append(position)
    if not images:
        raise DataError(f"{rows.source}: none of {len(rows.refs)} new images is readable")
    row_N = torch.tensor(taken)
    pixels_NCHW, index_N = torch.stack(images), row_N + _FIRST_INDEX
    if spec.draw_seed is not None:
        pixels_NCHW = binary.draw(pixels_NCHW, spec.draw_seed, "new", index_N)
    labels_N = None if rows.labels is None else torch.tensor(rows.labels)[row_N]
    return Batch(pixels_NCHW, labels_N, index_N)


def drift_from(manifest: Manifest, root: str) -> Drift:
    """The finding in the manifest of a check for drift. DataError if it is none."""
    remedy = "remove that folder and run genmod retrain again"
    return validate(Drift, manifest.metadata.get("drift"), "a finding about drift", root, remedy)
