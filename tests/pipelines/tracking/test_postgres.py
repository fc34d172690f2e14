"""A real MLflow server on a real PostgreSQL that ends, runs out of connections, or changes its password."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.pipelines.tracking.real_server import real_server
from tests.pipelines.tracking.test_replay import (
    content,
    log_run,
    make_root,
    replayed,
    tracker_of,
)
from tests.processes import TIMEOUT_S, free_ports

MISSING = [
    *[name for name in ("initdb", "pg_ctl") if shutil.which(name) is None],
    *([] if importlib.util.find_spec("psycopg2") else ["psycopg2"]),
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

CONNECTIONS = 20
PASSWORD, OTHER = "of-the-recipe", "of-somebody-else"


class Postgres:
    """A cluster in a folder of its own, of the user nobody if this one is root."""

    def __init__(self, folder: Path):
        self.folder = folder / "cluster"
        self.port = free_ports(1)[0]
        self.prefix = []
        if os.getuid() == 0:
            shutil.chown(folder, "nobody")
            self.prefix = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        words = folder / "password"
        words.write_text(PASSWORD)
        words.chmod(0o644)
        options = ["--auth=scram-sha-256", f"--pwfile={words}", "--no-sync"]
        self.call("initdb", "-D", self.folder, "-U", "mlflow", *options)

    def call(self, *command):
        """Run one of PostgreSQL's programs; it waits until the server is ready or has ended."""
        environment = os.environ | {"HOME": tempfile.gettempdir()}
        words = [*self.prefix, *map(str, command)]
        # No pipes: the server keeps those of pg_ctl open.
        subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=True, cwd="/")

    def start(self):
        options = [
            f"-p {self.port}", "-c listen_addresses=127.0.0.1", f"-c max_connections={CONNECTIONS}",
            "-c superuser_reserved_connections=0", f"-c unix_socket_directories={self.folder}",
            "-c fsync=off",
        ]  # fmt: skip
        log = self.folder / "log"
        self.call("pg_ctl", "-D", self.folder, "-l", log, "-o", " ".join(options), "-w", "start")

    def stop(self):
        self.call("pg_ctl", "-D", self.folder, "-m", "immediate", "-w", "stop")

    @property
    def uri(self):
        return f"postgresql+psycopg2://mlflow:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def connect(self, password=PASSWORD):
        """A connection as the user of the MLflow server."""
        import psycopg2

        address = {"host": "127.0.0.1", "port": self.port, "user": "mlflow", "dbname": "postgres"}
        return psycopg2.connect(password=password, **address)

    @contextmanager
    def wrong_password(self):
        """Let the MLflow server have another password than PostgreSQL."""
        self._change_password(PASSWORD, OTHER)
        self.stop()  # ends the connections that it has
        self.start()
        try:
            yield
        finally:
            self._change_password(OTHER, PASSWORD)

    def _change_password(self, old, new):
        connection = self.connect(old)
        connection.autocommit = True
        connection.cursor().execute(f"ALTER ROLE mlflow PASSWORD '{new}'")
        connection.close()

    @contextmanager
    def all_connections(self):
        """Take every connection that is left."""
        import psycopg2

        self.stop()  # the MLflow server has some, and opens new ones afterwards
        self.start()
        taken = []
        try:
            with suppress(psycopg2.OperationalError):
                while True:
                    taken.append(self.connect())
            assert len(taken) == CONNECTIONS
            yield
        finally:
            for each in taken:
                each.close()

    @contextmanager
    def stopped(self):
        self.stop()
        try:
            yield
        finally:
            self.start()


@pytest.fixture(scope="module")
def postgres():
    with tempfile.TemporaryDirectory(prefix="gmpg-") as folder:
        postgres = Postgres(Path(folder))
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    with real_server(tmp_path_factory.mktemp("server"), postgres.uri) as server:
        yield server


@pytest.fixture(autouse=True)
def _one_attempt(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(TIMEOUT_S)))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def expected(server, tmp_path_factory):
    root = make_root(tmp_path_factory.mktemp("undisturbed"))
    tracker = tracker_of(server.endpoint, root)
    log_run(tracker, root, "undisturbed")
    assert tracker.close(TIMEOUT_S)
    return content(server, "undisturbed")


@pytest.mark.parametrize("fault", ["stopped", "all_connections", "wrong_password"])
def test_a_replay_equals_an_undisturbed_run(postgres, server, expected, tmp_path, fault):
    root, fingerprint = make_root(tmp_path / "root"), uuid.uuid4().hex
    with getattr(postgres, fault)():
        tracker = tracker_of(server.endpoint, root)
        log_run(tracker, root, fingerprint)
        assert not tracker.close(3)
    summary = replayed(server.endpoint, root)
    assert (summary.spools, summary.problems) == (1, [])
    assert content(server, fingerprint) == expected
