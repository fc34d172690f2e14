"""The only place that uses private names of ray. Each says why; a test fails when one is gone.

pyproject.toml limits ray to the versions that this module was tested with.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

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


@contextmanager
def _without(*names: str) -> Generator[None]:
    """Without these environment variables: Ray's client prefers them to the address that it is given."""
    removed = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(removed)
