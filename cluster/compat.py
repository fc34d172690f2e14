"""The only place that uses private names of ray. Each says why; a test fails when one is gone.

pyproject.toml limits ray to the versions that this module was tested with.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from ray.job_config import JobConfig
    from ray.job_submission import JobSubmissionClient
    from ray.train.torch import TorchTrainer

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the command of a Ray job.

Private: the value of ``ray._private.runtime_env.constants.RAY_JOB_CONFIG_JSON_ENV_VAR``. Before a process is
connected to Ray, no public function says whether it is the command of a job.
"""

UPLOAD_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that report every upload of a working directory.

Private: the last module's name. The client has no option for less output.
"""

REQUEST_S = 20.0
"""Timeout of one request to a job server, in seconds."""


def job_client(address: str, headers: dict[str, str] | None) -> JobSubmissionClient:
    """Ray's job client with a timeout for each request. Imports ray.

    Private: ``JobSubmissionClient._do_request``. No public method accepts a timeout, and the default is none.
    """
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, **{"timeout": REQUEST_S, **kwargs})

    with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        return Client(address, headers=headers)


def job_config() -> JobConfig:
    """Settings of a Ray job whose workers import modules from where they are installed. Imports ray.

    Private: ``JobConfig._py_driver_sys_path``. ``ray.init`` appends the folder of the driver's script and the
    current folder, and workers search these first: a folder that contains ``random.py`` or ``cluster/`` would
    replace modules of everybody. No public option prevents it.
    """
    from ray.job_config import JobConfig

    class InstalledModules(JobConfig):
        @property
        def _py_driver_sys_path(self) -> list[str]:
            """Always a new list, so that nothing can be appended."""
            return _own_folder()

        @_py_driver_sys_path.setter
        def _py_driver_sys_path(self, folders: list[str]) -> None:
            del folders

    return InstalledModules()


def interruptible_trainer() -> type[TorchTrainer]:
    """A class of trainers that leave SIGINT to the program, and keep their controller. Imports ray.

    Private: ``DataParallelTrainer._register_sigint_handler``. Ray's handler waits for the controller without
    limit, and the signal is lost if the group has just ended. No public option prevents it.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        controller: Any = None
        """Handle of the actor that controls the workers; None before it exists."""

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

    return Trainer


def _own_folder() -> list[str]:
    """The folder of the clone that this program runs from; none if it is installed."""
    folder = Path(__file__).resolve().parents[1]
    return [] if folder.name in ("site-packages", "dist-packages") else [str(folder)]


def address_of_running() -> str:
    """HOST:PORT of the cluster that runs on this machine, as Ray finds it for the address ``auto``.

    Private: ``ray._private.services``. ``ray.init`` finds it too, but waits minutes for one that has ended.

    Raises:
        ConnectionError: there is none, or several.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    return str(canonicalize_bootstrap_address_or_die("auto"))


def session_folder() -> list[str]:
    """The folder in which Ray's processes on this node write logs and spilled objects; none if unknown.

    Private: ``ray._private.worker._global_node``. No public function says it in a worker.
    """
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return [] if node is None else [str(node.get_session_dir_path())]


def send_raylet_lines(logger: logging.Logger) -> None:
    """Send the lines that Ray prints about lost workers to a logger instead of stderr.

    Private: ``ray._private.worker.print_to_stdstream``. The option ``log_to_driver`` does not cover them.
    """
    from ray._private import worker

    def log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        del ignore_prefix
        for line in data.get("lines", ()):
            logger.warning("%s", line)

    worker.print_to_stdstream = log


def other_jobs() -> list[tuple[str, int]]:
    """Command and number of actors of each other job that has actors on the cluster. Ray is connected.

    Private: ``ray._private.state``. The public functions ask the dashboard, which not every cluster has.
    """
    import ray
    from ray._private import state

    actors, jobs = cast("Any", state).actors, cast("Any", state).jobs
    own = ray.get_runtime_context().get_job_id()
    counts = Counter(
        actor["JobID"] for actor in actors().values() if actor["State"] in ("ALIVE", "RESTARTING")
    )
    commands = {job["JobID"]: job.get("Entrypoint") or "a program" for job in jobs()}
    return [(commands.get(job, "a program"), n) for job, n in counts.items() if job != own]


def jobs_of(is_ours: re.Pattern[str]) -> list[str]:
    """Ids of the cluster's jobs whose commands match. Ray is connected.

    Private: as in :func:`other_jobs`.
    """
    from ray._private import state

    jobs = cast("Any", state).jobs()
    return [str(job["JobID"]) for job in jobs if is_ours.search(job.get("Entrypoint") or "")]


_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0, processes of Ray take 127.0.0.1 for the address of the machine."""


@contextmanager
def loopback_kept() -> Generator[None]:
    """``ray.init`` in the body keeps the address 127.0.0.1. A Ray that it starts listens there alone.

    Private: ``ray._private.ray_constants.ENABLE_RAY_CLUSTER``. Otherwise ``ray.init`` replaces 127.0.0.1 by
    the address of the machine, unless the variable was 0 when ray was imported; but then this process could
    not connect to a cluster.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(_LOOPBACK_VARIABLE)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[_LOOPBACK_VARIABLE] = "0"  # for the processes that Ray starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        os.environ.pop(_LOOPBACK_VARIABLE)
        if before[1] is not None:
            os.environ[_LOOPBACK_VARIABLE] = before[1]


_NAMESPACE = b"genmod"
"""Of our keys in the memory of Ray's head."""

_KEY_VALUE_S = 20.0
"""Timeout of one request for keys or values, in seconds."""


def put_value(key: str, value: bytes) -> None:
    """Write a small value to the memory of Ray's head. Ray is connected.

    Private: this and the next two functions use ``ray.experimental.internal_kv`` and its client. The public
    way is an actor, which is one more process per launch, and is lost with its node.
    """
    _client().internal_kv_put(key.encode(), value, True, _NAMESPACE, _KEY_VALUE_S)


def read_values(prefix: str) -> dict[str, bytes]:
    """The values of all keys with this prefix."""
    client = _client()
    keys = client.internal_kv_keys(prefix.encode(), _NAMESPACE, _KEY_VALUE_S)
    values = client.internal_kv_multi_get(keys, _NAMESPACE, _KEY_VALUE_S) if keys else {}
    return {key.decode(errors="replace"): bytes(value) for key, value in values.items()}


def delete_values(prefix: str) -> None:
    """Delete all keys with this prefix."""
    _client().internal_kv_del(prefix.encode(), True, _NAMESPACE, _KEY_VALUE_S)


def _client() -> Any:
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    return internal_kv_get_gcs_client()


@contextmanager
def _without(*names: str) -> Generator[None]:
    """Without these environment variables: Ray's client prefers them to the address that it is given."""
    removed = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(removed)
