"""Groups of training workers with Ray Train, and the World of each worker."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster import ray_log
from cluster.compat import interruptible_trainer
from cluster.heartbeats import send_heartbeats
from cluster.resources import ResourceRequest, wait_until_free, worker_capacity
from cluster.session import local_folder
from cluster.watchdog import Watchdog, heartbeat_interval_s
from genmod import storage
from genmod.errors import ConfigError, GenmodError
from genmod.world import Group, SingleProcess, World

Work = Callable[[World, dict[str, Any]], None]
"""What every worker runs: a module's function of its World and JSON values."""

_STARTS = 5
"""How often a group that failed to start is started again."""

_RESIZE_S = 60.0
"""How often Ray looks whether there is room for more workers, in seconds. To grow, the group restarts."""

_ABORT_S = 30
"""How long an interrupted group may take to end its workers, in seconds."""

_COLLECTIVE_SLACK_S = 300
"""Collectives time out so much later than the watchdog, in seconds, because the watchdog names the worker."""


@dataclass(frozen=True)
class GroupOptions:
    """Size, resources, folders and failure limits of a group."""

    workers: int
    resources: ResourceRequest
    """What each worker requests."""
    scratch: str
    """URL of a folder that all nodes see and only this launch uses; the caller removes it."""
    hang_timeout_s: float
    """A worker without progress for this long is killed, in seconds."""
    stacks: str
    """URL of a folder for the stacks of workers that hung."""
    max_failures: int
    """How often the group is restarted after a worker was lost or raised."""
    least_workers: int | None = None
    """With how many the group starts, and continues after a loss; default ``workers``. It grows when there is
    room."""

    @property
    def least(self) -> int:
        """Without so many workers the group waits."""
        return self.workers if self.least_workers is None else self.least_workers


def current_world(resources: ResourceRequest) -> World:
    """The World of this process, which is a Ray Train worker."""
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
    """Run ``work`` on a group of workers that form a World, and wait until it ends.

    If a worker is lost, hangs, or raises, the whole group is restarted. So the work must resume from what it
    has saved.

    Args:
        work: a module's function.
        values: passed to each worker; JSON values.
        options: of the group.

    Raises:
        ConfigError: the cluster is too small for the group.
        GenmodError: the group failed more often than ``options.max_failures``.
    """
    _check_capacity(options)
    wait_until_free(options.resources, options.least, "train.workers")
    # Ray imports torch and much else here, so not at the top.
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

    from cluster.process_group import process_group_config

    ray_log.take_loggers()
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    request = options.resources
    resources = {"CPU": request.cpus} | ({"GPU": request.gpus} if request.gpus else {})
    # A new name per launch: the group resumes from our checkpoints, not from Ray's state of earlier launches.
    name = f"group-{uuid.uuid4().hex}"
    watchdog = Watchdog(name, options.hang_timeout_s, options.stacks)
    folder = local_folder()
    trainer = interruptible_trainer()(
        _worker,
        train_loop_config={
            "work": work,
            "values": values,
            "resources": request,
            "launch": name,
            "heartbeat_interval_s": heartbeat_interval_s(options.hang_timeout_s),
            "folder": None if folder is None else str(folder),
        },
        torch_config=process_group_config(
            "nccl" if request.device == "cuda" else "gloo",
            math.ceil(options.hang_timeout_s) + _COLLECTIVE_SLACK_S,
            folder,
        ),
        scaling_config=ScalingConfig(
            num_workers=(
                options.workers
                if options.least == options.workers
                else (options.least, options.workers)
            ),
            elastic_resize_monitor_interval_s=_RESIZE_S,
            use_gpu=request.gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=name,
            **_ray_storage(options.scratch),
            failure_config=FailureConfig(
                max_failures=options.max_failures, controller_failure_limit=_STARTS
            ),
        ),
    )
    try:
        with watchdog:
            trainer.fit()
    except KeyboardInterrupt:
        _end_workers(getattr(trainer, "controller", None))
        raise
    except TrainingFailedError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lines += watchdog.hangs[-1:]
        raise GenmodError(
            f"{options.workers} workers failed {options.max_failures + 1} times, last with: "
            f"{lines[-1] if lines else type(error).__name__}; run the same command again to resume from the "
            "newest checkpoint"
        ) from error


def _end_workers(controller: Any) -> None:
    """End an interrupted group; a cluster would end it only after this process has ended."""
    import ray
    from ray.exceptions import RayError

    if controller is not None:
        # The controller ends its workers, then itself.
        with suppress(RayError):
            ray.get(controller.abort.remote(), timeout=_ABORT_S)


def _worker(settings: dict[str, Any]) -> None:
    """Called by Ray Train in each worker."""
    import ray

    world = current_world(settings["resources"])
    node = ray.get_runtime_context().get_node_id()
    interval_s, folder = settings["heartbeat_interval_s"], settings["folder"]
    with send_heartbeats(settings["launch"], world, node, interval_s, folder):
        settings["work"](world, settings["values"])


def _ray_storage(url: str) -> dict[str, Any]:
    """A folder in the form of Ray's ``RunConfig``."""
    from fsspec.implementations.local import LocalFileSystem
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = storage.filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return {"storage_path": path}
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _check_capacity(options: GroupOptions) -> None:
    """Refuse a group that the cluster is too small for, because Ray would wait without limit."""
    request = options.resources
    capacity = worker_capacity(request, options.least)
    if capacity < options.least:
        at_least = "" if options.least == options.workers else "at least "
        raise ConfigError(
            f"train.workers is {at_least}{options.least}, each with {request.cpus:g} CPUs and "
            f"{request.gpus:g} GPUs, but the cluster has resources for {capacity}; set "
            f"train.workers={max(1, capacity)}, or change cluster.cpus_per_worker and cluster.gpus_per_worker"
        )
