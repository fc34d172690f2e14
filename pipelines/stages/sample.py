"""The sample stage: synthetic datasets from trained models, in bulk, as Ray Data jobs.

One piece of work is one tar. Every image can be made again alone, from its index: :func:`regenerate`.
"""

from __future__ import annotations

from genmod.config import as_json
from pipelines.jobs.sampling import SampleActor, SampleJob, SamplePlan, _job, plan_sample
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import need_models
from pipelines.stages.bulk_stage import run_stage


def plan_of(context: Context, name: str) -> SamplePlan:
    """The plan for one of the recipe's models."""
    recipe = context.recipe
    options = as_json(recipe.sample_options(name))
    out_root = context.at(recipe.sample.output, name)
    job = SampleJob(name, context.at("models", name), out_root, options)
    return plan_sample(job, recipe.sample, seed=recipe.seed)


def stage(context: Context) -> Result:
    """The command: a synthetic dataset from each of the recipe's models."""
    need_models(context)
    jobs = [_job(plan) for plan in [plan_of(context, name) for name in context.models]]
    return run_stage(context, "sample", jobs, SampleActor, context.recipe.sample)
