"""The commands around champions: ``promote`` with its actions, ``models``, ``compare`` and ``why``.

Imports of other rooms are inside functions, as in :mod:`pipelines.cli.app`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from genmod.errors import ConfigError, sanitize
from genmod.terminal import print_text
from pipelines.cli import options
from pipelines.cli.invocation import Invocation
from pipelines.cli.run_stage import StageRequest, plan_options, run_request

if TYPE_CHECKING:
    from pipelines.commands.champion_actions import ActionKind, ChampionAction
    from pipelines.recipe.context import Context

_ACTIONS = "Change the champion"
"""Heading of the options that change a champion without a decision."""

Rollback = Annotated[
    bool,
    typer.Option("--rollback", help="Back to the champion before.", rich_help_panel=_ACTIONS),
]
Pin = Annotated[
    str | None,
    typer.Option(
        "--pin",
        metavar="VERSION",
        help="Make this version the champion until --unpin. Needs --reason.",
        rich_help_panel=_ACTIONS,
    ),
]
Unpin = Annotated[
    bool,
    typer.Option("--unpin", help="Let promotions replace the champion.", rich_help_panel=_ACTIONS),
]
Repair = Annotated[
    bool,
    typer.Option(
        "--repair", help="Set MLflow's aliases as the ledger says.", rich_help_panel=_ACTIONS
    ),
]
Adopt = Annotated[
    bool,
    typer.Option(
        "--adopt",
        help="Take MLflow's champion into the ledger. Needs --reason.",
        rich_help_panel=_ACTIONS,
    ),
]
Reason = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Why; kept in the ledger.",
        show_default=False,
        rich_help_panel=_ACTIONS,
    ),
]
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="A version's number, or the start of a digest.")
]
Side = Annotated[
    str, typer.Argument(metavar="VERSION|URL", help="A version, or the folder of a model.")
]


def add_promote(app: typer.Typer, panel: str, purpose: str) -> None:
    """Add the command ``promote``: the stage, or one of its actions.

    Args:
        app: the program.
        panel: heading in the list of commands.
        purpose: help text.
    """

    @app.command(
        "promote",
        help=purpose,
        epilog="Example: genmod promote --recipe quickstart --model diffusion",
        rich_help_panel=panel,
    )
    def promote(  # pyright: ignore[reportUnusedFunction]
        *,
        recipe: options.RequiredRecipe,
        assignments: options.Assignments = [],  # noqa: B006
        model: options.Models = [],  # noqa: B006
        address: options.RayAddress = None,
        rollback: Rollback = False,
        pin: Pin = None,
        unpin: Unpin = False,
        repair: Repair = False,
        adopt: Adopt = False,
        reason: Reason = None,
        dry_run: options.DryRun = False,
        show_recipe: options.ShowRecipe = False,
        as_json: options.AsJson = False,
        debug: options.Debug = False,
    ) -> Invocation:
        if address:
            assignments = [*assignments, f"cluster.address={address}"]
        given = {
            "rollback": rollback,
            "pin": pin is not None,
            "unpin": unpin,
            "repair": repair,
            "adopt": adopt,
        }
        chosen = [kind for kind, is_given in given.items() if is_given]

        def run() -> dict[str, Any]:
            if not chosen and reason is None:
                request = StageRequest("promote", recipe, assignments, model)
                return run_request(request, plan_options(dry_run, show_recipe))
            if show_recipe:
                raise ConfigError(
                    "promote: --show-recipe is for the stage; leave it out to change the champion"
                )
            action = _action(chosen, pin, reason)
            return _change(recipe, assignments, model, action, dry_run)

        return Invocation("promote", run, as_json, debug)


def add_model_commands(app: typer.Typer, panel: str) -> None:
    """Add the commands that tell about models: ``models``, ``compare``, ``why``.

    Args:
        app: the program.
        panel: heading in the list of commands.
    """

    @app.command(
        "models", epilog="Example: genmod models --recipe quickstart", rich_help_panel=panel
    )
    def models(  # pyright: ignore[reportUnusedFunction]
        *,
        recipe: options.RequiredRecipe,
        assignments: options.Assignments = [],  # noqa: B006
        model: options.Models = [],  # noqa: B006
        as_json: options.AsJson = False,
        debug: options.Debug = False,
    ) -> Invocation:
        """List the recipe's models: champion, previous, pinned, all versions, since when and why."""

        def run() -> dict[str, Any]:
            from pipelines.commands.models import list_models

            with closing(_context(recipe, assignments, model)) as context:
                values, lines = list_models(context)
                return _shown("models", context.ledger_url, {"models": values}, lines)

        return Invocation("models", run, as_json, debug)

    @app.command(
        "compare",
        epilog="Example: genmod compare runs/a/models/vae runs/b/models/vae",
        rich_help_panel=panel,
    )
    def compare(  # pyright: ignore[reportUnusedFunction]
        *,
        a: Side,
        b: Side,
        recipe: options.OptionalRecipe = None,
        assignments: options.Assignments = [],  # noqa: B006
        model: options.Models = [],  # noqa: B006
        as_json: options.AsJson = False,
        debug: options.Debug = False,
    ) -> Invocation:
        """Compare the metrics of two models that were measured alike, side by side with intervals."""

        def run() -> dict[str, Any]:
            from pipelines.commands.compare import compare_models

            if recipe is None:
                if assignments or model:
                    raise ConfigError("compare: --set and --model need --recipe; give it too")
                values, lines = compare_models(a, b, None)
                return _shown("compare", None, values, lines)
            with closing(_context(recipe, assignments, model)) as context:
                values, lines = compare_models(a, b, context)
                return _shown("compare", context.ledger_url, values, lines)

        return Invocation("compare", run, as_json, debug)

    @app.command(
        "why",
        epilog="Example: genmod why 3 --recipe quickstart --model vae",
        rich_help_panel=panel,
    )
    def why(  # pyright: ignore[reportUnusedFunction]
        *,
        version: Version,
        recipe: options.RequiredRecipe,
        assignments: options.Assignments = [],  # noqa: B006
        model: options.Models = [],  # noqa: B006
        as_json: options.AsJson = False,
        debug: options.Debug = False,
    ) -> Invocation:
        """Explain a version: the decision on it, each rule's outcome, its entries, what it was made from."""

        def run() -> dict[str, Any]:
            from pipelines.commands.why import explain_version

            with closing(_context(recipe, assignments, model)) as context:
                values, lines = explain_version(context, version)
                return _shown("why", context.ledger_url, values, lines)

        return Invocation("why", run, as_json, debug)


