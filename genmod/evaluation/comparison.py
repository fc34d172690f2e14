"""The paired comparison of two models' samples, without Ray: reads both, publishes a manifest.

Both were sampled with the same seed at the same indices, so with the same noise, and are judged by the
same reference rows, so that the differences of their metrics have little noise, see
:mod:`genmod.metrics.paired`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, RootModel

from genmod.config import fingerprint
from genmod.data.reading.reader import split_reader
from genmod.documents import validate
from genmod.errors import ConfigError
from genmod.evaluation.differences import MetricDifference
from genmod.evaluation.images import Images, read_first, read_shuffled, split_digest
from genmod.evaluation.inputs import sampling_settings
from genmod.evaluation.likelihood import likelihood_gain
from genmod.evaluation.measure import BETTER
from genmod.evaluation.meter import Reference
from genmod.evaluation.shares import Compared, equal_shares, labels_by_name
from genmod.generation.synthetic import SAMPLE_SPLIT
from genmod.interface.manifest_job import ManifestJob
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, Manifest
from genmod.metrics.features import load_extractor
from genmod.metrics.paired import (
    GROUPS,
    GroupedMeter,
    GroupedValue,
    jackknife_groups,
    paired_stderr,
)
from genmod.metrics.protocol import Better, EvaluateConfig
from genmod.scoring.calibrated import read_scores

_SAME_REQUEST = ("seed", "labels")
"""Settings of sampling by which two datasets have the same noise and labels, image by image."""


class ComparisonJob(ManifestJob):
    """Compare the samples of a candidate with those of the champion, image by image."""

    kind = "comparison"
    name: str
    """Of the model."""
    data_root: str
    """URL of the dataset that both are evaluated on."""
    features_root: str
    candidate_root: str
    """URL of the candidate's samples."""
    champion_root: str
    """URL of the champion's samples."""
    candidate_scores_root: str | None = None
    """URL of the candidate's scores of the reference rows; None if they are not compared."""
    champion_scores_root: str | None = None
    """URL of the champion's scores."""
    config: EvaluateConfig
    seed: int = 0

    def inputs(self, snapshot: ManifestSnapshot) -> dict[str, Manifest]:
        """The manifests of all inputs, by name.

        Raises:
            ConfigError: one is absent, or the two datasets of samples are not of the same request.
        """
        inputs: dict[str, Manifest] = {
            "data": snapshot.dataset(self.data_root),
            "candidate": snapshot.dataset(self.candidate_root, f"sample --model {self.name}"),
            "champion": snapshot.dataset(self.champion_root, f"sample --model {self.name}"),
            "features": snapshot.require(Manifest, self.features_root, "features", "evaluate"),
        }
        candidate, champion = (
            sampling_settings(inputs[name], root)
            for name, root in (("candidate", self.candidate_root), ("champion", self.champion_root))
        )
        for key in _SAME_REQUEST:
            if candidate.get(key) != champion.get(key):
                raise ConfigError(
                    f"the samples at {self.candidate_root} and {self.champion_root} are not paired: "
                    f"sample.{key} {candidate.get(key)!r} against {champion.get(key)!r}; sample both with "
                    "one recipe"
                )
        for side, root in self._scores_roots().items():
            inputs[f"{side} scores"] = snapshot.require(Manifest, root, "scores", "score")
        return inputs

    def _scores_roots(self) -> dict[str, str]:
        """URLs of the scores that are compared, by side; empty if none are."""
        candidate, champion = self.candidate_scores_root, self.champion_scores_root
        return {"candidate": candidate, "champion": champion} if candidate and champion else {}

    def fingerprint(self, inputs: Mapping[str, Manifest]) -> str:
        """Fingerprint of the work on these inputs."""
        digests = {name: manifest.digest for name, manifest in inputs.items()}
        return fingerprint("comparison", self.config.result(), digests, GROUPS, self.seed)

    def make(
        self, inputs: Mapping[str, Manifest], expected: str, snapshot: ManifestSnapshot
    ) -> Manifest:
        """Compare the samples of both models."""
        del snapshot
        differences = self._differences(inputs)
        return Manifest(
            kind=self.kind,
            fingerprint=expected,
            parents={name: manifest.digest for name, manifest in inputs.items()},
            metadata={
                "model": self.name,
                "differences": [each.model_dump(mode="json") for each in differences],
            },
        )

    def _differences(self, inputs: Mapping[str, Manifest]) -> tuple[MetricDifference, ...]:
        data = inputs["data"]
        assert isinstance(data, DatasetManifest)
        rows = self.config.images
        reference = Reference(
            train=read_shuffled(self.data_root, data, "train", rows),
            images=read_shuffled(self.data_root, data, self.config.reference, rows),
            digest=split_digest(data, self.config.reference),
            extractor=load_extractor(self.features_root, self.config.features.onnx),
            config=self.config,
            seed=self.seed,
        )
        candidate = self._samples(inputs["candidate"], self.candidate_root, data)
        champion = self._samples(inputs["champion"], self.champion_root, data)
        gains = compare_samples(candidate, champion, reference)
        likelihood = self._likelihood_gain(inputs, data, reference)
        return gains if likelihood is None else (*gains, likelihood)

    def _likelihood_gain(
        self, inputs: Mapping[str, Manifest], data: DatasetManifest, reference: Reference
    ) -> MetricDifference | None:
        roots = self._scores_roots()
        if not roots:
            return None
        candidate, champion = (
            (read_scores(root, scores), scores.metadata.get("split"))
            for root, scores in ((roots[side], inputs[f"{side} scores"]) for side in roots)
        )
        keys = split_reader(self.data_root, data, self.config.reference).keys()
        return likelihood_gain(candidate, champion, reference, keys)

    def _samples(self, manifest: Manifest, root: str, data: DatasetManifest) -> Images:
        assert isinstance(manifest, DatasetManifest)
        images = read_first(root, manifest, SAMPLE_SPLIT, self.config.images)
        if images.labels_N is None:
            return images
        known_N = labels_by_name(images.labels_N, manifest.class_names, data.class_names)
        return Images(images.pixels_NCHW, known_N)


