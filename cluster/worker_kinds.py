"""Kinds of nodes for a worker, and a function called on one node of each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from cluster.resources import ResourceRequest, workers_on
from genmod.errors import GenmodError, sanitize

T = TypeVar("T")

_ACCELERATOR = "ray.io/accelerator-type"


class WorkerKind(NamedTuple):
    """Nodes with the same resources and the same accelerator."""

    text: str
    """E.g. ``3 nodes with 8 CPUs, 1 GPUs (H100)``."""
    workers: int
    """Workers that fit on these nodes when they are idle."""


def on_each_kind(
    function: Callable[..., T], *arguments: Any, request: ResourceRequest, limit_s: float
) -> list[tuple[WorkerKind, T]]:
    """Call a function on one node of each kind, with the resources of one worker.

    Args:
        function: of a module that workers can import.
        *arguments: of the function.
        request: resources of one worker, and labels that its node must have.
        limit_s: longest time for all of them, with the wait for resources that others hold, in seconds.

    Raises:
        GenmodError: a node did not answer in time, or the function failed.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes: dict[tuple[float, float, str], list[dict[str, Any]]] = {}
    for node in ray.nodes():
        if workers_on(node, request):
            resources = node["Resources"]
            accelerator = node.get("Labels", {}).get(_ACCELERATOR, "")
            kind = resources.get("CPU", 0.0), resources.get("GPU", 0.0), accelerator
            nodes.setdefault(kind, []).append(node)
    task = cast(Any, ray).remote(num_cpus=request.cpus, num_gpus=request.gpus, max_retries=0)(
        function
    )
    calls = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(alike[0]["NodeID"], soft=False)
        ).remote(*arguments)
        for alike in nodes.values()
    ]
    try:
        results = ray.get(calls, timeout=limit_s)
    except RayError as error:
        for call in calls:
            ray.cancel(call, force=True)
        reason = sanitize(str(error).strip().splitlines()[-1])
        raise GenmodError(
            f"not every kind of node answered within {limit_s:g} s ({reason})"
        ) from error
    kinds = [
        WorkerKind(_text(kind, len(alike)), sum(workers_on(node, request) for node in alike))
        for kind, alike in nodes.items()
    ]
    return list(zip(kinds, results, strict=True))


def _text(kind: tuple[float, float, str], nodes: int) -> str:
    cpus, gpus, accelerator = kind
    text = f"{nodes} node{'s' * (nodes > 1)} with {cpus:g} CPUs"
    if gpus:
        text += f", {gpus:g} GPUs"
    return text + (f" ({sanitize(accelerator)})" if accelerator else "")
