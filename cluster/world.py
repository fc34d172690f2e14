"""Ray's side of World: a group of training workers, and what each of them is told about itself."""

from __future__ import annotations

import logging
import math
import signal
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.resources import ResourceRequest, worker_capacity
from cluster.watchdog import Watchdog, send_heartbeats
from genmod import storage
from genmod.errors import ConfigError, GenmodError
from genmod.world import Group, SingleProcess, World

Work = Callable[[World, dict[str, Any]], None]
"""What every worker does; a module's function, and JSON values to tell it what is to be done."""

STARTS = 5
"""How often a group that did not come up is started again."""

COLLECTIVE_SLACK_S = 300
"""Workers wait for one another for so much longer than the watchdog does, which says who is late."""


@dataclass(frozen=True)
class GroupOptions:
    """How to run a group."""

    workers: int
    resources: ResourceRequest
    """What each worker requests."""
    scratch: str
    """URL of a folder of this launch's own, seen by all nodes, for Ray's notes; the caller removes it."""
    hang_timeout_s: float
    """A worker that comes no further for so long is ended."""
    stacks: str
    """URL of a folder for the stacks of workers that hang."""
    max_failures: int
    """How often the group is started again after a worker was lost or raised."""


def current_world(resources: ResourceRequest) -> World:
    """The world of the Ray Train worker that this process is."""
    import ray.train.torch
    import torch

    torch.set_num_threads(max(1, int(resources.cpus)))
    device = ray.train.torch.get_device() if resources.device == "cuda" else torch.device("cpu")
    assert isinstance(device, torch.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ray.train.get_context().get_world_size() == 1:
        return SingleProcess(device)
    return Group(device)


def run_group(work: Work, values: dict[str, Any], options: GroupOptions) -> None:
    """Run ``work`` on a group of workers that form a World, and wait for its end.

    A worker that is lost, hangs, or raises, takes the group down; then the whole group starts anew, so the
    work must go on from what it has saved.

    Raises:
        ConfigError: the cluster has no room for the group.
        GenmodError: it was lost more often than it may be.
    """
    _check_capacity(options)
    # Ray imports torch and much else here, so not at the top.
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    request = options.resources
    resources = {"CPU": request.cpus} | ({"GPU": request.gpus} if request.gpus else {})
    # A name of its own for each launch: Ray's notes of an earlier one do not count, ours do.
    name = f"group-{uuid.uuid4().hex[:12]}"
    beats = storage.join(options.scratch, "beats")
    watchdog = Watchdog(beats, options.hang_timeout_s, options.stacks)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "work": work,
            "values": values,
            "resources": request,
            "beats": beats,
            "hang_timeout_s": options.hang_timeout_s,
        },
        torch_config=TorchConfig(
            backend="nccl" if request.device == "cuda" else "gloo",
            timeout_s=math.ceil(options.hang_timeout_s) + COLLECTIVE_SLACK_S,
        ),
        scaling_config=ScalingConfig(
            num_workers=options.workers,
            use_gpu=request.gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=name,
            **_ray_storage(options.scratch),
            failure_config=FailureConfig(
                max_failures=options.max_failures, controller_failure_limit=STARTS
            ),
        ),
    )
    try:
        with _interruptible(), watchdog:
            trainer.fit()
    except TrainingFailedError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lines += watchdog.hangs[-1:]
        raise GenmodError(
            f"{options.workers} workers failed {options.max_failures + 1} times, last by: "
            f"{lines[-1] if lines else type(error).__name__}; the same command goes on from the newest "
            "checkpoint"
        ) from error


@contextmanager
def _interruptible() -> Generator[None]:
    """Ctrl-C is KeyboardInterrupt in here, as elsewhere; Ray would end the process, and stay in its way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        signal.signal(signal.SIGINT, before)


def _worker(told: dict[str, Any]) -> None:
    """What Ray Train calls in each worker."""
    import ray

    world = current_world(told["resources"])
    node = ray.get_runtime_context().get_node_id()
    with send_heartbeats(told["beats"], world, told["hang_timeout_s"], node):
        told["work"](world, told["values"])


def _ray_storage(url: str) -> dict[str, Any]:
    """A folder as Ray wants it told."""
    from fsspec.implementations.local import LocalFileSystem
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = storage.filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return {"storage_path": path}
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _check_capacity(options: GroupOptions) -> None:
    """Refuse a group that would wait for ever."""
    request = options.resources
    capacity = worker_capacity(request, options.workers)
    if capacity < options.workers:
        raise ConfigError(
            f"train.workers is {options.workers}, each with {request.cpus:g} CPUs and {request.gpus:g} GPUs, "
            f"but the cluster has resources for {capacity}; set train.workers={max(1, capacity)}, "
            "or change cluster.cpus_per_worker and cluster.gpus_per_worker"
        )
