"""The retrain stage: a new version of the dataset, new models trained on it, and a decision on each.

Version 1 is what ``genmod run`` wrote to the root. Version N is in ``retrain/vN`` below it. It shares the
shards of the version before. Its models are evaluated on the test rows and the feature space of version 1.
Each step ends with its manifest, so an interrupted retrain resumes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

from genmod.config import as_json
from genmod.data.sharding.plan import ShardPlan
from genmod.evaluation.jobs import EvaluationJob
from genmod.evaluation.measure import metrics_from
from genmod.manifest import Manifest
from genmod.metrics.protocol import MetricResult
from pipelines.jobs.sampling import SampleJob, sample_models
from pipelines.recipe.checks import Data, check_recipe
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_selected, models_for, scorable_models
from pipelines.stages.bulk_stage import bulk_options
from pipelines.stages.dataset_versions import (
    NOTHING_NEW,
    DatasetVersion,
    append_version,
    next_version,
    versions,
)
from pipelines.stages.evaluate import (
    evaluate_models,
    evaluation_job,
    features_job,
    run_evaluation_jobs,
)
from pipelines.stages.promote import (
    AppliedDecision,
    apply,
    find_decision,
    is_comparable,
    log_decision,
    metrics_of_champion,
    promote,
    promote_result,
)
from pipelines.stages.run import STEPS
from pipelines.tracking import registry


def stage(context: Context) -> Result:
    """Run the command: one cycle if the source has grown or a cycle is unfinished, else nothing."""
    start_s = time.monotonic()
    check_selected(context)
    check_recipe(context, Data.of(context.dataset()), tuple(STEPS))
    context.tracker.warm_up()
    for name in context.models:
        _bootstrap_champion(context, name)
    version = _unfinished_cycle(context, versions(context)) or append_version(context)
    if version is None:
        return _nothing_new(context, start_s)
    cycle = context.with_root(version.root)
    context.progress.log(f"retrain: version {version.number}, {version.rows:,} images")
    for step in ("train", "distill", "sample", "score"):
        models = scorable_models(cycle) if step == "score" else cycle.models
        models = models_for(cycle.recipe, models, step)
        if models:
            STEPS[step](cycle.with_models(models))
    jobs = [frozen_job(context, cycle, name) for name in cycle.models]
    _, evaluations = evaluate_models(context, features_job(context), jobs)
    applied = {
        job.name: promote(cycle, job.name, _champion_metrics(context, cycle, job, evaluation))
        for job, evaluation in zip(jobs, evaluations, strict=True)
    }
    result = promote_result(context, "retrain", applied, version.root, start_s)
    return result | {"version": version.number, "dataset": version.data.digest}


def next_cycle(context: Context) -> tuple[Context, ShardPlan | None]:
    """Where the next cycle would be, and the plan of its data; None if its data exists.

    Writes nothing. If the source has no new rows it is the newest version, where everything is done.
    """
    known = versions(context)
    if (version := _unfinished_cycle(context, known)) is not None:
        return context.with_root(version.root), None
    return next_version(context)


def _bootstrap_champion(context: Context, name: str) -> None:
    """Make version 1 the champion if there is none and the gate's limits allow it."""
    if registry.champion(context.tracker, name) is not None:
        return
    if find_decision(context, name) is not None:
        apply(context, name)
        return
    log_decision(context, f"{name}: version 1", promote(context, name).decision)


def _unfinished_cycle(context: Context, known: Sequence[DatasetVersion]) -> DatasetVersion | None:
    """The newest version, if it has more rows than the one before and a model without a decision."""
    for previous, newest in [*pairwise(known)][-1:]:
        cycle = context.with_root(newest.root)
        undecided = [name for name in cycle.models if find_decision(cycle, name) is None]
        if undecided and newest.rows > previous.rows:
            return newest
    return None


def frozen_job(context: Context, cycle: Context, name: str) -> EvaluationJob:
    """The evaluation of a cycle's model with the reference rows and the feature space of version 1."""
    frozen = {
        "data_root": context.at("data"),
        "features_root": context.at("features"),
        "scored_root": cycle.at("data"),
    }
    return evaluation_job(cycle, name).model_copy(update=frozen)


def _champion_metrics(
    context: Context, cycle: Context, job: EvaluationJob, evaluation: Manifest
) -> Sequence[MetricResult] | None:
    """The champion's metrics by the protocol of the candidate's evaluation; None if there is no champion.

    They are those that it became champion by, if the protocol is still the same; otherwise the champion
    is sampled and evaluated again.
    """
    champion = registry.champion(context.tracker, job.name)
    if champion is None or find_decision(cycle, job.name) is not None:
        return None
    metrics = metrics_of_champion(context.snapshot, champion)
    if is_comparable(metrics_from(evaluation.metadata), metrics):
        return metrics
    context.progress.log(
        f"  {job.name}: the champion is evaluated again, by this recipe's protocol"
    )
    samples_root = cycle.at("champion", job.name, "samples")
    options = as_json(context.recipe.sample_options(job.name))
    sample_job = SampleJob(job.name, champion.root, samples_root, options)
    sample_models(
        [sample_job], context.recipe.sample, seed=cycle.recipe.seed, options=bulk_options(context)
    )
    champion_job = job.model_copy(
        update={
            "samples_root": samples_root,
            "scores_root": None,
            "unscored": "",
            "ood_root": None,
            "out_root": cycle.at("champion", job.name, "evaluation"),
        }
    )
    _, (manifest,) = run_evaluation_jobs(context, [champion_job])
    return metrics_from(manifest.metadata)


def _nothing_new(context: Context, start_s: float) -> Result:
    """Do nothing, unless the last retrain was interrupted before it moved an alias."""
    newest = versions(context)[-1]
    cycle = context.with_root(newest.root)
    applied = {
        name: AppliedDecision(decision, apply(cycle, name))
        for name in cycle.models
        if (decision := find_decision(cycle, name)) is not None
    }
    if any(each.is_new for each in applied.values()):
        result = promote_result(context, "retrain", applied, newest.root, start_s)
    else:
        context.progress.log(
            f"retrain: {NOTHING_NEW} in {context.recipe.data.source} since version {newest.number}"
        )
        result = {
            "stage": "retrain",
            "status": NOTHING_NEW,
            "output": newest.root,
            "fingerprint": newest.data.fingerprint,
        }
    return result | {"version": newest.number, "dataset": newest.data.digest}
