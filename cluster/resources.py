"""What one worker requests of a node, and how many such workers a cluster has resources for."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.compat import other_jobs
from cluster.session import ClusterConfig, local_folder, wait_s
from genmod.errors import GenmodError, sanitize

logger = logging.getLogger("genmod")

_QUIET_S = 2.0
"""Waits up to this long are not reported, because the stage before may just be ending, in seconds."""

_RELEASE_S = 15.0
"""Shortest wait for resources that others hold: those of the stage before are free only seconds later."""

_MAX_COMMAND = 120
"""Characters of another job's command that are shown."""

_POLL_S = 0.5
"""Pause between two requests for the list of nodes, in seconds."""


@dataclass(frozen=True)
class ResourceRequest:
    """Resources of one worker, and the device on which it computes."""

    device: Literal["cpu", "cuda"]
    cpus: float
    """Logical CPUs; above 0."""
    gpus: float
    """0 for none."""
    wait_s: float = 0.0
    """How long to wait for further nodes, in seconds, while the cluster is too small."""
    memory_bytes: float = 0.0
    """Memory of one worker; 0 if it requests none."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """Ray labels that a node must have."""


def resource_request(
    device: Literal["auto", "cpu", "cuda"], cluster: ClusterConfig
) -> ResourceRequest:
    """Resources of each worker of a job.

    Args:
        device: ``auto`` is cuda if the recipe gives workers GPUs.
        cluster: the recipe's section.
    """
    if device == "cuda" or (device == "auto" and cluster.gpus_per_worker > 0):
        gpus = cluster.gpus_per_worker or 1
        return ResourceRequest(
            "cuda", cluster.cpus_per_worker, gpus, wait_s(cluster), labels=cluster.labels
        )
    cpus = cluster.cpus_per_worker
    return ResourceRequest("cpu", cpus, 0, wait_s(cluster), labels=cluster.labels)


def worker_capacity(request: ResourceRequest, workers: int) -> int:
    """How many workers fit on the cluster's nodes if these are idle.

    Waits until at least ``workers`` fit or ``request.wait_s`` has passed, because lost nodes may be replaced
    and clusters may scale up.

    Args:
        request: resources of one worker.
        workers: how many should fit.
    """
    end_s = time.monotonic() + request.wait_s
    while (capacity := capacity_now(request)) < workers and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    return capacity


def capacity_now(request: ResourceRequest) -> int:
    """How many workers fit on the nodes that are there, if these are idle."""
    import ray

    return sum(workers_on(node, request) for node in ray.nodes())


def workers_on(node: Mapping[str, Any], request: ResourceRequest) -> int:
    """How many workers fit on a node if it is idle; 0 if it is lost or has other labels.

    Args:
        node: an entry of ``ray.nodes()``.
        request: resources of one worker.
    """
    labels = node.get("Labels", {})
    if not node["Alive"] or any(labels.get(k) != v for k, v in request.labels.items()):
        return 0
    resources = node["Resources"]
    fits = int(resources.get("CPU", 0) / request.cpus)
    return min(fits, int(resources.get("GPU", 0) / request.gpus)) if request.gpus else fits


NODE_LABEL = "ray.io/node-id"
"""Label of every node of Ray, by which actors are kept off a node."""


def node_id() -> str:
    """Ray's id of the node of this process; empty outside of Ray."""
    if "ray" not in sys.modules:
        return ""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def has_other_nodes(nodes: Collection[str]) -> bool:
    """Whether the cluster has a node with CPUs besides these."""
    import ray

    return any(
        node["Alive"] and node["Resources"].get("CPU", 0) and node["NodeID"] not in nodes
        for node in ray.nodes()
    )


def wait_until_free(
    request: ResourceRequest,
    workers: int,
    key: str,
    is_granted: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until other jobs of the cluster leave enough resources for these workers, and say who holds them.

    A local Ray has no other jobs.

    Args:
        request: resources of one worker.
        workers: how many must fit.
        key: the recipe's key of the number of workers, for the error.
        is_granted: ends the wait, since Ray has given the resources to a request of this job.

    Raises:
        GenmodError: the resources are not free in time.
    """
    if local_folder() is not None:
        return
    start_s = time.monotonic()
    limit_s = max(request.wait_s, _RELEASE_S)
    reported = False
    while (free := free_workers(request)) < workers and not is_granted():
        waited_s = time.monotonic() - start_s
        if waited_s > limit_s:
            raise GenmodError(
                f"{key} needs {_resources(request, workers)}, but after {waited_s:.0f} s only {free} of "
                f"{workers} workers fit next to {_holders()}; wait for that to end, raise cluster.wait_s, "
                "or use fewer workers"
            )
        if waited_s >= _QUIET_S and not reported:
            reported = True
            logger.warning(
                "waiting up to %.0f s for %s: %d of %d workers fit now; the rest is held by %s",
                limit_s,
                _resources(request, workers),
                free,
                workers,
                _holders(),
            )
        time.sleep(_POLL_S)


def free_workers(request: ResourceRequest) -> int:
    """How many workers fit into what is free now, all nodes together."""
    import ray

    available = ray.available_resources()
    amounts = {"CPU": request.cpus, "GPU": request.gpus, "memory": request.memory_bytes}
    return min(int(available.get(name, 0) / each) for name, each in amounts.items() if each)


def _resources(request: ResourceRequest, workers: int) -> str:
    gpus = f" and {workers * request.gpus:g} GPUs" if request.gpus else ""
    mebibytes = workers * request.memory_bytes / 2**20
    memory = f" and {mebibytes:,.0f} MiB of memory" if request.memory_bytes else ""
    return f"{workers * request.cpus:g} CPUs{gpus}{memory}"


def _holders() -> str:
    """The other jobs of the cluster, in words."""
    jobs = [f"{sanitize(command)[:_MAX_COMMAND]!r} ({n} actors)" for command, n in other_jobs()]
    return ", ".join(jobs[:3]) or "tasks of other jobs"
