"""The stages in order, each for all selected models. What a stage does is in its own file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from genmod.errors import ConfigError
from pipelines.recipe.checks import check_recipe, data_of
from pipelines.recipe.context import ALREADY_DONE, DONE, Context, Result
from pipelines.recipe.needs import node_needs
from pipelines.recipe.selection import check_selected, distilled, models_for, scorable_models
from pipelines.recipe.time_left import duration
from pipelines.stages import distill, evaluate, sample, score, shard, train

Stage = Callable[[Context], Result]
"""A function that runs one command and returns its JSON result."""

STEPS: Mapping[str, Stage] = {
    "shard": shard.stage,
    "train": train.stage,
    "distill": distill.stage,
    "sample": sample.stage,
    "score": score.stage,
    "evaluate": evaluate.stage,
}
"""The stages of ``genmod run``, in order."""


def stage(context: Context) -> Result:
    """Run every stage, each for all selected models that it supports; ends with where the results are."""
    start_s = time.monotonic()
    check_selected(context)
    if context.recipe.data.append:
        raise ConfigError(
            "recipe: data.append=true is for genmod shard alone; "
            "genmod retrain trains models on the new rows"
        )
    scorable = scorable_models(context)
    steps = [name for name in STEPS if name != "distill" or distilled(context.recipe)]
    context.require(node_needs(context, check_recipe(context, data_of(context), tuple(STEPS))))
    context.tracker.warm_up()
    results: dict[str, Result] = {}
    for name in steps:
        models = scorable if name == "score" else models_for(context.recipe, context.models, name)
        if models:
            context.progress.log(f"{name} ({steps.index(name) + 1} of {len(steps)})")
            results[name] = STEPS[name](context.with_models(models))
    evaluated = results["evaluate"]
    worked = any(result["status"] != ALREADY_DONE for result in results.values())
    status = DONE if worked else ALREADY_DONE
    context.progress.log(f"run: {status} in {duration(time.monotonic() - start_s)}")
    context.progress.log(f"report: {evaluated['report']}")
    context.progress.log(f"MLflow: {context.tracker.ui_command()}")
    return {
        "stage": "run",
        "status": status,
        "output": context.recipe.root,
        "fingerprint": evaluated["fingerprint"],
        "report": evaluated["report"],
        "stages": results,
    }
