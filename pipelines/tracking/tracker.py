"""Logs to MLflow what a stage did. Only the driver connects to it, and no stage fails or waits because of it.

All calls go through a :class:`~pipelines.tracking.queue.BackgroundQueue`. What could not be logged is
logged when the same stage runs again: a run is identified by its stage, name and fingerprint. A finished
run is left alone, an unfinished one continues, and a metric is logged only beyond the last ``nimg`` that
the run contains.
"""

from __future__ import annotations

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
from pipelines.tracking.client import (
    dataset_inputs,
    import_client,
    is_permanent,
    log_params,
    open_experiment,
)
from pipelines.tracking.queue import BackgroundQueue
from pipelines.tracking.run import (
    TAG_PREFIX,
    LoggedMetric,
    RunStatus,
    TrackedRun,
    flatten_params,
    root_cause,
)

logger = logging.getLogger("genmod")
T = TypeVar("T")

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
        self._queue = BackgroundQueue("genmod-tracking", is_permanent, self._warn)

    def warm_up(self) -> None:
        """Import MLflow, which takes seconds, and connect in the background."""
        if self.config.enabled:
            import_client()
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
        import_client()
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
        import_client()
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
            client = import_client()(self.uri, registry_uri=self.uri)
            self._experiment_id = open_experiment(client, self.config.experiment, self._artifacts)
            self._client = client
        return self._client

    def last_nimg(self, run_id: str, key: str) -> int:
        """The last nimg that a run contains of a metric, -1 if none."""
        history = self.client().get_metric_history(run_id, key)
        return max((metric.step for metric in history), default=-1)

    def log(self, run_id: str, values: Sequence[LoggedMetric]) -> None:
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
        log_params(client, run, params)
        if inputs:
            client.log_inputs(run.info.run_id, dataset_inputs(inputs))
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
