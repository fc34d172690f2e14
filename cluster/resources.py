"""What one worker requests of a node, and how many such workers a cluster has resources for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from cluster.session import ClusterConfig, wait_s

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
        return ResourceRequest("cuda", cluster.cpus_per_worker, gpus, wait_s(cluster))
    return ResourceRequest("cpu", cluster.cpus_per_worker, 0, wait_s(cluster))


def worker_capacity(request: ResourceRequest, workers: int) -> int:
    """How many workers fit on the cluster's nodes if these are idle.

    Waits until at least ``workers`` fit or ``request.wait_s`` has passed, because lost nodes may be replaced
    and clusters may scale up.

    Args:
        request: resources of one worker.
        workers: how many should fit.
    """
    end_s = time.monotonic() + request.wait_s
    while (capacity := _capacity(request)) < workers and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    return capacity


def _capacity(request: ResourceRequest) -> int:
    import ray

    total = 0
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            fits = int(resources.get("CPU", 0) / request.cpus)
            if request.gpus:
                fits = min(fits, int(resources.get("GPU", 0) / request.gpus))
            total += fits
    return total
