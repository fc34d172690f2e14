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
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from genmod import storage
from genmod.errors import ConfigError, GenmodError
from pipelines.tracking.artifacts import ArtifactPlace
from pipelines.tracking.client import (
    check_experiment,
    create_database,
    dataset_inputs,
    import_client,
    is_permanent,
    log_params,
    open_experiment,
)
from pipelines.tracking.database import check_database, follow_moved_folder
from pipelines.tracking.place import TrackingConfig, TrackingPlace, database_of
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

_CLOSE_TIMEOUT_S = 20.0
"""How long the end of a command waits for an MLflow server that does not respond."""

_DATABASE_TIMEOUT_S = 120.0
"""The same for an embedded database, which always ends its work, on a busy machine late."""

_CHECK_TIMEOUT_S = 10.0
"""How long the start of a command waits for a server, to report a deleted experiment before any work."""

_REQUEST_TIMEOUT_S = 60.0
"""Timeout of a request to the registry."""


class TrackingError(GenmodError):
    """A request to MLflow failed that the work depends on."""


class Tracker:
    """The MLflow client of one command.

    Args:
        config: the recipe's ``tracking``.
        root: URL of the recipe's root.

    Raises:
        ConfigError: the recipe, the environment and the root determine no place for runs.
    """

    def __init__(self, config: TrackingConfig, root: str) -> None:
        self.config = config
        self._root = root
        self.place = TrackingPlace.of(config, root)
        self.uri, self._artifacts = self.place.uri, self.place.folder
        self._client: Any = None
        self._repositories: dict[str, Any] = {}
        """Writer of artifacts of the last run that had any."""
        self._experiment_id = ""
        self._queue = BackgroundQueue("genmod-tracking", is_permanent, self._warn)

    def check(self) -> None:
        """Check before any work that runs can be logged; changes nothing.

        A server that does not respond in time is no error: no work waits for it.

        Raises:
            ConfigError: the experiment is deleted, or the database belongs to another version of MLflow.
        """
        if self._artifacts:
            check_database(self.place)
        elif self.uri:
            import_client()
            found = None
            with suppress(Exception):
                found = self._queue.run(self._find_experiment, _CHECK_TIMEOUT_S)
            check_experiment(self.place, found)

    def begin(self) -> list[str]:
        """Check as :meth:`check`, correct the addresses in a database that was moved, say where runs go.

        Returns:
            Lines for the user; none if tracking is off.
        """
        if not self.uri:
            return []
        self.check()
        moved = follow_moved_folder(self.place) if self._artifacts else ""
        more = f"MLflow: artifacts were in {moved}, now in {self._artifacts}"
        return [self.place.line(), *([more] if moved else [])]

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

    def close(self, timeout_s: float | None = None) -> bool:
        """Wait until everything is logged; give up on an MLflow that fails or does not respond.

        Returns:
            Whether everything is logged.
        """
        usual_s = _DATABASE_TIMEOUT_S if self._artifacts else _CLOSE_TIMEOUT_S
        return self._queue.close(usual_s if timeout_s is None else timeout_s)

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
        except GenmodError:
            raise
        except Exception as error:
            raise TrackingError(
                f"MLflow at {self.uri} does not respond ({root_cause(error)}); check that it is running, "
                "then rerun the same command"
            ) from error

    def followed(self, url: str, description: str, source: str = "") -> str:
        """A URL that MLflow returned, if it is below the recipe's root or one of ``tracking.roots``.

        Raises:
            ConfigError: it is elsewhere. Names ``source`` if that is not MLflow.
        """
        if any(storage.is_below(url, root) for root in (self._root, *self.config.roots)):
            return url
        raise ConfigError(
            f"{source or f'MLflow at {self.uri}'} names {url} as {description}, which is not below "
            f"{self._root}; if you trust it, add a folder above it to tracking.roots"
        )

    def client(self) -> Any:
        """The MlflowClient, connected at the first call. Only for calls in the background."""
        if self._client is None:
            if self._artifacts:
                create_database(self._artifacts, database_of(self.uri))
            client = import_client()(self.uri, registry_uri=self.uri)
            self._experiment_id = open_experiment(client, self.place)
            self._client = client
        return self._client

    def _find_experiment(self) -> Any:
        """The experiment, None if it does not exist. Creates nothing."""
        client = import_client()(self.uri, registry_uri=self.uri)
        return client.get_experiment_by_name(self.place.experiment)

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
        parent, name = url.rsplit("/", maxsplit=1)
        if storage.size_bytes(url) > self.config.upload_bytes:
            self.upload_text(run_id, url, f"{name}.url", folder)
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = os.path.join(scratch, name)
            if (handle := storage.open_below(parent, name)) is None:  # remote
                fs, path = storage.filesystem(url)
                fs.get_file(path, copy)
            else:  # a link may lead to a file of this user that is not for the server
                with open(handle, "rb") as stream, open(copy, "xb") as output:
                    shutil.copyfileobj(stream, output)
            self._repository(run_id).log_artifact(copy, folder or None)

    def upload_text(self, run_id: str, text: str, name: str, folder: str) -> None:
        """Write a text as a file of a run's artifacts."""
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch, name).write_text(text)
            self._repository(run_id).log_artifact(os.path.join(scratch, name), folder or None)

    def _repository(self, run_id: str) -> Any:
        """The writer of a run's artifacts. ConfigError if MLflow names a place that is not its own."""
        if self._repositories.get(run_id) is None:
            uri = str(self.client().get_run(run_id).info.artifact_uri)
            place = ArtifactPlace(self.uri, self._artifacts, self.config.artifacts)
            self._repositories = {run_id: place.repository(uri)}
        return self._repositories[run_id]

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
