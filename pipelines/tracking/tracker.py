"""Logs to MLflow what a stage did. Only the driver connects to it, and no stage fails or waits because of it.

All calls go through a :class:`~pipelines.tracking.queue.BackgroundQueue`. What could not be logged is
logged when the same stage runs again: a run is identified by its stage, name and fingerprint. A finished
run is left alone, an unfinished one continues, and a metric is logged only beyond the last ``nimg`` that
the run contains.

This is the only file that imports mlflow.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from genmod import storage
from genmod.config import Config
from genmod.errors import ConfigError, GenmodError
from pipelines.tracking.queue import BackgroundQueue
from pipelines.tracking.run import (
    TAG_PREFIX,
    MetricValue,
    RunStatus,
    TrackedRun,
    flatten_params,
    root_cause,
)

logger = logging.getLogger("genmod")
T = TypeVar("T")

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
"""Variables that MLflow's client reads; set before it is imported, where the user has not set them."""

ARTIFACTS = "mlartifacts"
"""Folder next to an embedded MLflow's database: copies that MLflow manages, not results of genmod."""

_CLOSE_TIMEOUT_S = 20.0
"""How long the end of a command waits for an MLflow that does not respond."""

_REQUEST_TIMEOUT_S = 60.0
"""Timeout of a request to the registry."""


class TrackingConfig(Config):
    """The recipe's ``tracking``: where runs are logged."""

    enabled: bool = True
    """Whether runs are logged to MLflow."""
    uri: str | None = None
    """URI of an MLflow server, or ``sqlite:///FILE`` with artifacts next to the file. The default is
    ``mlflow.db`` below the root, which must then be a local folder."""
    experiment: str = "genmod"
    """Name of the MLflow experiment."""
    prefix: str | None = None
    """Registered models are named PREFIX-NAME; the default prefix is the experiment's name."""
    upload_bytes: int = 256 << 20
    """Of larger files MLflow gets the URL instead of a copy."""


class TrackingError(GenmodError):
    """A request to MLflow failed that the work depends on."""


