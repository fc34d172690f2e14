"""The training job: trains models in one group of Ray Train workers and follows their metric logs."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.metrics import RECORDER
from cluster.resources import resource_request
from cluster.session import ClusterConfig
from cluster.worker_errors import read_error, write_error
from cluster.world import GroupOptions, run_group
from genmod import storage
from genmod.config import as_json
from genmod.errors import GenmodError, StorageError
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest, claim
from genmod.training.job import TrainJob, run_job
from genmod.training.metric_log import MetricFollower, MetricPoint, flush_interval_s
from genmod.world import World
from pipelines.jobs.progress import NO_PROGRESS, Progress

_STACKS_FOLDER = "stacks"
"""Folder below a model's root for the stacks of workers that hang. For people; no manifest lists it."""

_LAST_READ_S = 60.0
"""How long the end of a job waits for the last read of the metric logs."""


class MetricSink(Protocol):
    """Receives what one model's training measures, e.g. a tracking run."""

    def log_metrics(self, values: Mapping[str, float], nimg: int) -> None:
        """Log values measured at ``nimg`` images; ``nimg`` increases from call to call."""
        ...


@dataclass(frozen=True)
class TrainOptions:
    """How to run training jobs."""

    cluster: ClusterConfig
    scratch: str
    """URL of a folder for files that only one launch needs."""
    progress: Progress = NO_PROGRESS
    metrics: Mapping[str, MetricSink] = field(default_factory=dict[str, MetricSink])
    """Name of a model -> the receiver of its metrics."""
    connect: Callable[[], None] | None = None
    """Connects to Ray; called only if a model is not finished. None if Ray is connected already."""
    snapshot: ManifestSnapshot = field(default_factory=ManifestSnapshot)
    """The manifests that the command has read."""


def train_models(jobs: Sequence[TrainJob], options: TrainOptions) -> list[Manifest]:
    """Train several models. Finished ones are skipped; interrupted ones resume from their newest checkpoint.

    Jobs with the same number of workers share one launch of the group, since starting it takes many seconds.

    Returns:
        The manifest of each model.

    Raises:
        ConfigError: a folder contains other work, or the cluster has too few resources for the workers.
        GenmodError: a model cannot be trained; the models before it are finished and stay so.
    """
    snapshot = options.snapshot
    to_do = [
        job
        for job in jobs
        if snapshot.find_done(Manifest, job.root, "model", job.fingerprint) is None
    ]
    if to_do:
        for job in to_do:
            claim(job.root, job.fingerprint)
        if options.connect is not None:
            options.connect()
    for size in sorted({_size(job) for job in to_do}):
        _launch([job for job in to_do if _size(job) == size], options)
    for job in to_do:  # workers have published them
        snapshot.reload(Manifest, job.root, "model")
    return [snapshot.require(Manifest, job.root, "model", "train") for job in jobs]


def metric_values(point: MetricPoint) -> dict[str, float]:
    """A point's metrics, and its speeds as ``speed/...``."""
    return {**point.metrics, **{f"speed/{key}": value for key, value in point.timing.items()}}


def _size(job: TrainJob) -> tuple[int, int]:
    """Most and least workers of a job."""
    return job.train.most_workers, job.train.least_workers


def _launch(jobs: Sequence[TrainJob], options: TrainOptions) -> None:
    """Train jobs with the same number of workers in one group."""
    scratch = storage.join(options.scratch, uuid.uuid4().hex[:12])
    errors = storage.join(scratch, "errors")
    values = {"errors": errors, "jobs": [as_json(job) for job in jobs]}
    group = GroupOptions(
        workers=jobs[0].train.most_workers,
        least_workers=jobs[0].train.least_workers,
        resources=resource_request("auto", options.cluster),
        scratch=storage.join(scratch, "ray"),
        hang_timeout_s=max(job.train.hang_timeout_s for job in jobs),
        stacks=storage.join(jobs[0].root, _STACKS_FOLDER),
        max_failures=max(job.train.max_failures for job in jobs),
    )
    try:
        with MetricReporter(jobs, options):
            run_group(run_worker, values, group)
    except GenmodError as error:
        # A worker's own error explains more than the loss of its group.
        raise read_error(errors) or error from error
    else:
        if error := read_error(errors):
            raise error
    finally:
        # A storage error here must not hide the one above.
        with suppress(OSError, StorageError):
            storage.remove(scratch)
            if not storage.list_names(options.scratch):
                storage.remove(options.scratch)


