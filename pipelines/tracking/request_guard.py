"""Bounds the memory of MLflow's model server, and makes every refusal one line.

The server itself reads a body of any size, parses it leniently, and answers errors with the request and a
traceback. This middleware reads the body up to a limit, checks it, and passes only a valid one on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from genmod.errors import DataError, sanitize
from genmod.serving.request import check_request
from genmod.serving.settings import Limits

IS_GUARDED: ContextVar[bool] = ContextVar("is_guarded", default=False)
"""Whether the request that is answered passed the guard."""

MAX_IN_FLIGHT = 8
"""Requests whose bodies are in memory at the same time; further ones are refused."""

_PATH = "/invocations"
_CONTENT_TYPE = "application/json"
_DISCARDED_BYTES = 32 << 20
"""Bytes beyond the limit that are read and dropped, so that a client can read the answer."""

_ERROR_BYTES = 1 << 20
_REASON_CHARS = 300

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class RequestGuard:
    """ASGI middleware in front of the server's application.

    Args:
        app: the application.
        limits: of one request.
    """

    def __init__(self, app: Application, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._in_flight = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on to the application."""
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._in_flight >= MAX_IN_FLIGHT:
            text = f"{MAX_IN_FLIGHT} requests are answered already; send this one again later"
            await _refuse(send, 503, "TEMPORARILY_UNAVAILABLE", text)
            return
        self._in_flight += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            self._check_headers(scope)
            body = await self._read(receive)
            await asyncio.to_thread(check_request, body, self._limits)
        except DataError as error:
            await _refuse(send, 400, "BAD_REQUEST", str(error))
            return
        IS_GUARDED.set(True)
        await self._app(scope, _replay(body, receive), _ErrorShortener(send))

    def _check_headers(self, scope: Message) -> None:
        """Refuse what is known before the body is read."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        kind = headers.get(b"content-type", b"").decode("latin-1")
        if kind.partition(";")[0].strip().lower() != _CONTENT_TYPE:
            raise DataError(
                f"content-type is {sanitize(kind[:80])!r}, expected {_CONTENT_TYPE}; send JSON"
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._limits.body_bytes:
            raise self._too_large()

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = discarded = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DataError("the client closed the connection before the request's end")
            part: bytes = message.get("body", b"")
            size += len(part)
            if size <= self._limits.body_bytes:
                parts.append(part)
            else:
                parts.clear()
                discarded += len(part)
            if not message.get("more_body", False) or discarded > _DISCARDED_BYTES:
                break
        if size > self._limits.body_bytes:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> DataError:
        return DataError(
            f"the request has more than {self._limits.body_bytes:,} bytes; send fewer rows at once"
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hands a body that was read already to the application, then what the client does."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


class _ErrorShortener:
    """Passes an answer on; of an error only its code and one line."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._status = message["status"]
        elif not self._status:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._body = (self._body + message.get("body", b""))[:_ERROR_BYTES]
            if not message.get("more_body", False):
                await _refuse(self._send, self._status, *_reason(self._body))


def _reason(body: bytes) -> tuple[str, str]:
    """Code and line of an error that MLflow describes with the request in it."""
    try:
        error: Any = json.loads(body)
        code, text = str(error["error_code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "INTERNAL_ERROR", "the request failed; the server's log has the reason"
    text = text.rpartition("Error: ")[2].strip().strip("'\"")
    return code, text.partition("\n")[0]


async def _refuse(send: Send, status: int, code: str, text: str) -> None:
    """Answer with one line. The connection is closed, as the body may not have been read."""
    line = sanitize(text[:_REASON_CHARS])
    body = json.dumps({"error_code": code[:80], "message": line}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
