"""The sample stage: synthetic datasets from trained models, in bulk, as Ray Data jobs.

A work unit is one tar. Every image can be generated again alone, from its index, by
:func:`pipelines.jobs.sampling.regenerate`.
"""

from __future__ import annotations

from genmod.config import as_json
from genmod.errors import ConfigError
from pipelines.jobs.sample_plan import FilterInputs, SampleJob, SamplePlan, plan_sample
from pipelines.jobs.sampling import SampleActor, bulk_sample_job
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_selected
from pipelines.stages.bulk_stage import run_bulk_stage
from pipelines.stages.cards import write_plan_card
from pipelines.stages.evaluate import features_job, run_evaluation_jobs
from pipelines.stages.first_lines import sample_line
from pipelines.tracking import registry
from pipelines.tracking.model_uri import version_at


def sample_plan(context: Context, name: str) -> SamplePlan:
    """The plan of one of the recipe's models. ConfigError if it is not trained."""
    recipe = context.recipe
    options = as_json(recipe.sample_options(name))
    out_root = context.output_at(recipe.sample.output, name)
    model_root = sampled_model(context, name)
    job = SampleJob(name, model_root, out_root, options, _filter_inputs(context, name))
    return plan_sample(job, recipe.sample, seed=recipe.seed, snapshot=context.snapshot)


def sampled_model(context: Context, name: str) -> str:
    """URL of the model that is sampled: the recipe's own one, or a version in MLflow's registry."""
    uri = context.recipe.sample.model
    if uri is None:
        return context.at("models", name)
    if len(context.models) != 1:
        raise ConfigError(
            f"recipe: sample.model is {uri}, one model, but {len(context.models)} are selected; select one "
            "with --model NAME"
        )
    version = version_at(context.tracker, uri)
    return registry.model_root(context.tracker, version)


def _filter_inputs(context: Context, name: str) -> FilterInputs:
    """What the recipe's filters need. ConfigError if the dataset is needed and absent."""
    recipe = context.recipe
    if not recipe.sample.filters.is_on:
        return FilterInputs()
    features = features_job(context)
    needed = features.inputs(context.snapshot) if recipe.sample.filters.classifier else None
    return FilterInputs(
        data_root=context.at("data"),
        features_root=features.out_root,
        features_fingerprint="" if needed is None else features.fingerprint(needed),
        score=as_json(recipe.score_options(name)),
        scores_root=context.at("scores", name),
    )


def sampled_line(plan: SamplePlan) -> str:
    """The first line of a plan."""
    return sample_line(plan.name, plan.request, plan.spec, plan.class_names)


def stage(context: Context) -> Result:
    """Run the command: a synthetic dataset from each of the selected models."""
    check_selected(context)
    if context.recipe.sample.filters.classifier:
        run_evaluation_jobs(context, [features_job(context)])
    plans = [sample_plan(context, name) for name in context.models]
    for plan in plans:
        context.progress.log(sampled_line(plan))
    jobs = [bulk_sample_job(plan, context.snapshot) for plan in plans]
    result = run_bulk_stage(context, "sample", jobs, SampleActor, context.recipe.sample)
    for plan in plans:
        if not plan.done:
            write_plan_card(context, plan)
    return result
