"""Runs a stage of a recipe, or prints its plan. Imports other rooms only when it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genmod.errors import ConfigError

if TYPE_CHECKING:
    from genmod.lease import Lease
    from pipelines.recipe.progress import ProgressDisplay

_ALONE = ("retrain",)
"""Stages that one process at a time does below a root."""


@dataclass(frozen=True)
class StageRequest:
    """A stage as the command line names it."""

    stage: str
    recipe: str
    assignments: Sequence[str]
    models: Sequence[str]


def plan_options(dry_run: bool, show_recipe: bool) -> Mapping[str, bool]:
    """Options of the plan that a command prints; empty if it does the work."""
    if show_recipe and not dry_run:
        raise ConfigError("--show-recipe needs --dry-run; give both or neither")
    return {"show_recipe": show_recipe} if dry_run else {}


def run_request(request: StageRequest, plan: Mapping[str, bool]) -> dict[str, Any]:
    """Run a stage, or print its plan if there are options for one; its JSON result."""
    from pipelines.recipe.progress import ProgressDisplay

    with ProgressDisplay() as progress:

        def work(lease: Lease | None = None) -> dict[str, Any]:
            return _run_loaded(request, plan, progress, lease)

        if request.stage not in _ALONE or plan:
            return work()
        from pipelines.commands.alone import run_alone

        return run_alone(request.stage, request.recipe, request.assignments, progress, work)


def _run_loaded(
    request: StageRequest,
    plan: Mapping[str, bool],
    progress: ProgressDisplay,
    lease: Lease | None,
) -> dict[str, Any]:
    from pipelines.recipe.context import Context, configure_storage
    from pipelines.recipe.recipe import load_recipe

    configure_storage(loaded := load_recipe(request.recipe, request.assignments))
    names = tuple(dict.fromkeys(request.models or loaded.model))
    if plan:
        from pipelines.commands.dry_run import dry_run

        return dry_run(request.stage, Context(loaded, names), **plan)
    from pipelines.commands.outcome import counted, reported
    from pipelines.stages.table import STAGE_FUNCTIONS

    with closing(Context(loaded, names, progress, lease=lease)) as context:
        list(map(progress.log, context.tracker.begin()))
        with counted(context, request.stage):
            return reported(context, request.stage, lambda: STAGE_FUNCTIONS[request.stage](context))


def run_image(request: StageRequest, index: int, out: str) -> dict[str, Any]:
    """Write one image of a synthetic dataset; the command's JSON result."""
    from pipelines.commands.one_image import write_image
    from pipelines.recipe.context import Context, configure_storage
    from pipelines.recipe.progress import ProgressDisplay
    from pipelines.recipe.recipe import load_recipe

    configure_storage(loaded := load_recipe(request.recipe, request.assignments))
    names = tuple(dict.fromkeys(request.models or loaded.model))
    with (
        ProgressDisplay() as progress,
        closing(Context(loaded, names, progress)) as context,
    ):
        return write_image(context, index, out)


def run_replay(recipe: str, assignments: Sequence[str]) -> dict[str, Any]:
    """Send what earlier commands could not log; the command's JSON result."""
    from pipelines.commands.replay import replay
    from pipelines.recipe.context import Context, configure_storage
    from pipelines.recipe.progress import ProgressDisplay
    from pipelines.recipe.recipe import load_recipe

    configure_storage(loaded := load_recipe(recipe, assignments))
    with (
        ProgressDisplay() as progress,
        closing(Context(loaded, tuple(loaded.model), progress)) as context,
    ):
        return replay(context)
