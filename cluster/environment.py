"""Environment variables that Ray reads while it is imported; so this module must not import it.

A program calls :func:`set_environment` before any import of ray.
"""

from __future__ import annotations

import getpass
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress

ENVIRONMENT: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Explicit, because Ray's default differs between a local start and a connection.
    "RAY_AUTH_MODE": "token",
    # A host that disappears is noticed within seconds; the default is seven minutes.
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    # A task that needs too much memory fails after some retries; the default is to retry without limit.
    "RAY_task_oom_retries": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    # Workers run in parallel; each sets its own number of threads where it computes.
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Further Python processes import nothing from the current folder or the folder of their script.
    "PYTHONSAFEPATH": "1",
}
"""Variables of every node, driver and job, unless the user has set them."""


def set_environment() -> None:
    """Set the variables of :data:`ENVIRONMENT` that the user has not set.

    A user without a home or a name, as in containers, gets both. If the user has no Ray token, this process
    gets a random one, which its local Ray inherits, so that other users of the machine cannot connect to it.
    Nothing is written to disk. Ray's own token file, which Ray makes readable for everyone, becomes readable
    for this user alone.
    """
    os.environ.update(_missing_user())
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    token_names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    token_file = os.path.expanduser("~/.ray/auth_token")
    has_file = os.path.exists(token_file)
    if has_file and os.stat(token_file).st_mode & 0o077:
        with suppress(OSError):  # a mounted secret, which has its own rules
            os.chmod(token_file, 0o600)
    if not has_file and not any(name in os.environ for name in token_names):
        missing["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    assert not missing or "ray" not in sys.modules, "call set_environment before ray is imported"
    os.environ.update(missing)


def _missing_user() -> dict[str, str]:
    """HOME and USER where the system knows none, as in a container with a number for a user.

    Ray Train and MLflow ask for both while they are imported, and fail without them.
    """
    missing: dict[str, str] = {}
    if os.path.expanduser("~") == "~":
        missing["HOME"] = "/"
    try:
        getpass.getuser()
    except (KeyError, OSError):  # an OSError since Python 3.13
        missing["USER"] = f"uid-{os.getuid()}"
    return missing
