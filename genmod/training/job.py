"""Trains one model, from dataset to published model. Every process of the training runs :func:`run_job`."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import partial
from typing import Any

from genmod.config import Config, as_json, parse
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
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.interface.model_store import PublishedModel, classes_of, load_model
from genmod.interface.registry import ModelConfig, family
from genmod.interface.snapshot import ManifestSnapshot, check_unchanged
from genmod.manifest import SPLITS, DatasetManifest, Manifest, find_done, load_manifest, require
from genmod.manifest.class_match import Classes, match_classes
from genmod.training.checkpoint import Checkpoints
from genmod.training.loop import train
from genmod.training.monitors.collapse import CollapseMonitor
from genmod.training.monitors.latents import LatentMonitor
from genmod.training.monitors.validation import SampleGrid, Validation
from genmod.training.plan import TrainConfig, training_fingerprint
from genmod.training.publish import publish_model
from genmod.training.setup import Plan
from genmod.world import World, broadcast_int

_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of local files that a retry would meet again."""


class InitialModel(Config):
    """A trained model whose EMA weights are the initial weights of another one."""

    root: str
    """URL of the model's folder."""
    digest: str
    """Digest of its manifest when the job was planned."""
    is_warm: bool = False
    """Whether it is an earlier version of this model, not one that is distilled."""


class TrainJob(Config):
    """All inputs of one training, and its output folder. As JSON it can be sent to any process."""

    name: str
    root: str
    """URL of the model's folder."""
    data_root: str
    data_digest: str
    """Digest of the dataset's manifest when the job was planned."""
    mixed: dict[str, str] = {}
    """URL -> digest of each other dataset in ``train.order.mixture``."""
    model: ModelConfig
    train: TrainConfig
    sample: dict[str, Any] = {}
    """The family's sampling options for sample grids and the collapse monitor."""
    seed: int
    start: InitialModel | None = None
    """None for random weights."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that the weights depend on."""
        start = None if self.start is None else self.start.digest
        return training_fingerprint(
            self.model, self.train, self.data_digest, self.seed, self.mixed, start=start
        )


