"""The common part of the sample and score stages: run jobs, track them, return the result."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Sequence

from genmod import storage
from genmod.config import as_json, fingerprint
from genmod.generation.config import SampleConfig
from genmod.manifest import MANIFEST_NAMES, ManifestT
from genmod.scoring.config import ScoreConfig
from pipelines.jobs.bulk import BulkJob, BulkOptions, ReceiptT, WorkUnitActor
from pipelines.jobs.execution import run_jobs
from pipelines.recipe.context import Context, Result
from pipelines.tracking.run import TrackedRun


def bulk_options(context: Context) -> BulkOptions:
    """The command's options of a bulk execution: its cluster, progress and manifests."""

    def connect() -> None:
        storage.check_writable(context.recipe.root)
        context.connect()

    return BulkOptions(context.recipe.cluster, context.progress, connect, context.snapshot)


def run_bulk_stage(
    context: Context,
    stage: str,
    jobs: Sequence[BulkJob[ManifestT, ReceiptT]],
    actor: type[WorkUnitActor],
    config: SampleConfig | ScoreConfig,
    *,
    on_published: Callable[[BulkJob[ManifestT, ReceiptT], ManifestT, TrackedRun], None]
    | None = None,
) -> Result:
    """Run the jobs of a stage, log each to the tracker, and return the stage's result.

    Args:
        context: of the command.
        stage: its name.
        jobs: to run.
        actor: writes their units.
        config: the recipe's section.
        on_published: called with each job, its manifest and its open run.
    """
    start_s = time.monotonic()
    runs = [
        context.tracker.run(stage, job.name, job.fingerprint, as_json(job.plan), job.inputs)
        for job in jobs
    ]
    worked = any(
        context.snapshot.find_done(
            job.manifest, job.out_root, job.kind, job.fingerprint, claimed_by=job.work
        )
        is None
        for job in jobs
    )
    try:
        manifests = run_jobs(jobs, actor, config, bulk_options(context))
    except BaseException:
        for run in runs:
            run.finish("FAILED")
        raise
    for job, run, manifest in zip(jobs, runs, manifests, strict=True):
        values = {k: v for k, v in manifest.metadata.items() if isinstance(v, float)}
        run.log_metrics(values, 0)
        run.log_artifact(storage.join(job.out_root, MANIFEST_NAMES[job.kind]))
        if on_published is not None:
            on_published(job, manifest, run)
        run.finish("FINISHED", {"digest": manifest.digest, "root": job.out_root})
    models = {
        job.name: {
            "output": job.out_root,
            "fingerprint": job.fingerprint,
            "digest": manifest.digest,
        }
        for job, manifest in zip(jobs, manifests, strict=True)
    }
    single = len(jobs) == 1
    output = jobs[0].out_root if single else posixpath.dirname(jobs[0].out_root)
    combined = jobs[0].fingerprint if single else fingerprint(*(job.fingerprint for job in jobs))
    return context.result(
        stage, start_s, worked, output, manifests[0], fingerprint=combined, models=models
    )
