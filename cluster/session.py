"""Connect to Ray: a cluster that is there, or one on this machine that lives as long as the process.

:func:`cluster.environment.set_environment` has been called before this module is imported.
"""

from __future__ import annotations

import logging
import os

import ray
from pydantic import Field

from genmod.config import Config
from genmod.errors import ConfigError

LOCAL = "local"
AUTO = "auto"

class ClusterConfig(Config):
    """The recipe's ``cluster``: which Ray, and what one worker of a stage asks of it."""

    address: str = AUTO
    """``local`` starts Ray in this process; ``auto`` finds a running cluster or starts a local one; else
    the address of a cluster, HOST:PORT or ray://HOST:PORT."""
    cpus: int | None = Field(None, gt=0)
    """Logical CPUs of a local Ray; all of the machine's if not given."""
    object_store_bytes: int = Field(256 << 20, ge=80 << 20)
    """Shared memory of a local Ray. Payloads do not travel through it, so it is small."""
    cpus_per_worker: float = Field(1, gt=0)
    """What a worker of any stage asks for."""
    gpus_per_worker: float = Field(0, ge=0)
    """1 puts each training worker, and each sampling or scoring actor, on a GPU of its own."""


def connect(config: ClusterConfig) -> None:
    """Connect this process to Ray; nothing happens if it is connected already.

    Raises:
        ConfigError: nobody answers at the address.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", config.address) if config.address == AUTO else config.address
    if address in (LOCAL, AUTO) and not (address == AUTO and _inside_a_cluster()):
        _start_local(config)
        return
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"no Ray cluster answers at {address} ({reason}); give another with --address, "
            "or --address local to use this machine alone"
        ) from error


def disconnect() -> None:
    """Leave the cluster, or end the local one."""
    if ray.is_initialized():
        ray.shutdown()


def _inside_a_cluster() -> bool:
    """Whether this process is a Ray job, whose cluster ``auto`` means."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _start_local(config: ClusterConfig) -> None:
    ray.init(
        address=LOCAL,
        num_cpus=config.cpus,
        object_store_memory=config.object_store_bytes,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
