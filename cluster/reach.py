"""Whether a Ray cluster answers at an address, checked within seconds; Ray itself waits for minutes."""

from __future__ import annotations

import os
import socket
import time
from ipaddress import ip_address

from pydantic import TypeAdapter, ValidationError

from genmod import storage
from genmod.errors import ConfigError, sanitize

VARIABLE = "RAY_ADDRESS"
"""Ray's environment variable for the address of a cluster. Ray sets it in its jobs."""

_ATTEMPTS_S = 5.0
"""How long a refused connection is tried again, in seconds: a head may just be starting."""

_CONNECT_S = 5.0
"""Timeout of one connection and of its answer, in seconds."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What every HTTP/2 client sends first, with empty settings (RFC 9113, section 3.4)."""

_SETTINGS = 4
"""Type of the first frame of every HTTP/2 server, and so of every gRPC server."""


def address_from_environment() -> str | None:
    """The value of RAY_ADDRESS; None if it is not set or empty.

    Raises:
        ConfigError: it is not the address of a cluster, e.g. that of a job server.
    """
    address = os.environ.get(VARIABLE, "").strip()
    if not address:
        return None
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{VARIABLE} is {sanitize(address)[:200]}, the address of a job server; to run there use genmod "
            f"submit, to run here unset {VARIABLE} or give --address local"
        )
    try:
        return TypeAdapter(storage.ClusterAddress).validate_python(address)
    except ValidationError:
        raise ConfigError(
            f"{VARIABLE} is no address of a Ray cluster, expected HOST:PORT, e.g. 10.0.0.1:6379; correct or "
            "unset it, or give --address local to run on this machine"
        ) from None


def check_answers(address: str, named_by: str) -> None:
    """Check that a gRPC server answers at HOST:PORT or ``ray://HOST:PORT``.

    Args:
        address: of the cluster.
        named_by: the variable or key that has the address, for the error.

    Raises:
        ConfigError: the address has no port, nothing answers, or something other than Ray does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{named_by} is {address}, expected HOST:PORT, e.g. {address}:6379")
    end_s = time.monotonic() + _ATTEMPTS_S
    while (problem := _problem(host.strip("[]"), int(port))) and time.monotonic() < end_s:
        time.sleep(0.5)
    if problem:
        raise ConfigError(
            f"no Ray cluster answers at {address}, the value of {named_by} ({problem}); start the cluster, "
            f"correct {named_by}, or use --address local to run on this machine"
        )


def _problem(host: str, port: int) -> str:
    """Why no gRPC server answers; empty if one does."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return ""  # the server speaks first only after a handshake
            connection.sendall(_PREFACE)
            header = connection.recv(9, socket.MSG_WAITALL)
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    is_grpc = len(header) == 9 and header[3] == _SETTINGS
    return "" if is_grpc else "another service listens there"


def is_this_machine(host: str) -> bool:
    """Whether a host name is one of this machine's; True if it has no address at all."""
    import psutil

    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return True  # the connection fails with a better error
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    return any(address in own or ip_address(address).is_loopback for address in found)
