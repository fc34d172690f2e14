"""Calls a function on every node of the cluster that workers may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from genmod.errors import GenmodError

T = TypeVar("T")

_PROBE_S = 120.0
"""Longest time until all nodes have answered, in seconds."""


def usable_nodes(labels: Mapping[str, str]) -> dict[str, str]:
    """Id and address of each node with CPUs and these labels."""
    import ray

    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0)
        and all(node.get("Labels", {}).get(key) == value for key, value in labels.items())
    }


def on_each_node(
    function: Callable[..., T], *arguments: Any, labels: Mapping[str, str], gpus: float = 0
) -> dict[str, T]:
    """Results of a function by the address of the node that called it.

    Args:
        function: of a module that workers can import.
        *arguments: of the function.
        labels: that nodes must have.
        gpus: that the function needs.

    Raises:
        GenmodError: a node did not answer in time.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = usable_nodes(labels)
    task = cast(Any, ray).remote(num_cpus=0, num_gpus=gpus)(function)
    calls = {
        address: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(*arguments)
        for node_id, address in nodes.items()
    }
    try:
        results = ray.get(list(calls.values()), timeout=_PROBE_S)
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise GenmodError(
            f"a node did not answer within {_PROBE_S:g} s ({reason}); check the nodes with ray status"
        ) from error
    return dict(zip(calls, results, strict=True))
