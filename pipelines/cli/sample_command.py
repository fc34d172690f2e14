"""``genmod sample``: a whole synthetic dataset, or one of its images.

Imports of other rooms are inside functions, as in :mod:`pipelines.cli.app`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from genmod.errors import ConfigError
from pipelines.cli import options
from pipelines.cli.invocation import Invocation
from pipelines.cli.run_stage import StageRequest, plan_options, run_image, run_request

_ONE = "One image"

Index = Annotated[
    int | None,
    typer.Option(
        "--index",
        metavar="N",
        help="Generate only the image with this index, the same as in the dataset. Needs --out.",
        rich_help_panel=_ONE,
    ),
]
OutFile = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="File or URL of the image; an existing file is replaced.",
        rich_help_panel=_ONE,
    ),
]


def add_sample(app: typer.Typer, panel: str, purpose: str, example: str) -> None:
    """Add the command to the program, under the heading ``panel``."""

    def command(
        *,
        recipe: options.RequiredRecipe,
        assignments: options.Assignments = [],  # noqa: B006
        model: options.Models = [],  # noqa: B006
        address: options.RayAddress = None,
        index: Index = None,
        out: OutFile = None,
        dry_run: options.DryRun = False,
        show_recipe: options.ShowRecipe = False,
        as_json: options.AsJson = False,
        debug: options.Debug = False,
    ) -> Invocation:
        if address:
            assignments = [*assignments, f"cluster.address={address}"]
        request = StageRequest("sample", recipe, assignments, model)
        if index is None and out is None:
            work = lambda: run_request(request, plan_options(dry_run, show_recipe))  # noqa: E731
        elif index is None or out is None:
            raise ConfigError("--index and --out belong together; give both or neither")
        elif dry_run:
            raise ConfigError("--index generates one image at once; leave --dry-run out")
        else:
            work = lambda: run_image(request, index, out)  # noqa: E731
        return Invocation("sample", work, as_json, debug)

    app.command(
        "sample", help=purpose, epilog=f"Example: genmod sample {example}", rich_help_panel=panel
    )(command)
