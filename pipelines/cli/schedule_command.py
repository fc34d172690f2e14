"""The command ``schedule``: its options, which change the recipe's ``schedule``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from pipelines.cli import options
from pipelines.cli.invocation import Invocation

_SCHEDULE = "Schedule"
"""Heading in the help of the command."""

_OVERLAPS, _CATCH_UPS = ("skip", "queue"), ("none", "latest", "all")


def _option(flag: str, metavar: str, purpose: str, *words: str) -> Any:
    completion = options.complete(*words) if words else None
    return typer.Option(
        flag, metavar=metavar, help=purpose, rich_help_panel=_SCHEDULE, autocompletion=completion
    )


def schedule_command(
    *,
    recipe: options.RequiredRecipe,
    cron: Annotated[str | None, _option("--cron", "LINE", "Five fields, e.g. '0 3 * * *'.")] = None,
    timezone: Annotated[
        str | None, _option("--tz", "ZONE", "Time zone, e.g. Europe/Berlin.")
    ] = None,
    overlap: Annotated[
        str | None,
        _option(
            "--overlap",
            "skip|queue",
            "A tick while an earlier one works: skip or queue.",
            *_OVERLAPS,
        ),
    ] = None,
    catch_up: Annotated[
        str | None,
        _option("--catch-up", "none|latest|all", "Which missed ticks to make up for.", *_CATCH_UPS),
    ] = None,
    jitter: Annotated[
        str | None, _option("--jitter", "SECONDS", "Start each tick up to this much later.")
    ] = None,
    once: Annotated[
        bool,
        typer.Option(
            "--once",
            help="Run the newest tick that is due, unless it ran, and return; for a cluster's own scheduler.",
            rich_help_panel=_SCHEDULE,
        ),
    ] = False,
    assignments: options.Assignments = [],  # noqa: B006
    model: options.Models = [],  # noqa: B006
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the next ticks and start nothing.", rich_help_panel=_SCHEDULE
        ),
    ] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> Invocation:
    """Retrain at the times of a cron line. Several schedulers of one root run each tick once."""
    values = {
        "cron": cron,
        "timezone": timezone,
        "overlap": overlap,
        "catch_up": catch_up,
        "jitter_s": jitter,
    }
    changes = [
        f"schedule.{key}={value if key == 'jitter_s' else json.dumps(value)}"
        for key, value in values.items()
        if value is not None
    ]

    def run() -> dict[str, Any]:
        from pipelines.commands.schedule import ScheduleRequest, list_ticks, run_once, run_schedule

        request = ScheduleRequest(recipe, tuple(assignments), tuple(changes), tuple(model))
        if dry_run:
            return list_ticks(request)
        return run_once(request) if once else run_schedule(request)

    return Invocation("schedule", run, as_json, debug)
