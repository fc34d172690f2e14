"""The actor that the doctor starts on each node; it measures there and returns JSON values."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

_DRIVER_FILE = Path("/proc/driver/nvidia/version")

_REDUCED_BYTES = {"cpu": 1 << 20, "cuda": 64 << 20}
"""Size of what is reduced and transferred, by device."""

_REPEATS = 3
_GROUP_S = 20
"""Timeout of operations of a process group, in seconds."""

_TRIPS = 5


class Examiner:
    """Measures one node. Methods import what they need, so that a missing module is an error of its own."""

    def __init__(self) -> None:
        self._device = "cpu"

    def versions(self) -> dict[str, Any]:
        """Versions of this node, and whether modules can be imported."""
        from cluster.doctor.versions import own_versions

        return own_versions().model_dump()

    def now(self) -> float:
        """Seconds since 1970 by this node's clock."""
        return time.time()

    def machine(self, folders: Sequence[str]) -> dict[str, Any]:
        """Facts of the machine; ``folders`` are written during work."""
        from cluster.compat import session_folder
        from cluster.doctor.machine import measure_machine

        return measure_machine(folders, session_folder()).model_dump()

    def store(self, root: str, url: str, content: bytes) -> dict[str, Any]:
        """Facts of the root's store, by the driver's file."""
        from cluster.doctor.store import measure_store, short_retries

        with short_retries():
            return measure_store(root, url, content).model_dump()

    def gpus(self) -> dict[str, Any]:
        """GPUs that PyTorch sees, also those that a running job has."""
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # Ray's, for an actor without GPUs
            os.environ.pop("CUDA_VISIBLE_DEVICES")
        import torch

        driver = ""
        with suppress(OSError):
            match = re.search(r"Kernel Module\D*([\d.]+)", _DRIVER_FILE.read_text())
            driver = match[1] if match else ""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [torch.cuda.get_device_name(number) for number in range(count)]
        return {"names": names, "driver": driver, "cuda": torch.version.cuda or ""}

    def answers(self, device: str) -> list[dict[str, Any]]:
        """What each device of this kind computes; on a node without GPUs, its CPU."""
        import torch

        from genmod.selftest.known_answers import compute_answers

        count = torch.cuda.device_count() if device == "cuda" else 0
        devices = [f"cuda:{number}" for number in range(count)] or ["cpu"]
        return [compute_answers(each).model_dump() for each in devices]

    def free_port(self) -> int:
        """A free port of this machine."""
        import socket

        with socket.socket() as server:
            server.bind(("", 0))
            return int(server.getsockname()[1])

    def join(self, rank: int, size: int, place: str, device: str) -> None:
        """Join a process group, as training does.

        Args:
            rank: of this process.
            size: the number of processes.
            place: HOST:PORT of the first process, or the path of a file on one machine.
            device: ``cpu`` or ``cuda:N``.
        """
        import torch
        import torch.distributed as dist

        from cluster.process_group import join_group

        self._device = device
        backend = "gloo" if device == "cpu" else "nccl"
        if device != "cpu":
            torch.cuda.set_device(device)
        if place.startswith("/"):
            join_group(backend, rank, size, place, _GROUP_S)
        else:
            dist.init_process_group(
                backend,
                init_method=f"tcp://{place}",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=_GROUP_S),
            )

    def all_reduce(self, size: int, repeats: int) -> float:
        """MB/s of the best of some all-reduces of a group. Raises ValueError if the sum is wrong."""
        import torch
        import torch.distributed as dist

        count = _REDUCED_BYTES[self._device.partition(":")[0]] // 4
        best_s = float("inf")
        for _ in range(repeats):
            values = torch.ones(count, device=self._device)
            start_s = time.perf_counter()
            dist.all_reduce(values)
            self._wait()
            best_s = min(best_s, time.perf_counter() - start_s)
            if not bool((values == size).all()):
                raise ValueError("the sum of the all-reduce is wrong")
        return 4 * count / best_s / 1e6

    def pair(self, other: int, first: bool) -> tuple[float, float]:
        """Round trip in seconds and MB/s to another process of the group, which calls this too.

        Args:
            other: its rank.
            first: whether this process starts.
        """
        import torch

        small = torch.zeros(1, device=self._device)
        count = _REDUCED_BYTES[self._device.partition(":")[0]] // 4
        large = torch.zeros(count, device=self._device)
        self._trip(small, small, other, first)
        trip_s = min(self._trip(small, small, other, first) for _ in range(_TRIPS))
        large_s = min(self._trip(large, small, other, first) for _ in range(_REPEATS))
        return trip_s, 4 * count / max(large_s - trip_s / 2, 1e-6) / 1e6

    def leave(self) -> None:
        """Leave the process group."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()

    def _trip(self, there: Any, back: Any, other: int, first: bool) -> float:
        """Seconds until a message was sent and the answer received."""
        import torch.distributed as dist

        start_s = time.perf_counter()
        if first:
            dist.send(there, other)
            dist.recv(back, other)
        else:
            dist.recv(there, other)
            dist.send(back, other)
        self._wait()
        return time.perf_counter() - start_s

    def _wait(self) -> None:
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize()
