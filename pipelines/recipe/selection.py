"""Which of the recipe's models a stage applies to."""

from __future__ import annotations

from genmod.errors import ConfigError, Unscorable
from genmod.interface.registry import family
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import Recipe


def of_stage(recipe: Recipe, models: tuple[str, ...], stage: str) -> tuple[str, ...]:
    """The models that a stage is about: ``train`` makes those that ``distill`` does not."""
    if stage not in ("train", "distill"):
        return models
    return tuple(name for name in models if (name in tuning(recipe)) == (stage == "distill"))


def tuning(recipe: Recipe) -> set[str]:
    """The models that start from others."""
    return {name for name, entry in recipe.model.items() if entry.distills is not None}


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
            context.progress.log(f"score {name}: skipped, {reason.summary(name)}")
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
