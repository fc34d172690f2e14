"""The sampling job: synthetic datasets from trained models, in bulk, with Ray Data."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genmod.config import Config, as_json, fingerprint, parse
from genmod.data.format.shards import Row, RowStats, ShardReceipt, dataset_metadata, write_shard
from genmod.errors import ConfigError
from genmod.generation.synthetic import (
    SAMPLE_PURPOSE,
    SAMPLE_SPLIT,
    LabelRequest,
    SampleConfig,
    SampleGenerator,
    label_request,
    shard_count,
    shard_range,
    size_bytes_at_most,
)
from genmod.interface.model import GenerativeModel
from genmod.interface.model_store import load_model, open_model
from genmod.interface.options import SampleOptions
from genmod.interface.registry import family
from genmod.manifest import DatasetManifest, ImageSpec, Manifest, require
from pipelines.jobs.bulk import ALONE, Job, Options, WorkUnit, WorkUnitActor, run_jobs


@dataclass(frozen=True)
class SampleJob:
    """One model to sample."""

    name: str
    model_root: str
    out_root: str
    options: Mapping[str, Any]
    """The family's options."""


class SamplePlan(Config):
    """What a sampling job will do; everything that an actor needs to know of it."""

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
    seed: int
    fingerprint: str
    shards: int
    rows: int
    size_bytes_at_most: int

    def parsed_options(self) -> SampleOptions:
        """The family's options."""
        return parse(family(self.family).Sample, self.options, f"model.{self.name}.sample")

    @property
    def want(self) -> LabelRequest:
        """Which labels."""
        return LabelRequest(self.spec.classes, self.only_label)

    def maker(self, model: GenerativeModel) -> SampleGenerator:
        """What makes the images."""
        return SampleGenerator(
            model, self.parsed_options(), self.want, self.seed, self.config.micro_batch
        )


def plan_sample(job: SampleJob, config: SampleConfig, *, seed: int) -> SamplePlan:
    """Check a job against its model and say what it will do. Writes nothing.

    Raises:
        ConfigError: there is no such model, or it cannot be sampled like that.
    """
    manifest = require(Manifest, job.model_root, "model", "train, with the same --recipe and --set")
    model = open_model(job.model_root, manifest).config
    model_class = family(model.family)
    options = parse(model_class.Sample, job.options, f"model.{job.name}.sample")
    net = parse(model_class.Config, model.net, f"model {job.name} net")
    model_class.check_sampling(net, options, model.spec)
    class_names = tuple(manifest.metadata.get("class_names", ()))
    want = label_request(config.labels, model.spec, class_names)
    result = config.result() | {"labels": want.rule}
    return SamplePlan(
        name=job.name,
        model_root=job.model_root,
        out_root=job.out_root,
        model_digest=manifest.digest,
        family=model.family,
        spec=model.spec,
        class_names=class_names,
        config=config,
        options=as_json(options),
        sampler=options.sampler,
        draws_from_p=options.draws_from_p,
        only_label=want.only,
        seed=seed,
        fingerprint=fingerprint("sample", SAMPLE_PURPOSE, manifest.digest, result, options, seed),
        shards=shard_count(config),
        rows=config.count,
        size_bytes_at_most=size_bytes_at_most(config, model.spec),
    )


class SampleActor(WorkUnitActor):
    """Makes tars of synthetic images."""

    receipt = ShardReceipt

    def make(self, plan: SamplePlan, piece: str, what: dict[str, Any]) -> ShardReceipt:
        """One tar with its index."""
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        maker = plan.maker(model)
        images = maker.images(shard_range(what["number"], plan.config))
        rows = (maker.row(index, pixels, plan.model_digest) for index, pixels in images)
        # Two kinds of accelerator may round differently, so each attempt there has a name of its own.
        name = piece if self.device == "cpu" else f"{piece}-{uuid.uuid4().hex[:8]}"
        shard, metadata = write_shard(plan.out_root, name, SAMPLE_SPLIT, plan.spec, rows)
        return ShardReceipt(fingerprint=plan.fingerprint, shard=shard, metadata=metadata)


