"""One model's training from data to published model, as each of its processes does it."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import partial
from typing import Any

from genmod.config import Config, as_json, parse
from genmod.costs.flops import shapes_of
from genmod.data.order.row_order import epoch_rows
from genmod.data.order.training_order import (
    MAIN,
    MixturePart,
    check_order,
    make_training_order,
    mixture_parts,
)
from genmod.data.reading.reader import open_dataset, read_rows
from genmod.data.reading.training_stream import TrainingStream
from genmod.errors import ConfigError, DataError, StorageError
from genmod.interface.model import GenerativeModel
from genmod.interface.model_store import load_model
from genmod.interface.registry import ModelConfig, family
from genmod.interface.snapshot import Snapshot
from genmod.manifest import SPLITS, DatasetManifest, Manifest, find_done, load_manifest, require
from genmod.training.checkpoint import Checkpoints
from genmod.training.loop import Plan, train
from genmod.training.monitors.collapse import CollapseMonitor
from genmod.training.monitors.latents import LatentMonitor
from genmod.training.monitors.validation import SampleGrid, Validation
from genmod.training.plan import TrainConfig, training_fingerprint
from genmod.training.publish import publish_model
from genmod.world import World, broadcast_int

_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a local store says when trying again would not help."""


class InitialModel(Config):
    """A trained model whose averaged weights another one starts from."""

    root: str
    """URL of the model's folder."""
    digest: str
    """Of its manifest, as it was when the job was planned."""


class TrainJob(Config):
    """What one model is made from, and where it goes. JSON, so that it travels to any process."""

    name: str
    root: str
    """URL of the model's folder."""
    data_root: str
    data_digest: str
    """Of the dataset's manifest, as it was when the job was planned."""
    mixed: dict[str, str] = {}
    """URL -> digest of each other dataset in ``train.order.mixture``."""
    model: ModelConfig
    train: TrainConfig
    sample: dict[str, Any] = {}
    """The family's sampling options for pictures during training."""
    seed: int
    start: InitialModel | None = None
    """None for new weights."""

    @property
    def fingerprint(self) -> str:
        """What the model is made from."""
        start = None if self.start is None else self.start.digest
        return training_fingerprint(
            self.model, self.train, self.data_digest, self.seed, self.mixed, start=start
        )


def plan_job(job: TrainJob, data: DatasetManifest, snapshot: Snapshot | None = None) -> TrainJob:
    """The same job with every default of its net filled in. Writes nothing.

    Args:
        job: to check and complete.
        data: the manifest of its dataset.
        snapshot: the manifests that the command has read; new ones are read where it is not given.

    Raises:
        ConfigError: the model, its settings and the data do not go together.
        DataError: the data has no rows for it.
    """
    model_class = family(job.model.family)
    net = parse(model_class.Config, job.model.net, f"model.{job.name}.net")
    model_class.check(net, job.model.spec)
    parse(model_class.Sample, job.sample, f"model.{job.name}.sample")
    check_rows(job.train, job.data_root, {split: data.rows(split) for split in SPLITS})
    order = job.train.order.resolved()
    others = check_order(order, "train", data.spec, data.class_names, snapshot)
    mixed = {part.root: part.manifest.digest for part in others}
    train = job.train.model_copy(update={"order": order})
    model = job.model.model_copy(update={"net": as_json(net)})
    planned = job.model_copy(update={"model": model, "train": train, "mixed": mixed})
    job.train.check_phases(model.build().phases())
    return planned


def check_rows(config: TrainConfig, data_root: str, rows: Mapping[str, int]) -> None:
    """DataError if a split that training reads has no rows, ConfigError if it has too few."""
    if not rows["train"] and config.order.mixture.get(MAIN, 1):
        raise DataError(f"{data_root}: the train split has no rows; shard more data")
    if config.validate_every_nimg is not None and not rows["val"]:
        raise DataError(
            f"{data_root}: the val split has no rows; raise data.splits.val, "
            "or set train.validate_every_nimg=null"
        )
    if config.collapse_monitor is not None and rows["val"] <= config.collapse_monitor.neighbours:
        raise ConfigError(
            f"{data_root}: train.collapse_monitor needs more than {config.collapse_monitor.neighbours} "
            f"rows in the val split, got {rows['val']}; raise data.splits.val, "
            "or set train.collapse_monitor=null"
        )
    epoch_rows(rows["train"], config.batch, config.order.last_batch)


