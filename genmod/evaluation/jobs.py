"""The evaluation of one model, without Ray: reads its samples and scores, publishes a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from genmod.config import fingerprint
from genmod.data.format.image_grid import gallery_rows, grid, pixel_scale, png
from genmod.data.reading.reader import read_rows, split_reader
from genmod.errors import ConfigError
from genmod.evaluation.extremes import Extremes, read_extremes
from genmod.evaluation.images import Images, read_first, read_shuffled, split_digest
from genmod.evaluation.inputs import sampling_settings
from genmod.evaluation.likelihood import mean_bits_per_dim, score_metadata
from genmod.evaluation.measure import evaluate_samples
from genmod.evaluation.memorised import EVIDENCE, SHOWN, Memorised, measure_memorisation
from genmod.evaluation.meter import Reference
from genmod.evaluation.ood import ood_auroc, require_comparable_scores
from genmod.evaluation.quality_vs_nfe import quality_curve
from genmod.evaluation.shares import labels_by_name
from genmod.generation.synthetic import SAMPLE_SPLIT
from genmod.interface.manifest_job import ManifestJob
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import (
    DatasetManifest,
    FileEntry,
    Manifest,
    write_file,
)
from genmod.manifest.class_match import match_classes
from genmod.metrics.features import load_extractor
from genmod.metrics.protocol import EvaluateConfig, MetricValue
from genmod.report.model_page import EXTREMES
from genmod.scoring.calibrated import read_scores
from genmod.scoring.table import Scores

GALLERY = 10
"""Rows and columns of a picture of samples."""


class EvaluationJob(ManifestJob):
    """Evaluate one model's samples, and summarise its scores."""

    kind = "evaluation"
    name: str
    """Of the model."""
    data_root: str
    samples_root: str
    features_root: str
    scores_root: str | None = None
    """None for a model without scores; ``unscored`` then says why."""
    scored_root: str | None = None
    """URL of the dataset that the model was trained on and that was scored, if it is not the one at
    ``data_root``."""
    unscored: str = ""
    model_root: str = ""
    """URL of the model, for quality against network evaluations."""
    sample: dict[str, Any] = {}
    """The recipe's sampling options of the model."""
    ood_root: str | None = None
    """Scores of other data, for out-of-distribution detection."""
    config: EvaluateConfig
    seed: int = 0

    def roots(self) -> dict[str, str]:
        """URLs of the inputs, by name."""
        roots = {
            "data": self.data_root,
            "samples": self.samples_root,
            "features": self.features_root,
        }
        scores = {"scores": self.scores_root, "ood": self.ood_root}
        return roots | {name: root for name, root in scores.items() if root is not None}

    def has_inputs(self, snapshot: ManifestSnapshot) -> bool:
        """Whether every input is published."""
        for name, root in self.roots().items():
            kind = {"data": "dataset", "samples": "dataset", "ood": "scores"}.get(name, name)
            schema = DatasetManifest if kind == "dataset" else Manifest
            if snapshot.load(schema, root, kind) is None:
                return False
        return True

    def check_inputs(self, snapshot: ManifestSnapshot) -> dict[str, Manifest]:
        """The manifests that other stages have published. ConfigError if one is absent or does not fit."""
        data = snapshot.dataset(self.data_root)
        samples = snapshot.dataset(self.samples_root, f"sample --model {self.name}")
        inputs: dict[str, Manifest] = {"data": data, "samples": samples}
        if self.scored_root and self.scored_root != self.data_root:
            inputs["trained"] = snapshot.dataset(self.scored_root)
        if samples.spec.shape != data.spec.shape:
            raise ConfigError(
                f"the samples at {self.samples_root} are {samples.spec}, the data at {self.data_root} "
                f"is {data.spec}; evaluate samples of a model of this data"
            )
        if data.spec.classes and samples.spec.classes:
            match_classes(samples.classes(self.samples_root), data.classes(self.data_root), ())
        if self.scores_root is not None:
            made_by = f"score --model {self.name}"
            scores = snapshot.require(Manifest, self.scores_root, "scores", made_by)
            inputs["scores"] = scores
            scored = snapshot.dataset(self.scored_root) if self.scored_root else data
            for kind, got, expected in (
                ("model", scores.parents.get("model", "?"), samples.parents.get("model", "none")),
                ("dataset", scores.parents.get("dataset", "?"), scored.digest),
            ):
                if got != expected:
                    raise ConfigError(
                        f"the scores at {self.scores_root} are of {kind} {got[:12]}, the samples at "
                        f"{self.samples_root} go with {expected[:12]}; remove the older folder, then "
                        f"rerun genmod {made_by}"
                    )
            if self.ood_root is not None:
                of_other = f"{made_by}, with score.data and score.output"
                other = snapshot.require(Manifest, self.ood_root, "scores", of_other)
                roots = self.scores_root, self.ood_root
                require_comparable_scores(scores, other, roots)
                inputs["ood"] = other
        return inputs

    def inputs(self, snapshot: ManifestSnapshot) -> dict[str, Manifest]:
        """The manifests of all inputs, by name. ConfigError if one is absent or does not fit."""
        features = snapshot.require(Manifest, self.features_root, "features", "evaluate")
        return self.check_inputs(snapshot) | {"features": features}

    def fingerprint(self, inputs: Mapping[str, Manifest]) -> str:
        """Fingerprint of the work on these inputs."""
        digests = {name: manifest.digest for name, manifest in inputs.items()}
        parts = self.config.result(), digests, self.unscored, self.name, self.seed
        return fingerprint("evaluation", *parts)

    def make(
        self, inputs: Mapping[str, Manifest], expected: str, snapshot: ManifestSnapshot
    ) -> Manifest:
        """Evaluate the samples, and write evidence and pictures."""
        data, samples = inputs["data"], inputs["samples"]
        assert isinstance(data, DatasetManifest)
        assert isinstance(samples, DatasetManifest)
        images = read_first(self.samples_root, samples, SAMPLE_SPLIT, self.config.images)
        if images.labels_N is not None:
            known_N = labels_by_name(images.labels_N, samples.class_names, data.class_names)
            images = Images(images.pixels_NCHW, known_N)
        reference = self._reference(data)
        trained_root = self.scored_root or self.data_root
        trained = snapshot.dataset(trained_root)
        memorised, leakage = measure_memorisation(
            (self.samples_root, samples),
            (trained_root, trained),
            (self.data_root, data),
            self.config,
        )
        keys = self._keys((trained_root, trained), samples)
        others = [memorised.value, leakage]
        scored = extremes = None
        if self.scores_root is not None:
            scores = read_scores(self.scores_root, inputs["scores"])
            scored = score_metadata(inputs["scores"], scores)
            extremes = read_extremes(scores, scored.get("split"), (trained_root, trained))
            bits = self._bits_per_dim(inputs["scores"], scores, data, reference)
            others += [] if bits is None else [bits]
        evaluation = evaluate_samples(images, reference, others)
        return Manifest(
            kind=self.kind,
            fingerprint=expected,
            parents={name: manifest.digest for name, manifest in inputs.items()},
            files=(
                *self._pictures(images, reference),
                self._nearest((trained_root, trained), samples, memorised),
                write_file(self.out_root, EVIDENCE, memorised.evidence(*keys)),
                *self._extremes(extremes),
            ),
            metadata={
                "model": self.name,
                "model_digest": samples.parents.get("model"),
                **evaluation.metadata(),
                "class_names": list(data.class_names),
                "classes": data.spec.classes,
                "memorisation": memorised.metadata(*keys),
                "features": inputs["features"].metadata,
                "reference": {
                    "split": self.config.reference,
                    "digest": reference.digest,
                    "rows": len(reference.images),
                },
                "samples": {
                    "rows": samples.rows(SAMPLE_SPLIT),
                    **sampling_settings(samples, self.samples_root),
                    "digest": samples.digest,
                },
                "scores": scored,
                "extremes": extremes.metadata if extremes else None,
                "unscored": self.unscored,
                "ood": self._ood(inputs),
                "quality_vs_nfe": self._quality_vs_nfe(samples, data, reference),
            },
        )

    def _reference(self, data: DatasetManifest) -> Reference:
        config = self.config
        return Reference(
            train=read_shuffled(self.data_root, data, "train", config.images),
            images=read_shuffled(self.data_root, data, config.reference, config.images),
            digest=split_digest(data, config.reference),
            extractor=load_extractor(self.features_root, self.config.features.onnx),
            config=config,
            seed=self.seed,
        )

    def _keys(
        self, trained: tuple[str, DatasetManifest], samples: DatasetManifest
    ) -> tuple[list[str], list[str]]:
        """Keys of all samples, and of all training rows."""
        made = split_reader(self.samples_root, samples, SAMPLE_SPLIT)
        return made.keys(), split_reader(*trained, "train").keys()

    def _pictures(self, images: Images, reference: Reference) -> tuple[FileEntry, ...]:
        """Write samples.png and reference.png."""
        spec = reference.extractor.config.spec
        entries: list[FileEntry] = []
        for name, side in (("samples", images), ("reference", reference.images)):
            rows = gallery_rows(side.labels_N, GALLERY, GALLERY, spec.classes)
            rows = rows[rows < len(side)]
            picture = grid(side.pixels_NCHW[rows], GALLERY, pixel_scale(spec))
            entries.append(write_file(self.out_root, f"{name}.png", png(picture)))
        return tuple(entries)

    def _nearest(
        self,
        trained: tuple[str, DatasetManifest],
        samples: DatasetManifest,
        memorised: Memorised,
    ) -> FileEntry:
        """Write nearest.png: rows of suspicious samples, each above a row of their training images."""
        row_N = memorised.shown()
        train_N = memorised.result.likeness.row_B[row_N]
        made = read_rows(self.samples_root, samples, SAMPLE_SPLIT, row_N.tolist()).pixels_BCHW
        real = read_rows(*trained, "train", train_N.tolist()).pixels_BCHW
        blank = torch.full((-len(row_N) % SHOWN, *made.shape[1:]), 128, dtype=torch.uint8)
        if len(row_N) > SHOWN:
            made, real = torch.cat((made, blank)), torch.cat((real, blank))
        sides = zip(made.split(SHOWN), real.split(SHOWN), strict=True)
        pairs = torch.cat([side for pair in sides for side in pair])
        picture = grid(pairs, min(SHOWN, len(row_N)), pixel_scale(trained[1].spec))
        return write_file(self.out_root, "nearest.png", png(picture))

    def _extremes(self, extremes: Extremes | None) -> tuple[FileEntry, ...]:
        """Write the picture of the most and the least likely images, if there is one."""
        if extremes is None:
            return ()
        return (write_file(self.out_root, EXTREMES, extremes.picture),)

    def _bits_per_dim(
        self, manifest: Manifest, scores: Scores, data: DatasetManifest, reference: Reference
    ) -> MetricValue | None:
        rows = split_reader(self.data_root, data, self.config.reference)
        return mean_bits_per_dim(scores, manifest.metadata.get("split"), reference, rows.keys())

    def _quality_vs_nfe(
        self, samples: DatasetManifest, data: DatasetManifest, reference: Reference
    ) -> list[dict[str, Any]]:
        if self.config.curve_images is None:
            return []
        labels_N, made_by = reference.images.labels_N, samples.parents.get("model", "none")
        if labels_N is not None:  # samples have the model's classes
            labels_N = labels_by_name(labels_N, data.class_names, samples.class_names)
        return quality_curve(self.model_root, made_by, self.sample, reference, labels_N)

    def _ood(self, inputs: Mapping[str, Manifest]) -> dict[str, Any] | None:
        """AUROC of each score column for the other data."""
        if self.ood_root is None or self.scores_root is None:
            return None
        roots = self.scores_root, self.ood_root
        return ood_auroc(roots, inputs["scores"], inputs["ood"])
