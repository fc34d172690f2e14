"""Tries MLflow from this machine: a run is created and deleted, and the registry is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cluster.doctor.finding import Report
from genmod.errors import ConfigError, GenmodError
from pipelines.tracking.client import open_experiment
from pipelines.tracking.place import TrackingPlace, database_of
from pipelines.tracking.run import TAG_PREFIX
from pipelines.tracking.tracker import Tracker, TrackingError

_REMEDY = "start MLflow, correct tracking.uri, or set tracking.enabled=false"


def check_tracking(tracker: Tracker, report: Report) -> None:
    """Whether runs can be logged, and models registered. Only the driver connects to MLflow.

    What keeps a command from starting is fatal. A server that does not respond is a warning: the work
    continues, and ``genmod replay`` logs it later.
    """
    if not tracker.uri:
        report.ok("mlflow", "tracking is off")
        return
    try:
        tracker.check()
    except ConfigError as error:
        report.fatal("mlflow", str(error), _REMEDY)
        return
    file = database_of(tracker.uri)
    if file and not os.path.exists(file):
        _check_folder(Path(file).absolute().parent, report)
        return
    checks = {"mlflow": _write_run, "registry": _read_registry}
    texts = {"mlflow": "a run was written", "registry": "was read"}
    for check, request in checks.items():
        try:
            tracker.query(lambda client, do=request: do(client, tracker.place))
            report.ok(check, f"{tracker.uri}: {texts[check]}")
        except TrackingError as error:
            report.warning(check, str(error), _REMEDY)
        except GenmodError as error:
            report.fatal(check, str(error), _REMEDY)


def _check_folder(folder: Path, report: Report) -> None:
    """Whether an embedded database can be created."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if os.access(folder, os.W_OK):
        report.ok("mlflow", "the first command creates the database")
    else:
        report.fatal("mlflow", f"{folder} cannot be written", "choose another root or tracking.uri")


def _write_run(client: Any, place: TrackingPlace) -> None:
    """Create a run with a metric, and delete it."""
    tags = {f"{TAG_PREFIX}doctor": "1"}
    run = client.create_run(open_experiment(client, place), tags=tags, run_name="genmod doctor")
    client.log_metric(run.info.run_id, "doctor", 1.0)
    client.delete_run(run.info.run_id)


def _read_registry(client: Any, place: TrackingPlace) -> None:
    """List a registered model, if there is one."""
    del place
    client.search_registered_models(max_results=1)
