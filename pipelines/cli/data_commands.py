"""The commands on published data: ``select`` and ``lineage``.

Imports of other rooms are inside functions, as in :mod:`pipelines.cli.app`.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from genmod.errors import ConfigError, sanitize
from genmod.terminal import print_text
from pipelines.cli import options
from pipelines.cli.invocation import Invocation

_UNSCORED = ("refuse", "keep", "drop")


def add_data_commands(app: typer.Typer, panel: str) -> None:
    """Add the commands on published datasets, models and scores.

    Args:
        app: the program.
        panel: heading in the list of commands.
    """

    @app.command(
        "select",
        epilog="Example: genmod select runs/q/samples/vae --scores runs/q/sample-scores/vae "
        '--keep "p_corrected > 0.01" --out runs/q/samples/vae-familiar',
        rich_help_panel=panel,
    )
    def select(  # pyright: ignore[reportUnusedFunction]
        *,
        url: Annotated[str, typer.Argument(metavar="URL", help="Folder of a dataset.")],
        scores: Annotated[
            list[str],
            typer.Option(
                "--scores", metavar="URL", help="Scores of its rows; once for each split."
            ),
        ],
        keep: Annotated[
            str,
            typer.Option(
                "--keep",
                metavar="CONDITION",
                help="Rows to keep, e.g. \"p_corrected > 0.01 and not class = 'cat'\".",
            ),
        ],
        out: Annotated[
            str,
            typer.Option(
                "--out",
                metavar="URL",
                help="Folder of the new dataset. Next to the first one it shares its tars.",
            ),
        ],
        unscored: Annotated[
            str,
            typer.Option(
                "--unscored",
                metavar="|".join(_UNSCORED),
                help="What becomes of rows without a score.",
                callback=options.one_of(*_UNSCORED),
                autocompletion=options.complete(*_UNSCORED),
            ),
        ] = "refuse",
        dry_run: options.DryRun = False,
        as_json: options.AsJson = False,
        debug: options.Debug = False,
    ) -> Invocation:
        """Make a dataset of the rows whose scores meet a condition."""

        def run() -> dict[str, Any]:
            from pipelines.commands.select import SelectRequest, select
            from pipelines.recipe.progress import ProgressDisplay

            request = SelectRequest(url, scores, keep, out, cast("Any", unscored))
            with ProgressDisplay() as progress:
                return select(request, progress, dry_run=dry_run)

        return Invocation("select", run, as_json, debug)

    @app.command(
        "lineage",
        epilog="Example: genmod lineage runs/quickstart/samples/vae --index 7",
        rich_help_panel=panel,
    )
    def lineage(  # pyright: ignore[reportUnusedFunction]
        *,
        url: Annotated[
            str,
            typer.Argument(
                metavar="URL",
                help="Folder of a dataset, model, scores, evaluation, report or decision.",
            ),
        ],
        key: Annotated[
            str | None,
            typer.Option(metavar="KEY", help="A row of a dataset or of scores, by its key."),
        ] = None,
        index: Annotated[
            int | None,
            typer.Option(metavar="N", help="The same by its index in the split.", min=0),
        ] = None,
        split: Annotated[
            str | None,
            typer.Option(
                metavar="|".join(options.SPLIT_NAMES),
                help="The split of the index. Default: the one that has it.",
                callback=options.one_of(*options.SPLIT_NAMES),
                autocompletion=options.complete(*options.SPLIT_NAMES),
            ),
        ] = None,
        root: Annotated[
            list[str],
            typer.Option(
                "--root",
                metavar="URL",
                help="Look for manifests below it. Repeatable. Default: the root of the run.",
            ),
        ] = [],  # noqa: B006
        recipe: options.OptionalRecipe = None,
        assignments: options.Assignments = [],  # noqa: B006
        as_json: options.AsJson = False,
        debug: options.Debug = False,
    ) -> Invocation:
        """Show what something was made from, to the sources, and what was made with it."""

        def run() -> dict[str, Any]:
            from pipelines.commands.lineage import lineage_of, row_query

            roots = [*root, *_recipe_roots(recipe, assignments)]
            values, lines = lineage_of(url, row_query(key, index, split), roots)
            print_text("".join(f"{sanitize(line)}\n" for line in lines))
            return {"stage": "lineage", "status": "done", **values}

        return Invocation("lineage", run, as_json, debug)


def _recipe_roots(recipe: str | None, assignments: list[str]) -> list[str]:
    """The root of the recipe, if one is given."""
    if recipe is None:
        if assignments:
            raise ConfigError("lineage: --set needs --recipe; give it too")
        return []
    from pipelines.recipe.context import configure_storage
    from pipelines.recipe.recipe import load_recipe

    configure_storage(loaded := load_recipe(recipe, assignments))
    return [loaded.root]
