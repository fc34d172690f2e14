"""The train stage: a recipe's models, one after the other, in one group of Ray Train workers.

Ray Train starts the group and starts it again after a crash; what is trained, where it goes on and when it
is done are the business of checkpoints and manifests, which know nothing of Ray.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Mapping, Sequence
from typing import Any

from genmod import storage
from genmod.config import as_json, fingerprint
from genmod.errors import ConfigError
from genmod.interface.model_store import GRIDS, HISTORY, open_model
from genmod.manifest import MANIFEST_NAMES, DatasetManifest, Manifest, require
from genmod.training.job import InitialModel, TrainJob, check_start, plan_job
from genmod.training.metric_log import read_metrics
from pipelines.jobs.training import TrainOptions, train_models
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import narrowed, need_models, of_stage
from pipelines.tracking.registry import ModelEntry, register_in_background


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
    distills = recipe.entry(name).distills
    if distills is None:
        return plan_job(job, data)
    start = context.at("models", distills)
    found = require(Manifest, start, "model", f"train --model {distills}")
    job = job.model_copy(update={"start": InitialModel(root=start, digest=found.digest)})
    check_start(job, open_model(start, found).config)
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
            f"{stage}: {', '.join(context.models)} distills another model; that is for genmod distill"
            if stage == "train"
            else f"{stage}: no model distills another; give one model.NAME.distills in the recipe"
        )
    context = narrowed(context, mine)
    start_s = time.monotonic()
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
        storage.check_writable(context.recipe.root)
        context.connect()
        context.progress.log("  starting the training workers")

    def on_progress(name: str, nimg: int, total_nimg: int, metrics: Mapping[str, float]) -> None:
        losses = [f"{k.split('/')[1]} loss {v:.4g}" for k, v in metrics.items() if _is_loss(k)]
        context.progress.update(name, nimg, total_nimg, "images", ", ".join(losses))
        runs[name].log_metrics(metrics, nimg)

    options = TrainOptions(context.recipe.cluster, context.at(".scratch"), on_progress, connect)
    try:
        manifests = train_models(jobs, options)
    except BaseException:
        for run in runs.values():
            run.finish("FAILED")
        raise
    for job, manifest in zip(jobs, manifests, strict=True):
        run = runs[job.name]
        run.replay(lambda root=job.root: [(p.nimg, p.metrics) for p in read_metrics(root)])
        for path in (MANIFEST_NAMES["model"], HISTORY):
            run.log_artifact(storage.join(job.root, path))
        for entry in manifest.files:
            if entry.path.startswith(f"{GRIDS}/"):
                run.log_artifact(storage.join(job.root, entry.path), GRIDS)
        recipe_yaml = context.recipe.to_yaml()
        candidate = ModelEntry(job.name, manifest.digest, job.root, recipe_yaml)
        register_in_background(context.tracker, run, candidate)
        metadata = {"digest": manifest.digest, "model_digest": manifest.metadata["model_digest"]}
        run.finish("FINISHED", {**metadata, "root": job.root})
    answer = _result(jobs, manifests)
    return context.result(stage, start_s, worked, answer.pop("output"), manifests[0], **answer)


def _is_loss(key: str) -> bool:
    return key.startswith("train/") and key.endswith("/loss")


def _result(jobs: Sequence[TrainJob], manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What is said of the models that were made."""
    made = {
        job.name: {
            "output": job.root,
            "fingerprint": job.fingerprint,
            "digest": manifest.digest,
            "final": manifest.metadata["final"],
        }
        for job, manifest in zip(jobs, manifests, strict=True)
    }
    single = len(jobs) == 1
    output = jobs[0].root if single else posixpath.dirname(jobs[0].root)
    both = jobs[0].fingerprint if single else fingerprint(*(job.fingerprint for job in jobs))
    return {"models": made, "output": output, "fingerprint": both}
