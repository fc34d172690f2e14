"""The stages in order. What a stage does is in its own file; here is only what comes after what."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from genmod.errors import ConfigError
from pipelines.recipe.checks import check, data_of
from pipelines.recipe.context import ALREADY, DONE, Context, Result
from pipelines.recipe.selection import narrowed, of_stage, scorable_models, tuning
from pipelines.recipe.time_left import duration
from pipelines.stages import distill, evaluate, sample, score, shard, train

Stage = Callable[[Context], Result]


STEPS: Mapping[str, Stage] = {
    "shard": shard.stage,
    "train": train.stage,
    "distill": distill.stage,
    "sample": sample.stage,
    "score": score.stage,
    "evaluate": evaluate.stage,
}
"""What ``genmod run`` does, in order."""


def stage(context: Context) -> Result:
    """Every step, each for all models; ends by saying where to look.

    Models that have no density are said so before any work, and left out of scoring.
    """
    start_s = time.monotonic()
    if context.recipe.data.append:
        raise ConfigError(
            "recipe: data.append=true is for genmod shard alone; "
            "genmod retrain makes models of what is new"
        )
    scorable = scorable_models(context)
    steps = [name for name in STEPS if name != "distill" or tuning(context.recipe)]
    check(context, data_of(context), tuple(STEPS))
    context.tracker.warm_up()
    results: dict[str, Result] = {}
    for name in steps:
        models = scorable if name == "score" else of_stage(context.recipe, context.models, name)
        if models:
            context.progress.log(f"{name} ({steps.index(name) + 1} of {len(steps)})")
            results[name] = STEPS[name](narrowed(context, models))
    evaluated = results["evaluate"]
    made = any(result["status"] != ALREADY for result in results.values())
    took = duration(time.monotonic() - start_s)
    context.progress.log(f"run: {DONE if made else ALREADY} in {took}")
    context.progress.log(f"report: {evaluated['report']}")
    context.progress.log(f"MLflow: {context.tracker.ui_command()}")
    return {
        "stage": "run",
        "status": DONE if made else ALREADY,
        "output": context.recipe.root,
        "fingerprint": evaluated["fingerprint"],
        "report": evaluated["report"],
        "stages": results,
    }