def run_worker(world: World, values: dict[str, Any]) -> None:
    """Run all jobs in order on one worker, until one fails with an error that a retry would meet again."""
    if read_error(values["errors"]) is not None:
        return
    for job in values["jobs"]:
        try:
            run_job(TrainJob.model_validate(job), world)
        except GenmodError as error:
            write_error(values["errors"], world, error)
            return


@dataclass
class MetricReporter:
    """Reads the metric log of the model in training, in a thread, and reports progress and metrics."""

    jobs: Sequence[TrainJob]
    options: TrainOptions
    _stop: threading.Event = field(default_factory=threading.Event)
    _error: Exception | None = None

    def __enter__(self) -> MetricReporter:
        # The jobs run one after the other, so only the first unfinished one has new points.
        self._logs = [(job, MetricFollower(job.root)) for job in self.jobs]
        self._interval_s = flush_interval_s(self.jobs[0].root)
        self._thread = threading.Thread(target=self._run, name="follow-metrics", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join(timeout=_LAST_READ_S)
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._read()
        self._read()

    def _read(self) -> None:
        """Report the new points of the current job, and of the next ones if it has ended."""
        while self._logs:
            job, log = self._logs[0]
            try:
                points = log.read()
            except (OSError, StorageError):
                return  # the storage is briefly unavailable; the next read is soon
            self._report(job, points)
            if log.last_nimg < job.train.total_nimg:
                return
            del self._logs[0]

    def _report(self, job: TrainJob, points: Sequence[MetricPoint]) -> None:
        sink = self.options.metrics.get(job.name)
        try:
            for point in points:
                if sink is not None:
                    sink.log_metrics(metric_values(point), point.nimg)
            if points:
                distills = job.start is not None and not job.start.is_warm
                task = f"{'distill' if distills else 'train'} {job.name}"
                _record(points[-1], job.train.batch, *task.split(" ", maxsplit=1))
                nimg, total_nimg = points[-1].nimg, job.train.total_nimg
                self.options.progress.update(task, nimg, total_nimg, "images", _losses(points[-1]))
        except Exception as error:  # raised in the thread that waits for the group
            self._error = self._error or error


def _losses(point: MetricPoint) -> str:
    """The training losses for people: ``elbo loss 12.3, ...``."""
    return ", ".join(f"{phase} loss {value:.4g}" for phase, value in _loss_of_phase(point).items())


def _loss_of_phase(point: MetricPoint) -> dict[str, float]:
    return {
        key.split("/")[1]: value
        for key, value in point.metrics.items()
        if key.startswith("train/") and key.endswith("/loss")
    }


def _record(point: MetricPoint, batch: int, stage: str, model: str) -> None:
    """Report a point to Ray's metrics, as far as it was measured there."""
    if losses := _loss_of_phase(point):
        RECORDER.set("genmod_loss", sum(losses.values()), stage, model)
    timing = point.timing
    if rate := timing.get("images_per_s"):
        RECORDER.set("genmod_step_seconds", batch / rate, stage, model)
    if (waited_s := timing.get("data_wait_s")) is not None and (wall_s := timing.get("wall_s")):
        RECORDER.set("genmod_data_wait_share", waited_s / wall_s, stage, model)
    if memory := timing.get("peak_memory_bytes"):
        RECORDER.set("genmod_memory_bytes", memory, stage, model)
