"""The score stage: a log-likelihood for every row of a split, in bulk, as Ray Data jobs.

One piece of work is some rows of one shard and one Parquet file. Rows in are rows out, or the stage fails.
"""

from __future__ import annotations

from genmod import storage
from genmod.config import as_json
from pipelines.jobs.score_plan import CALIBRATION, ScoreJob, ScorePlan, plan_score
from pipelines.jobs.scoring import ScoreActor, _job
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_scorable, narrowed, scorable_models
from pipelines.stages.bulk_stage import run_stage


def plan_of(context: Context, name: str) -> ScorePlan:
    """The plan for one of the recipe's models."""
    recipe = context.recipe
    options = as_json(recipe.score_options(name))
    out_root = context.at(recipe.score.output, name)
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
    return plan_score(job, recipe.score, seed=recipe.seed)


def stage(context: Context) -> Result:
    """The command: a log-likelihood of each row from each of the recipe's models that has a density."""
    models = scorable_models(context)
    if not models:
        check_scorable(context, context.models[0])  # says why
    context = narrowed(context, models)
    jobs = [_job(plan) for plan in [plan_of(context, name) for name in models]]
    return run_stage(context, "score", jobs, ScoreActor, context.recipe.score)
