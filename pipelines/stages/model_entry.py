"""What is registered of a trained model: its files, the recipe, and how it answers requests."""

from __future__ import annotations

from genmod.config import as_json
from genmod.serving.settings import SampleSettings, ScoreSettings, ServingSettings
from pipelines.recipe.recipe import Recipe
from pipelines.tracking.registry import ModelEntry


def model_entry(recipe: Recipe, name: str, digest: str, root: str) -> ModelEntry:
    """A model to register, which answers as the recipe's jobs do.

    Args:
        recipe: with the model.
        name: of the model in the recipe.
        digest: of its manifest.
        root: URL of its folder.
    """
    sample, score = recipe.sample, recipe.score
    serving = ServingSettings(
        model_digest=digest,
        root=root,
        sample=SampleSettings(
            seed=recipe.seed if sample.seed is None else sample.seed,
            micro_batch=sample.micro_batch,
            weights=sample.weights,
            options=as_json(recipe.sample_options(name)),
            labels=sample.labels,
            request=sample.request,
            filters=sample.filters,
        ),
        score=ScoreSettings(
            seed=recipe.seed,
            micro_batch=score.micro_batch,
            weights=score.weights,
            options=as_json(recipe.score_options(name)),
        ),
    )
    return ModelEntry(name, digest, root, recipe.to_yaml(), serving)
