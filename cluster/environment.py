"""What Ray reads from the environment. It does so while it is imported, so this module must not import it.

A program calls :func:`set_environment` first thing, before any import of ray.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping

ENVIRONMENT: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Said aloud because Ray's own default differs between a local start and a connection.
    "RAY_AUTH_MODE": "token",
    # A host that vanishes without a word is noticed in seconds, not in the default seven minutes.
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    # A task that needs too much memory fails after some tries instead of never.
    "RAY_task_oom_retries": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    # Workers are the unit of parallelism; threads of one worker are set where it computes.
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""What every node, driver and job sets, unless the person has set it."""


def set_environment() -> None:
    """Put :data:`ENVIRONMENT` into this process's environment where the person has not done so.

    Without a token of the person's, this process gets one of its own, which its local Ray inherits:
    other users of the machine cannot talk to it. Nothing is written to disk.
    """
    wanted = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    token_names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    has_file = os.path.exists(os.path.expanduser("~/.ray/auth_token"))
    if not has_file and not any(name in os.environ for name in token_names):
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    assert not wanted or "ray" not in sys.modules, "the environment is set before ray is imported"
    os.environ.update(wanted)
