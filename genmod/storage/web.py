"""Sources on web servers: read only, without redirects to other addresses, and never more than was allowed.

Imported on first use, since aiohttp takes a while to import.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from aiohttp import (
    ClientResponse,
    ClientSession,
    InvalidURL,
    TooManyRedirects,
    TraceConfig,
    TraceRequestRedirectParams,
)
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from genmod.budget import BUDGET
from genmod.errors import StorageError, sanitize
from genmod.storage.compat import coroutine_of
from genmod.storage.local import too_long
from genmod.storage.retry import call_with_retries

_MISSING = (404, 410)
_TRANSIENT = (408, 409, 429)


class WebFiles(HTTPFileSystem):
    """fsspec's file system of web servers, whose client refuses redirects to other addresses.

    fsspec reports any failure to ask for a file's size as a missing file; here a refusal stays a refusal.
    It reads answers to their end; here no more is read than was asked for.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("get_client", _client)
        super().__init__(**options)

    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        try:
            return await coroutine_of(cast(AsyncFileSystem, super()), "info")(url, **options)
        except FileNotFoundError as error:
            if isinstance(error.__cause__, StorageError):
                raise error.__cause__ from None
            raise

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        first = start or 0
        if first < 0 or (end or 0) < 0:
            raise NotImplementedError("positions from the end of a file on a web server")
        if first and end is None:
            end = int((await self._info(url))["size"] or 0)
        return await _read(self, url, first, end, BUDGET.file_bytes)

    async def _ls_real(self, url: str, detail: bool = True, **options: Any) -> list[Any]:
        """Web servers have no listings; fsspec would read a page to its end and follow its links."""
        return []

    async def _isfile(self, path: str, **options: Any) -> bool:
        try:
            return bool(await self._info(path, **options))
        except FileNotFoundError:
            return False


def read_file(fs: AsyncFileSystem, url: str, limit_bytes: int) -> bytes:
    """All bytes of a file on a web server.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is longer than the limit, whatever length the server declares.
        StorageError: the server refuses the request, or redirects it to another address.
    """
    return call_with_retries(fs, url, lambda: _read(fs, url, 0, None, limit_bytes))


def read_range(fs: AsyncFileSystem, url: str, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` - 1 of a file on a web server; shorter where it ends."""
    return call_with_retries(fs, url, lambda: _read(fs, url, start, stop, stop - start))


async def _read(
    fs: AsyncFileSystem, url: str, start: int, stop: int | None, limit_bytes: int
) -> bytes:
    if stop is not None and stop <= start:
        return b""
    headers = {"Accept-Encoding": "identity"}
    if stop is not None:
        headers["Range"] = f"bytes={start}-{stop - 1}"
    files = cast(Any, fs)
    session: ClientSession = await files.set_session()
    try:
        async with session.get(files.encode_url(url), headers=headers) as response:
            if response.status == 416:  # the file ends before this range begins
                return b""
            _check_status(response, url)
            if stop is None:
                return await _body(response, url, limit_bytes)
            # A server without ranges answers 200 and sends the file from its first byte.
            skip = start if response.status == 200 else 0
            return (await _body(response, url, skip + stop - start, cut=True))[skip:]
    except (InvalidURL, TooManyRedirects) as error:
        raise StorageError(f"{url}: {' '.join(str(error).split())}; correct the URL") from error


async def _body(response: ClientResponse, url: str, limit_bytes: int, cut: bool = False) -> bytes:
    """The body of an answer. One longer than the limit is an error, or is cut."""
    declared = response.content_length
    if declared is not None and declared > limit_bytes and not cut:
        response.close()
        raise too_long(url, limit_bytes)
    body = bytearray()
    async for block in response.content.iter_any():
        body += block
        if len(body) > limit_bytes:
            response.close()
            if not cut:
                raise too_long(url, limit_bytes)
            break
    return bytes(body[:limit_bytes])


def _check_status(response: ClientResponse, url: str) -> None:
    status = response.status
    if status in _MISSING:
        raise FileNotFoundError(url)
    if status in (200, 206):
        return
    if status >= 500 or status in _TRANSIENT:
        response.raise_for_status()  # is retried
    reason = sanitize(response.reason or "")[:80]
    raise StorageError(f"{url}: the server answers {status} {reason}; check the URL and its access")


async def _client(**options: Any) -> ClientSession:
    """The client of :class:`WebFiles`: each redirect is checked before it is followed."""
    trace = TraceConfig()
    trace.on_request_redirect.append(_check_redirect)
    return ClientSession(trace_configs=[trace], **options)


async def _check_redirect(
    session: ClientSession, context: SimpleNamespace, redirect: TraceRequestRedirectParams
) -> None:
    answer = redirect.response
    target = answer.headers.get("Location", answer.headers.get("URI", ""))
    try:
        is_same = redirect.url.join(URL(target)).origin() == redirect.url.origin()
    except ValueError:
        is_same = False
    if not is_same:
        answer.close()
        raise StorageError(
            f"{redirect.url.with_query(None)} redirects to another address ({sanitize(target[:200])}); "
            "if you trust it, name that URL in the recipe, or download the file"
        )
