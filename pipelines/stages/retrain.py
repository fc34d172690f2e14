"""The retrain stage: a new version of the dataset, new models of it, and a decision on each.

Version 1 is what ``genmod run`` made in the root. Version N lies in ``retrain/vN`` below it, shares the
shards of the version before, and is judged on what version 1 set aside: the same test rows, the same
feature space. Each step ends with its manifest, so a retrain that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

from genmod.config import as_json
from genmod.data.sharding.plan import ShardPlan
from genmod.evaluation.jobs import EvaluationJob
from genmod.evaluation.measure import metrics_from
from genmod.manifest import Manifest, load_manifest, require
from genmod.metrics.protocol import MetricResult
from pipelines.jobs.bulk import Options
from pipelines.jobs.evaluating import missing, run_evaluations
from pipelines.jobs.sampling import SampleJob, sample_models
from pipelines.recipe.checks import Data, check
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import narrowed, need_models, of_stage, scorable_models
from pipelines.stages import evaluate
from pipelines.stages.dataset_versions import NOTHING_NEW, Version, at, grow, next_version, versions
from pipelines.stages.promote import (
    champion_readings,
    contender,
    is_comparable,
    promote,
    result,
    settle,
)
from pipelines.stages.run import STEPS
from pipelines.tracking import registry


def stage(context: Context) -> Result:
    """The command: one cycle if the source has grown or a cycle is unfinished, else nothing."""
    start_s = time.monotonic()
    need_models(context)
    check(context, Data.of(context.dataset()), tuple(STEPS))
    context.tracker.warm_up()
    for name in context.models:
        _seat_first(context, name)
    version = _open_cycle(context, versions(context)) or grow(context)
    if version is None:
        return _nothing_new(context, start_s)
    cycle = at(context, version.root)
    context.progress.log(f"retrain: version {version.number}, {version.rows:,} images")
    for step in ("train", "distill", "sample", "score"):
        models = scorable_models(cycle) if step == "score" else cycle.models
        models = of_stage(cycle.recipe, models, step)
        if models:
            STEPS[step](narrowed(cycle, models))
    jobs = _evaluate(context, cycle)
    judged = {
        job.name: promote(cycle, contender(cycle, job.name), _standing(context, cycle, job))
        for job in jobs
    }
    answer = result(context, "retrain", judged, version.root, start_s)
    return answer | {"version": version.number, "dataset": version.data.digest}


def next_cycle(context: Context) -> tuple[Context, ShardPlan | None]:
    """Where the next cycle would take place, and the plan of its data; None if its data is there.

    Writes nothing. If there is nothing new it is the newest version, where all is done.
    """
    known = versions(context)
    if (version := _open_cycle(context, known)) is not None:
        return at(context, version.root), None
    return next_version(context)


def _seat_first(context: Context, name: str) -> None:
    """Let version 1 become the champion, if there is none and the limits let it."""
    if registry.champion(context.tracker, name) is not None:
        return
    first = contender(context, name)
    if _decision(context, name) is not None:
        settle(context, first)
        return
    decision, _ = promote(context, first)
    word = "champion" if decision.metadata["promote"] else "not promoted"
    reasons = "; ".join(decision.metadata["reasons"])
    context.progress.log(f"  {name}: version 1: {word}: {reasons}")


def _open_cycle(context: Context, known: Sequence[Version]) -> Version | None:
    """The newest version, if it has more rows than the one before and not all of its decisions."""
    for before, newest in [*pairwise(known)][-1:]:
        cycle = at(context, newest.root)
        missing = [name for name in cycle.models if _decision(cycle, name) is None]
        if missing and newest.rows > before.rows:
            return newest
    return None


def frozen_job(context: Context, cycle: Context, name: str) -> EvaluationJob:
    """What judges a cycle's model by the truth of version 1."""
    frozen = {
        "data_root": context.at("data"),
        "features_root": context.at("features"),
        "scored_root": cycle.at("data"),
    }
    return evaluate.evaluation_job(cycle, name).model_copy(update=frozen)


def _evaluate(context: Context, cycle: Context) -> list[EvaluationJob]:
    """Judge the new models by the truth of version 1."""
    jobs = [frozen_job(context, cycle, name) for name in cycle.models]
    evaluate.evaluate(context, evaluate.features_job(context), jobs)
    return jobs


def _standing(
    context: Context, cycle: Context, job: EvaluationJob
) -> tuple[MetricResult, ...] | None:
    """The champion's values by the protocol of the candidate's; None if there is no champion.

    They are those that it became champion by, if the protocol is still the same; otherwise the champion
    is sampled and judged again.
    """
    champion = registry.champion(context.tracker, job.name)
    if champion is None or _decision(cycle, job.name) is not None:
        return None
    evaluation = require(Manifest, job.out_root, "evaluation", "evaluate")
    theirs = champion_readings(champion)
    if is_comparable(metrics_from(evaluation.metadata), theirs):
        return theirs
    context.progress.log(f"  {job.name}: the champion is judged again, by this recipe's protocol")
    samples_root = cycle.at("champion", job.name, "samples")
    options = as_json(context.recipe.sample_options(job.name))
    again = SampleJob(job.name, champion.root, samples_root, options)
    options = Options(context.recipe.cluster, context.counter("sample", "images"), context.connect)
    sample_models([again], context.recipe.sample, seed=cycle.recipe.seed, options=options)
    rejudged = job.model_copy(
        update={
            "samples_root": samples_root,
            "scores_root": None,
            "unscored": "",
            "ood_root": None,
            "out_root": cycle.at("champion", job.name, "evaluation"),
        }
    )
    cpus = context.recipe.cluster.cpus_per_worker
    run_evaluations(missing([rejudged]), context.connect, cpus)
    metadata = require(Manifest, rejudged.out_root, "evaluation", "evaluate").metadata
    return metrics_from(metadata)


def _nothing_new(context: Context, start_s: float) -> Result:
    """Nothing to do, unless the last retrain was killed before it moved an alias."""
    newest = versions(context)[-1]
    cycle = at(context, newest.root)
    judged: dict[str, tuple[Manifest, bool]] = {}
    for name in cycle.models:
        if (decision := _decision(cycle, name)) is not None:
            judged[name] = decision, settle(cycle, contender(cycle, name))
    if any(moved for _, moved in judged.values()):
        answer = result(context, "retrain", judged, newest.root, start_s)
    else:
        context.progress.log(
            f"retrain: {NOTHING_NEW} in {context.recipe.data.source} since version {newest.number}"
        )
        answer = {
            "stage": "retrain",
            "status": NOTHING_NEW,
            "output": newest.root,
            "fingerprint": newest.data.fingerprint,
        }
    return answer | {"version": newest.number, "dataset": newest.data.digest}


def _decision(context: Context, name: str) -> Manifest | None:
    return load_manifest(Manifest, context.at("decision", name), "decision")
