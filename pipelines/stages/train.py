"""The train stage: trains a recipe's models, one after the other, in one group of Ray Train workers.

Ray Train starts the group, and restarts it after a crash. Checkpoints and manifests decide where training
resumes and when it is done; they do not depend on Ray.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, FiniteFloat

from genmod import storage
from genmod.config import as_json, fingerprint
from genmod.documents import validate
from genmod.errors import ConfigError
from genmod.interface.model_store import GRIDS, HISTORY
from genmod.manifest import MANIFEST_NAMES, DatasetManifest, Manifest
from genmod.training.job import InitialModel, TrainJob, check_start, plan_job
from genmod.training.metric_log import read_metrics
from pipelines.jobs.training import TrainOptions, metric_values, train_models
from pipelines.recipe.checks import Data
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_selected, models_for
from pipelines.stages.first_lines import train_lines
from pipelines.stages.model_entry import model_entry
from pipelines.stages.warm_start import chosen_start
from pipelines.tracking.registry import register_in_background
from pipelines.tracking.run import TrackedRun


def job_of(context: Context, name: str, data: DatasetManifest) -> TrainJob:
    """The training job of one of the recipe's models, checked.

    Raises:
        ConfigError: model, settings and data do not go together, or the model to distill is not trained.
        DataError: the dataset has no rows for it.
    """
    recipe = context.recipe
    job = TrainJob(
        name=name,
        root=context.at("models", name),
        data_root=context.at("data"),
        data_digest=data.digest,
        model=context.model_config(name, data),
        train=recipe.train_config(name),
        sample=recipe.entry(name).sample,
        seed=recipe.seed + data.repeat,
    )
    distills = recipe.entry(name).distills
    if distills is None:
        if (warm := chosen_start(context, name)) is not None:
            job = job.model_copy(update={"start": warm})
            check_start(job, context.snapshot.model(warm.root, "retrain"), data)
        return plan_job(job, data, context.snapshot)
    start = context.at("models", distills)
    teacher = context.snapshot.model(start, f"train --model {distills}")
    initial = InitialModel(root=start, digest=teacher.manifest.digest)
    job = job.model_copy(update={"start": initial})
    check_start(job, teacher, data)
    return plan_job(job, data, context.snapshot)


def stage(context: Context) -> Result:
    """Run ``genmod train``: the selected models, except those that distill another."""
    return run_stage(context, "train")


def run_stage(context: Context, stage: str) -> Result:
    """Run ``train`` or ``distill`` for those of the selected models that belong to it.

    Args:
        context: of the command.
        stage: ``train`` or ``distill``.

    Raises:
        ConfigError: no selected model belongs to the stage.
        GenmodError: a model cannot be trained.
    """
    check_selected(context)
    names = models_for(context.recipe, context.models, stage)
    if not names:
        raise ConfigError(
            f"train: {', '.join(context.models)} distills another model; run genmod distill"
            if stage == "train"
            else "distill: no selected model distills another; set model.NAME.distills in the recipe"
        )
    context = context.with_models(names)
    start_s = time.monotonic()
    data = context.dataset()
    jobs = [job_of(context, name, data) for name in context.models]
    for line in train_lines(Data.of(data)):
        context.progress.log(line)
    runs = {
        job.name: context.tracker.run(stage, job.name, job.fingerprint, as_json(job), _inputs(job))
        for job in jobs
    }
    trained = False

    def connect() -> None:
        nonlocal trained
        trained = True
        storage.check_writable(context.recipe.root)
        context.connect()
        context.progress.log("  starting the training workers")

    options = TrainOptions(
        context.recipe.cluster,
        context.at(".scratch"),
        context.progress,
        runs,
        connect,
        context.snapshot,
    )
    try:
        manifests = train_models(jobs, options)
    except BaseException:
        for run in runs.values():
            run.finish("FAILED")
        raise
    for job, manifest in zip(jobs, manifests, strict=True):
        _track(context, runs[job.name], job, manifest)
    answer = _result(jobs, manifests)
    return context.result(stage, start_s, trained, answer.pop("output"), manifests[0], **answer)


def _inputs(job: TrainJob) -> dict[str, tuple[str, str]]:
    """Name -> (URL, digest) of every dataset and model that the training reads."""
    mixed = {f"mixed-{digest[:12]}": (url, digest) for url, digest in job.mixed.items()}
    start = {} if job.start is None else {"start": (job.start.root, job.start.digest)}
    return {"data": (job.data_root, job.data_digest), **start, **mixed}


class _Trained(BaseModel):
    """What the stage reports of a model's metadata."""

    model_digest: str
    final: dict[str, FiniteFloat]


def _trained(job: TrainJob, manifest: Manifest) -> _Trained:
    where, remedy = job.root, "remove that folder and train the model again"
    return validate(_Trained, manifest.metadata, "a trained model", where, remedy)


def _track(context: Context, run: TrackedRun, job: TrainJob, manifest: Manifest) -> None:
    """Log a trained model: metrics that are still missing, files, and a version in the registry."""

    def points(after_nimg: int) -> list[tuple[int, dict[str, float]]]:
        return [(p.nimg, metric_values(p)) for p in read_metrics(job.root, after_nimg)]

    run.catch_up(job.train.total_nimg, points)
    for path in (MANIFEST_NAMES["model"], HISTORY):
        run.log_artifact(storage.join(job.root, path))
    for entry in manifest.files:
        if entry.path.startswith(f"{GRIDS}/"):
            run.log_artifact(storage.join(job.root, entry.path), GRIDS)
    entry = model_entry(context.recipe, job.name, manifest.digest, job.root)
    register_in_background(context.tracker, run, entry)
    model_digest = _trained(job, manifest).model_digest
    metadata = {"digest": manifest.digest, "model_digest": model_digest}
    run.finish("FINISHED", {**metadata, "root": job.root})


def _result(jobs: Sequence[TrainJob], manifests: Sequence[Manifest]) -> dict[str, Any]:
    """The stage's answer: each model, and one output and fingerprint for all."""
    models = {
        job.name: {
            "output": job.root,
            "fingerprint": job.fingerprint,
            "digest": manifest.digest,
            "final": _trained(job, manifest).final,
        }
        for job, manifest in zip(jobs, manifests, strict=True)
    }
    if len(jobs) == 1:
        output, digest = jobs[0].root, jobs[0].fingerprint
    else:
        output = posixpath.dirname(jobs[0].root)
        digest = fingerprint(*(job.fingerprint for job in jobs))
    return {"models": models, "output": output, "fingerprint": digest}
