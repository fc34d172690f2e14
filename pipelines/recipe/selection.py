"""Which of the selected models a stage applies to."""

from __future__ import annotations

from genmod.errors import ConfigError, Unscorable
from genmod.interface.registry import family
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import Recipe


def models_for(recipe: Recipe, models: tuple[str, ...], stage: str) -> tuple[str, ...]:
    """The models of a stage: ``distill`` trains those that start from another model, ``train`` the rest."""
    if stage not in ("train", "distill"):
        return models
    return tuple(name for name in models if (name in distilled(recipe)) == (stage == "distill"))


def distilled(recipe: Recipe) -> set[str]:
    """Names of the models that start from others (``model.NAME.distills``)."""
    return {name for name, entry in recipe.model.items() if entry.distills is not None}


def scorable_models(context: Context) -> tuple[str, ...]:
    """The selected models that have a density. Logs which are skipped, and why."""
    names: list[str] = []
    for name in context.models:
        try:
            check_scorable(context, name)
            names.append(name)
        except Unscorable as reason:
            context.progress.log(f"score {name}: skipped, {reason.summary(name)}")
    return tuple(names)


def is_scorable(context: Context, name: str) -> bool:
    """Whether a model has a density under the recipe's scoring options."""
    try:
        check_scorable(context, name)
    except Unscorable:
        return False
    return True


def check_scorable(context: Context, name: str) -> None:
    """Raise Unscorable if the recipe's scoring options cannot estimate log p of a model."""
    entry = context.recipe.entry(name)
    model_class = family(entry.family)
    config = model_class.Config.model_validate(entry.net)
    model_class.check_scorable(config, context.recipe.score_options(name))


def check_selected(context: Context) -> None:
    """Raise ConfigError if no model is selected."""
    if not context.models:
        raise ConfigError("no selected model supports this stage; select one with --model NAME")
