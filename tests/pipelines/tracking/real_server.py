"""A real ``mlflow server`` process on SQLite, which tests kill, freeze and start again."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress

from tests.processes import TIMEOUT_S, free_ports


class MlflowServer:
    """A server with a folder of its own."""

    def __init__(self, folder, backend=""):
        self.folder = folder
        self.backend = backend or f"sqlite:///{folder}/server.db"
        self.port = free_ports(1)[0]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        """Start it, and wait until it answers."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.backend,
            "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1",
        ]  # fmt: skip
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        end_s = time.monotonic() + TIMEOUT_S
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < end_s
            time.sleep(0.1)

    def answers(self):
        """Whether it is healthy."""
        try:
            with urllib.request.urlopen(f"{self.endpoint}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def signal(self, number):
        """Send a signal to all of its processes."""
        os.killpg(self.process.pid, number)

    @contextmanager
    def full_disk(self):
        """Let every write to a file fail in its processes, as on a full disk."""
        processes = [
            int(each) for each in os.listdir("/proc") if each.isdigit() and self._owns(int(each))
        ]
        before = [resource.prlimit(each, resource.RLIMIT_FSIZE) for each in processes]
        for process, (_, hard) in zip(processes, before, strict=True):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            for process, limits in zip(processes, before, strict=True):
                resource.prlimit(process, resource.RLIMIT_FSIZE, limits)

    def _owns(self, process):
        try:
            return os.getpgid(process) == self.process.pid
        except ProcessLookupError:
            return False

    def kill(self):
        """End it at once."""
        self.signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def real_server(folder, backend=""):
    """A running server, killed at the end."""
    server = MlflowServer(folder, backend)
    server.start()
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            server.kill()
