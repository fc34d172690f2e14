"""The command ``bundle``: its options."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli import options
from pipelines.cli.invocation import Invocation


def bundle_command(
    *,
    target: Annotated[str, typer.Argument(metavar="URL|JOB", help="Root of a run, or a job's id.")],
    address: Annotated[
        list[str],
        typer.Option(
            metavar="ADDRESS",
            help="http://HOST:8265 for a job; HOST:6379 or auto for logs and stacks of Ray's nodes. "
            "Repeatable.",
        ),
    ] = [],  # noqa: B006
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Default: genmod-bundle-TIME.tar.gz in the current folder."
        ),
    ] = None,
    recipe: options.OptionalRecipe = None,
    assignments: options.Assignments = [],  # noqa: B006
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> Invocation:
    """Collect logs, plans, receipts, versions and stacks in one file, without credentials."""

    def run() -> dict[str, Any]:
        from pipelines.commands.bundle import BundleRequest, bundle

        return bundle(BundleRequest(target, address, out, recipe, assignments))

    return Invocation("bundle", run, as_json, debug)
