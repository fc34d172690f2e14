"""Drift: new rows that the champions find extreme are a reason to retrain, though they are few.

Each champion with a density scores some of the new rows; they are compared with its scores of held-out rows.
The finding is in ``drift/ROWS/NAME`` below the root, and is not measured again for the same rows.
"""

from __future__ import annotations

from itertools import chain

import torch

from genmod import storage
from genmod.config import fingerprint
from genmod.data.sharding.plan import DatasetPlan
from genmod.manifest import Manifest
from genmod.permutation import shuffle
from genmod.scoring.drift_job import DriftJob, NewRows, drift_from
from pipelines.recipe.context import Context
from pipelines.stages.champions import Champions
from pipelines.stages.evaluate import run_evaluation_jobs
from pipelines.stages.version_plan import DatasetVersion


def new_rows_reason(
    context: Context, plan: DatasetPlan, newest: DatasetVersion, *, check_drift: bool = True
) -> str | None:
    """Why the new rows of a plan are a reason to retrain, by the recipe's ``retrain``.

    Args:
        context: the command.
        plan: of the version with the new rows.
        newest: version of the dataset.
        check_drift: whether champions may score them; a dry run does not.

    Returns:
        Empty if they are many enough, drift in words, or None: they wait.
    """
    del newest
    config, log = context.recipe.retrain, context.progress.log
    if plan.rows >= config.min_new_rows:
        return ""
    waiting = f"  {plan.rows:,} new rows wait until there are retrain.min_new_rows={config.min_new_rows:,}"
    if config.drift is None:
        log(waiting)
        return None
    if not check_drift:
        log(f"{waiting}; retrain checks them for drift before")
        return None
    jobs = _jobs(context, plan)
    manifests = run_evaluation_jobs(context, jobs)[1] if jobs else []
    for job, manifest in zip(jobs, manifests, strict=True):
        drift = drift_from(manifest, job.out_root)
        log(f"  {job.name}: {drift.text}")
        # All champions together give a false alarm as rarely as the recipe says.
        if drift.p_value <= config.drift.false_alarm / len(jobs):
            return f"drift of {plan.rows:,} new rows: {drift.text} ({job.name})"
    log(f"{waiting}; no drift is found")
    return None


def _jobs(context: Context, plan: DatasetPlan) -> list[DriftJob]:
    """A job for each champion that has scores of held-out rows; says why others have none."""
    jobs: list[DriftJob] = []
    rows = _sample(context, plan)
    label = fingerprint(rows.names, rows.source_fingerprint)[:16]
    for name in context.models:
        champion = Champions(context, name).read().champion
        if champion is None:
            context.progress.log(f"  {name}: no champion, so it does not check new rows for drift")
            continue
        what = f"the model of {champion.label}"
        ledger = f"the promotion ledger at {context.ledger_url}"
        model_root = context.tracker.followed(champion.root, what, ledger)
        home = model_root.rpartition("/models/")[0]
        scores_root = storage.join(home, "scores", name)
        scores = context.snapshot.load(Manifest, scores_root, "scores")
        if scores is None or scores.metadata.get("split") == "train":
            context.progress.log(
                f"  {name}: its champion has no scores of held-out rows, so it does not check for drift"
            )
            continue
        jobs.append(
            DriftJob(
                name=name,
                model_root=model_root,
                scores_root=scores_root,
                data_root=storage.join(home, "data"),
                out_root=context.at("drift", f"{label}-{champion.digest[:16]}", name),
                spec=plan.spec,
                rows=rows,
                config=context.recipe.score,
                seed=context.recipe.seed,
            )
        )
    return jobs


def _sample(context: Context, plan: DatasetPlan) -> NewRows:
    """Some of the new rows, drawn by the seed."""
    drift = context.recipe.retrain.drift
    assert drift is not None
    count = min(plan.rows, drift.rows)
    chosen = set(shuffle(torch.arange(count), plan.rows, context.recipe.seed, "drift").tolist())
    lines = chain.from_iterable(plan.lines(shard) for shard in plan.shards)
    taken = [line for row, line in enumerate(lines) if row in chosen]
    labels = [line.label for line in taken] if plan.spec.classes else None
    if labels and plan.class_numbers:
        labels = [plan.class_numbers[label] for label in labels]
    return NewRows(
        source=plan.source,
        options=plan.data.options,
        source_fingerprint=plan.scan.fingerprint,
        resize=plan.data.resize,
        refs=tuple(line.ref for line in taken),
        names=tuple(line.name for line in taken),
        labels=None if labels is None else tuple(labels),
    )
