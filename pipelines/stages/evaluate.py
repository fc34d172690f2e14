"""The evaluate stage: one feature space, one task for each model, and the report."""

from __future__ import annotations

import time
from collections.abc import Sequence

from genmod.errors import Unscorable
from genmod.evaluation.jobs import EvaluationJob, FeaturesJob
from genmod.evaluation.measure import metrics_from
from genmod.manifest import Manifest, load_manifest
from pipelines.jobs.evaluating import missing, run_evaluations
from pipelines.jobs.report import ReportJob
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_scorable, need_models


def stage(context: Context) -> Result:
    """Features, evaluations of the command's models, report. What is done already is only looked up."""
    start_s = time.monotonic()
    need_models(context)
    context.dataset()
    jobs = [evaluation_job(context, name) for name in context.models]
    for job in jobs:
        job.given()
    fit = features_job(context)
    made = evaluate(context, fit, jobs)
    report = report_job(context, jobs)
    made = made or report.done() is None
    manifest = report.do()
    run = context.tracker.run("report", ", ".join(context.models), manifest.fingerprint, {}, {})
    run.log_artifact(report.page_url)
    run.finish()
    return context.result(
        "evaluate",
        start_s,
        made,
        context.at("evaluation"),
        manifest,
        report=report.page_url,
        models={job.name: {"output": job.out_root, "digest": _digest(job)} for job in jobs},
    )


def evaluate(context: Context, fit: FeaturesJob, jobs: Sequence[EvaluationJob]) -> bool:
    """Fit the feature space, judge by it, log the values; whether anything was still to do."""
    made = bool(missing([fit]))
    if made:
        context.progress.log("  fitting the feature space")
        run_evaluations([fit], context.connect, context.recipe.cluster.cpus_per_worker)
    todo = missing(jobs)
    if todo:
        run_evaluations(
            todo,
            context.connect,
            context.recipe.cluster.cpus_per_worker,
            context.progress,
            finished=len(jobs) - len(todo),
        )
    _track(context, jobs)
    return made or bool(todo)


def features_job(context: Context) -> FeaturesJob:
    """What fits the recipe's feature space."""
    return FeaturesJob(
        data_root=context.at("data"),
        out_root=context.at("features"),
        config=context.recipe.evaluate,
        seed=context.recipe.seed,
    )


def evaluation_job(context: Context, name: str) -> EvaluationJob:
    """What judges a model of the recipe. A model with a density must have been scored."""
    recipe = context.recipe
    scores_root, unscored = context.at("scores", name), ""
    try:
        check_scorable(context, name)
    except Unscorable as reason:
        scores_root, unscored = None, str(reason)
    ood_root = None
    if scores_root is not None and recipe.evaluate.ood is not None:
        ood_root = context.at(recipe.evaluate.ood, name)
    return EvaluationJob(
        name=name,
        data_root=context.at("data"),
        samples_root=context.at("samples", name),
        features_root=context.at("features"),
        out_root=context.at("evaluation", name),
        scores_root=scores_root,
        unscored=unscored,
        model_root=context.at("models", name),
        sample=recipe.entry(name).sample,
        ood_root=ood_root,
        config=recipe.evaluate,
        seed=recipe.seed,
    )


def report_job(context: Context, jobs: Sequence[EvaluationJob]) -> ReportJob:
    """The report on some of the recipe's models: of all of them in ``report``, of some beside it."""
    names = [job.name for job in jobs]
    everything = set(names) == set(context.recipe.model)
    return ReportJob(
        title=f"genmod report: {context.recipe.root.rstrip('/').rsplit('/', maxsplit=1)[-1]}",
        root=context.recipe.root,
        models=tuple(names),
        out_root=context.at("report" if everything else f"report-{'-'.join(sorted(names))}"),
        tracking=context.tracker.ui_command(),
    )


def _digest(job: EvaluationJob) -> str:
    manifest = job.done()
    assert manifest is not None
    return manifest.digest


def _track(context: Context, jobs: Sequence[EvaluationJob]) -> None:
    """One run for each evaluation, with its values."""
    recipe, tracker = context.recipe, context.tracker
    for job in jobs:
        manifest = load_manifest(Manifest, job.out_root, "evaluation")
        assert manifest is not None
        inputs = {
            name: (root, manifest.parents[name])
            for name, root in job.roots().items()
            if name in manifest.parents
        }
        run = tracker.run(
            "evaluate", job.name, manifest.fingerprint, recipe.evaluate.model_dump(), inputs
        )
        values: dict[str, float] = {}
        for reading in metrics_from(manifest.metadata):
            metric = reading.value.protocol.metric
            values[metric] = reading.value.value
            values[f"{metric}.low"] = reading.value.interval.low
            values[f"{metric}.high"] = reading.value.interval.high
        scores = manifest.metadata["scores"] or {}
        values |= {key: scores[key] for key in ("mean_nats", "mean_bits_per_dim") if key in scores}
        run.log_metrics(values, 0)
        for entry in manifest.files:
            run.log_artifact(f"{job.out_root}/{entry.path}")
        run.finish(
            metadata={
                "features": manifest.metadata["features"]["digest"],
                "reference": manifest.metadata["reference"]["digest"],
                "scores_label": scores.get("label", "none"),
            }
        )
