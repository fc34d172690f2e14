"""An address where no Ray cluster answers is refused within seconds, in one line that names the variable."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from cluster import reach
from cluster.reach import address_from_environment, check_answers
from cluster.session import ClusterConfig, address_of, connect
from genmod.errors import ConfigError
from tests.processes import TIMEOUT_S, free_ports

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture
def server(monkeypatch):
    """Starts a server that sends an answer to each client; returns its address."""
    monkeypatch.setattr(reach, "_ATTEMPTS_S", 0.0)
    opened = []

    def start(answer):
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    assert connection.recv(64).startswith(b"PRI * HTTP/2.0")
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in opened:
        listener.close()


def test_a_grpc_server_answers(server):
    address = server(SETTINGS)
    check_answers(address, "RAY_ADDRESS")
    check_answers(f"ray://{address}", "cluster.address")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"-ERR unknown\r\n"])
def test_another_service_is_not_taken_for_a_cluster(server, answer):
    address = server(answer)
    with pytest.raises(ConfigError, match=rf"answers at {address}, the value of RAY_ADDRESS"):
        check_answers(address, "RAY_ADDRESS")


def test_a_stale_address_names_the_variable(monkeypatch):
    monkeypatch.setattr(reach, "_ATTEMPTS_S", 0.0)
    (port,) = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConfigError) as caught:
        connect(ClusterConfig())
    text = str(caught.value)
    assert f"127.0.0.1:{port}, the value of RAY_ADDRESS (Connection refused)" in text
    assert "--address local" in text
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match=r"the value of cluster\.address"):
        connect(ClusterConfig(address=f"127.0.0.1:{port}"))


@pytest.mark.parametrize("address", ["head", "head:", "head:70000", "head:x"])
def test_an_address_without_a_port_is_refused(address):
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS is .* expected HOST:PORT"):
        check_answers(address, "RAY_ADDRESS")


def test_what_else_the_variable_may_contain(monkeypatch):
    for value, expected in (
        ("", None),
        ("  ", None),
        ("auto", "auto"),
        ("10.0.0.1:6379", "10.0.0.1:6379"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert address_from_environment() == expected
        assert address_of(ClusterConfig(address="local")) == "local"
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert address_of(ClusterConfig()) == "local"
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(ConfigError, match="RAY_ADDRESS is http://head:8265, the address of a job"):
        address_of(ClusterConfig())
    monkeypatch.setenv("RAY_ADDRESS", "user:word@head:6379")
    with pytest.raises(ConfigError, match="RAY_ADDRESS is no address") as caught:
        address_of(ClusterConfig())
    assert "word" not in str(caught.value)


AUTO = """
from cluster.environment import set_environment
set_environment()
from cluster.session import ClusterConfig, connect
from genmod.errors import ConfigError
try:
    connect(ClusterConfig())
except ConfigError as error:
    print(error)
"""
ALONE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
"""Runs a command that sees no process of others, and so no Ray of theirs."""


def can_be_alone():
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_be_alone(), reason="the system allows no namespaces")
def test_auto_without_a_cluster_is_one_line(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", AUTO],
        env=environment | {"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(
        "no Ray cluster answers at auto (Could not find any running Ray instance"
    )
    assert line.endswith("check RAY_ADDRESS, or use --address local to run on this machine")