def plan_job(
    job: TrainJob, data: DatasetManifest, snapshot: ManifestSnapshot | None = None
) -> TrainJob:
    """Fill in all defaults of a job and check it against its data. Writes nothing.

    Args:
        job: to check and complete.
        data: the manifest of its dataset.
        snapshot: the manifests that the command has read; None reads them again.

    Raises:
        ConfigError: the model, its settings and the data do not go together.
        DataError: a split that training reads has no rows.
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
    job.train.check_phases(model.shapes().phases())
    return planned


def check_rows(config: TrainConfig, data_root: str, rows: Mapping[str, int]) -> None:
    """Check that the splits which training reads have enough rows.

    Raises:
        DataError: a split has no rows.
        ConfigError: a split has too few rows for the settings.
    """
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
    """Train and publish a model, unless it is finished. Collective: every rank calls it.

    Training resumes from the newest checkpoint, with any number of ranks.

    Raises:
        GenmodError: a retry would meet the same error, e.g. changed data, divergence, a full disk.
    """
    done = world.rank == 0 and find_done(Manifest, job.root, "model", job.fingerprint) is not None
    if not broadcast_int(world, int(done)):
        try:
            _train_and_publish(job, world)
        except OSError as error:
            if error.errno not in _DISK_FULL_ERRNOS:
                raise
            raise StorageError(
                f"cannot write to {job.root} ({error.strerror}); free some space, then rerun the same "
                "command: it resumes from the newest whole checkpoint"
            ) from error
    if world.rank == 0:
        Checkpoints(job.root, job.fingerprint, job.model).remove()
    world.barrier()
    manifest = load_manifest(Manifest, job.root, "model")
    if manifest is None:  # rank 0 has published it
        raise StorageError(
            f"{job.root}: the model was removed while it was published; train it again"
        )
    return manifest


def _train_and_publish(job: TrainJob, world: World) -> None:
    parts = _parts(job)
    data = parts[0].manifest
    model = _new_model(job)
    checkpoints = Checkpoints(job.root, job.fingerprint, job.model, job.train.keep_checkpoints)
    batches = partial(open_stream, job, parts, world)
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
            metadata={
                "seed": job.seed,
                "class_names": list(data.class_names),
                **_empty_classes(parts),
            },
        )


def _empty_classes(parts: list[MixturePart]) -> dict[str, list[int]]:
    """Metadata: the classes of which no training row was read; nothing if there are none."""
    empty = set.intersection(
        *(part.empty_classes("train", parts[0]) for part in parts if part.weight)
    )
    return {"empty_classes": sorted(empty)} if empty else {}


def _new_model(job: TrainJob) -> GenerativeModel:
    """A model with random weights, or with those it starts from. DataError if these have changed."""
    model = job.model.build(job.seed)
    if job.start is not None:
        start = require(Manifest, job.start.root, "model", "train")
        check_unchanged(job.start.root, start, job.start.digest)
        model.load_state_dict(load_model(job.start.root).state_dict())
    return model


def check_start(job: TrainJob, start: PublishedModel, data: DatasetManifest) -> None:
    """ConfigError if the weights of the model ``start`` do not fit the job's model and dataset."""
    known = Classes(start.root, start.config.spec.classes, classes_of(start).class_names)
    if match_classes(data.classes(job.data_root), known):
        raise ConfigError(
            f"{job.data_root} has the classes of {start.root} in another order; train that model again"
        )
    models = job.model.shapes(), start.config.shapes()
    shapes, start_shapes = ({k: v.shape for k, v in m.state_dict().items()} for m in models)
    if shapes != start_shapes:
        names = sorted({*shapes, *start_shapes})
        name = next(n for n in names if shapes.get(n) != start_shapes.get(n))
        raise ConfigError(
            f"model.{job.name}.net: {name} has shape {tuple(shapes.get(name, ()))}, expected that of the "
            f"model that it starts from, {tuple(start_shapes.get(name, ()))}; use the same net sizes"
        )


def _parts(job: TrainJob) -> list[MixturePart]:
    """The recipe's dataset and those in its mixture. DataError if one has changed since planning."""
    order = job.train.order
    own = MixturePart(job.data_root, open_dataset(job.data_root), order.mixture.get(MAIN, 1.0))
    parts = [own, *mixture_parts(order)]
    for part in parts:
        planned = job.data_digest if part is own else job.mixed[part.root]
        check_unchanged(part.root, part.manifest, planned)
    return parts


def open_stream(
    job: TrainJob, parts: list[MixturePart], world: World, start_nimg: int
) -> TrainingStream:
    """This rank's rows of the training stream, from the position ``start_nimg``."""
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
    """The training plan, with the validation rows of each monitor that the job enables."""
    config = job.train
    options = parse(model.Sample, job.sample, f"model.{job.name}.sample")

    def val_rows(most: int) -> Batch:
        return read_rows(job.data_root, data, "val", range(min(most, data.rows("val"))))

    validation = grid = collapse = latents = None
    if config.validate_every_nimg is not None:
        validation = Validation(val_rows(config.validation_rows), job.seed, config.precision)
    if config.grid_every_nimg is not None:
        grid = SampleGrid(config.grid_images, job.seed, options)
    if (monitor := config.collapse_monitor) is not None:
        collapse = CollapseMonitor(monitor, val_rows(monitor.rows), job.seed, options)
    if (
        (monitor := config.latent_monitor) is not None
        and model.has_latents
        and data.rows("val") > 1
    ):
        latents = LatentMonitor(monitor, val_rows(monitor.rows), job.seed)
    return Plan(config, job.seed, job.root, checkpoints, validation, grid, collapse, latents)
