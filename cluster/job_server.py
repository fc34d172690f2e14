"""State of a Ray job by one request to the head's job server, without importing ray, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field

from genmod.budget import ReadBudget
from genmod.config import Config
from genmod.documents import parse_json
from genmod.errors import ConfigError, DataError, GenmodError, sanitize

_TIMEOUT_S = 20.0
"""Timeout of the request, in seconds."""

_MAX_BYTES = 1 << 20
"""Of the answer."""

_ANSWER = ReadBudget(document_bytes=_MAX_BYTES)


class JobState(Config):
    """State of a job."""

    id: str
    status: str
    """Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str = ""
    """One line."""
    exit_code: int | None = Field(None)
    """Of the command, if it ended without being stopped."""

    @property
    def ended(self) -> bool:
        """Whether the job has ended, in any way."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


def query_state(address: str, job_id: str) -> JobState:
    """Ask a job server for the state of a job, by Ray's documented REST interface.

    Args:
        address: of the job server, ``http://HOST:8265``.
        job_id: of the job.

    Raises:
        ConfigError: no job server answers, the token is wrong, or no job has this id.
        GenmodError: the server reports an error of its own.
    """
    import requests  # here, because it takes a part of a second

    address = address.rstrip("/")
    token = _token()
    try:
        with requests.get(
            f"{address}/api/jobs/{quote(job_id, safe='')}",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=_TIMEOUT_S,
            allow_redirects=False,
            stream=True,
        ) as answer:
            code, body = answer.status_code, answer.raw.read(_MAX_BYTES + 1, decode_content=True)
    except (requests.RequestException, OSError, ValueError) as error:
        raise ConfigError(
            f"no Ray job server answers at {address}; check --address, e.g. http://HOST:8265"
        ) from error
    if code in (401, 403):
        raise ConfigError(
            f"{address} refuses this token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
        )
    text = sanitize(body[:300].decode(errors="replace"))
    if code == 404 and b"does not exist" in body:
        raise ConfigError(
            f"{address} has no job {job_id!r}; list its jobs with ray job list --address {address}"
        )
    if code >= 500 and b"Traceback" in body:
        raise GenmodError(f"{address}: {text}")
    return _parse(body, address) if code == 200 else _refuse(address, f"HTTP {code}")


def _parse(body: bytes, address: str) -> JobState:
    try:
        job = parse_json(body, f"the answer of {address}", "check --address", _ANSWER)
    except DataError:
        return _refuse(address, "no JSON")
    if not isinstance(job, dict) or not isinstance(job.get("status"), str):
        return _refuse(address, "no status of a job")
    values: dict[str, Any] = job
    code = values.get("driver_exit_code")
    return JobState(
        id=str(values.get("submission_id")),
        status=values["status"],
        message=str(values.get("message") or "").split("\n", maxsplit=1)[0],
        exit_code=code if isinstance(code, int) else None,
    )


def _refuse(address: str, reason: str) -> JobState:
    raise ConfigError(
        f"{address} answers, but not as a Ray job server ({reason}); check --address, e.g. http://HOST:8265"
    )


def _token() -> str:
    """The cluster's token, where Ray looks for it."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
