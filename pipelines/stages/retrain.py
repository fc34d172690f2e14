"""The retrain stage: a new version of the dataset, new models trained on it, and a decision on each.

Version 1 is what ``genmod run`` wrote to the root. Version N is in ``retrain/vN`` below it. It shares the
shards of the version before, unless that one is replaced because the source lost or changed rows. Its models
are evaluated on the test rows and the feature space of version 1, or of the newest one that replaces others.
Each step ends with its manifest, so an interrupted retrain resumes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from genmod.config import as_json
from genmod.data.sharding.plan import ShardPlan
from genmod.errors import ConfigError
from genmod.evaluation.jobs import EvaluationJob
from genmod.manifest import Manifest
from genmod.selftest.recorded import let_through
from pipelines.recipe.checks import Data, check_recipe, check_rules
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_selected, models_for, scorable_models
from pipelines.stages.champion_comparison import measure_champion
from pipelines.stages.champions import Champions
from pipelines.stages.dataset_versions import (
    NOTHING_NEW,
    WARM_REASON,
    DatasetVersion,
    append_version,
    append_warm_version,
    next_version,
    versions,
)
from pipelines.stages.decision_words import Retrained
from pipelines.stages.decisions import find_decision
from pipelines.stages.drift import new_rows_reason
from pipelines.stages.evaluate import (
    evaluate_models,
    evaluation_job,
    features_job,
)
from pipelines.stages.promote import (
    AppliedDecision,
    is_pending,
    log_decision,
    promote,
    promote_result,
)
from pipelines.stages.replaced import list_replaced
from pipelines.stages.run import STEPS
from pipelines.stages.synthetic import generate_synthetic
from pipelines.stages.warm_start import choose_start
from pipelines.tracking.records import RunStatus


def stage(context: Context) -> Result:
    """Run the command: one cycle if the source has grown or a cycle is unfinished, else nothing."""
    start_s = time.monotonic()
    check_selected(context)
    check_recipe(context, Data.of(context.dataset()), tuple(STEPS))
    check_rules(context, Data.of(base_of(context).dataset()))
    context.tracker.warm_up()
    if passed := let_through(context.recipe.promote, labelled=context.dataset().spec.classes > 0):
        names = ", ".join(case.candidate for case in passed)
        context.progress.log(
            f"  warning: promote.rules would promote {names}; see promote --dry-run"
        )
    for name in context.models:
        _bootstrap_champion(context, name)
    cycles: list[Result] = []
    try:
        while (version := _next_version(context, is_first=not cycles)) is not None:
            cycles.append(_run_cycle(context, version, start_s))
            metadata = {"version": version.number, "dataset": version.data.digest}
            _close_run(context, "FINISHED", metadata)
        _close_run(context, "FINISHED", {})  # of a version that turned out to have nothing new
    except BaseException:
        _close_run(context, "FAILED", {})
        raise
    if not cycles:
        return _nothing_new(context, start_s)
    return cycles[-1] | {"cycles": cycles, "synthetic": generate_synthetic(context)}


def _next_version(context: Context, is_first: bool) -> DatasetVersion | None:
    """The version whose cycle is next; None if all is done."""
    context.check_lease()
    open_run = partial(_open_run, context)
    version = _unfinished_cycle(context, versions(context))
    if version is not None:
        open_run(version.number, version.data.fingerprint)
    if version is None and is_first:
        version = append_version(context, partial(new_rows_reason, context), open_run)
    if version is None and context.recipe.retrain.start == "both":
        version = append_warm_version(context, open_run)
    return version


def _open_run(context: Context, number: int, fingerprint: str) -> None:
    """Start or continue the run of a version in MLflow; the runs of stages are parts of it from now on."""
    tracker, params = context.tracker, as_json(context.recipe.retrain)
    tracker.parent = tracker.run("retrain", f"v{number}", fingerprint, params, {})


def _close_run(context: Context, status: RunStatus, metadata: Mapping[str, Any]) -> None:
    """End the run of a version, if it is open."""
    if (run := context.tracker.parent) is not None:
        run.finish(status, metadata)
        context.tracker.parent = None


def _run_cycle(context: Context, version: DatasetVersion, start_s: float) -> Result:
    """Train and evaluate the models of a version, and decide on them."""
    cycle = context.with_root(version.root)
    reason = _retrained(version).reason
    context.progress.log(f"retrain: version {version.number}, {version.rows:,} images: {reason}")
    base = base_of(context)
    if version.data.replaces is not None:
        list_replaced(context, version)
    if context.recipe.retrain.start == "warm" or reason == WARM_REASON:
        for name in models_for(cycle.recipe, cycle.models, "train"):
            choose_start(context, cycle, name)
    for step in ("train", "distill", "sample", "score"):
        models = scorable_models(cycle) if step == "score" else cycle.models
        models = models_for(cycle.recipe, models, step)
        if models:
            context.check_lease()
            STEPS[step](cycle.with_models(models))
    jobs = [frozen_job(context, cycle, name) for name in cycle.models]
    evaluate_models(context, features_job(base), jobs)
    applied = {job.name: _decide(context, cycle, job, version) for job in jobs}
    result = promote_result(context, "retrain", applied, version.root, start_s)
    return result | {
        "version": version.number,
        "dataset": version.data.digest,
        "reason": reason,
    }


def next_cycle(context: Context) -> tuple[Context, ShardPlan | None]:
    """Where the next cycle would be, and the plan of its data; None if its data exists.

    Writes nothing. If the source has no new rows it is the newest version, where everything is done.
    """
    known = versions(context)
    if (version := _unfinished_cycle(context, known)) is not None:
        return context.with_root(version.root), None
    return next_version(context, partial(new_rows_reason, context, check_drift=False))


def _bootstrap_champion(context: Context, name: str) -> None:
    """Make version 1 the champion if there is none and the gate's limits allow it."""
    if Champions(context, name).read().champion is not None:
        return
    if find_decision(context, name) is not None and not is_pending(context, name):
        return
    applied = promote(context, name)
    if applied.is_new:
        log_decision(context, f"{name}: version 1", applied)


