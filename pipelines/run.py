"""The stages in order. What a stage does is in its own file; here is only what comes after what."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module

from genmod.errors import ConfigError, Unscorable
from genmod.models.base import family
from pipelines.config import Recipe
from pipelines.context import ALREADY, DONE, Context, Result
from pipelines.progress import duration

Stage = Callable[[Context], Result]

STEPS = ("shard", "train", "distill", "sample", "score", "evaluate")
"""What ``genmod run`` does."""


def stage(name: str) -> Stage:
    """The function of a stage: ``stage(context)`` in ``pipelines/NAME.py``."""
    if name == "run":
        return run
    return import_module(f"pipelines.{name}").stage


def run(context: Context) -> Result:
    """Every step, each for all models; ends by saying where to look.

    Models that have no density are said so before any work, and left out of scoring.
    """
    begun_s = time.monotonic()
    from pipelines.checks import check, data_of

    if context.recipe.data.append:
        raise ConfigError(
            "recipe: data.append=true is for genmod shard alone; "
            "genmod retrain makes models of what is new"
        )
    scorable = scorable_models(context)
    steps = STEPS if tuning(context.recipe) else tuple(s for s in STEPS if s != "distill")
    check(context, data_of(context), STEPS)
    context.tracker.warm_up()
    results: dict[str, Result] = {}
    for name in steps:
        models = scorable if name == "score" else of_stage(context.recipe, context.models, name)
        if models:
            context.progress.say(f"{name} ({steps.index(name) + 1} of {len(steps)})")
            results[name] = stage(name)(narrowed(context, models))
    evaluated = results["evaluate"]
    made = any(result["status"] != ALREADY for result in results.values())
    took = duration(time.monotonic() - begun_s)
    context.progress.say(f"run: {DONE if made else ALREADY} in {took}")
    context.progress.say(f"report: {evaluated['report']}")
    context.progress.say(f"MLflow: {context.tracker.how_to_open()}")
    return {
        "stage": "run",
        "status": DONE if made else ALREADY,
        "output": context.recipe.root,
        "fingerprint": evaluated["fingerprint"],
        "report": evaluated["report"],
        "stages": results,
    }


def of_stage(recipe: Recipe, models: tuple[str, ...], stage: str) -> tuple[str, ...]:
    """The models that a stage is about: ``train`` makes those that ``distill`` does not."""
    if stage not in ("train", "distill"):
        return models
    return tuple(name for name in models if (name in tuning(recipe)) == (stage == "distill"))


def tuning(recipe: Recipe) -> set[str]:
    """The models that start from others."""
    return {name for name, entry in recipe.model.items() if entry.tunes is not None}


def narrowed(context: Context, models: tuple[str, ...]) -> Context:
    """The same command for some of its models; they share tracking and progress."""
    if models == context.models:
        return context
    narrow = Context(context.recipe, models, context.progress)
    narrow.__dict__["tracker"] = context.tracker
    return narrow


def scorable_models(context: Context) -> tuple[str, ...]:
    """The models that have a density; says in words which have none."""
    names: list[str] = []
    for name in context.models:
        try:
            check_scorable(context, name)
            names.append(name)
        except Unscorable as reason:
            context.progress.say(f"score: {name} is left out, Unscorable: {reason}")
    return tuple(names)


def is_scorable(context: Context, name: str) -> bool:
    """Whether a model has a density, as the recipe asks for it."""
    try:
        check_scorable(context, name)
    except Unscorable:
        return False
    return True


def check_scorable(context: Context, name: str) -> None:
    """Raise Unscorable if log p of a model cannot be had as the recipe asks."""
    entry = context.recipe.entry(name)
    model_class = family(entry.family)
    config = model_class.Config.model_validate(entry.net)
    model_class.check_scorable(config, context.recipe.score_options(name))


def need_models(context: Context) -> None:
    """Refuse a command that no model is left for."""
    if not context.models:
        raise ConfigError("no model is left to do this for; name one with --model")
