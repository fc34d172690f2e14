"""Small helpers around MLflow's client, which is imported late because that takes seconds."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genmod.errors import GenmodError
from pipelines.tracking.database import deleted_experiment
from pipelines.tracking.place import TrackingPlace

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",  # no address is asked but the recipe's
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",  # it sends files to any address that the server names
}
"""Variables that MLflow's client reads; set before it is imported, where the user has not set them."""


def import_client() -> Any:
    """The class MlflowClient. The main thread must import it first: imports in two threads can collide."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient


def create_database(artifacts: str, file: str) -> None:
    """Create the file of an embedded database and the folder of its artifacts, for this user alone.

    SQLite gives its journals the mode of the database. Modes of files that exist are left as they are.
    """
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(artifacts).mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def open_experiment(client: Any, place: TrackingPlace) -> str:
    """The id of the place's experiment, which is created if it does not exist."""
    experiment = client.get_experiment_by_name(place.experiment)
    check_experiment(place, experiment)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = Path(place.folder).as_uri() if place.folder else None
    return str(client.create_experiment(place.experiment, artifact_location=location))


def check_experiment(place: TrackingPlace, experiment: Any | None) -> None:
    """Raise ConfigError if MLflow's experiment exists and is deleted."""
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise deleted_experiment(place, str(experiment.experiment_id))


def log_params(client: Any, run: Any, params: Mapping[str, str]) -> None:
    """Log the parameters that the run does not contain yet; MLflow refuses to change one."""
    from mlflow.entities import Param

    fresh = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for first in range(0, len(fresh), 100):  # the most that MLflow accepts at once
        client.log_batch(run.info.run_id, params=fresh[first : first + 100])


def dataset_inputs(inputs: Mapping[str, tuple[str, str]]) -> list[Any]:
    """Inputs as MLflow datasets. Their digest has at most 36 characters; the whole one is in the profile."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=name,
                digest=digest[:36],
                source_type=url.split("://")[0] if "://" in url else "local",
                source=json.dumps({"uri": url}),
                profile=json.dumps({"digest": digest}),
            ),
            [InputTag("mlflow.data.context", name)],
        )
        for name, (url, digest) in inputs.items()
    ]


def is_permanent(error: Exception) -> bool:
    """Whether the same call would fail again, because the request is wrong, not the service or a password."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return 400 <= status < 500 and status not in (401, 403, 408, 429)
    if isinstance(error, GenmodError):
        return not isinstance(error, ConnectionError)
    return isinstance(error, FileNotFoundError | ValueError | TypeError)
