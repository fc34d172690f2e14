"""The command ``export``. Imports of other rooms are inside the function, as in :mod:`pipelines.cli.app`."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from pipelines.cli import options
from pipelines.cli.invocation import Invocation

_FORMATS = ("onnx", "diffusers")


def export_command(
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME_OR_URL",
            help="A model of the recipe or its registry (models:/NAME@champion), or the folder of a model.",
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(_FORMATS),
            help="onnx: a network for onnxruntime, where the model has one.",
            callback=options.one_of(*_FORMATS),
            autocompletion=options.complete(*_FORMATS),
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="URL", help="Folder to write.")],
    recipe: options.OptionalRecipe = None,
    assignments: options.Assignments = [],  # noqa: B006
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> Invocation:
    """Export a model for other programs. The result is run and compared before it is published."""

    def run() -> dict[str, Any]:
        from pipelines.commands.export import ExportRequest, export
        from pipelines.recipe.progress import ProgressDisplay

        request = ExportRequest(model, cast("Any", kind), out, recipe, assignments)
        with ProgressDisplay() as progress:
            return export(request, progress)

    return Invocation("export", run, as_json, debug)
