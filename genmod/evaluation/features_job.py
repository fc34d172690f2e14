"""The fit of the feature space, without Ray: reads the training split, publishes a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genmod.config import fingerprint
from genmod.errors import DataError
from genmod.evaluation.images import Images, read_shuffled, split_digest
from genmod.interface.manifest_job import ManifestJob
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, ImageSpec, Manifest
from genmod.metrics.chance import beats_chance
from genmod.metrics.features import Extractor, FeaturesConfig, fit_extractor, save_extractor
from genmod.metrics.protocol import EvaluateConfig

LEAST_HELD = 20
"""Fewer validation images cannot show that a classifier is better than chance."""


class FeaturesJob(ManifestJob):
    """Fit the feature space to a dataset's training split."""

    kind = "features"
    data_root: str
    config: EvaluateConfig
    seed: int = 0

    def inputs(self, snapshot: ManifestSnapshot) -> dict[str, Manifest]:
        """The manifest of the dataset. ConfigError if it is absent."""
        return {"data": snapshot.dataset(self.data_root)}

    def fingerprint(self, inputs: Mapping[str, Manifest]) -> str:
        """Fingerprint of the work on this dataset. ConfigError if the features cannot be computed."""
        data = inputs["data"]
        assert isinstance(data, DatasetManifest)
        self.config.features.extractor(data.spec)
        settings = self.config.features.result()
        return fingerprint("features", settings, split_digest(data, "train"), self.seed)

    def make(
        self, inputs: Mapping[str, Manifest], expected: str, snapshot: ManifestSnapshot
    ) -> Manifest:
        """Fit the feature space."""
        del snapshot
        data = inputs["data"]
        assert isinstance(data, DatasetManifest)
        train = read_shuffled(self.data_root, data, "train", self.config.features.rows)
        held = None
        if data.spec.classes and data.rows("val"):
            held = read_shuffled(self.data_root, data, "val", self.config.features.rows)
        extractor, found = fit_features(self.config.features, data.spec, train, held, self.seed)
        metadata: dict[str, Any] = {
            "label": extractor.label,
            "digest": extractor.digest,
            "rows": len(train),
            **found,
        }
        return Manifest(
            kind=self.kind,
            fingerprint=expected,
            parents={"data": data.digest},
            files=save_extractor(extractor, self.out_root),
            metadata=metadata,
        )


def fit_features(
    config: FeaturesConfig, spec: ImageSpec, train: Images, held: Images | None, seed: int
) -> tuple[Extractor, dict[str, Any]]:
    """Fit the recipe's feature space; principal components where a classifier would have learned nothing.

    Args:
        config: kind of the extractor and its training.
        spec: description of the images.
        train: training images.
        held: validation images. If they are fewer than :data:`LEAST_HELD`, the classifier is judged by the
            training images.
        seed: seed of the run.

    Returns:
        the feature space, and what was found: ``val_accuracy`` and ``val_rows`` of a classifier, or
        ``refused``, the reason why there is none.

    Raises:
        DataError: the recipe demands a classifier, and it would have learned nothing.
    """
    if config.extractor(spec).kind != "classifier":
        return fit_extractor(config, spec, train.pixels_NCHW, train.labels_N, seed), {}
    if train.labels_N is not None and len(train.labels_N.unique()) < 2:
        refused = "the training images have one class only"
    else:
        extractor = fit_extractor(config, spec, train.pixels_NCHW, train.labels_N, seed)
        refused, found = _judge(extractor, train, held)
        if not refused:
            return extractor, found
    if config.kind == "classifier":
        raise DataError(
            f"evaluate.features.kind is 'classifier', but {refused}; use 'auto' or 'pca'"
        )
    components = config.model_copy(update={"kind": "pca"})
    return fit_extractor(components, spec, train.pixels_NCHW, None, seed), {"refused": refused}


def _judge(extractor: Extractor, train: Images, held: Images | None) -> tuple[str, dict[str, Any]]:
    """Why a classifier is of no use, empty if it is of use; and its accuracy on validation images."""
    found: dict[str, Any] = {}
    kind, images = "training", train
    if held is not None and held.labels_N is not None:
        hits, _ = _hits(extractor, held)
        found = {"val_accuracy": hits / len(held), "val_rows": len(held)}
        if len(held) >= LEAST_HELD:
            kind, images = "validation", held
    hits, better = _hits(extractor, images)
    if better:
        return "", found
    of = f"{hits:,} of {len(images):,} {kind} images"
    return f"a classifier sees the class of {of}, no more than by chance", found


def _hits(extractor: Extractor, images: Images) -> tuple[int, bool]:
    """Images whose class a classifier sees, and whether they are more than by chance."""
    seen_N, labels_N = extractor.extract(images.pixels_NCHW).classes_N, images.labels_N
    assert seen_N is not None
    assert labels_N is not None
    better = beats_chance(seen_N, labels_N, extractor.config.spec.classes)
    return int((seen_N == labels_N).sum()), better
