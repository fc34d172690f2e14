"""A real web server gets the outcomes of commands, whatever happens to it, and can check who sent them."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from genmod.errors import ConfigError, DataError
from pipelines.cli import main
from pipelines.commands.outcome import reported
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import load_recipe
from pipelines.tracking import webhook as webhooks
from pipelines.tracking.spool import stored_spools
from pipelines.tracking.webhook import WebhookConfig, deliver

SECRET = "pl4nted-signing-key"
VARIABLE = "GENMOD_TEST_SECRET"

RESULT = {
    "stage": "retrain",
    "status": "done",
    "output": "/data",
    "fingerprint": "f" * 64,
    "version": 3,
    "decisions": {"vae": {"promote": True, "reasons": ["fd: better " + "x" * 900], "more": 1}},
}


class Receiver:
    """Answers with planned statuses, then 200."""

    def __init__(self):
        self.url = ""
        self.statuses = []
        self.received = []
        """Headers and body of each request."""

    def bodies(self):
        return [json.loads(body) for _, body in self.received]


@contextmanager
def receiving():
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.received.append((dict(self.headers), body))
            status = receiver.statuses.pop(0) if receiver.statuses else 200
            if status == "trickle":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not ended.wait(0.05):
                    self.wfile.write(b"X")
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{receiver.url}/elsewhere")
            self.end_headers()

        def log_message(self, *args):
            pass

    ended = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def receiver():
    with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def _setting(monkeypatch):
    monkeypatch.setenv(VARIABLE, SECRET)
    monkeypatch.setattr(webhooks, "_BACKOFF_S", 0.01)


def config_of(receiver):
    return WebhookConfig(url=receiver.url, secret_env=VARIABLE)


def assignments(receiver, root):
    return [
        f"root={root}",
        "tracking.enabled=false",
        f"tracking.webhook={{url: '{receiver.url}', secret_env: {VARIABLE}}}",
    ]


def context_of(receiver, root):
    return Context(load_recipe("quickstart", assignments(receiver, root)), ("vae",))


def is_signed(headers, body):
    """As a receiver in another language would check it."""
    text = headers["X-Genmod-Timestamp"].encode() + b"." + body
    expected = hmac.new(SECRET.encode(), text, hashlib.sha256).hexdigest()
    return headers["X-Genmod-Signature"] == f"sha256={expected}"


def test_a_receiver_that_fails_twice_gets_one_signed_report(receiver, tmp_path):
    receiver.statuses = [500, 429]
    context = context_of(receiver, tmp_path)
    assert reported(context, "retrain", lambda: RESULT) is RESULT
    context.close()
    assert len(receiver.received) == 3
    assert len({headers["X-Genmod-Delivery"] for headers, _ in receiver.received}) == 1
    assert all(is_signed(*each) for each in receiver.received)
    headers, body = receiver.received[-1]
    assert not is_signed(headers, body + b" ")
    assert abs(int(headers["X-Genmod-Timestamp"]) - time.time()) < 600
    report = json.loads(body)
    assert report["delivery"] == headers["X-Genmod-Delivery"]
    assert (report["command"], report["status"], report["run"]["version"]) == ("retrain", "done", 3)
    assert report["decisions"]["vae"]["promote"] is True
    assert len(body) < 2000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [DataError("bad"), OSError("disk"), KeyboardInterrupt()])
def test_a_failure_is_reported_and_stays_the_commands_error(receiver, tmp_path, error):
    def fail():
        raise error

    context = context_of(receiver, tmp_path)
    with pytest.raises(type(error)) as caught:
        reported(context, "train", fail)
    assert caught.value is error
    context.close()
    (report,) = receiver.bodies()
    statuses = {DataError: "refused", OSError: "failed", KeyboardInterrupt: "interrupted"}
    assert report["status"] == statuses[type(error)]


def test_what_was_not_accepted_is_sent_by_a_replay_once(receiver, tmp_path, caplog, capsys):
    receiver.statuses = [503] * 4
    context = context_of(receiver, tmp_path)
    with caplog.at_level(logging.WARNING, "genmod"):
        assert reported(context, "retrain", lambda: RESULT) is RESULT
        context.close()
    assert "status 503" in caplog.text
    assert len(receiver.received) == 4
    (spool,) = stored_spools(str(tmp_path))
    assert SECRET not in "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    words = ["replay", "--recipe", "quickstart"]
    for each in assignments(receiver, tmp_path):
        words += ["--set", each]
    receiver.statuses = [503] * 4
    assert main(words) == 1
    assert "does not accept a report (status 503)" in capsys.readouterr().err
    assert stored_spools(str(tmp_path))[0].urls == spool.urls
    assert main(words) == 0
    assert "1 reports; 0 left" in capsys.readouterr().err
    assert receiver.bodies()[-1] == receiver.bodies()[0]
    assert is_signed(*receiver.received[-1])
    count = len(receiver.received)
    assert main(words) == 0
    assert len(receiver.received) == count


@pytest.mark.parametrize("before", [0, 490])
def test_a_planted_secret_is_in_no_body_and_no_spool(
    receiver, tmp_path, monkeypatch, caplog, before
):
    """``before``: characters in front of it, so that the report's text may end within it."""
    planted = {"AWS_SECRET_ACCESS_KEY": 'pl4nted/"aws"-key', "SERVICE_TOKEN": "pl4nted-token-0123"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    texts = [*planted.values(), "http://me:pl4nted-word@host/x", SECRET]
    long = ["x" * before + text for text in texts]
    result = RESULT | {
        "output": texts[2],
        "reason": " ".join(texts),
        "decisions": {"vae": {"promote": True, "reasons": long}},
        "champions": {"vae": {"text": long[0]}},
    }
    receiver.statuses = [503] * 8
    context = context_of(receiver, tmp_path)
    with caplog.at_level(logging.WARNING, "genmod"):
        reported(context, "retrain", lambda: result)
        for text in long:
            with pytest.raises(DataError):
                reported(context, "train", partial(_fail, text))
        context.close()
    (spool,) = tmp_path.rglob("*.jsonl")
    assert len(receiver.received) == 4 * 2 + len(long) - 1
    assert spool.read_text().count('"delivery"') >= 1 + len(long)
    for text in [spool.read_text(), caplog.text, *(body.decode() for _, body in receiver.received)]:
        assert "pl4nted" not in text
    assert "***" in receiver.bodies()[0]["run"]["reason"]


def _fail(text):
    raise DataError(text)


def test_a_redirect_is_not_followed_and_a_refusal_not_repeated(receiver):
    for status in (302, 307, 401, 404):
        receiver.statuses, receiver.received = [status], []
        assert deliver(config_of(receiver), "a" * 32, "{}") == f"status {status}"
        assert len(receiver.received) == 1


def test_an_answer_without_end_is_left_at_the_deadline(receiver):
    receiver.statuses = ["trickle"]
    start_s = time.monotonic()
    assert deliver(config_of(receiver), "a" * 32, "{}", 0.3) == "no answer in time"
    assert time.monotonic() - start_s < 60


def test_a_proxy_of_the_environment_gets_nothing(receiver, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert deliver(config_of(receiver), "a" * 32, "{}") == ""


def test_a_command_reports_how_it_ended(receiver, tmp_path, capsys):
    words = ["train", "--recipe", "quickstart", "--model", "vae"]
    for each in assignments(receiver, tmp_path):
        words += ["--set", each]
    assert main(words) == 2
    (report,) = receiver.bodies()
    assert (report["command"], report["status"]) == ("train", "refused")
    assert "no dataset" in report["error"]
    assert "no dataset" in capsys.readouterr().err


def test_a_missing_secret_is_an_error_before_any_work(receiver, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(VARIABLE)
    words = ["shard", "--recipe", "quickstart"]
    for each in assignments(receiver, tmp_path):
        words += ["--set", each]
    for more in ([], ["--dry-run"]):
        assert main([*words, *more]) == 2
        assert VARIABLE in capsys.readouterr().err
    assert receiver.received == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("ftp://host/x", VARIABLE),
        ("https://host/x?a=1", VARIABLE),
        ("https://user:pw@host/x", VARIABLE),
        ("file:///x", VARIABLE),
        ("https://host/x", "HOME"),
        ("https://host/x", "a b_SECRET"),
    ],
)
def test_other_addresses_and_variables_are_refused(url, name):
    with pytest.raises(ConfigError, match=r"tracking\.webhook"):
        load_recipe("quickstart", [f"tracking.webhook={{url: '{url}', secret_env: '{name}'}}"])
