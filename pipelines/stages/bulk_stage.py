"""What the sample and score stages share: run jobs, track them, return the result."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Sequence

from genmod import storage
from genmod.config import as_json, fingerprint
from genmod.generation.synthetic import SampleConfig
from genmod.manifest import MANIFEST_NAMES
from genmod.scoring.table import ScoreConfig
from pipelines.jobs.bulk import Job, ManifestT, Options, ReceiptT, WorkUnitActor, run_jobs
from pipelines.recipe.context import Context, Result


def run_stage(
    context: Context,
    stage: str,
    jobs: Sequence[Job[ManifestT, ReceiptT]],
    actor: type[WorkUnitActor],
    config: SampleConfig | ScoreConfig,
) -> Result:
    """The jobs as a command does them: with progress, with tracking, with an answer."""
    start_s = time.monotonic()
    runs = [
        context.tracker.run(stage, job.name, job.fingerprint, as_json(job.plan), job.inputs)
        for job in jobs
    ]
    worked = False

    def on_progress(done: int, total: int) -> None:
        nonlocal worked
        worked = worked or done < total
        if worked:
            context.progress.update(stage, done, total, "images")

    def connect() -> None:
        storage.check_writable(context.recipe.root)
        context.connect()

    options = Options(context.recipe.cluster, on_progress, connect)
    try:
        manifests = run_jobs(jobs, actor, config, options)
    except BaseException:
        for run_of_job in runs:
            run_of_job.finish("FAILED")
        raise
    for job, run_of_job, manifest in zip(jobs, runs, manifests, strict=True):
        values = {k: v for k, v in manifest.metadata.items() if isinstance(v, float)}
        run_of_job.log_metrics(values, 0)
        run_of_job.log_artifact(storage.join(job.out_root, MANIFEST_NAMES[job.kind]))
        run_of_job.finish("FINISHED", {"digest": manifest.digest, "root": job.out_root})
    made = {
        job.name: {
            "output": job.out_root,
            "fingerprint": job.fingerprint,
            "digest": manifest.digest,
        }
        for job, manifest in zip(jobs, manifests, strict=True)
    }
    single = len(jobs) == 1
    output = jobs[0].out_root if single else posixpath.dirname(jobs[0].out_root)
    both = jobs[0].fingerprint if single else fingerprint(*(job.fingerprint for job in jobs))
    return context.result(
        stage, start_s, worked, output, manifests[0], fingerprint=both, models=made
    )
