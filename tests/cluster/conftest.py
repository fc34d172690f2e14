"""A Ray head for the tests with its own ports, folder and token; killed by a mark in its environment."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.held import held_cpus
from tests.processes import free_ports, kill_marked

MARK = "GENMOD_TEST_HEAD"
START_S = 300.0


@dataclass
class Head:
    address: str
    token: str
    folder: Path
    gcs: str
    """HOST:PORT for drivers."""

    def environment(self) -> dict[str, str]:
        """Environment of a process that connects to the head, but does not run on it."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH") and k != MARK}
        kept.pop("RAY_ADDRESS", None)
        return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


@pytest.fixture
def busy_cluster(ray_session, monkeypatch):
    """All CPUs are held by an actor. Returns what ends it."""
    with held_cpus(monkeypatch) as end_holder:
        yield end_holder


@pytest.fixture(scope="module")
def head():
    mark, token = secrets.token_hex(8), secrets.token_hex(32)
    folder = Path(tempfile.mkdtemp(prefix="gmhead-"))  # short: a socket's path has a limit
    port, jobs_port, *ports = free_ports(6)
    names = (
        "dashboard-agent-listen",
        "dashboard-agent-grpc",
        "runtime-env-agent",
        "ray-client-server",
    )
    bins = str(Path(sys.executable).parent)
    environment = os.environ | {
        MARK: mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "PATH": f"{bins}:{os.environ['PATH']}",
        "HOME": str(folder),
    }
    environment.pop("RAY_ADDRESS", None)
    with open(folder / "head.log", "wb") as log:
        process = subprocess.Popen(
            [
                *(f"{bins}/ray", "start", "--head", "--block", "--disable-usage-stats"),
                *(f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={jobs_port}"),
                *(f"--{name}-port={value}" for name, value in zip(names, ports, strict=True)),
                *("--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2"),
                *("--object-store-memory=100000000", f"--temp-dir={folder}/ray"),
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        running = Head(f"http://127.0.0.1:{jobs_port}", token, folder, f"127.0.0.1:{port}")
        _wait(process, running, folder / "head.log")
        yield running
    finally:
        kill_marked(MARK, mark)
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], head: Head, log: Path) -> None:
    """Wait until a job has run; the port is open long before that."""
    from cluster.jobs import JobRequest, Jobs
    from genmod.errors import GenmodError

    work = head.folder / "warm-up"
    work.mkdir()
    (work / "nothing").touch()
    request = JobRequest(name="warm-up", entrypoint="true", working_dir=str(work))
    deadline_s, reason = time.monotonic() + START_S, ""
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            jobs = Jobs(head.address, head.token)
            job_id, _ = jobs.submit(request)
            state = jobs.follow(job_id, lambda text: None)
            if state.status == "SUCCEEDED":
                return
            reason = state.message
        except (GenmodError, RuntimeError) as error:
            reason = str(error)
        time.sleep(0.3)
    pytest.fail(f"the Ray head did not start: {reason}; {log.read_text()[-2000:]}")
