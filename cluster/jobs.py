"""Ray jobs: submit one, follow its log, read its state, stop it. Every request has a timeout.

Authentication uses Ray's token: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. Call
:func:`cluster.environment.set_environment` before importing this module.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, cast

import aiohttp
import requests
from ray.exceptions import AuthenticationError

from cluster.compat import UPLOAD_LOGGERS, job_client
from cluster.job_server import JobState
from genmod.config import Config
from genmod.errors import ConfigError, GenmodError
from genmod.storage.retry import Backoff

_LOST_S = 90.0
"""How long the head may be silent, in seconds, before a running job is no longer followed."""

_POLL_S = 2.0
"""Pause between two requests for a job's state, in seconds."""

_STOP_S = 60.0
"""How long a stopped job may take to end, in seconds."""

Write = Callable[[str], None]


class JobRequest(Config):
    """Command, files and environment of a job."""

    name: str
    """The job's id; later attempts get the suffix ``-2``, ``-3``, ..."""
    entrypoint: str
    """A shell command."""
    working_dir: str
    """A small local folder; the command runs in a copy of it on the cluster."""
    env: dict[str, str] = {}
    metadata: dict[str, str] = {}


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of the head's job server, ``http://HOST:8265``.
        token: the cluster's; default: the one in the environment.

    Raises:
        ConfigError: no job server answers, or the token is wrong.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"--address is {address}, but expected the URL of the job server, e.g. http://HOST:8265"
            )
        self.address = address.rstrip("/")
        for name in UPLOAD_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        headers = {"Authorization": f"Bearer {token}"} if token else None
        try:
            with self._explained():
                self._client = job_client(self.address, headers)
        except ConfigError:
            raise
        except (GenmodError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.address} answers, but not as a Ray job server ({type(error).__name__}: {error}); "
                "check --address, e.g. http://HOST:8265"
            ) from error

    def submit(self, request: JobRequest) -> tuple[str, bool]:
        """Start a job, or find the running job of this name.

        Returns:
            Its id, and whether this call started it.
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
                return job_id, False  # another submission was first
        return job_id, True

    def state(self, job_id: str) -> JobState:
        """State of a job. ConfigError if no job has this id."""
        with self._explained(job_id):
            return _state(self._client.get_job_info(job_id))

    def describe(self, job_id: str) -> dict[str, Any]:
        """Facts about a job, with the names of its environment variables alone. ConfigError if unknown."""
        with self._explained(job_id):
            job = self._client.get_job_info(job_id)
        environment = dict(job.runtime_env or {}).get("env_vars") or {}
        return {
            **_state(job).model_dump(),
            "whole_message": str(job.message or ""),
            "entrypoint": job.entrypoint,
            "started_ms": job.start_time,
            "ended_ms": job.end_time,
            "metadata": dict(job.metadata or {}),
            "environment": sorted(environment),
            "node": job.driver_node_id,
        }

    def logs(self, job_id: str) -> str:
        """The whole log of a job."""
        with self._explained(job_id):
            return self._client.get_job_logs(job_id)

    def stop(self, job_id: str) -> JobState:
        """Stop a job and wait until it ends. GenmodError if that takes too long."""
        with self._explained(job_id):
            self._client.stop_job(job_id)
        deadline_s = time.monotonic() + _STOP_S
        while not (state := self.state(job_id)).ended:
            if time.monotonic() > deadline_s:
                raise GenmodError(
                    f"{job_id} is still {state.status} {_STOP_S:g} s after the stop request; Ray does not "
                    "stop a pending job: wait until it runs, then stop it again"
                )
            time.sleep(0.5)
        return state

    def follow(self, job_id: str, write: Write) -> JobState:
        """Write a job's log, from its beginning, until the job ends.

        Raises:
            GenmodError: the head was silent for too long.
        """
        log = _Log(write)
        silence: Backoff | None = None
        while True:
            try:
                state = asyncio.run(self._tail(job_id, log))
                if state.ended:
                    log.show_rest(self.logs(job_id))
                    return state
                silence = None
                time.sleep(_POLL_S)  # the connection was closed, but the job runs
            except (OSError, RuntimeError, aiohttp.ClientError, GenmodError) as error:
                silence = silence or Backoff(_LOST_S, first_s=_POLL_S, last_s=_POLL_S)
                pause_s = silence.next_pause_s()
                if pause_s is None:
                    raise GenmodError(
                        f"{self.address} did not answer for {_LOST_S:g} s while {job_id} ran ({error}); "
                        "the job may still run; run the same command again to follow it"
                    ) from error
                time.sleep(pause_s)

    async def _tail(self, job_id: str, log: _Log) -> JobState:
        """Follow the log over one connection until it closes or the job ends."""
        while (state := self.state(job_id)).status == "PENDING":
            await asyncio.sleep(_POLL_S / 4)
        log.restart()
        tail = self._client.tail_job_logs(job_id)
        stream = cast("AsyncGenerator[str]", tail)
        pending = asyncio.ensure_future(anext(stream))
        try:
            while not state.ended:
                done, _ = await asyncio.wait({pending}, timeout=_POLL_S)
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
        states = [_state(job) for job in self._client.list_jobs() if job.submission_id]
        attempts = [state for state in states if _attempt(state.id, name)]
        return max(attempts, key=lambda state: _attempt(state.id, name), default=None)

    @contextmanager
    def _explained(self, job_id: str = "") -> Generator[None]:
        """Turn the errors of a request into one line for the user."""
        try:
            yield
        except AuthenticationError as error:
            raise ConfigError(
                f"{self.address} refuses this token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the "
                "cluster's token"
            ) from error
        except (requests.RequestException, ConnectionError) as error:
            raise ConfigError(
                f"no Ray job server answers at {self.address}; "
                "check --address, e.g. http://HOST:8265"
            ) from error
        except RuntimeError as error:
            if "does not exist" in str(error):
                raise ConfigError(
                    f"{self.address} has no job {job_id!r}; list its jobs with ray job list"
                ) from error
            raise GenmodError(f"{self.address}: {error}") from error


class _Log:
    """Writes a log once, although the server may send its beginning again."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._shown = 0
        self._position = 0

    def restart(self) -> None:
        """The next chunk is the beginning of the log."""
        self._position = 0

    def show(self, chunk: str) -> None:
        """Write the part of a chunk that was not written before."""
        fresh = chunk[max(0, self._shown - self._position) :]
        self._position += len(chunk)
        if fresh:
            self._write(fresh)
            self._shown = self._position

    def show_rest(self, whole: str) -> None:
        """Write the part of the whole log that was not written before."""
        self.restart()
        self.show(whole)


def _attempt(job_id: str, name: str) -> int:
    """Number of this attempt of a job; 0 for another job."""
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
