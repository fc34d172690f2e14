"""The sample stage: synthetic datasets from trained models, in bulk, as Ray Data jobs.

A work unit is one tar. Every image can be generated again alone, from its index, by
:func:`pipelines.jobs.sampling.regenerate`.
"""

from __future__ import annotations

from genmod.config import as_json
from pipelines.jobs.sampling import (
    SampleActor,
    SampleJob,
    SamplePlan,
    bulk_sample_job,
    plan_sample,
)
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_selected
from pipelines.stages.bulk_stage import run_bulk_stage
from pipelines.stages.first_lines import sample_line


def sample_plan(context: Context, name: str) -> SamplePlan:
    """The plan of one of the recipe's models. ConfigError if it is not trained."""
    recipe = context.recipe
    options = as_json(recipe.sample_options(name))
    out_root = context.output_at(recipe.sample.output, name)
    job = SampleJob(name, context.at("models", name), out_root, options)
    return plan_sample(job, recipe.sample, seed=recipe.seed, snapshot=context.snapshot)


def stage(context: Context) -> Result:
    """Run the command: a synthetic dataset from each of the selected models."""
    check_selected(context)
    plans = [sample_plan(context, name) for name in context.models]
    for plan in plans:
        context.progress.log(sample_line(plan))
    jobs = [bulk_sample_job(plan) for plan in plans]
    return run_bulk_stage(context, "sample", jobs, SampleActor, context.recipe.sample)
