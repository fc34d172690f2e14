"""What a recipe needs of each node that it uses."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.resources import ResourceRequest
from genmod.numerics import NumericsMode

PROCESS_BYTES = 600 << 20
"""Memory of a worker before it has a model: Python, PyTorch and Ray; measured 430 to 560 MB on CPUs."""


@dataclass(frozen=True)
class NodeNeeds:
    """What the recipe's workers need, from its plan."""

    root: str
    """URL of the root."""
    request: ResourceRequest
    """Resources of one worker."""
    workers: int = 1
    """Of the largest stage."""
    model_bytes: int = 0
    """Memory of one worker besides its process: weights, gradients, moments, average, decoded rows."""
    numerics: NumericsMode = "strict"
    cache_folder: str = ""
    cache_bytes: int = 0
    """Of the node's file cache; 0 without one."""
    labels: dict[str, str] = field(default_factory=dict[str, str])
    """Ray labels of nodes that sample and score."""

    @property
    def worker_bytes(self) -> int:
        """Memory of one worker."""
        return PROCESS_BYTES + self.model_bytes

    def workers_on(self, cpus: float, gpus: float) -> int:
        """How many workers can be on a node with these resources."""
        fits = int(cpus / self.request.cpus)
        if self.request.gpus:
            fits = min(fits, int(gpus / self.request.gpus))
        return min(fits, self.workers)
