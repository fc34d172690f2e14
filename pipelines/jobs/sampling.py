"""The sampling job: synthetic datasets from trained models, in bulk, with Ray Data."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genmod.config import Config, as_json, fingerprint, parse
from genmod.data.format.shards import Row, ShardReceipt, write_shard
from genmod.errors import ConfigError, DataError
from genmod.generation.labels import LabelRequest, label_request
from genmod.generation.synthetic import (
    SAMPLE_PURPOSE,
    SAMPLE_SPLIT,
    SampleConfig,
    SampledBy,
    SampleGenerator,
    shard_count,
    shard_range,
    size_bytes_at_most,
)
from genmod.interface.model import GenerativeModel
from genmod.interface.model_store import classes_of, load_model
from genmod.interface.options import SampleOptions
from genmod.interface.registry import family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, ImageSpec, RowStats, dataset_metadata
from genmod.receipts import together
from pipelines.jobs.bulk import DEFAULT, BulkJob, BulkOptions, WorkUnit, WorkUnitActor, run_jobs


@dataclass(frozen=True)
class SampleJob:
    """One model to sample."""

    name: str
    """Of the model in the recipe."""
    model_root: str
    """URL of the model's folder."""
    out_root: str
    """URL of the synthetic dataset's folder."""
    options: Mapping[str, Any]
    """The family's options."""


