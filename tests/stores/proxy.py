"""A proxy in front of a store that injects faults: real sockets, real resets."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

from tests.stores.weed import Store

Kind = Literal[
    "401",
    "500",
    "503",
    "refuse",
    "lose",
    "cut",
    "trickle",
    "silence",
    "late",
    "unconditional",
    "flip",
    "whole",
]
"""Fault of a request.

401, 500, 503: that status, and the store does not receive the request. refuse: a reset, and the store does
not receive the request. lose: the store executes the request, the answer is a reset. cut: half of the answer,
then a reset. trickle: the answer is sent byte by byte. silence: the store executes the request, no answer is
sent. late: the store executes the request, the answer is sent half a minute later. unconditional: the store
receives no ``If-None-Match``. flip: the store receives one flipped bit and no
checksum. whole: the store receives no range, and so sends the whole object.
"""

TRICKLE_S = 0.05
LATE_S = 30.0

ERROR = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>injected</Message></Error>'


@dataclass
class Fault:
    """A fault of the next ``times`` requests that match."""

    kind: Kind
    method: str = ""
    part: str = ""
    """Part of the path and query."""
    times: int = 1


@dataclass
class Proxy:
    """Planned faults, and the requests and faults so far."""

    store: Store
    endpoint: str = ""
    faults: list[Fault] = field(default_factory=list)
    every: int = 0
    """In addition to ``faults``: one of this many requests fails, with the kinds of ``cycle`` in turn."""
    cycle: tuple[Kind, ...] = ()
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path with query, range."""
    injected: list[Kind] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, method: str, path: str, span: str) -> Kind | None:
        """Record a request and choose its fault."""
        with self.lock:
            self.requests.append((method, path, span))
            for fault in self.faults:
                if fault.times and fault.method in ("", method) and fault.part in path:
                    fault.times -= 1
                    self.injected.append(fault.kind)
                    return fault.kind
            if self.every and len(self.requests) % self.every == 0:
                kind = self.cycle[len(self.requests) // self.every % len(self.cycle)]
                self.injected.append(kind)
                return kind
        return None


@contextmanager
def proxied(store: Store) -> Generator[Proxy]:
    """A proxy on a free port; its waiting threads are released at the end."""
    proxy = Proxy(store)

    class Bound(_Handler):
        pass

    Bound.proxy = proxy
    with _Server(("127.0.0.1", 0), Bound) as server:
        proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def _answer(self) -> None:
        kind = self.proxy.choose(self.command, self.path, self.headers.get("Range", ""))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if kind in ("401", "500", "503"):
            code = b"InternalError" if kind == "500" else b"SlowDown"
            self._send(int(kind), [], ERROR % code)
            return
        if kind == "refuse":
            self._reset()
            return
        headers = [(name, value) for name, value in self.headers.items() if name != "Expect"]
        if kind in ("unconditional", "flip", "whole"):
            headers, body = self._changed(kind, headers, body)
        status, reply_headers, reply = self._forward(headers, body)
        if kind == "silence":
            self.proxy.ended.wait(60)
        if kind == "late":
            self.proxy.ended.wait(LATE_S)
        if kind in ("lose", "silence"):
            self._reset()
        elif kind in ("cut", "trickle"):
            self._send_faulty(kind, status, reply_headers, reply)
        else:
            self._send(status, reply_headers, reply)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

    def _forward(self, headers, body):
        to = urlsplit(self.proxy.store.endpoint)
        connection = http.client.HTTPConnection(to.hostname, to.port, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        return reply.status, reply.getheaders(), data

    def _head(self, status, headers, data):
        self.send_response_only(status)
        length_header = None
        for name, value in headers:
            if name.lower() == "content-length":
                length_header = value
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        length = length_header if self.command == "HEAD" and length_header else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()

    def _send(self, status, headers, data):
        self._head(status, headers, data)
        if self.command != "HEAD":
            self.wfile.write(data)

    def _send_faulty(self, kind: Kind, status, headers, data) -> None:
        self._head(status, headers, data)
        if kind == "trickle":
            for at in range(len(data)):
                if self.proxy.ended.wait(TRICKLE_S):
                    break
                self.wfile.write(data[at : at + 1])
                self.wfile.flush()
            return
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self._reset()

    def _reset(self) -> None:
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        with suppress(OSError):
            self.connection.close()
        # The two streams use the socket too; it is reset when the last of them is closed.
        self.rfile.close()
        with suppress(OSError, ValueError):
            self.wfile.close()

    def _changed(self, kind: Kind, headers, body):
        """A changed request, signed again with the store's key."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        dropped = {"authorization", "x-amz-date", "x-amz-content-sha256", "content-length"}
        if kind == "unconditional":
            dropped.add("if-none-match")
        elif kind == "whole":
            dropped.add("range")
        else:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            dropped.add("content-md5")
        headers = {
            name: value
            for name, value in headers
            if name.lower() not in dropped and "checksum" not in name.lower()
        }
        request = AWSRequest(self.command, f"http://{headers['Host']}{self.path}", headers, body)
        credentials = Credentials(self.proxy.store.key, self.proxy.store.secret)
        S3SigV4Auth(credentials, "s3", "us-east-1").add_auth(request)
        signed = dict(request.headers.items()) | {"Content-Length": str(len(body))}
        return list(signed.items()), body