def _action(chosen: list[str], pin: str | None, reason: str | None) -> ChampionAction:
    """The one action that the options name. ConfigError if they name several, or only a reason."""
    from pipelines.commands.champion_actions import CHAMPION_ACTIONS, ChampionAction

    if len(chosen) != 1:
        got = " and ".join(f"--{kind}" for kind in chosen) or "--reason alone"
        valid = ", ".join(f"--{kind}" for kind in CHAMPION_ACTIONS)
        raise ConfigError(f"promote: got {got}, expected one of {valid}; leave the others out")
    return ChampionAction(cast("ActionKind", chosen[0]), (pin or "").strip(), reason or "")


def _change(
    recipe: str,
    assignments: Sequence[str],
    models: Sequence[str],
    action: ChampionAction,
    dry_run: bool,
) -> dict[str, Any]:
    from pipelines.commands.champion_actions import change_champions, check_action
    from pipelines.commands.outcome import reported

    with closing(_context(recipe, assignments, models)) as context:
        check_action(action, context.models, selected=bool(models))
        with context.progress as progress:
            if dry_run:
                return change_champions(context, action, dry_run=True)
            list(map(progress.log, context.tracker.begin()))
            return reported(context, "promote", lambda: change_champions(context, action))


def _context(recipe: str, assignments: Sequence[str], models: Sequence[str]) -> Context:
    """The command on the recipe's models. ConfigError if one of these does not exist."""
    from pipelines.recipe.context import Context, configure_storage
    from pipelines.recipe.recipe import load_recipe

    configure_storage(loaded := load_recipe(recipe, assignments))
    return Context(loaded, tuple(dict.fromkeys(models or loaded.model)))


def _shown(
    stage: str, output: str | None, values: dict[str, Any], lines: Sequence[str]
) -> dict[str, Any]:
    """Print lines for people; the JSON result."""
    print_text("".join(f"{sanitize(line)}\n" for line in lines))
    return {"stage": stage, "status": "done", "output": output, "fingerprint": None, **values}