class SamplePlan(Config):
    """A checked sampling job: everything that its actors need, as JSON values."""

    name: str
    model_root: str
    out_root: str
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
    seed: int
    fingerprint: str
    shards: int
    rows: int
    size_bytes_at_most: int

    def parsed_options(self) -> SampleOptions:
        """The options as the family's configuration."""
        return parse(family(self.family).Sample, self.options, f"model.{self.name}.sample")

    @property
    def labels(self) -> LabelRequest:
        """The labels of the samples."""
        return LabelRequest(self.spec.classes, self.only_label, self.empty_classes)

    def generator(self, model: GenerativeModel) -> SampleGenerator:
        """The generator of the images, on the model's device."""
        return SampleGenerator(
            model, self.parsed_options(), self.labels, self.seed, self.config.micro_batch
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
        ConfigError: the model does not exist, or does not support the options.
    """
    seed = seed if config.seed is None else config.seed
    made_by = "train, with the same --recipe and --set"
    published = (snapshot or ManifestSnapshot()).model(job.model_root, made_by)
    manifest, model = published.manifest, published.config
    model_class = family(model.family)
    options = parse(model_class.Sample, job.options, f"model.{job.name}.sample")
    net = parse(model_class.Config, model.net, f"model {job.name} net")
    model_class.check_sampling(net, options, model.spec)
    classes = classes_of(published)
    labels = label_request(config.labels, model.spec, classes.class_names, classes.empty_classes)
    result = config.result() | {"labels": labels.rule}
    return SamplePlan(
        name=job.name,
        model_root=job.model_root,
        out_root=job.out_root,
        model_digest=manifest.digest,
        family=model.family,
        spec=model.spec,
        class_names=classes.class_names,
        config=config,
        options=as_json(options),
        sampler=options.sampler,
        draws_from_p=options.draws_from_p,
        only_label=labels.only,
        empty_classes=labels.empty,
        seed=seed,
        fingerprint=fingerprint("sample", SAMPLE_PURPOSE, manifest.digest, result, options, seed),
        shards=shard_count(config),
        rows=config.count,
        size_bytes_at_most=size_bytes_at_most(config, model.spec),
    )


class SampleActor(WorkUnitActor):
    """Writes tars of synthetic images."""

    receipt = ShardReceipt

    def write_unit(self, plan: SamplePlan, name: str, parameters: dict[str, Any]) -> ShardReceipt:
        """Write one tar with its index."""
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        generator = plan.generator(model)
        images = generator.images(shard_range(parameters["number"], plan.config))
        rows = (generator.row(index, pixels, plan.model_digest) for index, pixels in images)
        # Accelerators of different kinds may round differently, so each attempt has its own file name.
        if self.device != "cpu":
            name = f"{name}-{uuid.uuid4().hex[:8]}"
        shard, metadata = write_shard(plan.out_root, name, SAMPLE_SPLIT, plan.spec, rows)
        return ShardReceipt(fingerprint=plan.fingerprint, shard=shard, metadata=metadata)


def bulk_sample_job(plan: SamplePlan) -> BulkJob[DatasetManifest, ShardReceipt]:
    """The job of a plan, with one tar for each work unit."""
    units = [
        WorkUnit(
            f"{SAMPLE_SPLIT}-{number:06d}",
            len(shard_range(number, plan.config)),
            {"number": number},
        )
        for number in range(plan.shards)
    ]

    @together(plan.out_root)
    def finish(receipts: Sequence[ShardReceipt], first: DatasetManifest | None) -> DatasetManifest:
        shards = [receipt.shard for receipt in receipts if receipt.shard is not None]
        parts = [receipt.metadata for receipt in receipts if receipt.metadata is not None]
        metadata = dataset_metadata({SAMPLE_SPLIT: sum(parts, RowStats())})
        keys = {"name", "family", "options", "sampler", "draws_from_p", "only_label", "seed"}
        settings = {key: value for key, value in as_json(plan).items() if key in keys}
        if plan.empty_classes:
            settings["empty_classes"] = list(plan.empty_classes)
        metadata["sample"] = settings | plan.config.result() | {"labels": plan.labels.rule}
        rows = sum(shard.rows for shard in shards)
        if rows != plan.rows:
            raise DataError(
                f"{plan.out_root}: its receipts are of {rows:,} images, expected {plan.rows:,}; remove the "
                "folder and sample again"
            )
        return DatasetManifest(
            fingerprint=plan.fingerprint,
            parents={"model": plan.model_digest},
            metadata=metadata,
            spec=plan.spec,
            shards=tuple(shards),
            class_names=plan.class_names,
        )

    return BulkJob(
        name=plan.name,
        title=f"sample {plan.name}",
        out_root=plan.out_root,
        kind="dataset",
        fingerprint=plan.fingerprint,
        manifest=DatasetManifest,
        receipt=ShardReceipt,
        units=units,
        plan=plan,
        inputs={"model": (plan.model_root, plan.model_digest)},
        finish=finish,
    )


def sample_models(
    jobs: Sequence[SampleJob], config: SampleConfig, *, seed: int, options: BulkOptions = DEFAULT
) -> list[DatasetManifest]:
    """Sample several models in one Ray Data execution, whose start-up is then paid once.

    Finished jobs are skipped; interrupted jobs resume.

    Raises:
        ConfigError: a model does not support its options, or a folder contains other work.
        GenmodError: work units failed; all others are done and stay done.
    """
    plans = [plan_sample(job, config, seed=seed, snapshot=options.snapshot) for job in jobs]
    return run_jobs([bulk_sample_job(plan) for plan in plans], SampleActor, config, options)


def sample(
    job: SampleJob, config: SampleConfig, *, seed: int, options: BulkOptions = DEFAULT
) -> DatasetManifest:
    """Sample one model: :func:`sample_models` of a list of one."""
    return sample_models([job], config, seed=seed, options=options)[0]


def regenerate(dataset_root: str, model_root: str, index: int) -> Row:
    """Generate one image of a synthetic dataset again: the same pixels, label and sidecar.

    Args:
        dataset_root: URL of the synthetic dataset.
        model_root: URL of the model that generated it.
        index: of the image, at least 0. Beyond the dataset's size: the image that a larger one would have.

    Raises:
        ConfigError: the dataset is not synthetic, or another model generated it.
    """
    snapshot = ManifestSnapshot()
    dataset = snapshot.dataset(dataset_root, "sample")
    made_by = SampledBy.of(dataset, dataset_root)
    if index < 0:
        raise ConfigError(f"got index {index}, expected 0 or more")
    digest = snapshot.model(model_root).manifest.digest
    parent = dataset.parents.get("model", "none")
    if digest != parent:
        raise ConfigError(
            f"{model_root} contains model {digest[:12]}, but {dataset_root} was made by model "
            f"{parent[:12]}; give that model"
        )
    model = load_model(model_root, made_by.weights).eval()
    options = parse(type(model).Sample, made_by.options, "options")
    labels = made_by.labels(model.spec.classes)
    generator = SampleGenerator(model, options, labels, made_by.seed, made_by.micro_batch)
    return generator.row(index, generator.image(index), digest)
