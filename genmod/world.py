"""How many processes train together, as a value that is passed in. This one knows torch, not Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass
class Heartbeat:
    """How far a process has come; whoever watches over it looks here. Threads may read it at any time."""

    count: int = 0
    """Grows with everything that is begun."""
    at: str = "start"
    """What was begun last."""

    def mark(self, at: str) -> None:
        """Something is begun."""
        self.at = at
        self.count += 1


class World(Protocol):
    """The processes that train one model, seen from one of them."""

    @property
    def rank(self) -> int:
        """0 .. size-1."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    @property
    def heartbeat(self) -> Heartbeat:
        """Marked by those who work, so that a process that hangs can be told from one that waits."""
        ...

    def wrap(self, module: nn.Module) -> nn.Module:
        """Make gradients of ``module`` averages over all ranks. Only parameters that require grad now."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """The average over all ranks, on every rank."""
        ...

    def barrier(self) -> None:
        """Wait until every rank is here."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """One process."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    size: int = 1
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def mean(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def barrier(self) -> None:
        """Nobody to wait for."""


@dataclass(frozen=True)
class Group:
    """The default torch.distributed process group, which somebody else has set up."""

    device: torch.device
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    @property
    def rank(self) -> int:
        """This process's number."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """How many processes there are."""
        return dist.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        """DistributedDataParallel; the loop moves batches itself, so no device_ids and no scatter."""
        return nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def mean(self, value: Tensor) -> Tensor:
        """All-reduced; works for backends without AVG."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()


def broadcast_int(world: World, value: int) -> int:
    """Rank 0's value on every rank; what the others give does not count. Below 2**52 in size."""
    mine = value * world.size if world.rank == 0 else 0
    told = torch.tensor(float(mine), dtype=torch.float64, device=world.device)
    return round(float(world.mean(told)))
