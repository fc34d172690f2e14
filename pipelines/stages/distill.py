"""The distill stage: trains the models that start from another model of the recipe (``model.NAME.distills``).

A distilled diffusion model samples an image in two network evaluations. What makes it so is in its own
``net`` (``objective: consistency``) and ``train``, so this is the train stage for other models.
"""

from __future__ import annotations

from pipelines.recipe.context import Context, Result
from pipelines.stages import train


def stage(context: Context) -> Result:
    """Run ``genmod distill``: the selected models that distill another one, which must be trained."""
    return train.run_stage(context, "distill")
