"""``genmod schedule``: runs ``genmod retrain`` at the times of a cron line, once each.

Each tick is a process of its own, so neither its memory nor its failure reaches the scheduler. It reads the
recipe again, so a changed recipe counts from the next tick on.
"""

from __future__ import annotations

import signal

# Only genmod's own command is started, as a list of words and without a shell.
import subprocess  # nosec B404
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from genmod import storage
from genmod.budget import ReadBudget
from genmod.config import Config, parse
from genmod.documents import parse_json
from genmod.errors import DataError
from genmod.lease import this_process
from genmod.storage import RootUrl, StorageConfig
from genmod.terminal import print_line
from pipelines.commands.scheduler import Scheduler, SystemClock, TickRun, WallClock
from pipelines.commands.text_table import text_table
from pipelines.commands.ticks import tick_name
from pipelines.recipe.cron import ticks_after
from pipelines.recipe.renamed import refuse_renamed
from pipelines.recipe.retraining import ScheduleConfig
from pipelines.recipe.scalars import typed
from pipelines.recipe.tree import read_tree

_LISTED = 10
"""Ticks that ``--dry-run`` lists."""

_RESULT = ReadBudget(document_bytes=4 << 20)

_LINE_BYTES = 1 << 20
"""Of the last line of a retrain's output, its result."""


@dataclass(frozen=True)
class ScheduleRequest:
    """The command as it was given."""

    recipe: str
    assignments: tuple[str, ...]
    changes: tuple[str, ...]
    """Assignments of the command's own options, which change the recipe's ``schedule``."""
    models: tuple[str, ...]


class _SchedulePlace(Config):
    """The parts of a recipe that a scheduler needs."""

    root: RootUrl
    schedule: ScheduleConfig = ScheduleConfig()
    storage: StorageConfig | None = None


def run_schedule(
    request: ScheduleRequest,
    clock: WallClock | None = None,
    run: Callable[[str], TickRun] | None = None,
) -> dict[str, Any]:
    """Run ticks until a signal ends the command.

    Args:
        request: recipe and options.
        clock: the machine's, if not given.
        run: does the work of a tick; ``genmod retrain`` in a process of its own, if not given.
    """
    from pipelines.recipe.recipe import load_recipe

    load_recipe(request.recipe, [*request.assignments, *request.changes]).check()
    scheduler = _scheduler(request, clock or SystemClock(), run)
    scheduler.check()
    config = scheduler.config
    print_line(
        f"schedule: {config.cron!r} in {config.timezone}, overlap {config.overlap}, catch-up "
        f"{config.catch_up}: {scheduler.store.folder}"
    )
    announced = None
    while True:
        wake = scheduler.step()
        if announced != wake and wake > scheduler.clock.now():
            announced = wake
            print_line(f"schedule: waits until {scheduler.local(wake)}")
        while (left_s := (wake - scheduler.clock.now()).total_seconds()) > 0:
            scheduler.clock.sleep(left_s)


def run_once(
    request: ScheduleRequest,
    clock: WallClock | None = None,
    run: Callable[[str], TickRun] | None = None,
) -> dict[str, Any]:
    """Run the newest tick that is due, unless it ran or runs. The result has the exit code of its command."""
    scheduler = _scheduler(request, clock or SystemClock(), run)
    scheduler.check()
    name, ended, what = scheduler.once()
    print_line(f"schedule: {name}: {what}")
    status = what.partition(":")[0]
    result = {"stage": "schedule", "status": status, "output": scheduler.root, "fingerprint": None}
    if ended is not None:
        result |= {"exit_code": ended.exit_code, "retrain": ended.status}
        if ended.exit_code:
            result["status"] = "failed"
    return result | {"tick": name}


def list_ticks(request: ScheduleRequest, clock: WallClock | None = None) -> dict[str, Any]:
    """Print the next ticks. Writes nothing."""
    scheduler = _scheduler(request, clock or SystemClock(), None)
    scheduler.check()
    config = scheduler.config
    ticks = list(islice(ticks_after(config.cron, config.timezone, scheduler.clock.now()), _LISTED))
    rows = [
        (tick_name(tick), scheduler.local(tick), scheduler.due_at(tick).strftime("%H:%M:%S UTC"))
        for tick in ticks
    ]
    for line in text_table(("tick", config.timezone, "starts"), rows):
        print_line(line, sys.stdout)
    return {
        "stage": "schedule",
        "status": "planned",
        "output": scheduler.root,
        "fingerprint": None,
        "ticks": [tick_name(tick) for tick in ticks],
    }


def _scheduler(
    request: ScheduleRequest, clock: WallClock, run: Callable[[str], TickRun] | None
) -> Scheduler:
    tree = read_tree(request.recipe, [*request.assignments, *request.changes])
    refuse_renamed(tree)
    parts = typed(
        _SchedulePlace, {k: v for k, v in tree.items() if k in _SchedulePlace.model_fields}
    )
    place = parse(_SchedulePlace, parts, "")
    storage.configure(place.storage)
    return Scheduler(
        root=storage.resolve(place.root),
        config=place.schedule,
        models=request.models,
        by=str(this_process()),
        clock=clock,
        run=run or (lambda name: _retrain(request)),
    )


def _retrain(request: ScheduleRequest) -> TickRun:
    """Run ``genmod retrain`` in a process of its own. A signal is passed on, and its end is waited for."""
    words = [sys.executable, "-m", "pipelines", "retrain", "--recipe", request.recipe, "--json"]
    words += [word for text in request.assignments for word in ("--set", text)]
    words += [word for name in request.models for word in ("--model", name)]
    # The words are our own command and the arguments of this one; no shell reads them.
    child = subprocess.Popen(  # nosec B603
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout is not None
    line = b""
    try:
        with child.stdout:
            while part := child.stdout.readline(_LINE_BYTES):
                line = part if part.strip() else line
        return TickRun(child.wait(), _status(line))
    except KeyboardInterrupt:
        print_line("schedule: waits for the retrain to end; a second signal ends both at once")
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise


def _status(line: bytes) -> str:
    """The status in a command's JSON result; empty if the line is none."""
    try:
        result = parse_json(line, "the result", "see the log", _RESULT)
    except DataError:
        return ""
    status = cast("dict[str, Any]", result).get("status") if isinstance(result, dict) else None
    return status if isinstance(status, str) and len(status) < 200 else ""
