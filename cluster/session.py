"""Connect to Ray: a cluster that is there, or one on this machine that lives as long as the process.

:func:`cluster.environment.set_environment` has been called before this module is imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from genmod import storage
from genmod.config import Config
from genmod.errors import ConfigError
from genmod.interface.external import FAMILIES_VARIABLE

LOCAL = "local"
AUTO = "auto"

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the command of a job."""


class ClusterConfig(Config):
    """The recipe's ``cluster``: which Ray, and what one worker of a stage asks of it."""

    address: str = AUTO
    """``local`` starts Ray on this machine for as long as this process lives; ``auto`` is the cluster that
    RAY_ADDRESS names, as it does in a Ray job, else local; or a cluster's address, HOST:PORT."""
    cpus: int | None = Field(default=None, gt=0)
    """Logical CPUs of a local Ray; all of the machine's if not given."""
    object_store_bytes: int = Field(default=256 << 20, ge=80 << 20)
    """Shared memory of a local Ray. Payloads do not travel through it, so it is small."""
    wait_s: float = Field(default=60, ge=0)
    """How long nodes may take to come, on a cluster that has no room for the workers yet."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """What a worker of any stage asks for."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """1 puts each training worker, and each sampling or scoring actor, on a GPU of its own."""


def address_of(config: ClusterConfig) -> str:
    """What ``auto`` means here; any other address is itself."""
    if config.address == AUTO:
        return os.environ.get("RAY_ADDRESS", LOCAL)  # Ray sets it for its jobs
    return config.address


def wait_s(config: ClusterConfig) -> float:
    """How long to wait for room: a Ray of this machine alone grows no nodes."""
    return 0.0 if address_of(config) == LOCAL else config.wait_s


def connect(config: ClusterConfig) -> None:
    """Connect this process to Ray; nothing happens if it is connected already.

    Raises:
        ConfigError: nobody answers at the address.
    """
    import ray  # here, so that a recipe can be read without the seconds that this takes

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
            f"no Ray cluster answers at {address} ({reason}); give another with --address, "
            "or --address local to use this machine alone"
        ) from error


def worker_environment() -> dict[str, str]:
    """Environment variables of workers on other nodes: addresses and settings of stores, families.

    Never credentials, because Ray shows these variables to all its users; each node finds its own. A Ray job
    forwards no addresses, because its workers received them when it was submitted.
    """
    names = storage.FORWARDED_VARIABLES if _JOB not in os.environ else ()
    names = (*names, FAMILIES_VARIABLE)
    variables = {name: os.environ[name] for name in names if name in os.environ}
    return variables | dict(storage.settings_environment())


def _runtime_env(variables: Mapping[str, str]) -> dict[str, Any] | None:
    return {"env_vars": dict(variables)} if variables else None


def disconnect() -> None:
    """Leave the cluster, or end the local one."""
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
