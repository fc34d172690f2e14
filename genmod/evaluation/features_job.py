"""The fit of the feature space, without Ray: reads the training split, publishes a manifest."""

from __future__ import annotations

from typing import Any, ClassVar

from genmod.config import Config, fingerprint
from genmod.evaluation.images import read_shuffled, split_digest
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, Manifest, claim, publish
from genmod.metrics.features import fit_extractor, save_extractor
from genmod.metrics.protocol import EvaluateConfig


class FeaturesJob(Config):
    """Fit the feature space to a dataset's training split."""

    kind: ClassVar[str] = "features"
    """Kind of its manifest."""
    data_root: str
    out_root: str
    config: EvaluateConfig
    seed: int = 0

    def fingerprint(self, data: DatasetManifest) -> str:
        """Fingerprint of the work on this dataset. ConfigError if the features cannot be computed."""
        self.config.features.extractor(data.spec)
        settings = self.config.features.model_dump(mode="json")
        return fingerprint("features", settings, split_digest(data, "train"), self.seed)

    def done(self, snapshot: ManifestSnapshot | None = None) -> Manifest | None:
        """The manifest if the work is done, else None. ConfigError if the folder contains other work.

        Args:
            snapshot: the manifests that the command has read; new ones are read where it is not given.
        """
        snapshot = snapshot or ManifestSnapshot()
        expected = self.fingerprint(snapshot.dataset(self.data_root))
        return snapshot.find_done(Manifest, self.out_root, "features", expected)

    def do(self) -> Manifest:
        """Fit, write, publish. Does nothing if it is done."""
        snapshot = ManifestSnapshot()
        if (manifest := self.done(snapshot)) is not None:
            return manifest
        data = snapshot.dataset(self.data_root)
        expected = self.fingerprint(data)
        claim(self.out_root, expected)
        config = self.config.features
        train = read_shuffled(self.data_root, data, "train", config.rows)
        extractor = fit_extractor(config, data.spec, train.pixels_NCHW, train.labels_N, self.seed)
        metadata: dict[str, Any] = {
            "label": extractor.label,
            "digest": extractor.digest,
            "rows": len(train),
        }
        if train.labels_N is not None and data.rows("val"):
            held = read_shuffled(self.data_root, data, "val", config.rows)
            seen_N = extractor.extract(held.pixels_NCHW).classes_N
            if seen_N is not None and held.labels_N is not None:
                metadata["val_accuracy"] = float((seen_N == held.labels_N).double().mean())
                metadata["val_rows"] = len(held)
        manifest = Manifest(
            kind="features",
            fingerprint=expected,
            parents={"data": data.digest},
            files=save_extractor(extractor, self.out_root),
            metadata=metadata,
        )
        return publish(self.out_root, manifest)
