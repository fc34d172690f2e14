"""Credentials of the environment reach neither MLflow, nor logs, nor spools."""

from __future__ import annotations

import base64
import logging
import socket
from pathlib import Path

import pytest

from pipelines.tracking.redact import REDACTED, redact
from pipelines.tracking.tracker import Tracker, TrackingConfig
from tests.processes import TIMEOUT_S

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": 'pl4nted/"aws"',
    "MLFLOW_TRACKING_PASSWORD": "pl4nted-password",
    "HTTPS_PROXY": "http://someone:pl4nted-proxy@proxy.example:3128",
    "SERVICE_API_KEY": "pl4nted-api-key",
}
SECRETS = [*list(PLANTED.values())[:2], "pl4nted-proxy", "pl4nted-api-key"]


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")


def log_secrets(tracker, caplog):
    """Log secrets wherever a stage could."""
    url = "http://pl4nted-user:pl4nted-word@host/x"
    text = " ".join([*SECRETS, url])
    with caplog.at_level(logging.WARNING, "genmod"):
        params = {"text": text, "list": SECRETS, "nested": {"url": url}}
        run = tracker.run("train", "vae", "f", params, {"data": (url, "ab" * 32)})
        run.submit(lambda run_id: tracker.store.upload_text(run_id, text, "recipe.yaml", ""))

        def fail(run_id):
            raise ValueError(f"the server says {text}")

        run.submit(fail)
        run.finish("FAILED", {"digest": text})


def leaks(folder, caplog):
    """Files and log lines with a secret."""
    found = [str(p) for p in folder.rglob("*") if p.is_file() and b"pl4nted" in p.read_bytes()]
    return found + [line for line in caplog.text.splitlines() if "pl4nted" in line]


def test_no_secret_reaches_the_database_the_artifacts_or_the_log(tmp_path, caplog):
    tracker = Tracker(TrackingConfig(), str(tmp_path))
    log_secrets(tracker, caplog)
    assert tracker.close(TIMEOUT_S)
    assert "the server says" in caplog.text
    (recipe,) = tmp_path.rglob("recipe.yaml")
    assert recipe.read_text().count(REDACTED) == len(SECRETS) + 1
    assert len(list(tmp_path.rglob("*.jsonl"))) == 1
    assert leaks(tmp_path, caplog) == []


def test_no_secret_reaches_the_spool(tmp_path, caplog):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        tracker = Tracker(TrackingConfig(uri=uri), str(tmp_path))
        log_secrets(tracker, caplog)
        assert not tracker.close(0.2)
    (spool,) = tmp_path.rglob("*.jsonl")
    assert spool.read_text().count(REDACTED) >= 3 * len(SECRETS)
    assert leaks(tmp_path, caplog) == []


def test_what_is_no_secret_stays(monkeypatch):
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    for text in ("abc", "http://tracking.example:5000", "me@host", "s3://bucket/a@b", str(Path())):
        assert redact(text) == text
    pair = base64.b64encode(b"me:pl4nted-password").decode()
    assert redact(f"Basic {pair}") == f"Basic {REDACTED}"
