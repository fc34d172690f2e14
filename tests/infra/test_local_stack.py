"""``infra/local/up`` and ``down``: the stack as processes, on ports and in a folder of the test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.processes import TIMEOUT_S, free_ports

ROOT = Path(__file__).parents[2]
PORTS = ("GENMOD_RAY_PORT", "GENMOD_GCS_PORT", "GENMOD_MLFLOW_PORT", "GENMOD_STORE_PORT")
OF_CLUSTERS = ("RAY_", "AWS_", "MLFLOW_", "GENMOD_")


def settings(folder):
    kept = {name: text for name, text in os.environ.items() if not name.startswith(OF_CLUSTERS)}
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    return kept | ports | {"GENMOD_STATE": str(folder), "GENMOD_START_S": "600"}


def script(name, environment, *words):
    return subprocess.run(
        [ROOT / "infra/local" / name, *words],
        env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def of_stack(mark):
    """Processes that the stack started, by the mark in their environment."""
    entry = f"GENMOD_STACK_MARK={mark}".encode()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                lines = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if entry in lines:
                found.append(int(process.name))
    return found


@pytest.mark.slow
def test_a_stage_goes_through_it_and_nothing_is_left(tmp_path):
    environment = settings(tmp_path)
    stack = tmp_path / "local-genmod"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    try:
        started = script("up", environment)
        assert started.returncode == 0, started.stderr
        mark = (stack / "mark").read_text().strip()
        command_lines = [" ".join(psutil.Process(pid).cmdline()) for pid in of_stack(mark)]
        for program in ("weed", "mlflow", "gcs_server", "raylet"):
            assert any(program in line for line in command_lines), command_lines
        for path in (stack / "secrets").iterdir():
            assert path.stat().st_mode & 0o777 == 0o600, path
        secret_texts = [
            (stack / "secrets" / name).read_text().strip()
            for name in ("ray_token", "postgres_password")
        ]
        for pid in of_stack(mark):
            words = " ".join(psutil.Process(pid).cmdline())
            assert not any(text in words for text in secret_texts)
        listening = [
            c
            for c in psutil.net_connections("tcp")
            if c.pid in of_stack(mark) and c.status == "LISTEN"
        ]
        assert {c.laddr.ip for c in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

        again = script("up", environment)
        assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
        assert "runs already" in again.stderr
        other = script("up", environment | {"GENMOD_PROJECT": "second"})
        assert (other.returncode, len(other.stderr.splitlines())) == (2, 1)
        assert "is in use" in other.stderr

        assert submit_shard(environment, stack) == 0
        log_an_artifact(environment, tmp_path)
    finally:
        stopped = script("down", environment, "--volumes")
        alive = bystander.poll() is None
        bystander.kill()
        bystander.wait()
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert of_stack(mark) == []
    assert alive
    assert not stack.exists()
    for name in PORTS:
        socket.create_server(("127.0.0.1", int(environment[name]))).close()


def submit_shard(environment, stack):
    """A data set as a job on the stack, from its token to its store; the exit code."""
    small = {"root": "s3://genmod/quickstart", "tracking.enabled": "false"}
    words = [w for key, text in small.items() for w in ("--set", f"{key}={text}")]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "submit", "shard", "--recipe", "quickstart", *words],
        cwd=stack,
        env=environment | settings_of(stack) | {"PYTHONPATH": str(ROOT)},
        timeout=TIMEOUT_S, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stderr[-3000:])
    return done.returncode


def settings_of(stack):
    """What ``. env`` sets in a shell."""
    lines = (stack / "env").read_text().splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def log_an_artifact(environment, folder):
    """A file goes through the server and comes back."""
    client = MlflowClient(f"http://127.0.0.1:{environment['GENMOD_MLFLOW_PORT']}")
    run = client.create_run(client.create_experiment("stack")).info.run_id
    (folder / "note.txt").write_text("kept")
    client.log_artifact(run, str(folder / "note.txt"))
    (folder / "copy").mkdir()
    assert (
        Path(client.download_artifacts(run, "note.txt", str(folder / "copy"))).read_text() == "kept"
    )


def test_a_secret_that_was_removed_is_made_again_and_others_stay(tmp_path):
    def made():
        words = '. infra/secrets.sh; make_secrets "$0" "$(id -u):$(id -g)"'
        subprocess.run(["bash", "-euc", words, str(tmp_path)], cwd=ROOT, check=True)
        for path in tmp_path.iterdir():
            assert path.stat().st_mode & 0o777 == 0o600, path
        return {path.name: path.read_text() for path in tmp_path.iterdir()}

    together = {"ray_token"}, {"aws", "s3_identities"}, {"postgres_password", "pgpass"}
    before = made()
    assert set(before) == set().union(*together)
    assert made() == before
    for names in together:
        for removed in names:
            (tmp_path / removed).unlink()
            after = made()
            assert {name for name in before if after[name] != before[name]} == names
            before = after


def test_an_unknown_option_is_one_line(tmp_path):
    done = script("down", settings(tmp_path), "--all")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "down: unknown option --all, expected none or --volumes\n"


def test_a_part_that_ends_stops_the_start_with_its_last_lines(tmp_path):
    """A store that refuses its folder; the other parts are stopped and no port is held."""
    environment = settings(tmp_path)
    stack = tmp_path / "local-genmod"
    stack.mkdir()
    (stack / "store").symlink_to("/proc")
    started = script("up", environment)
    assert started.returncode == 1
    assert "up: store has ended; its last lines:" in started.stderr
    assert len(started.stderr.splitlines()) <= 7
    assert not (stack / "mark").exists()
    for name in PORTS:
        socket.create_server(("127.0.0.1", int(environment[name]))).close()