def _job(plan: SamplePlan) -> Job[DatasetManifest, ShardReceipt]:
    pieces = [
        WorkUnit(
            f"{SAMPLE_SPLIT}-{number:06d}",
            len(shard_range(number, plan.config)),
            {"number": number},
        )
        for number in range(plan.shards)
    ]

    def finish(receipts: Sequence[ShardReceipt]) -> DatasetManifest:
        shards = [receipt.shard for receipt in receipts if receipt.shard is not None]
        parts = [receipt.metadata for receipt in receipts if receipt.metadata is not None]
        metadata = dataset_metadata({SAMPLE_SPLIT: sum(parts, RowStats())})
        keys = {"name", "family", "options", "sampler", "draws_from_p", "only_label", "seed"}
        made = {key: value for key, value in as_json(plan).items() if key in keys}
        metadata["sample"] = made | plan.config.result() | {"labels": plan.want.rule}
        rows = sum(shard.rows for shard in shards)
        assert rows == plan.rows, f"{rows} images made, {plan.rows} asked for"
        return DatasetManifest(
            fingerprint=plan.fingerprint,
            parents={"model": plan.model_digest},
            metadata=metadata,
            spec=plan.spec,
            shards=tuple(shards),
            class_names=plan.class_names,
        )

    return Job(
        name=plan.name,
        out_root=plan.out_root,
        kind="dataset",
        fingerprint=plan.fingerprint,
        manifest=DatasetManifest,
        receipt=ShardReceipt,
        pieces=pieces,
        plan=plan,
        inputs={"model": (plan.model_root, plan.model_digest)},
        finish=finish,
    )


def sample_models(
    jobs: Sequence[SampleJob], config: SampleConfig, *, seed: int, options: Options = ALONE
) -> list[DatasetManifest]:
    """Sample several models in one Ray Data execution, whose start-up is then paid once.

    What is done already is only looked up, and a job that was begun is gone on with.

    Raises:
        ConfigError: a model cannot be sampled like that, or a folder holds other work.
        GenmodError: pieces failed; all others are done and stay done.
    """
    plans = [plan_sample(job, config, seed=seed) for job in jobs]
    return run_jobs([_job(plan) for plan in plans], SampleActor, config, options)


def sample(
    job: SampleJob, config: SampleConfig, *, seed: int, options: Options = ALONE
) -> DatasetManifest:
    """Sample one model: :func:`sample_models` of a list of one."""
    return sample_models([job], config, seed=seed, options=options)[0]


def regenerate(dataset_root: str, model_root: str, index: int) -> Row:
    """Make one image of a synthetic dataset again, alone: the same pixels, label and sidecar.

    Args:
        dataset_root: URL of the synthetic dataset.
        model_root: URL of the model that made it.
        index: of the image; at least the dataset's size gives an image that it would have had.

    Raises:
        ConfigError: the model is another one.
    """
    dataset = require(DatasetManifest, dataset_root, "dataset", "sample")
    made = dataset.metadata.get("sample")
    if made is None:
        raise ConfigError(f"{dataset_root} is not a synthetic dataset; give one that sample made")
    if index < 0:
        raise ConfigError(f"image {index}: an index is 0 or more")
    manifest = require(Manifest, model_root, "model", "train")
    if manifest.digest != dataset.parents["model"]:
        raise ConfigError(
            f"{model_root} holds model {manifest.digest[:12]}, but {dataset_root} was made by "
            f"{dataset.parents['model'][:12]}; give that one"
        )
    model = load_model(model_root, made["weights"]).eval()
    options = parse(type(model).Sample, made["options"], "options")
    want = LabelRequest(model.spec.classes, made["only_label"])
    maker = SampleGenerator(model, options, want, made["seed"], made["micro_batch"])
    return maker.row(index, maker.image(index), manifest.digest)
