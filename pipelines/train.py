"""The train stage: a recipe's models, one after the other, in one group of Ray Train workers.

Ray Train starts the group and starts it again after a crash; what is trained, where it goes on and when it
is done are the business of checkpoints and manifests, which know nothing of Ray.
"""

from __future__ import annotations

import posixpath
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cluster.actors import shape
from cluster.failures import leave, left
from cluster.session import ClusterConfig
from cluster.world import GroupOptions, run_group
from genmod import storage
from genmod.config import as_json, fingerprint
from genmod.errors import ConfigError, GenmodError, StorageError
from genmod.manifest import NAMES, DatasetManifest, Manifest, claim, find_done, require
from genmod.training.job import Start, TrainJob, check_start, plan_job, run_job
from genmod.training.published import GRIDS, HISTORY
from genmod.training.spool import read_spool
from genmod.world import World
from pipelines.context import Context, Result
from pipelines.registry import Candidate, register_later
from pipelines.run import narrowed, need_models, of_stage

OnProgress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with a model's name, images seen, images in all, and what was measured there."""

STACKS = "stacks"
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
        where=shape("auto", options.cluster),
        scratch=storage.join(scratch, "ray"),
        hang_s=max(job.train.hang_s for job in jobs),
        stacks=storage.join(jobs[0].root, STACKS),
        max_failures=max(job.train.max_failures for job in jobs),
    )
    watch = _Watch(jobs, options.on_progress)
    try:
        with watch:
            run_group(work, values, group)
    except GenmodError as lost:
        raise left(notes) or lost from lost
    else:
        if error := left(notes):
            raise error
    finally:
        # Of no use by now. A store that is gone was told above, and must not be told instead of that.
        with suppress(OSError, StorageError):
            storage.remove(scratch)
            if not storage.list_names(options.scratch):
                storage.remove(options.scratch)


def work(world: World, values: dict[str, Any]) -> None:
    """What each worker does: all jobs in order, until one has an error that would come again."""
    if left(values["notes"]) is not None:
        return
    for told in values["jobs"]:
        try:
            run_job(TrainJob.model_validate(told), world)
        except GenmodError as error:
            leave(values["notes"], world, error)
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
                points = read_spool(job.root, self._seen.get(job.name, -1))
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


def job_of(context: Context, name: str, data: DatasetManifest) -> TrainJob:
    """The job of a recipe's model, checked."""
    recipe = context.recipe
    job = TrainJob(
        name=name,
        root=context.at("models", name),
        data_root=context.at("data"),
        data_digest=data.digest,
        model=context.model_config(name, data),
        train=recipe.train_config(name),
        sample=recipe.entry(name).sample,
        seed=recipe.seed,
    )
    tunes = recipe.entry(name).tunes
    if tunes is None:
        return plan_job(job, data)
    start = context.at("models", tunes)
    found = require(Manifest, start, "model", f"train --model {tunes}")
    job = job.model_copy(update={"start": Start(root=start, digest=found.digest)})
    check_start(job)
    return plan_job(job, data)


def _inputs(job: TrainJob) -> dict[str, tuple[str, str]]:
    """Name -> (URL, digest) of every dataset that the model is made from."""
    mixed = {f"mixed-{digest[:12]}": (url, digest) for url, digest in job.mixed.items()}
    start = {} if job.start is None else {"start": (job.start.root, job.start.digest)}
    return {"data": (job.data_root, job.data_digest), **start, **mixed}


def stage(context: Context) -> Result:
    """The command: the recipe's models, but for those that tune others."""
    return make(context, "train")


def make(context: Context, stage: str) -> Result:
    """What ``train`` and ``distill`` do, each with its own of the command's models."""
    need_models(context)
    mine = of_stage(context.recipe, context.models, stage)
    if not mine:
        raise ConfigError(
            f"{stage}: {', '.join(context.models)} tunes another model; that is for genmod distill"
            if stage == "train"
            else f"{stage}: no model tunes another; give one model.NAME.tunes in the recipe"
        )
    context = narrowed(context, mine)
    begun_s = time.monotonic()
    data = context.dataset()
    jobs = [job_of(context, name, data) for name in context.models]
    runs = {
        job.name: context.tracker.run(stage, job.name, job.fingerprint, as_json(job), _inputs(job))
        for job in jobs
    }
    worked = False

    def connect() -> None:
        nonlocal worked
        worked = True
        storage.probe(context.recipe.root)
        context.connect()
        context.progress.say("  starting the training workers")

    def on_progress(name: str, nimg: int, total_nimg: int, metrics: Mapping[str, float]) -> None:
        losses = [f"{k.split('/')[1]} loss {v:.4g}" for k, v in metrics.items() if _is_loss(k)]
        context.progress.update(name, nimg, total_nimg, "images", ", ".join(losses))
        runs[name].metrics(metrics, nimg)

    options = TrainOptions(context.recipe.cluster, context.at(".scratch"), on_progress, connect)
    try:
        manifests = train_models(jobs, options)
    except BaseException:
        for run in runs.values():
            run.finish("FAILED")
        raise
    for job, manifest in zip(jobs, manifests, strict=True):
        run = runs[job.name]
        run.replay(lambda root=job.root: [(p.nimg, p.metrics) for p in read_spool(root)])
        for path in (NAMES["model"], HISTORY):
            run.artifact(storage.join(job.root, path))
        for entry in manifest.files:
            if entry.path.startswith(f"{GRIDS}/"):
                run.artifact(storage.join(job.root, entry.path), GRIDS)
        recipe_yaml = context.recipe.to_yaml()
        candidate = Candidate(job.name, manifest.digest, job.root, recipe_yaml)
        register_later(context.tracker, run, candidate)
        facts = {"digest": manifest.digest, "model_digest": manifest.facts["model_digest"]}
        run.finish("FINISHED", {**facts, "root": job.root})
    answer = _result(jobs, manifests)
    return context.result(stage, begun_s, worked, answer.pop("output"), manifests[0], **answer)


def _is_loss(key: str) -> bool:
    return key.startswith("train/") and key.endswith("/loss")


def _result(jobs: Sequence[TrainJob], manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What is said of the models that were made."""
    made = {
        job.name: {
            "output": job.root,
            "fingerprint": job.fingerprint,
            "digest": manifest.digest,
            "final": manifest.facts["final"],
        }
        for job, manifest in zip(jobs, manifests, strict=True)
    }
    single = len(jobs) == 1
    output = jobs[0].root if single else posixpath.dirname(jobs[0].root)
    both = jobs[0].fingerprint if single else fingerprint(*(job.fingerprint for job in jobs))
    return {"models": made, "output": output, "fingerprint": both}
