"""Requests to remote storage: each has a deadline, and transient errors are retried with backoff."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from fsspec.asyn import AsyncFileSystem, sync

from genmod.errors import StorageError, StoreUnavailable
from genmod.storage.settings import settings

T = TypeVar("T")

_FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)

_TRANSIENT = frozenset(
    {
        "ClientError",  # aiohttp's; botocore's has a status, which decides
        "ConnectionError",
        "FlexibleChecksumError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ResponseParserError",
        "TimeoutError",
    }
)
"""Names of transient exceptions of botocore, aiohttp and urllib3."""

_TRANSIENT_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})
"""409: two conditional writes at the same moment; S3 requires one of them to be retried."""

_TRANSIENT_CODES = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown"})


class Backoff:
    """Pauses between attempts: each about twice as long as the one before, with jitter.

    Args:
        timeout_s: no pause ends later than this after the first attempt.
        attempts: number of attempts in all.
        first_s: about the first pause.
        last_s: about the longest pause.
    """

    def __init__(
        self,
        timeout_s: float = float("inf"),
        attempts: float = float("inf"),
        first_s: float = 0.1,
        last_s: float = 10.0,
    ) -> None:
        self._end_s = time.monotonic() + timeout_s
        self._attempts = attempts
        self._pause_s, self._last_s = first_s, last_s
        self.failed = 0
        """Attempts that have failed."""

    def next_pause_s(self) -> float | None:
        """An attempt has failed: seconds to wait before the next one, or None to give up."""
        self.failed += 1
        if self.failed >= self._attempts or time.monotonic() + self._pause_s > self._end_s:
            return None
        pause_s = self._pause_s * (0.5 + uuid.uuid4().int % 1024 / 1024)
        self._pause_s = min(2 * self._pause_s, self._last_s)
        return pause_s


async def with_retries(url: str, request: Callable[[], Awaitable[T]]) -> T:
    """The answer to a request, which is retried after transient errors until the retry timeout.

    Args:
        url: for messages.
        request: returns a new awaitable per call; must be idempotent.

    Raises:
        StoreUnavailable: transient errors did not stop before the retry timeout.
        StorageError: the request cannot be made at all, e.g. without credentials.
        OSError: the storage's answer, e.g. FileNotFoundError.
    """
    config = settings()
    backoff = Backoff(config.retry_timeout_s)
    while True:
        try:
            return await asyncio.wait_for(request(), config.request_timeout_s)
        except Exception as error:
            if not _is_transient(error):
                final = _as_one_line(url, error)
                if final is error:
                    raise
                raise final from error
            pause_s = backoff.next_pause_s()
            if pause_s is None:
                raise StoreUnavailable(
                    f"{url}: storage stayed unavailable: {_reason(error, config.request_timeout_s)} "
                    f"({backoff.failed} attempts in {config.retry_timeout_s:g} s); check the storage, "
                    "then run the same command again"
                ) from error
        await asyncio.sleep(pause_s)


def call_with_retries(fs: AsyncFileSystem, url: str, request: Callable[[], Awaitable[T]]) -> T:
    """:func:`with_retries` for synchronous code."""
    return run_on_loop(fs, lambda: with_retries(url, request))


def run_on_loop(fs: AsyncFileSystem, work: Callable[[], Awaitable[T]]) -> T:
    """Run asynchronous work on the file system's event loop and wait for it."""
    return cast(T, sync(cast(Any, fs).loop, work))


def status_of(error: BaseException) -> tuple[int, str]:
    """HTTP status and error code of an S3 store's answer; (0, "") for other errors."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            answer = cast("dict[str, Any]", response)
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(answer.get("Error", {}).get("Code", ""))
    return 0, ""


def _is_transient(error: Exception) -> bool:
    status, code = status_of(error)
    if status:
        return status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
    if isinstance(error, _FINAL):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & _TRANSIENT)


def _as_one_line(url: str, error: Exception) -> Exception:
    """A botocore error as a StorageError of one line; a denied request with its URL; others as they are."""
    if isinstance(error, PermissionError) and error.filename is None:
        return PermissionError(f"{url}: {' '.join(str(error).split())}")
    names = {kind.__name__ for kind in type(error).__mro__}
    if "BotoCoreError" not in names:
        return error
    if "NoCredentialsError" in names or "PartialCredentialsError" in names:
        return StorageError(
            f"{url}: no credentials for this storage; provide them in a standard way, e.g. AWS_PROFILE, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the node's role"
        )
    return StorageError(f"{url}: {' '.join(str(error).split())}")


def _reason(error: Exception, request_timeout_s: float) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, TimeoutError) and not text:
        text = f"no complete answer in {request_timeout_s:g} s"
    return f"{type(error).__name__}: {text}"
