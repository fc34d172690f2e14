"""What is done to runs in MLflow. Every call waits, so only a background queue or a replay makes one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genmod import storage
from pipelines.tracking.artifacts import ArtifactPlace
from pipelines.tracking.client import (
    create_database,
    dataset_inputs,
    import_client,
    log_params,
    open_experiment,
)
from pipelines.tracking.place import TrackingConfig, TrackingPlace, database_of
from pipelines.tracking.records import RunRecord, RunStatus
from pipelines.tracking.redact import redact
from pipelines.tracking.run import TAG_PREFIX, LoggedMetric

_PARENT_TAG = "mlflow.parentRunId"

_MAX_FOUND = 20
"""Runs of one stage, name and fingerprint that are looked at; there is one, or two after a lost answer."""


class RunStore:
    """The runs of one experiment.

    Args:
        place: where they are.
        config: the recipe's ``tracking``.
        enter: called before a run is opened; raises if this command must not log now.
    """

    def __init__(
        self, place: TrackingPlace, config: TrackingConfig, enter: Callable[[], None]
    ) -> None:
        self.place = place
        self._config = config
        self._enter = enter
        self._client: Any = None
        self._repositories: dict[str, Any] = {}
        """Writer of artifacts of the last run that had any."""
        self._experiment_id = ""

    def client(self) -> Any:
        """The MlflowClient, connected at the first call."""
        if self._client is None:
            if self.place.folder:
                create_database(self.place.folder, database_of(self.place.uri))
            client = import_client()(self.place.uri, registry_uri=self.place.uri)
            self._experiment_id = open_experiment(client, self.place)
            self._client = client
        return self._client

    def find_experiment(self) -> Any:
        """The experiment, None if it does not exist. Creates nothing."""
        client = import_client()(self.place.uri, registry_uri=self.place.uri)
        return client.get_experiment_by_name(self.place.experiment)

    def start(self, record: RunRecord, parent_id: str | None) -> tuple[str, bool, bool]:
        """Open a run: its id, whether it is finished, whether it existed before."""
        self._enter()
        runs = self.find(record)
        if runs and runs[0].info.status == "FINISHED":
            return runs[0].info.run_id, True, True
        if runs:
            self.client().update_run(runs[0].info.run_id, status="RUNNING")
        run = runs[0] if runs else self.create(record, parent_id)
        self.describe(run, record)
        return run.info.run_id, False, bool(runs)

    def find(self, record: RunRecord) -> list[Any]:
        """The runs of a stage, name and fingerprint: none, or one.

        A request to create a run whose answer was lost may have been carried out. Of several runs, the one
        that has most stays, and those without parameters and metrics are deleted.
        """
        client = self.client()
        condition = " and ".join(f"tags.`{key}` = '{text}'" for key, text in _tags(record).items())
        found = list(client.search_runs([self._experiment_id], condition, max_results=_MAX_FOUND))
        found.sort(key=_precedence)
        for run in found[1:]:
            if not run.data.params and not run.data.metrics and run.info.status != "FINISHED":
                client.delete_run(run.info.run_id)
        return found[:1]

    def create(self, record: RunRecord, parent_id: str | None) -> Any:
        """Create a run of a stage, name and fingerprint."""
        parent = {_PARENT_TAG: parent_id} if parent_id else {}
        return self.client().create_run(
            self._experiment_id,
            start_time=record.time_ms,
            tags=_tags(record) | parent,
            run_name=f"{record.stage} {record.name}",
        )

    def describe(self, run: Any, record: RunRecord) -> None:
        """Log the parameters and inputs that a run lacks."""
        log_params(self.client(), run, record.params)
        if record.inputs:
            self.client().log_inputs(run.info.run_id, dataset_inputs(record.inputs))

    def last_nimg(self, run_id: str, key: str) -> int:
        """The last nimg that a run contains of a metric, -1 if none."""
        return max(self.logged_nimg(run_id, key), default=-1)

    def logged_nimg(self, run_id: str, key: str) -> set[int]:
        """Every nimg at which a run contains a metric."""
        return {metric.step for metric in self.client().get_metric_history(run_id, key)}

    def log(self, run_id: str, values: Sequence[LoggedMetric]) -> None:
        """Log values of metrics."""
        from mlflow.entities import Metric

        metrics = [Metric(*value) for value in values]
        for first in range(0, len(metrics), 1000):  # the most that MLflow accepts at once
            self.client().log_batch(run_id, metrics=metrics[first : first + 1000])

    def upload(self, run_id: str, url: str, folder: str) -> None:
        """Copy a file to a run's artifacts; of a large file, store its URL and digest."""
        parent, name = url.rsplit("/", maxsplit=1)
        if storage.size_bytes(url) > self._config.upload_bytes:
            text = f"{url}\nsha256:{storage.sha256_of(url)}\n"
            self.upload_text(run_id, text, f"{name}.url", folder)
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
            Path(scratch, name).write_text(redact(text))
            self._repository(run_id).log_artifact(os.path.join(scratch, name), folder or None)

    def terminate(
        self, run_id: str, status: RunStatus, tags: Mapping[str, str], time_ms: int
    ) -> None:
        """End a run with a status and tags."""
        from mlflow.entities import RunTag

        self.client().log_batch(run_id, tags=[RunTag(key, tags[key]) for key in tags])
        self.client().set_terminated(run_id, status, end_time=time_ms)

    def _repository(self, run_id: str) -> Any:
        """The writer of a run's artifacts. ConfigError if MLflow names a place that is not its own."""
        if self._repositories.get(run_id) is None:
            uri = str(self.client().get_run(run_id).info.artifact_uri)
            place = ArtifactPlace(self.place.uri, self.place.folder, self._config.artifacts)
            self._repositories = {run_id: place.repository(uri)}
        return self._repositories[run_id]


def _tags(record: RunRecord) -> dict[str, str]:
    """The tags that identify a run."""
    values = {"stage": record.stage, "name": record.name, "fingerprint": record.fingerprint}
    return {f"{TAG_PREFIX}{key}": text for key, text in values.items()}


def _precedence(run: Any) -> tuple[bool, int, int, str]:
    """Sorts the run that stays before others of the same work."""
    finished, info = run.info.status == "FINISHED", run.info
    return not finished, -len(run.data.metrics), info.start_time or 0, info.run_id
