"""The score stage: a log-likelihood for every row of a split, in bulk, as Ray Data jobs.

A work unit is some rows of one shard and one Parquet file. Rows that cannot be scored are listed.
"""

from __future__ import annotations

from genmod import storage
from genmod.config import as_json
from genmod.evaluation.score_pictures import ScoredTable, draw_scores
from genmod.manifest import Manifest
from genmod.scoring.calibrated import counted_tables
from genmod.scoring.work_units import shard_number
from pipelines.jobs.bulk import BulkJob
from pipelines.jobs.score_plan import CALIBRATION, ScoreJob, ScorePlan, plan_score
from pipelines.jobs.scoring import ScoreActor, ScoreReceipt, bulk_score_job
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_scorable, check_selected, scorable_models
from pipelines.stages.bulk_stage import run_bulk_stage
from pipelines.stages.first_lines import mean_line, score_line
from pipelines.tracking.run import TrackedRun

PICTURES = "pictures"
"""Folder of the pictures among the artifacts of the MLflow run."""


def score_plan(context: Context, name: str) -> ScorePlan:
    """The plan of one of the recipe's models. ConfigError if it is not trained."""
    recipe = context.recipe
    options = as_json(recipe.score_options(name))
    out_root = context.output_at(recipe.score.output, name)
    own_root = context.at("data")
    data_root = own_root if recipe.score.data is None else storage.resolve(recipe.score.data)
    job = ScoreJob(
        name=name,
        model_root=context.at("models", name),
        data_root=data_root,
        out_root=out_root,
        options=options,
        own_root=own_root,
        calibration_root=context.at(CALIBRATION, name),
    )
    return plan_score(job, recipe.score, seed=recipe.seed, snapshot=context.snapshot)


def scored_line(plan: ScorePlan) -> str:
    """The first line of a plan."""
    return score_line(
        plan.name,
        plan.rows,
        plan.spec,
        plan.config.split,
        plan.data_root,
        label_map=plan.label_map,
    )


def stage(context: Context) -> Result:
    """Run the command: a log-likelihood of each row from each selected model that has a density."""
    check_selected(context)
    models = scorable_models(context)
    if not models:
        check_scorable(context, context.models[0])  # raises the reason
    context = context.with_models(models)
    plans = [score_plan(context, name) for name in models]
    for plan in plans:
        context.progress.log(scored_line(plan))
    jobs = [bulk_score_job(plan, context.snapshot) for plan in plans]
    planned = {job.out_root: plan for job, plan in zip(jobs, plans, strict=True)}

    def present(job: BulkJob[Manifest, ScoreReceipt], manifest: Manifest, run: TrackedRun) -> None:
        context.progress.log(mean_line(job.title, manifest))
        for url in pictures(context, planned[job.out_root], manifest):
            run.log_artifact(url, PICTURES)

    return run_bulk_stage(
        context, "score", jobs, ScoreActor, context.recipe.score, on_published=present
    )


def pictures(context: Context, plan: ScorePlan, manifest: Manifest) -> list[str]:
    """URLs of the pictures of scores, which are drawn if they are not there."""
    split = plan.config.split
    shards = context.snapshot.dataset(plan.data_root).stored(plan.data_root, split)
    tables = [
        ScoredTable(entry, rows, shards[shard_number(entry.path, split, len(shards))])
        for entry, rows in counted_tables(plan.out_root, manifest)
    ]
    return draw_scores(plan.out_root, tables, plan.spec)
