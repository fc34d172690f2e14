"""Connects to Ray: an existing cluster, or a local one that ends with this process.

:func:`cluster.environment.set_environment` has been called before this module is imported.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster import ray_log
from cluster.compat import JOB_VARIABLE, address_of_running, job_config, loopback_kept
from cluster.private_folder import PrivateFolder
from cluster.reach import VARIABLE, address_from_environment, check_answers
from genmod import storage
from genmod.config import Config
from genmod.errors import ConfigError, GenmodError
from genmod.interface.external import FAMILIES_VARIABLE

logger = logging.getLogger("genmod")

LOCAL = "local"
AUTO = "auto"

_TIMED_OUT = "timed out"
"""In Ray's errors when the processes of a node are not ready in its time."""

_REASON_CHARS = 300
"""Of an error of Ray that are shown."""

_END_S = 10.0
"""How long killed processes may take to end, in seconds."""


class ClusterConfig(Config):
    """The recipe's ``cluster``: which Ray to use, and the resources of one worker."""

    address: storage.ClusterAddress = AUTO
    """``local`` starts Ray on this machine until this process ends; ``auto`` uses the cluster of
    RAY_ADDRESS (Ray sets it in its jobs), else ``local``; or a cluster's address, HOST:PORT."""
    cpus: int | None = Field(default=None, gt=0, le=1_000_000)
    """Logical CPUs of a local Ray; default: all CPUs of the machine."""
    object_store_bytes: int = Field(default=256 << 20, ge=80 << 20, le=1 << 50)
    """Shared memory of a local Ray, in bytes. Small, because images do not travel through it."""
    wait_s: float = Field(default=60, ge=0, le=1e7)
    """How long to wait, in seconds, while the cluster is too small for the workers or other jobs hold its
    resources."""
    cpus_per_worker: float = Field(default=1, gt=0, le=1_000_000)
    """Logical CPUs of one worker of any stage."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1_000_000)
    """GPUs of one worker of training, sampling and scoring; with 1, each worker has its own GPU."""
    worker_price_per_hour: float | None = Field(default=None, ge=0, le=1e6)
    """Price of one worker for an hour, in any currency; ``--dry-run`` then prints what the work costs."""
    labels: dict[storage.Name, storage.Name] = Field(default={}, max_length=100)
    """Ray labels that a node must have to sample and score, e.g. ``{cpu: avx512}``; given to ``ray start
    --labels``."""
    shared_folders: tuple[storage.LocalFolder, ...] = Field(default=(), max_length=1_000)
    """Folders that this machine and all nodes of the cluster see under the same path. ``genmod submit`` to
    another machine accepts local paths only below them."""


def address_of(config: ClusterConfig) -> str:
    """The address with ``auto`` resolved. ConfigError if RAY_ADDRESS is no address of a cluster."""
    if config.address == AUTO:
        return address_from_environment() or LOCAL
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
    with _handlers_kept():
        ray_log.start_log()
        _connect(config)
        ray_log.take_loggers()


@contextmanager
def _handlers_kept() -> Generator[None]:
    """Restore the handler of SIGTERM, which ``ray.init`` replaces in the main thread."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _connect(config: ClusterConfig) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    address = address_of(config)
    if address == LOCAL:
        _start_local(config)
        return
    named_by = VARIABLE if config.address == AUTO else "cluster.address"
    try:
        if address == AUTO:  # RAY_ADDRESS=auto
            address = address_of_running()
        check_answers(address, named_by)
        with loopback_kept() if _is_loopback(address) else nullcontext():
            ray.init(
                address=address,
                job_config=job_config(),
                runtime_env=_runtime_env(worker_environment()),
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        if _is_refusal(error):
            raise _refused(address) from error
        reason = " ".join(str(error).split())[:_REASON_CHARS]
        raise ConfigError(
            f"no Ray cluster answers at {address} ({reason}); check {named_by}, or use "
            "--address local to run on this machine"
        ) from error


def _is_refusal(error: BaseException | None) -> bool:
    """Whether an error, or one that it follows from, says that the token is not accepted."""
    from ray.exceptions import AuthenticationError

    while error is not None:
        if isinstance(error, AuthenticationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _refused(address: str) -> ConfigError:
    """The error of a cluster that does not accept this process's token."""
    return ConfigError(
        f"the Ray cluster at {address} refuses this process's token, or there is none; set "
        "RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_TOKEN to the token"
    )


def _is_loopback(address: str) -> bool:
    """Whether HOST:PORT is on this machine, e.g. another process's local Ray."""
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


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


_local: list[PrivateFolder] = []
"""The folder of the local Ray that this process has started; empty without one."""


def local_folder() -> Path | None:
    """The private folder of the local Ray that this process has started, or None."""
    return _local[0].path if _local else None


def disconnect() -> None:
    """Disconnect from the cluster; a local one ends, and its folder is removed."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
    ray_log.stop_log()
    _remove_folder()


def _remove_folder() -> None:
    while _local:
        _local.pop().remove()


def _start_local(config: ClusterConfig) -> None:
    """Start a Ray that other users of this machine and other machines cannot reach.

    On a busy machine its processes may not be ready in Ray's time; then they are started once more.
    """
    import psutil
    import ray

    atexit.register(disconnect)
    others = set(psutil.Process().children())
    for is_last in (False, True):
        _remove_folder()  # of a local Ray that was ended elsewhere, or did not start
        _local.append(PrivateFolder())
        try:
            _init_local(config, _local[0].path)
            return
        except GenmodError:
            raise
        except Exception as error:  # Ray raises plain exceptions
            reason = " ".join(str(error).split())[:300]
            if is_last or _TIMED_OUT not in reason.lower():
                raise GenmodError(
                    f"Ray did not start in {_local[0].path.parent} ({reason}); check the free memory and "
                    "disk space of this machine, or set RAY_TMPDIR to another folder"
                ) from error
            logger.warning("Ray did not start in its time (%s); starting it once more", reason)
        # End what the first attempt has started.
        ray.shutdown()
        for process in (started := set(psutil.Process().children()) - others):
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(started, timeout=_END_S)


def _init_local(config: ClusterConfig, folder: Path) -> None:
    """Start a local Ray with its files in a private folder."""
    import ray

    # Workers on this machine inherit this process's environment; only what differs is passed on.
    settings = storage.settings_environment()
    changed = {name: value for name, value in settings.items() if os.environ.get(name) != value}
    with loopback_kept():
        ray.init(
            address=LOCAL,
            job_config=job_config(),
            runtime_env=_runtime_env(changed),
            num_cpus=config.cpus,
            object_store_memory=config.object_store_bytes,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
            _temp_dir=str(folder / "r"),  # short: the path of a socket has a limit
        )
