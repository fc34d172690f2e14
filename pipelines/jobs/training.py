"""The training job: trains models in one group of Ray Train workers and follows their metrics."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cluster.resources import resource_request
from cluster.session import ClusterConfig
from cluster.worker_errors import read_error, write_error
from cluster.world import GroupOptions, run_group
from genmod import storage
from genmod.config import as_json
from genmod.errors import GenmodError, StorageError
from genmod.manifest import Manifest, claim, find_done, require
from genmod.training.job import TrainJob, run_job
from genmod.training.metric_log import read_metrics
from genmod.world import World

OnProgress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with a model's name, images seen, images in all, and what was measured there."""


_STACKS_FOLDER = "stacks"
"""Below a model's root: where workers that hung were. For people, so no manifest names them."""


POLL_S = 0.5
"""Between looks at what the workers have written."""


def no_progress(name: str, nimg: int, total_nimg: int, metrics: Mapping[str, float]) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train, beside what the jobs say."""

    cluster: ClusterConfig
    scratch: str
    """URL of a folder for what only one launch needs."""
    on_progress: OnProgress = no_progress
    connect: Callable[[], None] = lambda: None
    """Connects to Ray; called if there is work."""


def train_models(jobs: Sequence[TrainJob], options: TrainOptions) -> list[Manifest]:
    """Train several models; finished ones are only looked up, others go on from their newest checkpoint.

    Jobs with as many workers share one launch of the group, since starting it takes many seconds.

    Raises:
        ConfigError: a folder holds other work, or the cluster has no room for the workers.
        GenmodError: a model cannot be trained; models before it are done and stay done.
    """
    to_do = [j for j in jobs if find_done(Manifest, j.root, "model", j.fingerprint) is None]
    if to_do:
        for job in to_do:
            claim(job.root, job.fingerprint)
        options.connect()
    for workers in sorted({job.train.workers for job in to_do}):
        _launch([job for job in to_do if job.train.workers == workers], options)
    return [require(Manifest, job.root, "model", "train") for job in jobs]


def _launch(jobs: Sequence[TrainJob], options: TrainOptions) -> None:
    """One group of workers for some jobs with as many workers each."""
    scratch = storage.join(options.scratch, uuid.uuid4().hex[:12])
    notes = storage.join(scratch, "notes")
    values = {"notes": notes, "jobs": [as_json(job) for job in jobs]}
    group = GroupOptions(
        workers=jobs[0].train.workers,
        resources=resource_request("auto", options.cluster),
        scratch=storage.join(scratch, "ray"),
        hang_timeout_s=max(job.train.hang_timeout_s for job in jobs),
        stacks=storage.join(jobs[0].root, _STACKS_FOLDER),
        max_failures=max(job.train.max_failures for job in jobs),
    )
    watch = _Watch(jobs, options.on_progress)
    try:
        with watch:
            run_group(run_worker, values, group)
    except GenmodError as lost:
        raise read_error(notes) or lost from lost
    else:
        if error := read_error(notes):
            raise error
    finally:
        # Of no use by now. A store that is gone was told above, and must not be told instead of that.
        with suppress(OSError, StorageError):
            storage.remove(scratch)
            if not storage.list_names(options.scratch):
                storage.remove(options.scratch)


def run_worker(world: World, values: dict[str, Any]) -> None:
    """What each worker does: all jobs in order, until one has an error that would come again."""
    if read_error(values["notes"]) is not None:
        return
    for told in values["jobs"]:
        try:
            run_job(TrainJob.model_validate(told), world)
        except GenmodError as error:
            write_error(values["notes"], world, error)
            return


@dataclass
class _Watch:
    """Reads what the workers write, in a thread of its own while they work, and tells of it."""

    jobs: Sequence[TrainJob]
    on_progress: OnProgress
    _seen: dict[str, int] = field(default_factory=dict[str, int])
    _stop: threading.Event = field(default_factory=threading.Event)
    _error: Exception | None = None

    def __enter__(self) -> _Watch:
        self._thread = threading.Thread(target=self._run, name="watch-training", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        for job in self.jobs:
            if self._seen.get(job.name, -1) >= job.train.total_nimg:
                continue
            try:
                points = read_metrics(job.root, self._seen.get(job.name, -1))
            except OSError:
                return  # a store's hiccup; the next look is soon
            for point in points:
                metrics = dict(point.metrics) | {f"speed/{k}": v for k, v in point.timing.items()}
                self._tell(job, point.nimg, metrics)
                self._seen[job.name] = point.nimg

    def _tell(self, job: TrainJob, nimg: int, metrics: Mapping[str, float]) -> None:
        try:
            self.on_progress(job.name, nimg, job.train.total_nimg, metrics)
        except Exception as error:  # raised where the group's end is waited for
            self._error = self._error or error
