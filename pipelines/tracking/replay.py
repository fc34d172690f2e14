"""Sends what spools contain to MLflow: nothing is lost, and nothing is there twice, also if this is killed.

A run is found by its stage, name and fingerprint. A parameter or a version that is there is not sent again,
nor a metric at an nimg that the run has. So a replay may be repeated at any time; a spool is removed when all
of it was sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from genmod import storage
from genmod.errors import GenmodError, sanitize
from genmod.manifest import Manifest, load_manifest
from pipelines.tracking.client import is_permanent
from pipelines.tracking.records import (
    ArtifactRecord,
    DeliveredRecord,
    EndRecord,
    MetricsRecord,
    ModelRecord,
    OutcomeRecord,
    OwnRecord,
    RunRecord,
    SpoolRecord,
)
from pipelines.tracking.redact import redact
from pipelines.tracking.registry import ModelEntry, ensure_version
from pipelines.tracking.run import LoggedMetric, root_cause
from pipelines.tracking.spool import StoredSpool
from pipelines.tracking.tracker import Tracker, TrackingError
from pipelines.tracking.webhook import deliver

_BATCH = 1000
"""Metrics of one request, the most that MLflow accepts."""


@dataclass
class ReplaySummary:
    """What a replay sent, and what it could not send."""

    spools: int = 0
    runs: int = 0
    metrics: int = 0
    artifacts: int = 0
    models: int = 0
    reports: int = 0
    unreadable: int = 0
    """Lines that were cut off by a kill."""
    obsolete: list[str] = field(default_factory=list[str])
    """Files that are gone or were changed since, so that they are not sent."""
    problems: list[str] = field(default_factory=list[str])
    """Spools that stay, and why."""

    def line(self) -> str:
        """The counts in one line."""
        return (
            f"replay: {self.spools:,} commands sent: {self.runs:,} runs, {self.metrics:,} metric values, "
            f"{self.artifacts:,} files, {self.models:,} models, {self.reports:,} reports; "
            f"{len(self.problems):,} left"
        )


@dataclass
class _SpooledRun:
    """The records of one run."""

    start: RunRecord
    records: list[OwnRecord] = field(default_factory=list["OwnRecord"])
    run_id: str = ""


class Replay:
    """Sends spools.

    Args:
        tracker: MLflow. Each request to it ends at its deadline.
        summary: what was sent is counted here.
    """

    def __init__(self, tracker: Tracker, summary: ReplaySummary) -> None:
        self._tracker = tracker
        self._store = tracker.store
        self._summary = summary

    def send(self, spool: StoredSpool) -> None:
        """Send a spool and remove it; if a part of it is refused it stays, with a problem in the summary.

        Raises:
            TrackingError: MLflow does not respond. Repeating the replay sends the rest.
        """
        where = spool.urls[0]
        if not spool.is_quiet():
            self._summary.problems.append(
                f"{where}: a command added to it within 10 minutes; run genmod replay later"
            )
            return
        records = list(spool.records())
        runs = _by_run(records)
        self._summary.unreadable += spool.unreadable
        problems = [problem for run in runs.values() if (problem := self._problem(run, runs))]
        problems += [problem for each in _reports(records) if (problem := self._report(each))]
        if problems:
            self._summary.problems += [f"{where}: {problem}" for problem in problems]
            return
        spool.remove()
        self._summary.spools += 1

    def _report(self, record: OutcomeRecord) -> str:
        """Send a report to the webhook. Empty, or why it is not accepted."""
        webhook = self._tracker.config.webhook
        if webhook is None:
            return "a report for a webhook, and tracking.webhook is not set; set it, or remove the file"
        if problem := deliver(webhook, record.delivery, record.body):
            return (
                f"the webhook {webhook.url} does not accept a report ({sanitize(redact(problem))})"
            )
        self._summary.reports += 1
        return ""

    def _problem(self, run: _SpooledRun, runs: dict[int, _SpooledRun]) -> str:
        """Send a run. Empty, or why a part of it is refused, also at the next attempt."""
        try:
            self._send_run(run, runs)
        except TrackingError as error:
            if not (isinstance(error.__cause__, Exception) and is_permanent(error.__cause__)):
                raise
            return root_cause(error)
        except GenmodError as error:
            if isinstance(error, ConnectionError):
                raise
            return str(error)
        return ""

    def _send_run(self, run: _SpooledRun, runs: dict[int, _SpooledRun]) -> None:
        found = self._open(run, runs)
        run.run_id = str(found.info.run_id)
        self._send_metrics(run, [r for r in run.records if isinstance(r, MetricsRecord)])
        for record in run.records:
            if isinstance(record, ArtifactRecord):
                self._send_artifact(run, record)
            elif isinstance(record, ModelRecord):
                self._send_model(run, record)
        ends = [r for r in run.records if isinstance(r, EndRecord)]
        if ends and found.info.status != "FINISHED":
            end = ends[-1]
            self._tracker.query(
                lambda _: self._store.terminate(run.run_id, end.status, end.tags, end.time_ms)
            )

    def _open(self, run: _SpooledRun, runs: dict[int, _SpooledRun]) -> Any:
        """The run in MLflow, created if it does not exist, with its parameters and inputs."""
        record = run.start
        parent = runs.get(record.parent) if record.parent is not None else None
        parent_id = parent.run_id if parent is not None else None

        def find(_: Any) -> tuple[Any, bool]:
            known = self._store.find(record)
            found = known[0] if known else self._store.create(record, parent_id)
            self._store.describe(found, record)
            return found, not known

        found, created = self._tracker.query(find)
        self._summary.runs += created
        return found

    def _send_metrics(self, run: _SpooledRun, records: Sequence[MetricsRecord]) -> None:
        """Log the values that the run lacks, in batches; each value at most once per metric and nimg."""
        by_key: dict[str, list[LoggedMetric]] = defaultdict(list)
        for record in records:
            for time_ms, nimg, values in record.points:
                for key, value in values.items():
                    by_key[key].append((key, value, time_ms, nimg))
        fresh: list[LoggedMetric] = []
        for key, values in by_key.items():
            logged = self._tracker.query(
                lambda _, key=key: self._store.logged_nimg(run.run_id, key)
            )
            for value in values:
                if value[3] not in logged:
                    logged.add(value[3])
                    fresh.append(value)
        for first in range(0, len(fresh), _BATCH):
            batch = fresh[first : first + _BATCH]
            self._tracker.query(lambda _, batch=batch: self._store.log(run.run_id, batch))
            self._summary.metrics += len(batch)

    def _send_artifact(self, run: _SpooledRun, record: ArtifactRecord) -> None:
        """Copy a file to the run, if it is the one that was logged."""
        self._tracker.followed(record.url, "a file of a run", _source(run))
        if not record.digest or _digest(record.url) != record.digest:
            self._summary.obsolete.append(record.url)
            return
        self._tracker.query(lambda _: self._store.upload(run.run_id, record.url, record.folder))
        self._summary.artifacts += 1

    def _send_model(self, run: _SpooledRun, record: ModelRecord) -> None:
        """Register a model, if its folder still holds it."""
        self._tracker.followed(record.root, "a model", _source(run))
        manifest = load_manifest(Manifest, record.root, "model")
        if manifest is None or manifest.digest != record.digest:
            self._summary.obsolete.append(record.root)
            return
        entry = ModelEntry(
            record.name, record.digest, record.root, record.recipe_yaml, record.serving
        )
        self._tracker.query(lambda _: ensure_version(self._tracker, run.run_id, entry))
        self._summary.models += 1


def _source(run: _SpooledRun) -> str:
    return f"the spool of {run.start.stage} {run.start.name}"


def _by_run(records: Iterable[SpoolRecord]) -> dict[int, _SpooledRun]:
    """The records of each run, in order. Records of a run that was never opened are left out."""
    runs: dict[int, _SpooledRun] = {}
    for record in records:
        if isinstance(record, RunRecord):
            runs.setdefault(record.run, _SpooledRun(record))
        elif isinstance(record, OwnRecord) and record.run in runs:
            runs[record.run].records.append(record)
    return runs


def _reports(records: Sequence[SpoolRecord]) -> list[OutcomeRecord]:
    """Reports that the webhook has not accepted."""
    accepted = {record.delivery for record in records if isinstance(record, DeliveredRecord)}
    reports = [record for record in records if isinstance(record, OutcomeRecord)]
    return [record for record in reports if record.delivery not in accepted]


def _digest(url: str) -> str:
    """SHA-256 of a file; empty if there is none."""
    try:
        return storage.sha256_of(url)
    except FileNotFoundError:
        return ""
