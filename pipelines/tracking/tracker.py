"""Logs to MLflow what a stage did. Only the driver connects to it, and no stage fails or waits because of it.

All calls go through a :class:`~pipelines.tracking.queue.BackgroundQueue`. What could not be logged is kept in
a :class:`~pipelines.tracking.spool.Spool`; it is logged by a replay, or when the same stage runs again: a run
is identified by its stage, name and fingerprint. A finished run is left alone, an unfinished one continues,
and a metric is logged only beyond the last ``nimg`` that the run contains.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from genmod import storage
from genmod.errors import ConfigError, GenmodError, sanitize
from pipelines.tracking.client import check_experiment, import_client, is_permanent
from pipelines.tracking.database import check_database, follow_moved_folder
from pipelines.tracking.place import TrackingConfig, TrackingPlace
from pipelines.tracking.queue import BackgroundQueue, SaveCall
from pipelines.tracking.records import DeliveredRecord, OutcomeRecord, RunRecord
from pipelines.tracking.redact import redact
from pipelines.tracking.run import (
    RecordMaker,
    TrackedRun,
    flatten_params,
    now_ms,
    root_cause,
)
from pipelines.tracking.run_store import RunStore
from pipelines.tracking.spool import Spool, stored_spools
from pipelines.tracking.webhook import DELIVERY_S, check_secret, deliver

logger = logging.getLogger("genmod")
T = TypeVar("T")

_CLOSE_TIMEOUT_S = 20.0
"""How long the end of a command waits for an MLflow server that does not respond."""

_CLOSE_TOTAL_S = 120.0
"""The same for a server that responds, but slowly."""

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
        self._spool = Spool(root)
        self.store = RunStore(self.place, config, self._spool.enter)
        """For calls in the background alone."""
        self._queue = BackgroundQueue("genmod-tracking", is_permanent, self._warn, save=self._save)
        self.parent: TrackedRun | None = None
        """The run that runs which start from now on are a part of."""
        self._runs = 0
        self._unsaved = False
        self._unreported = False

    def check(self) -> None:
        """Check before any work that runs can be logged; changes nothing.

        A server that does not respond in time is no error: no work waits for it.

        Raises:
            ConfigError: the experiment is deleted, the database belongs to another version of MLflow, or the
                webhook's secret is missing.
        """
        if self.config.webhook is not None:
            check_secret(self.config.webhook)
        if self._artifacts:
            check_database(self.place)
        elif self.uri:
            import_client()
            found = None
            with suppress(Exception):
                found = self._queue.run(self.store.find_experiment, _CHECK_TIMEOUT_S)
            check_experiment(self.place, found)

    def begin(self) -> list[str]:
        """Check as :meth:`check`, correct the addresses in a database that was moved, say where runs go.

        Returns:
            Lines for the user; none if tracking is off.
        """
        self.check()
        if not self.uri:
            return []
        moved = follow_moved_folder(self.place) if self._artifacts else ""
        more = f"MLflow: artifacts were in {moved}, now in {self._artifacts}"
        left = len(stored_spools(self._root))
        kept = (
            f"MLflow: {left:,} earlier commands are not logged in full; genmod replay logs the rest"
        )
        return [self.place.line(), *([more] if moved else []), *([kept] if left else [])]

    def warm_up(self) -> None:
        """Import MLflow, which takes seconds, and connect in the background."""
        if self.config.enabled:
            import_client()
            self.submit(self.store.client)

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
            return TrackedRun(self, self.store, None)
        import_client()
        self._runs += 1
        record = RunRecord(
            run=self._runs,
            parent=None if self.parent is None else self.parent.number,
            stage=stage,
            name=name,
            fingerprint=fingerprint,
            params=flatten_params(params),
            inputs={key: (redact(url), digest) for key, (url, digest) in inputs.items()},
            time_ms=now_ms(),
        )
        return TrackedRun(self, self.store, record, self.parent)

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
        if timeout_s is not None:
            done = self._queue.close(timeout_s)
        elif self._artifacts:
            done = self._queue.close(_DATABASE_TIMEOUT_S)
        else:
            done = self._queue.close(_CLOSE_TIMEOUT_S, _CLOSE_TOTAL_S)
        with suppress(OSError, GenmodError):  # a warning said so
            self._spool.close(sent=self._queue.is_complete and not self._unreported)
        return done

    @property
    def waiting(self) -> int:
        """Calls to MLflow that were not made yet."""
        return self._queue.waiting

    @property
    def is_full(self) -> bool:
        """Whether so many calls wait that further ones are only kept in the spool."""
        return self._queue.is_full

    def submit(
        self, call: Callable[[], Any], record: RecordMaker | None = None, *, lazy: bool = False
    ) -> None:
        """Run a call in the background, after all earlier ones. A local spool has its record before that."""
        save = None if record is None else partial(self._append, record)
        if save is not None and self._spool.is_local and not lazy:
            save()
            save = None
        self._queue.submit(call, save)

    def report(self, delivery: str, body: str, limit_s: float | None = None) -> None:
        """Send a report to the webhook and wait for it; what it does not accept is kept. Never raises.

        Args:
            delivery: id of the report.
            body: JSON.
            limit_s: deadline in seconds; None for the usual one.
        """
        if (webhook := self.config.webhook) is None:
            return
        body = redact(body)
        self._append(lambda: OutcomeRecord(delivery=delivery, body=body))
        problem = deliver(webhook, delivery, body, DELIVERY_S if limit_s is None else limit_s)
        if not problem:
            self._append(lambda: DeliveredRecord(delivery=delivery))
            return
        self._unreported = True
        logger.warning(
            "cannot report to the webhook %s (%s); %s keeps the report, and genmod replay sends it",
            webhook.url,
            sanitize(redact(problem)),
            self._spool.folder,
        )

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
            return self._queue.run(lambda: request(self.store.client()), _REQUEST_TIMEOUT_S)
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

    def _save(self, saves: Sequence[SaveCall]) -> None:
        """Keep the records of calls that MLflow did not accept."""
        for save in saves:
            save()
        try:
            self._spool.flush()
        except (OSError, GenmodError) as error:
            self._warn_unsaved(error)

    def _append(self, record: RecordMaker) -> None:
        try:
            if (made := record()) is not None:
                self._spool.append(made)
        except Exception as error:  # tracking never ends the work
            self._warn_unsaved(error)

    def _warn_unsaved(self, error: Exception) -> None:
        if not self._unsaved:
            self._unsaved = True
            logger.warning(
                "cannot keep what is logged to MLflow in %s (%s); the work continues, and rerunning the "
                "same command logs what is missing",
                self._spool.folder,
                root_cause(error),
            )

    def _warn(self, error: Exception) -> None:
        logger.warning(
            "cannot log to MLflow at %s (%s); the work continues, %s keeps what is missing, and genmod "
            "replay or rerunning the same command logs it",
            self.uri,
            root_cause(error),
            self._spool.folder,
        )
