"""Plans a sampling job: checks it against its model, resolves the request, and finds the folder.

Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, FiniteFloat

from genmod.config import Config, as_json, fingerprint, parse
from genmod.data.format.shards import ShardFormat
from genmod.documents import validate
from genmod.errors import ConfigError
from genmod.generation.config import SampleConfig
from genmod.generation.labels import LabelRequest
from genmod.generation.lanes import LaneRange
from genmod.generation.request import SampleRequest, resolve_request
from genmod.generation.sets import find_place, stream_of
from genmod.generation.synthetic import SAMPLE_PURPOSE, SampleGenerator
from genmod.interface.model import GenerativeModel
from genmod.interface.model_store import PublishedModel, classes_of
from genmod.interface.options import SampleOptions, ScoreOptions
from genmod.interface.registry import family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import ImageSpec, Manifest


@dataclass(frozen=True)
class FilterInputs:
    """What filters of a job may need."""

    data_root: str = ""
    """URL of the dataset whose training rows are compared."""
    features_root: str = ""
    """URL of the feature space with the classifier."""
    features_fingerprint: str = ""
    """Of that feature space, which may not exist yet."""
    score: Mapping[str, Any] | None = None
    """The family's score options."""
    scores_root: str = ""
    """URL of the model's scores, whose calibration rows say what is typical."""


@dataclass(frozen=True)
class SampleJob:
    """One model to sample."""

    name: str
    """Of the model in the recipe."""
    model_root: str
    """URL of the model's folder."""
    out_root: str
    """URL of the folder of the first dataset of the stream; larger and smaller ones are next to it."""
    options: Mapping[str, Any]
    """The family's options."""
    filter_inputs: FilterInputs = FilterInputs()


class SamplePlan(Config):
    """A checked sampling job: everything that its actors need, as JSON values."""

    name: str
    model_root: str
    out_root: str
    """URL of the dataset's folder."""
    model_digest: str
    family: str
    spec: ImageSpec
    class_names: tuple[str, ...]
    config: SampleConfig
    options: dict[str, Any]
    sampler: str
    draws_from_p: bool
    only_label: int | None
    empty_classes: tuple[int, ...] = ()
    """Classes without training rows."""
    class_block: int = 0
    """Consecutive images of a class, where classes take turns by blocks."""
    intervals: tuple[LaneRange, ...]
    """The images that are requested; with filters, the candidates."""
    quotas: dict[int, int] | None = None
    """With filters: accepted images of each lane."""
    seed: int
    stream: str
    """Fingerprint of everything that determines an image of an index."""
    fingerprint: str
    rows: int
    """Images that are requested; with filters and ranges, at most."""
    done: bool
    """Whether the dataset exists."""
    shared_numerics: tuple[str, ...] = ()
    """Numeric classes of those datasets."""
    shared_roots: tuple[str, ...] = ()
    """URLs of the datasets of the stream, whose shards may be shared."""
    data_root: str = ""
    data_digest: str = ""
    features_root: str = ""
    score: dict[str, Any] | None = None
    mean_bits_per_dim: float = 0.0
    """Of the calibration rows, for the filter by typicality."""

    def parsed_options(self) -> SampleOptions:
        """The options as the family's configuration."""
        return parse(family(self.family).Sample, self.options, f"model.{self.name}.sample")

    def score_options(self) -> ScoreOptions:
        """The score options as the family's configuration."""
        return parse(family(self.family).Score, self.score or {}, f"model.{self.name}.score")

    @property
    def labels(self) -> LabelRequest:
        """The labels of the samples."""
        return LabelRequest(
            self.spec.classes, self.only_label, self.empty_classes, self.class_block
        )

    @property
    def request(self) -> SampleRequest:
        """The images that are requested."""
        return SampleRequest(self.labels, self.intervals, self.quotas)

    @property
    def stored_as(self) -> ShardFormat:
        """How the images are stored."""
        return self.config.stored_as(self.spec.classes, self.class_names)

    def generator(self, model: GenerativeModel) -> SampleGenerator:
        """The generator of the images, on the model's device."""
        return SampleGenerator(
            model,
            self.parsed_options(),
            self.labels,
            self.seed,
            self.config.micro_batch,
            is_filtered=self.config.filters.is_on,
        )


