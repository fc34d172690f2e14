"""How training workers find each other: over the network of a cluster, or within one machine.

On a cluster, the first worker opens a TCP server, torch's TCPStore, on all interfaces. Everyone who reaches
it can change its values, so only the cluster's network may reach it. On one machine, a file in a private
folder takes its place, and workers connect to each other over the loopback interface.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from ray.train.torch import TorchConfig

_TorchBackend: Any = TorchConfig().backend_cls
"""Ray's own class, which also ends process groups."""


def process_group_config(
    backend: Literal["nccl", "gloo"], timeout_s: int, folder: Path | None
) -> TorchConfig:
    """The configuration of a process group.

    Args:
        backend: of torch.distributed.
        timeout_s: of its operations, in seconds.
        folder: a private folder if all workers run on this machine, else None.
    """
    if folder is None:
        return TorchConfig(backend=backend, timeout_s=timeout_s)
    return LocalTorchConfig(backend=backend, timeout_s=timeout_s, folder=str(folder))


@dataclass
class LocalTorchConfig(TorchConfig):
    """A process group within one machine."""

    folder: str = ""
    """Private folder for the file through which the workers find each other."""

    @property
    def backend_cls(self) -> Any:
        """The class that starts the process group."""
        return LocalTorchBackend


class LocalTorchBackend(_TorchBackend):
    """Starts a process group without a server: the workers find each other through a file."""

    def on_start(self, worker_group: Any, backend_config: LocalTorchConfig) -> None:
        """Called by Ray when all workers of a group run."""
        import ray

        # A new file per start: the previous one has the addresses of workers that have died.
        store = Path(backend_config.folder) / f"store-{uuid.uuid4().hex}"
        size = len(worker_group)
        backend, timeout_s = backend_config.backend, backend_config.timeout_s
        start = worker_group.execute_single_async
        ray.get(
            [start(i, join_group, backend, i, size, str(store), timeout_s) for i in range(size)]
        )


def join_group(backend: str, rank: int, size: int, store: str, timeout_s: int) -> None:
    """Join the process group on one worker.

    Args:
        backend: of torch.distributed.
        rank: of this worker.
        size: the number of workers.
        store: path of the file through which they find each other.
        timeout_s: of operations of the group, in seconds.
    """
    import torch.distributed as dist

    interface = _loopback()
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"
    # As Ray does: a process ends when an operation of NCCL times out.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )


def _loopback() -> str:
    """Name of the interface with the address 127.0.0.1."""
    import psutil

    addresses = psutil.net_if_addrs().items()
    return next(
        name
        for name, entries in addresses
        if any(e.family == socket.AF_INET and e.address == "127.0.0.1" for e in entries)
    )
