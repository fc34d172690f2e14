"""The synthetic datasets of champions: generated at the end of a retrain, next to the champion's model."""

from __future__ import annotations

from pipelines.recipe.context import Context
from pipelines.stages import sample
from pipelines.stages.champions import Champions

SYNTHETIC_FOLDER = "synthetic"
"""Folder of a version with the synthetic datasets of its champions."""


def generate_synthetic(context: Context) -> dict[str, str]:
    """Generate what ``retrain.synthetic_count`` asks for. What is done already is not done again.

    Returns:
        URL of the synthetic dataset of each champion, by the name of the model.

    Raises:
        ConfigError: a champion's model is not where the recipe allows it.
        GenmodError: work units failed.
    """
    count = context.recipe.retrain.synthetic_count
    if count is None:
        return {}
    outputs: dict[str, str] = {}
    for name in context.models:
        champion = Champions(context, name).read().champion
        if champion is None:
            continue
        ledger = f"the promotion ledger at {context.ledger_url}"
        model_root = context.tracker.followed(
            champion.root, f"the model of {champion.label}", ledger
        )
        changes = {"count": count, "output": SYNTHETIC_FOLDER}
        home = context.with_root(model_root.rpartition("/models/")[0])
        recipe = home.recipe.model_copy(
            update={"sample": home.recipe.sample.model_copy(update=changes)}
        )
        outputs[name] = sample.stage(home.with_recipe(recipe).with_models((name,)))["output"]
    return outputs
