"""The distill stage: trains models that start from another model of the recipe (``model.NAME.distills``).

What makes of a diffusion model one that needs two calls of its net an image is in the tuned model's own
``net`` (``objective: consistency``) and ``train``. So this is the train stage, later.
"""

from __future__ import annotations

from pipelines.recipe.context import Context, Result
from pipelines.stages import train


def stage(context: Context) -> Result:
    """The command: those of its models that tune others, which must be trained."""
    return train.make(context, "distill")