def _unfinished_cycle(context: Context, known: Sequence[DatasetVersion]) -> DatasetVersion | None:
    """The newest version, if it has a reason and a model without a decision."""
    for previous, newest in [*pairwise(known)][-1:]:
        cycle = context.with_root(newest.root)
        undecided = [name for name in cycle.models if find_decision(cycle, name) is None]
        if undecided and newest.is_news(previous):
            return newest
    return None


def base_of(context: Context) -> Context:
    """The command on the version whose rows and features models are evaluated with.

    It is version 1, until a version replaces the earlier ones, e.g. because rows were removed; or the
    recipe's ``retrain.reference_version``.

    Raises:
        ConfigError: there is no such version.
    """
    known = versions(context)
    wanted = context.recipe.retrain.reference_version
    if wanted is not None:
        for version in known:
            if version.number == wanted:
                return context.with_root(version.root)
        raise ConfigError(
            f"retrain.reference_version={wanted}: the dataset has versions 1 to {known[-1].number}; choose "
            "one of them"
        )
    for version in reversed(known):
        if version.data.replaces is not None:
            return context.with_root(version.root)
    return context


def frozen_job(context: Context, cycle: Context, name: str) -> EvaluationJob:
    """The evaluation of a cycle's model with the reference rows and the feature space of its base version."""
    base = base_of(context)
    frozen = {
        "data_root": base.at("data"),
        "features_root": base.at("features"),
        "scored_root": cycle.at("data"),
    }
    return evaluation_job(cycle, name).model_copy(update=frozen)


def _decide(
    context: Context, cycle: Context, job: EvaluationJob, version: DatasetVersion
) -> AppliedDecision:
    """Decide on a model of a version."""
    measure = partial(measure_champion, context, cycle, job)
    return promote(cycle, job.name, measure, _retrained(version) if version.number > 1 else None)


def _retrained(version: DatasetVersion) -> Retrained:
    """Why there is a version, as its decisions say it."""
    return Retrained(version=version.number, reason=version.data.reason or "new rows")


def _resume(
    context: Context, cycle: Context, name: str, version: DatasetVersion
) -> AppliedDecision:
    """Apply the decision of an interrupted cycle."""
    job = frozen_job(context, cycle, name)
    cycle.snapshot.require(Manifest, job.out_root, "evaluation", "evaluate")
    return _decide(context, cycle, job, version)


def _nothing_new(context: Context, start_s: float) -> Result:
    """Do nothing, unless the last retrain was interrupted before its models became champions."""
    newest = versions(context)[-1]
    cycle = context.with_root(newest.root)
    applied = {
        name: _resume(context, cycle, name, newest)
        for name in cycle.models
        if is_pending(cycle, name)
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
    return result | {
        "version": newest.number,
        "dataset": newest.data.digest,
        "synthetic": generate_synthetic(context),
    }