def run_job(job: TrainJob, world: World) -> Manifest:
    """Train and publish a model, or find that it is done. Every rank of the world calls this.

    Goes on from the newest checkpoint, whatever the number of ranks was then.

    Raises:
        GenmodError: something that would come again: the data changed, training diverged, a disk is full.
    """
    done = world.rank == 0 and find_done(Manifest, job.root, "model", job.fingerprint) is not None
    if not broadcast_int(world, int(done)):
        try:
            _train_and_publish(job, world)
        except OSError as error:
            if error.errno not in _DISK_FULL_ERRNOS:
                raise
            raise StorageError(
                f"{job.root} takes no more ({error.strerror}); make room there and give the same command "
                "again: it goes on from the newest whole checkpoint"
            ) from error
    if world.rank == 0:
        Checkpoints(job.root, job.fingerprint, job.model).remove()
    world.barrier()
    manifest = load_manifest(Manifest, job.root, "model")
    assert manifest is not None, "rank 0 has published it"
    return manifest


def _train_and_publish(job: TrainJob, world: World) -> None:
    parts = _parts(job)
    data = parts[0].manifest
    model = _new_model(job)
    checkpoints = Checkpoints(job.root, job.fingerprint, job.model, job.train.keep_checkpoints)
    batches = partial(_stream, job, parts, world)
    state = train(model, batches, world, _plan(job, data, model, checkpoints))
    world.heartbeat.mark("publish")
    if world.rank == 0:
        publish_model(
            job.root,
            job.model,
            state,
            fingerprint=job.fingerprint,
            parents={"data": job.data_digest}
            | ({} if job.start is None else {"start": job.start.digest})
            | {f"mixed-{digest[:12]}": digest for digest in job.mixed.values()},
            metadata={"seed": job.seed, "class_names": list(data.class_names)},
        )


def _new_model(job: TrainJob) -> GenerativeModel:
    """New weights, or those of the model that it starts from. DataError if that is not what was planned."""
    model = job.model.build(job.seed)
    if job.start is not None:
        found = require(Manifest, job.start.root, "model", "train").digest
        if found != job.start.digest:
            raise DataError(
                f"{job.start.root} holds model {found[:12]}, but the job was planned for "
                f"{job.start.digest[:12]}; give the command again"
            )
        model.load_state_dict(load_model(job.start.root).state_dict())
    return model


def check_start(job: TrainJob, start: ModelConfig) -> None:
    """ConfigError if the weights of the model ``start`` do not fit the job's model."""
    sides = shapes_of(job.model), shapes_of(start)
    mine, theirs = ({k: v.shape for k, v in side.state_dict().items()} for side in sides)
    if mine != theirs:
        odd = next(name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name))
        raise ConfigError(
            f"model.{job.name}.net: {odd} is {tuple(mine.get(odd, ()))}, in the model that it distills "
            f"{tuple(theirs.get(odd, ()))}; leave the net's sizes as they are there"
        )


def _parts(job: TrainJob) -> list[MixturePart]:
    """The recipe's dataset and those mixed with it. DataError if one is not what was planned."""
    order = job.train.order
    own = MixturePart(job.data_root, open_dataset(job.data_root), order.mixture.get(MAIN, 1.0))
    parts = [own, *mixture_parts(order)]
    for part in parts:
        planned = job.data_digest if part is own else job.mixed[part.root]
        if part.manifest.digest != planned:
            raise DataError(
                f"{part.root} holds dataset {part.manifest.digest[:12]}, but the job was planned for "
                f"{planned[:12]}; give the command again"
            )
    return parts


def _stream(
    job: TrainJob, parts: list[MixturePart], world: World, start_nimg: int
) -> TrainingStream:
    config = job.train
    return TrainingStream(
        job.data_root,
        parts[0].manifest,
        "train",
        global_batch=config.batch,
        rank=world.rank,
        size=world.size,
        start_nimg=start_nimg,
        training_order=make_training_order(
            parts, "train", config.order, seed=job.seed, global_batch=config.batch
        ),
        decoded_bytes=config.decoded_mib << 20,
    )


def _plan(
    job: TrainJob, data: DatasetManifest, model: GenerativeModel, checkpoints: Checkpoints
) -> Plan:
    config = job.train
    validation = grid = None
    if config.validate_every_nimg is not None:
        rows = read_rows(
            job.data_root, data, "val", range(min(config.validation_rows, data.rows("val")))
        )
        validation = Validation(rows, job.seed, config.precision)
    if config.grid_every_nimg is not None:
        options = parse(model.Sample, job.sample, f"model.{job.name}.sample")
        grid = SampleGrid(config.grid_images, job.seed, options)
    samples = None
    if config.collapse_monitor is not None:
        shown = range(min(config.collapse_monitor.rows, data.rows("val")))
        options = parse(model.Sample, job.sample, f"model.{job.name}.sample")
        samples = CollapseMonitor(
            config.collapse_monitor, read_rows(job.data_root, data, "val", shown), job.seed, options
        )
    latents = None
    if config.latent_monitor is not None and model.has_latents and data.rows("val") > 1:
        shown = range(min(config.latent_monitor.rows, data.rows("val")))
        rows = read_rows(job.data_root, data, "val", shown)
        latents = LatentMonitor(config.latent_monitor, rows, job.seed)
    return Plan(config, job.seed, job.root, checkpoints, validation, grid, samples, latents)
