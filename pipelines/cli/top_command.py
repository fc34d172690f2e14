"""The command ``top``: its options."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli import options
from pipelines.cli.invocation import Invocation


def top_command(
    *,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="HOST:6379 or auto of a Ray cluster, or http://HOST:8080 of a node's metrics. "
            "Default: the Ray nodes of this machine.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show the values once and exit.")] = False,
    every: Annotated[
        float,
        typer.Option("--every", metavar="S", help="Seconds between two readings.", min=0.5),
    ] = 2.0,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> Invocation:
    """Show what runs on a cluster: progress, speed, loss, waiting, memory, retries."""

    def run() -> dict[str, Any]:
        from pipelines.commands.top import top

        return top(address, once=once, as_json=as_json, every_s=every)

    return Invocation("top", run, as_json, debug)
