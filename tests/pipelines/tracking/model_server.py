"""A real ``mlflow models serve`` process, and requests to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.processes import TIMEOUT_S, free_ports

ROOT = Path(__file__).parents[3]


class ModelServer:
    """A server of one model.

    Args:
        uri: of the model, as MLflow takes it.
        folder: for its log.
        environment: further variables.
    """

    def __init__(self, uri, folder, **environment):
        self.log = Path(folder) / "model-server.log"
        self.port = free_ports(1)[0]
        command = [
            sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri,
            "--env-manager", "local", "--host", "127.0.0.1", "--port", str(self.port),
        ]  # fmt: skip
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the server's command is ``uvicorn``
        variables = {"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path, "PYTHONPATH": str(ROOT)}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | variables | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self):
        """Wait until it answers."""
        end_s = time.monotonic() + TIMEOUT_S
        while True:
            with suppress(OSError):
                if self.request("GET", "/ping")[0] == 200:
                    return
            assert self.process.poll() is None, self.text()[-3000:]
            assert time.monotonic() < end_s
            time.sleep(0.2)

    def text(self):
        """What it has logged."""
        return self.log.read_text(errors="replace")

    def request(self, method, path, body=None, headers=None):
        """Status and bytes of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, document, kind="application/json"):
        """Status and JSON of the answer to a document, or to bytes."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        status, data = self.request("POST", "/invocations", body, {"Content-Type": kind})
        return status, json.loads(data)

    def memory_bytes(self):
        """Resident memory of all its processes."""
        own = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in [own, *own.children(recursive=True)])

    def kill(self):
        """End it with all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def model_server(uri, folder, **environment):
    """A running server, killed at the end."""
    server = ModelServer(uri, folder, **environment)
    try:
        server.wait()
        yield server
    finally:
        server.kill()
