"""Requests to remote stores: a deadline for each, begun anew while a fault may pass, then one line."""

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

FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 10.0
"""Pauses between attempts: each about twice the one before, up to the last."""

_FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)

_PASSING = frozenset(
    {
        "ClientError",  # aiohttp's; botocore's comes with a status and is judged by that
        "ConnectionError",
        "FlexibleChecksumError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ResponseParserError",
        "TimeoutError",
    }
)
"""Names of exceptions of botocore, aiohttp and urllib3 that may not come again."""

_PASSING_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})
"""409: two conditional writes at the same moment; one of them is to be tried again."""

_PASSING_CODES = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown"})


async def with_retries(url: str, request: Callable[[], Awaitable[T]]) -> T:
    """What a request gives; begun anew while its fault may pass and patience lasts.

    Args:
        url: for messages.
        request: makes the awaitable; safe to be done twice.

    Raises:
        StoreUnavailable: the fault did not pass.
        StorageError: the request cannot be made at all, e.g. for lack of credentials.
        OSError: what the store says, e.g. FileNotFoundError.
    """
    config = settings()
    end_s = time.monotonic() + config.retry_timeout_s
    pause_s, attempts = FIRST_PAUSE_S, 0
    while True:
        attempts += 1
        try:
            return await asyncio.wait_for(request(), config.request_timeout_s)
        except Exception as error:
            if not _may_pass(error):
                raise _explained(url, error) from error
            if time.monotonic() + pause_s > end_s:
                raise StoreUnavailable(
                    f"{url}: storage stayed unavailable: {_told(error, config.request_timeout_s)} "
                    f"({attempts} attempts in {config.retry_timeout_s:g} s); check the storage, "
                    "then run the same command again"
                ) from error
        await asyncio.sleep(pause_s * (0.5 + uuid.uuid4().int % 1024 / 1024))
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


def wait_for(fs: AsyncFileSystem, url: str, request: Callable[[], Awaitable[T]]) -> T:
    """:func:`with_retries`, for code that is not asynchronous."""
    return run(fs, lambda: with_retries(url, request))


def run(fs: AsyncFileSystem, work: Callable[[], Awaitable[T]]) -> T:
    """Do asynchronous work on the file system's own loop, and wait for it."""
    return cast(T, sync(cast(Any, fs).loop, work))


def status_of(error: BaseException) -> tuple[int, str]:
    """HTTP status and the store's code of an error that an S3 store has answered with; (0, "") of others."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            told = cast("dict[str, Any]", response)
            status = told.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(told.get("Error", {}).get("Code", ""))
    return 0, ""


def _may_pass(error: Exception) -> bool:
    status, code = status_of(error)
    if status:
        return status in _PASSING_STATUS or code in _PASSING_CODES
    if isinstance(error, _FINAL):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & _PASSING)


def _explained(url: str, error: Exception) -> Exception:
    """An error of botocore's own becomes one line; others stay what they are."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "BotoCoreError" not in names:
        return error
    if "NoCredentialsError" in names or "PartialCredentialsError" in names:
        return StorageError(
            f"{url}: no credentials for the store; give them in the standard way, e.g. AWS_PROFILE, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the node's role"
        )
    return StorageError(f"{url}: {' '.join(str(error).split())}")


def _told(error: Exception, request_timeout_s: float) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, TimeoutError) and not text:
        text = f"no whole answer in {request_timeout_s:g} s"
    return f"{type(error).__name__}: {text}"
