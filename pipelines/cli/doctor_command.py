"""The command ``doctor``: its options."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from pipelines.cli import options
from pipelines.cli.invocation import Invocation


def doctor_command(
    *,
    recipe: options.RequiredRecipe,
    assignments: options.Assignments = [],  # noqa: B006
    model: options.Models = [],  # noqa: B006
    address: options.RayAddress = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> Invocation:
    """Check whether every node of a cluster can run a recipe. Exits with 1 if a finding is fatal."""
    changes = [*assignments, f"cluster.address={address}"] if address else assignments

    def run() -> dict[str, Any]:
        from pipelines.commands.doctor import doctor
        from pipelines.recipe.context import Context, configure_storage
        from pipelines.recipe.progress import ProgressDisplay
        from pipelines.recipe.recipe import load_recipe

        configure_storage(loaded := load_recipe(recipe, changes))
        names = tuple(dict.fromkeys(model or loaded.model))
        with (
            ProgressDisplay() as progress,
            closing(Context(loaded, names, progress)) as context,
        ):
            return doctor(context)

    return Invocation("doctor", run, as_json, debug)
