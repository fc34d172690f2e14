"""Calls a function on every node of the cluster that workers may use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from genmod.errors import GenmodError

T = TypeVar("T")

_PROBE_S = 120.0
"""Longest time until all nodes have answered, in seconds."""

_LIST_AGAIN_S = 0.5
"""Pause before nodes are listed again, in seconds."""


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
        GenmodError: a node that lives did not answer in time, or the function failed there.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = cast(Any, ray).remote(num_cpus=0, num_gpus=gpus)(function)
    results: dict[str, T] = {}
    end_s = time.monotonic() + _PROBE_S
    while True:
        nodes = usable_nodes(labels)
        calls = {
            node_id: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
            ).remote(*arguments)
            for node_id in nodes
            if node_id not in results
        }
        if not calls:
            return {address: results[node_id] for node_id, address in nodes.items()}
        for node_id, call in calls.items():
            try:
                results[node_id] = ray.get(call, timeout=max(0.0, end_s - time.monotonic()))
            except RayTaskError as error:
                raise _no_answer(error) from error
            except RayError as error:  # its node may be lost, and is no longer listed then
                if time.monotonic() > end_s:
                    raise _no_answer(error) from error
        time.sleep(_LIST_AGAIN_S)


def _no_answer(error: Exception) -> GenmodError:
    reason = str(error).strip().splitlines()[-1]
    return GenmodError(
        f"a node did not answer within {_PROBE_S:g} s ({reason}); check the nodes with ray status"
    )