def plan_sample(
    job: SampleJob, config: SampleConfig, *, seed: int, snapshot: ManifestSnapshot | None = None
) -> SamplePlan:
    """Check a job against its model and plan it. Writes nothing.

    Args:
        job: the model and its options.
        config: the recipe's section.
        seed: of the recipe; ``config.seed`` takes its place.
        snapshot: the manifests that the command has read; new ones are read where it is not given.

    Raises:
        ConfigError: the model does not exist, or does not support the options, the request or a filter.
    """
    snapshot = snapshot or ManifestSnapshot()
    seed = seed if config.seed is None else config.seed
    made_by = "train, with the same --recipe and --set"
    published = snapshot.model(job.model_root, made_by)
    manifest, model = published.manifest, published.config
    model_class = family(model.family)
    options = parse(model_class.Sample, job.options, f"model.{job.name}.sample")
    net = parse(model_class.Config, model.net, f"model {job.name} net")
    model_class.check_sampling(net, options, model.spec)
    config.encoding.check(model.spec)
    classes = classes_of(published)
    request = resolve_request(config, model.spec, classes.class_names, classes.empty_classes)
    labels = request.labels
    inputs = _filter_inputs(job, config, snapshot, published)
    stream = fingerprint(
        "sample",
        SAMPLE_PURPOSE,
        manifest.digest,
        config.stream() | {"labels": labels.rule},
        options,
        seed,
        *([inputs] if inputs else []),
    )
    expected = request.fingerprint(stream)
    place = find_place(job.out_root, stream, expected, request.rows, snapshot)
    filters = config.filters
    return SamplePlan(
        name=job.name,
        model_root=job.model_root,
        out_root=place.root,
        model_digest=manifest.digest,
        family=model.family,
        spec=model.spec,
        class_names=classes.class_names,
        config=config,
        options=as_json(options),
        sampler=options.sampler,
        draws_from_p=options.draws_from_p and not filters.is_on,
        only_label=labels.only,
        empty_classes=labels.empty,
        class_block=labels.block,
        intervals=request.intervals,
        quotas=None if request.quotas is None else dict(request.quotas),
        seed=seed,
        stream=stream,
        fingerprint=expected,
        rows=request.rows,
        done=place.done is not None,
        shared_roots=tuple(each.root for each in place.others),
        shared_numerics=tuple(
            sorted({name for each in place.others for name in stream_of(each.manifest).numerics})
        ),
        data_root=job.filter_inputs.data_root if filters.training_copies else "",
        data_digest=inputs.get("data", ""),
        features_root=job.filter_inputs.features_root if filters.classifier else "",
        score=inputs.get("score"),
        mean_bits_per_dim=inputs.get("mean_bits_per_dim", 0.0),
    )


def _filter_inputs(
    job: SampleJob,
    config: SampleConfig,
    snapshot: ManifestSnapshot,
    published: PublishedModel,
) -> dict[str, Any]:
    """What determines the results of the filters, besides their settings. ConfigError for what is absent."""
    filters, inputs = config.filters, job.filter_inputs
    needed: dict[str, Any] = {}
    if filters.training_copies:
        if not inputs.data_root:
            raise ConfigError("sample.filters.training_copies needs the training dataset")
        dataset = snapshot.dataset(inputs.data_root)
        if dataset.rows("train") < 2:
            raise ConfigError(
                f"sample.filters.training_copies needs training rows, {inputs.data_root} has "
                f"{dataset.rows('train')}; turn the filter off"
            )
        needed["data"] = dataset.digest
    if filters.classifier:
        if not inputs.features_root:
            raise ConfigError("sample.filters.classifier needs the recipe's feature space")
        needed["features"] = inputs.features_fingerprint
    if filters.needs_likelihood:
        where = f"model.{job.name}.score"
        model_class = family(published.config.family)
        net = parse(model_class.Config, published.config.net, f"model {job.name} net")
        options = parse(model_class.Score, inputs.score or {}, where)
        model_class.check_scorable(net, options)
        if options.prepares:
            raise ConfigError(
                f"filters by bits per dimension need fixed score options, but those of {where} are fitted to "
                "data; set their values, or remove the filter"
            )
        needed["score"] = as_json(options)
    if filters.typicality_bits_per_dim is not None:
        needed["mean_bits_per_dim"] = _typical(job, snapshot, published.manifest.digest)
    return needed


class _Calibrated(BaseModel):
    mean_bits_per_dim: FiniteFloat


class _CalibratedScores(BaseModel):
    calibrated: _Calibrated | None = None


def _typical(job: SampleJob, snapshot: ManifestSnapshot, model_digest: str) -> float:
    """Mean bits per dimension of the calibration rows. ConfigError if they are not scored by this model."""
    name, root = "sample.filters.typicality_bits_per_dim", job.filter_inputs.scores_root
    if not root:
        raise ConfigError(f"{name} needs the scores of a recipe's model")
    scores = snapshot.require(Manifest, root, "scores", f"score --model {job.name}")
    found = validate(_CalibratedScores, scores.metadata, "scores", root, "run genmod score again")
    if found.calibrated is None or scores.parents.get("model") != model_digest:
        what = "have no calibration rows" if found.calibrated is None else "are of another model"
        raise ConfigError(
            f"{name}: the scores in {root} {what}; run genmod score --model {job.name} again"
        )
    return found.calibrated.mean_bits_per_dim
