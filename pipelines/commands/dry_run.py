"""``--dry-run``: prints the plan of a command, and starts nothing."""

from __future__ import annotations

import sys
from typing import Any

from genmod.data.sharding.census_text import census_lines
from genmod.data.sharding.source_census import SourceCensus
from genmod.errors import ConfigError, DataError
from genmod.terminal import print_line, print_text
from pipelines.commands import price
from pipelines.commands.expected_times import start_up_s
from pipelines.commands.plan import Step, plan
from pipelines.commands.text_table import text_table
from pipelines.recipe.context import Context
from pipelines.recipe.time_left import duration

_HEADER = ("stage", "model", "images", "parameters", "bytes", "expected time", "state")


def dry_run(stage: str, context: Context, *, show_recipe: bool) -> dict[str, Any]:
    """Print the plan of a stage for the command's models and start nothing.

    With ``show_recipe`` the resolved recipe follows. All other lines are then comments, so the output is a
    recipe that can be run.

    Returns:
        the command's JSON result, with ``plan`` and ``price``.

    Raises:
        ConfigError, DataError: the stage would refuse its work, and there are no prices to print instead.
    """
    prices = price.prices(context.recipe)
    steps: list[Step] = []
    lines: list[str] = []
    try:
        context.tracker.check()
        steps = plan(stage, context)
        lines += [
            *_census(steps),
            *_data(steps),
            *plan_lines(context, steps),
            context.tracker.place.line(),
        ]
    except (ConfigError, DataError) as error:
        if not prices:
            raise
        lines.append(f"no plan: {error}")
    if prices:
        lines += ["", *price.price_lines(context.recipe, prices)]
    for line in lines:
        print_line(f"# {line}".rstrip() if show_recipe else line, sys.stdout)
    if show_recipe:
        print_text(context.recipe.to_yaml())
    return {
        "stage": stage,
        "status": "planned",
        "output": context.recipe.root,
        "fingerprint": steps[-1].fingerprint if steps else None,
        "plan": [step.model_dump(mode="json") for step in steps],
        "price": prices,
    }


def _census(steps: list[Step]) -> list[str]:
    """What will be made of the source, if the plan has a shard stage."""
    found = [step.work["census"] for step in steps if "census" in step.work]
    return [*census_lines(SourceCensus.model_validate(found[0])), ""] if found else []


def _data(steps: list[Step]) -> list[str]:
    """The first lines of the stages, each once: models share the line of their dataset."""
    found = dict.fromkeys(line for step in steps for line in step.data)
    return [*found, ""] if found else []


def plan_lines(context: Context, steps: list[Step]) -> list[str]:
    """The plan as a table, and the expected time of the stages that were measured."""
    lines = text_table(_HEADER, [_cells(step) for step in steps], right=(2, 3, 4, 5))
    timed = [step for step in steps if step.expected_s is not None]
    if not timed:
        needs_gpus = context.recipe.cluster.gpus_per_worker > 0
        return (
            [*lines, "expected times: not known here, the recipe requests GPUs"]
            if needs_gpus
            else lines
        )
    seconds: dict[str, float] = {}
    worker_s = 0.0
    for step in timed:
        seconds[step.stage] = seconds.get(step.stage, 0.0) + (step.expected_s or 0.0)
        worker_s += (step.expected_s or 0.0) * step.work.get("workers", 1)
    start_s = start_up_s(seconds)
    lines.append(
        f"{', '.join(seconds)}: about {duration(sum(seconds.values()) + start_s)} in all on "
        f"{timed[0].measured_on}, including {duration(start_s)} to start processes"
    )
    price_per_hour = context.recipe.cluster.worker_price_per_hour
    if price_per_hour is not None:
        lines.append(
            f"price: about {worker_s / 3600 * price_per_hour:,.2f} at {price_per_hour:g} for an hour of one "
            "worker, without the start of processes"
        )
    return lines


def _cells(step: Step) -> tuple[str, ...]:
    """A step as a row of the table."""
    sizes = [step.work.get(key) for key in ("images", "parameters", "bytes")]
    numbers = ["" if size is None else f"{size:,}" for size in sizes]
    expected = ""
    if step.expected_s is not None:
        expected = duration(step.expected_s) if step.expected_s >= 1 else "under 1 s"
    return (step.stage, step.name, *numbers, expected, step.state)