def compare_samples(
    candidate: Images, champion: Images, reference: Reference
) -> tuple[MetricDifference, ...]:
    """The gain of the candidate in every metric, with its standard error.

    Args:
        candidate: its samples.
        champion: the champion's samples of the same noise and labels, in the same order.
        reference: the real images, and the feature space.

    Raises:
        ConfigError: the samples are not as many or not of the same labels.
    """
    config, extractor = reference.config, reference.extractor
    rows = min(len(candidate), len(champion))
    real, classes = reference.images.first(config.images), extractor.config.spec.classes
    shared = [
        equal_shares(side.first(rows), reference.train, real, classes, config.images)
        for side in (candidate, champion)
    ]
    if not _same_rows(*shared):
        raise ConfigError(
            "the samples of candidate and champion have different labels; sample both with one recipe"
        )
    groups_N = jackknife_groups(len(shared[0].samples), reference.seed)
    real_features = extractor.extract(shared[0].real.pixels_NCHW)
    meter = GroupedMeter(real_features, config.neighbours, groups_N)
    measured = [
        meter.measure(extractor.extract(side.samples.pixels_NCHW), side.samples.labels_N)
        for side in shared
    ]
    return tuple(
        _difference(
            f"{name}[{extractor.label}]",
            better,
            measured[0][name],
            measured[1][name],
            len(groups_N),
        )
        for name, better in BETTER.items()
        if name in measured[0]
    )


def differences_from(manifest: Manifest, root: str) -> tuple[MetricDifference, ...]:
    """The differences in the manifest of a comparison. DataError if they are none."""
    remedy = "remove that folder and promote again"
    entries = manifest.metadata.get("differences")
    return validate(_Differences, entries, "a list of differences", root, remedy).root


class _Differences(RootModel[Annotated[tuple[MetricDifference, ...], Field(max_length=1_000)]]):
    """The differences in the manifest of a comparison."""


def _same_rows(candidate: Compared, champion: Compared) -> bool:
    a, b = candidate.samples.labels_N, champion.samples.labels_N
    same = (a is None) == (b is None) and candidate.sample_rows_N.equal(champion.sample_rows_N)
    return same and (a is None or b is None or a.equal(b))


def _difference(
    name: str, better: Better, candidate: GroupedValue, champion: GroupedValue, rows: int
) -> MetricDifference:
    difference = candidate.value - champion.value
    return MetricDifference(
        metric=name,
        better=better,
        gain=-difference if better == "lower" else difference,
        stderr=paired_stderr(candidate, champion),
        freedom=len(candidate.without_G) - 1,
        paired=True,
        rows=rows,
    )
