"""The score stage: a log-likelihood for every row of a split, in bulk, as Ray Data jobs.

A work unit is some rows of one shard and one Parquet file. The stage fails if a row has no score.
"""

from __future__ import annotations

from genmod import storage
from genmod.config import as_json
from pipelines.jobs.score_plan import CALIBRATION, ScoreJob, ScorePlan, plan_score
from pipelines.jobs.scoring import ScoreActor, bulk_score_job
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_scorable, check_selected, scorable_models
from pipelines.stages.bulk_stage import run_bulk_stage
from pipelines.stages.first_lines import score_line


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


def stage(context: Context) -> Result:
    """Run the command: a log-likelihood of each row from each selected model that has a density."""
    check_selected(context)
    models = scorable_models(context)
    if not models:
        check_scorable(context, context.models[0])  # raises the reason
    context = context.with_models(models)
    plans = [score_plan(context, name) for name in models]
    for plan in plans:
        context.progress.log(score_line(plan))
    jobs = [bulk_score_job(plan, context.snapshot) for plan in plans]
    return run_bulk_stage(context, "score", jobs, ScoreActor, context.recipe.score)
