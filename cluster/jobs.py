"""Ray jobs: submit one, follow its log, say how it is, stop it. Every request has a deadline.

The token is Ray's own: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. This module knows nothing of recipes.
:func:`cluster.environment.set_environment` has been called before it is imported.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, cast

import aiohttp
import requests
from pydantic import Field
from ray.exceptions import AuthenticationError

from cluster.compat import UPLOAD_LOGGERS, job_client
from genmod.config import Config
from genmod.errors import ConfigError, GenmodError

LOST_S = 90.0
"""How long a head may be silent before a job that runs is no longer followed."""

POLL_S = 2.0
"""How often a job's status is asked for while its log is silent."""

STOP_S = 60.0
"""How long a stopped job may take to end."""

Write = Callable[[str], None]


class JobRequest(Config):
    """What is to run."""

    name: str
    """The job's id; an attempt after the first gets ``-2``, ``-3`` after it."""
    entrypoint: str
    """A shell command."""
    working_dir: str
    """A small local folder; the command runs in a copy of it."""
    env: dict[str, str] = {}
    metadata: dict[str, str] = {}


class JobState(Config):
    """How a job is."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, as Ray calls it."""
    message: str = ""
    """One line."""
    exit_code: int | None = Field(None)
    """Of the command, if it ended by itself."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of the head's job server, ``http://HOST:8265``.
        token: the cluster's, if it is not the one that Ray finds in the environment.

    Raises:
        ConfigError: nobody answers there, or the token is not the cluster's.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"--address {address}: jobs go to the head's job server, e.g. http://HOST:8265"
            )
        self.address = address.rstrip("/")
        for name in UPLOAD_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"), self._explained():
            headers = {"Authorization": f"Bearer {token}"} if token else None
            self._client = job_client(self.address, headers)

    def submit(self, request: JobRequest) -> tuple[str, bool]:
        """Start a job, or find the one of this name that is under way.

        Returns:
            Its id, and whether it was started just now.
        """
        with self._explained():
            latest = self._latest(request.name)
            if latest is not None and not latest.ended:
                return latest.id, False
            attempt = _attempt(latest.id, request.name) + 1 if latest else 1
            job_id = request.name if attempt == 1 else f"{request.name}-{attempt}"
            try:
                self._client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=job_id,
                    runtime_env={"working_dir": request.working_dir, "env_vars": request.env},
                    metadata=request.metadata,
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return job_id, False  # another submission came first
        return job_id, True

    def state(self, job_id: str) -> JobState:
        """How a job is. Raises ConfigError if there is none of this id."""
        with self._explained(job_id):
            return _state(self._client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        """All that a job has printed."""
        with self._explained(job_id):
            return self._client.get_job_logs(job_id)

    def stop(self, job_id: str) -> JobState:
        """Stop a job and wait until it has ended."""
        with self._explained(job_id):
            self._client.stop_job(job_id)
        deadline_s = time.monotonic() + STOP_S
        while not (state := self.state(job_id)).ended:
            if time.monotonic() > deadline_s:
                raise GenmodError(
                    f"{job_id} is still {state.status} {STOP_S:g} s after it was told to stop; "
                    "Ray does not stop a job that has not begun"
                )
            time.sleep(0.5)
        return state

    def follow(self, job_id: str, write: Write) -> JobState:
        """Pass on what a job prints, from its beginning, until it ends.

        Raises:
            GenmodError: the head has been silent for too long.
        """
        log = _Log(write)
        silent_since_s: float | None = None
        while True:
            try:
                state = asyncio.run(self._tail(job_id, log))
                if state.ended:
                    log.show_rest(self.logs(job_id))
                    return state
                silent_since_s = None
                time.sleep(POLL_S)  # the connection closed while the job goes on
            except (OSError, RuntimeError, aiohttp.ClientError, GenmodError) as error:
                silent_since_s = silent_since_s or time.monotonic()
                if time.monotonic() - silent_since_s > LOST_S:
                    raise GenmodError(
                        f"{self.address} has not answered for {LOST_S:g} s while {job_id} ran "
                        f"({error}); the job may go on, and the same command follows it again"
                    ) from error
                time.sleep(POLL_S)

    async def _tail(self, job_id: str, log: _Log) -> JobState:
        """Follow the log over one connection until it closes or the job ends."""
        while (state := self.state(job_id)).status == "PENDING":
            await asyncio.sleep(POLL_S / 4)
        log.restart()
        tail = self._client.tail_job_logs(job_id)
        stream = cast("AsyncGenerator[str]", tail)
        pending = asyncio.ensure_future(anext(stream))
        try:
            while not state.ended:
                done, _ = await asyncio.wait({pending}, timeout=POLL_S)
                if not done:
                    state = self.state(job_id)
                    continue
                try:
                    log.show(pending.result())
                except StopAsyncIteration:
                    return self.state(job_id)
                pending = asyncio.ensure_future(anext(stream))
        finally:
            pending.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await pending
            with suppress(Exception):
                await stream.aclose()
        return state

    def _latest(self, name: str) -> JobState | None:
        """The newest attempt of a job."""
        found = [_state(job) for job in self._client.list_jobs() if job.submission_id]
        attempts = [state for state in found if _attempt(state.id, name)]
        return max(attempts, key=lambda state: _attempt(state.id, name), default=None)

    @contextmanager
    def _explained(self, job_id: str = "") -> Generator[None]:
        """Turn what can go wrong with a request into one line for a person."""
        try:
            yield
        except AuthenticationError as error:
            raise ConfigError(
                f"{self.address} does not take this token; set RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH to the cluster's"
            ) from error
        except (requests.RequestException, ConnectionError) as error:
            raise ConfigError(
                f"no Ray job server answers at {self.address}; "
                "give the head's with --address http://HOST:8265"
            ) from error
        except RuntimeError as error:
            if "does not exist" in str(error):
                raise ConfigError(f"{self.address} has no job {job_id!r}") from error
            raise GenmodError(f"{self.address}: {error}") from error


class _Log:
    """Passes on a log that may be sent from its beginning more than once."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._shown = 0
        self._position = 0

    def restart(self) -> None:
        """What comes next is the log's beginning."""
        self._position = 0

    def show(self, chunk: str) -> None:
        """Pass on what of a chunk is new."""
        fresh = chunk[max(0, self._shown - self._position) :]
        self._position += len(chunk)
        if fresh:
            self._write(fresh)
            self._shown = self._position

    def show_rest(self, whole: str) -> None:
        """Pass on what of the whole log has not come yet."""
        self.restart()
        self.show(whole)


def _attempt(job_id: str, name: str) -> int:
    """Which attempt of a job this is; 0 if it is another job."""
    if job_id == name:
        return 1
    head, _, number = job_id.rpartition("-")
    return int(number) if head == name and number.isdecimal() else 0


def _state(job: Any) -> JobState:
    return JobState(
        id=str(job.submission_id),
        status=str(getattr(job.status, "value", job.status)),
        message=str(job.message or "").split("\n", maxsplit=1)[0],
        exit_code=job.driver_exit_code,
    )


@contextmanager
def _without(*names: str) -> Generator[None]:
    """The environment without some names: Ray lets them override what it is told."""
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)
