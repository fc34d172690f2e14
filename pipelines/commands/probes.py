"""Measures expected times where the work will run: on this machine, or on nodes of a cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from cluster.resources import resource_request
from cluster.session import LOCAL, address_of
from cluster.worker_kinds import WorkerKind, on_each_kind
from genmod.errors import GenmodError
from pipelines.commands.expected_times import Cores, Expected
from pipelines.recipe.context import Context

_LIMIT_S = 60.0
"""Longest time until each kind of node has answered, with the start of its process, in seconds."""


class TimeProbe(NamedTuple):
    """How the time of one stage of one model is measured."""

    call: partial[Expected]
    """Takes the cores; its first argument is the model."""
    workers: int
    """That the recipe requests."""
    units: int | None = None
    """Work units of a bulk job; None for training, whose workers depend on each other."""


class Measured(NamedTuple):
    """The expected time of one stage of one model."""

    seconds: float
    """Without the start of processes."""
    place: str
    """Where it was measured."""


HERE = "cores like these"
"""This machine, as a place of measurements."""


def measure_all(context: Context, measures: Sequence[TimeProbe | None]) -> list[Measured | None]:
    """Expected times; None where there is nothing to measure or nowhere to measure it.

    On a cluster, one task on a node of each kind measures everything; it takes about 15 seconds.
    """
    cluster = context.recipe.cluster
    probes = {number: probe for number, probe in enumerate(measures) if probe is not None}
    found: list[Measured | None] = [None] * len(measures)
    request = resource_request("auto", cluster)
    if address_of(cluster) == LOCAL:
        if not request.gpus:
            cores = Cores.of(cluster)
            for number, probe in probes.items():
                found[number] = Measured(probe.call(cores).total_s, HERE)
        return found
    if request.gpus:  # training on GPUs is not measured
        probes = {number: probe for number, probe in probes.items() if probe.units is not None}
    if not probes:
        return found
    context.connect()
    threads = max(1, int(request.cpus))
    calls = [probe.call for probe in probes.values()]
    try:
        kinds = on_each_kind(
            _measure_here, calls, threads, request.device, request=request, limit_s=_LIMIT_S
        )
    except GenmodError as error:
        context.progress.log(f"  expected times are not known: {error}")
        return found
    if not kinds:
        context.progress.log("  expected times are not known: no node has room for one worker")
        return found
    place = " and ".join(kind.text for kind, _ in kinds)
    for position, (number, probe) in enumerate(probes.items()):
        by_kind = [(kind, times[position]) for kind, times in kinds]
        found[number] = Measured(combined(probe, by_kind).total_s, place)
    return found


def _measure_here(calls: Sequence[partial[Expected]], threads: int, device: str) -> list[Expected]:
    """In a task: the times of one worker of each stage and model on this node."""
    times: list[Expected] = []
    for call in calls:
        call.args[0].to(device)
        times.append(call(Cores(math.inf, threads, slots=1)))
    return times


def combined(measure: TimeProbe, by_kind: Sequence[tuple[WorkerKind, Expected]]) -> Expected:
    """The time on all kinds of nodes together.

    Training waits for its slowest worker. Workers of a bulk job take units as they finish, and are on each
    kind of node in proportion to its room.
    """
    first_s = max(expected.first_s for _, expected in by_kind)
    if measure.units is None:
        return Expected(max(expected.usual_s for _, expected in by_kind), first_s)
    room = sum(kind.workers for kind, _ in by_kind)
    rate = sum(kind.workers / max(expected.usual_s, 1e-9) for kind, expected in by_kind) / room
    active = max(1, min(measure.workers, measure.units, room))
    return Expected(1 / (rate * active), first_s)