class Tracker:
    """The MLflow client of one command.

    Args:
        config: the recipe's ``tracking``.
        root: URL of the recipe's root.

    Raises:
        ConfigError: no URI is set and the root is not a local folder.
    """

    def __init__(self, config: TrackingConfig, root: str) -> None:
        self.config = config
        self.uri, self._artifacts = _place(config, root)
        self._client: Any = None
        self._experiment_id = ""
        self._queue = BackgroundQueue("genmod-tracking", _is_permanent, self._warn)

    def warm_up(self) -> None:
        """Import MLflow, which takes seconds, and connect in the background."""
        if self.config.enabled:
            _import_client()
            self.submit(self.client)

    def run(
        self,
        stage: str,
        name: str,
        fingerprint: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, tuple[str, str]],
    ) -> TrackedRun:
        """Start the run of a stage, or continue it.

        Args:
            stage: e.g. ``train``.
            name: of the model, or of the stage's output.
            fingerprint: of the work; identifies the run together with stage and name.
            params: nested sections become ``section.key``.
            inputs: name of an input -> (URL, digest).
        """
        if not self.config.enabled:
            return TrackedRun(self, None)
        _import_client()
        tags = {
            f"{TAG_PREFIX}stage": stage,
            f"{TAG_PREFIX}name": name,
            f"{TAG_PREFIX}fingerprint": fingerprint,
        }
        values = flatten_params(params)
        return TrackedRun(self, lambda: self._start(tags, values, dict(inputs)))

    def ui_command(self) -> str:
        """The shell command or the address that shows the runs."""
        if not self.config.enabled:
            return "tracking is off"
        if not self._artifacts:
            return self.uri
        installed = Path(sys.executable).with_name("mlflow")
        program = str(installed) if installed.exists() else "mlflow"
        return shlex.join([program, "ui", "--backend-store-uri", self.uri])

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> bool:
        """Wait until everything is logged; give up on an MLflow that fails or does not respond.

        Returns:
            Whether everything is logged.
        """
        return self._queue.close(timeout_s)

    def submit(self, call: Callable[[], Any]) -> None:
        """Run a call in the background, after all earlier ones."""
        self._queue.submit(call)

    def query(self, request: Callable[[Any], T]) -> T:
        """Call ``request`` with the MlflowClient and wait for its result.

        Raises:
            ConfigError: tracking is off.
            TrackingError: MLflow fails, or does not respond in time.
        """
        if not self.config.enabled:
            raise ConfigError("the model registry needs MLflow: --set tracking.enabled=true")
        _import_client()
        try:
            return self._queue.run(lambda: request(self.client()), _REQUEST_TIMEOUT_S)
        except Exception as error:
            raise TrackingError(
                f"MLflow at {self.uri} does not respond ({root_cause(error)}); check that it is running, "
                "then rerun the same command"
            ) from error

    def client(self) -> Any:
        """The MlflowClient, connected at the first call. Only for calls in the background."""
        if self._client is None:
            if self._artifacts:
                Path(self._artifacts).parent.mkdir(parents=True, exist_ok=True)
            client = _import_client()(self.uri, registry_uri=self.uri)
            self._experiment_id = _experiment(client, self.config.experiment, self._artifacts)
            self._client = client
        return self._client

    def last_nimg(self, run_id: str, key: str) -> int:
        """The last nimg that a run contains of a metric, -1 if none."""
        history = self.client().get_metric_history(run_id, key)
        return max((metric.step for metric in history), default=-1)

    def log(self, run_id: str, values: Sequence[MetricValue]) -> None:
        """Log values of metrics."""
        from mlflow.entities import Metric

        metrics = [Metric(*value) for value in values]
        for first in range(0, len(metrics), 1000):  # the most that MLflow accepts at once
            self.client().log_batch(run_id, metrics=metrics[first : first + 1000])

    def upload(self, run_id: str, url: str, folder: str) -> None:
        """Copy a file to a run's artifacts; of a large file, store only its URL."""
        name = url.rsplit("/", maxsplit=1)[-1]
        if storage.size_bytes(url) > self.config.upload_bytes:
            self.client().log_text(run_id, url, storage.join(folder, f"{name}.url").lstrip("/"))
            return
        fs, path = storage.filesystem(url)
        with tempfile.TemporaryDirectory() as scratch:
            copy = os.path.join(scratch, name)
            fs.get_file(path, copy)
            self.client().log_artifact(run_id, copy, folder or None)

    def terminate(self, run_id: str, status: RunStatus, tags: Mapping[str, str]) -> None:
        """End a run with a status and tags."""
        from mlflow.entities import RunTag

        self.client().log_batch(run_id, tags=[RunTag(key, tags[key]) for key in tags])
        self.client().set_terminated(run_id, status)

    def _start(
        self, tags: dict[str, str], params: dict[str, str], inputs: dict[str, tuple[str, str]]
    ) -> tuple[str, bool, bool]:
        """Open a run: its id, whether it is finished, whether it existed before."""
        client = self.client()
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = client.search_runs([self._experiment_id], condition, max_results=1)
        if runs and runs[0].info.status == "FINISHED":
            return runs[0].info.run_id, True, True
        if runs:
            run = runs[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            title = f"{tags[f'{TAG_PREFIX}stage']} {tags[f'{TAG_PREFIX}name']}"
            run = client.create_run(self._experiment_id, tags=tags, run_name=title)
        _log_params(client, run, params)
        if inputs:
            client.log_inputs(run.info.run_id, _datasets(inputs))
        return run.info.run_id, False, bool(runs)

    def _warn(self, error: Exception) -> None:
        logger.warning(
            "cannot log to MLflow at %s (%s); the work continues, and rerunning the same command logs "
            "what is missing",
            self.uri,
            root_cause(error),
        )


def _place(config: TrackingConfig, root: str) -> tuple[str, str]:
    """The tracking URI, and the folder for artifacts if the database is embedded."""
    if not config.enabled:
        return "", ""
    if config.uri:
        database = config.uri.removeprefix("sqlite:///")
        artifacts = str(Path(database).absolute().parent / ARTIFACTS)
        return config.uri, artifacts if database != config.uri else ""
    if "://" in root and not root.startswith("file://"):
        raise ConfigError(
            f"tracking.uri is not set and the root {root} is not a local folder; set an MLflow server "
            "with --set tracking.uri=http://HOST:PORT, or turn tracking off with "
            "--set tracking.enabled=false"
        )
    folder = root.removeprefix("file://")
    return f"sqlite:///{folder}/mlflow.db", f"{folder}/{ARTIFACTS}"


def _import_client() -> Any:
    """The class MlflowClient. The main thread must import it first: imports in two threads can collide."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient


def _experiment(client: Any, name: str, artifacts: str) -> str:
    """The id of an experiment, which is created if it does not exist."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = Path(artifacts).as_uri() if artifacts else None
    return str(client.create_experiment(name, artifact_location=location))


def _log_params(client: Any, run: Any, params: Mapping[str, str]) -> None:
    """Log the parameters that the run does not contain yet; MLflow refuses to change one."""
    from mlflow.entities import Param

    fresh = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for first in range(0, len(fresh), 100):  # the most that MLflow accepts at once
        client.log_batch(run.info.run_id, params=fresh[first : first + 100])


def _datasets(inputs: Mapping[str, tuple[str, str]]) -> list[Any]:
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


def _is_permanent(error: Exception) -> bool:
    """Whether the same call would fail again, because the request is wrong and not the service."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return 400 <= status < 500 and status not in (408, 429)
    return isinstance(error, FileNotFoundError | ValueError | TypeError)
