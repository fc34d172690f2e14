"""The processes that train one model together, as a value. It depends on torch, not on Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass
class Heartbeat:
    """The progress of a process, from which a watchdog detects hangs. Threads may read it at any time."""

    count: int = 0
    """Number of marks; it increases as long as the process makes progress."""
    at: str = "start"
    """The newest mark: the operation that the process has started."""

    def mark(self, at: str) -> None:
        """Record that the process starts an operation, e.g. ``data``."""
        self.at = at
        self.count += 1


class World(Protocol):
    """The processes that train one model, seen from one of them."""

    @property
    def rank(self) -> int:
        """This process's number, 0 .. size - 1."""
        ...

    @property
    def size(self) -> int:
        """The number of processes."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        ...

    @property
    def heartbeat(self) -> Heartbeat:
        """Marked before each operation, so that a watchdog can tell hung from waiting processes."""
        ...

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a module to average gradients over ranks, for the parameters that require grad now."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """The average over all ranks, on every rank. Collective."""
        ...

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """A world of one process."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    size: int = 1
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself, unwrapped."""
        return module

    def mean(self, value: Tensor) -> Tensor:
        """The value itself, unchanged."""
        return value

    def barrier(self) -> None:
        """Return at once; there are no other ranks."""


@dataclass(frozen=True)
class Group:
    """The default torch.distributed process group, which must be initialized."""

    device: torch.device
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    @property
    def rank(self) -> int:
        """This process's number, 0 .. size - 1."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap in DistributedDataParallel, without device_ids: the loop moves batches to the device."""
        return nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def mean(self, value: Tensor) -> Tensor:
        """The average by all-reduce of the sum, which works for backends without AVG."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        dist.barrier()


def broadcast_int(world: World, value: int) -> int:
    """Rank 0's value on every rank; other ranks' values are ignored. ``abs(value)`` must be below 2**52."""
    addend = float(value * world.size if world.rank == 0 else 0)
    mean = world.mean(torch.tensor(addend, dtype=torch.float64, device=world.device))
    return round(float(mean))
