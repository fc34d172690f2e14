"""Connects to Ray: an existing cluster, or a local one that ends with this process.

:func:`cluster.environment.set_environment` has been called before this module is imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from cluster.compat import JOB_VARIABLE
from genmod import storage
from genmod.config import Config
from genmod.errors import ConfigError
from genmod.interface.external import FAMILIES_VARIABLE

LOCAL = "local"
AUTO = "auto"


class ClusterConfig(Config):
    """The recipe's ``cluster``: which Ray to use, and the resources of one worker."""

    address: str = AUTO
    """``local`` starts Ray on this machine until this process ends; ``auto`` uses the cluster of
    RAY_ADDRESS (Ray sets it in its jobs), else ``local``; or a cluster's address, HOST:PORT."""
    cpus: int | None = Field(default=None, gt=0)
    """Logical CPUs of a local Ray; default: all CPUs of the machine."""
    object_store_bytes: int = Field(default=256 << 20, ge=80 << 20)
    """Shared memory of a local Ray, in bytes. Small, because images do not travel through it."""
    wait_s: float = Field(default=60, ge=0)
    """How long to wait for further nodes, in seconds, while the cluster is too small for the workers."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs of one worker of any stage."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of one worker of training, sampling and scoring; with 1, each worker has its own GPU."""


def address_of(config: ClusterConfig) -> str:
    """The address with ``auto`` resolved."""
    if config.address == AUTO:
        return os.environ.get("RAY_ADDRESS", LOCAL)  # Ray sets it for its jobs
    return config.address


def wait_s(config: ClusterConfig) -> float:
    """How long to wait for further nodes, in seconds; a local Ray has none."""
    return 0.0 if address_of(config) == LOCAL else config.wait_s


def connect(config: ClusterConfig) -> None:
    """Connect this process to Ray. Does nothing if it is connected.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    import ray  # here, because it takes seconds

    if ray.is_initialized():
        return
    address = address_of(config)
    if address == LOCAL:
        _start_local(config)
        return
    try:
        ray.init(
            address=address,
            runtime_env=_runtime_env(worker_environment()),
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"no Ray cluster answers at {address} ({reason}); check --address, or use "
            "--address local to run on this machine"
        ) from error


def worker_environment() -> dict[str, str]:
    """Environment variables of workers on other nodes: addresses and settings of stores, families.

    Never credentials, because Ray shows these variables to all its users; each node finds its own. A Ray job
    forwards settings alone, because its workers received the others when it was submitted.
    """
    in_job = JOB_VARIABLE in os.environ
    names = () if in_job else (*storage.FORWARDED_VARIABLES, FAMILIES_VARIABLE)
    variables = {name: os.environ[name] for name in names if name in os.environ}
    return variables | dict(storage.settings_environment())


def _runtime_env(variables: Mapping[str, str]) -> dict[str, Any] | None:
    return {"env_vars": dict(variables)} if variables else None


def disconnect() -> None:
    """Disconnect from the cluster; a local one ends."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def _start_local(config: ClusterConfig) -> None:
    import ray

    # Workers on this machine inherit this process's environment; only what differs is passed on.
    settings = storage.settings_environment()
    changed = {name: value for name, value in settings.items() if os.environ.get(name) != value}
    ray.init(
        address=LOCAL,
        runtime_env=_runtime_env(changed),
        num_cpus=config.cpus,
        object_store_memory=config.object_store_bytes,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
