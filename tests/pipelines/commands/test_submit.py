"""``genmod submit`` to a server that is no Ray cluster, and what a job's log can do here: nothing."""

import json
import subprocess
import sys

import pytest

from pipelines.cli import main
from pipelines.commands.submit import _LAST_LINE_CHARS, _job_result, _Tail
from tests.web_server import web_server


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"<html>not here</html>"),
        (200, b"<html>hello</html>"),
        (500, b"\x1b]0;title\x07"),
        (200, b'{"a": [1]}'),
        (200, b"[]"),
        (200, b"null"),
        (418, b'{"a'),
    ],
)
def test_a_server_that_is_no_ray_cluster(status, body, capsys):
    with web_server(status, body) as url:
        assert main(["submit", "--status", "x", "--address", url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("genmod: error: ")
    assert "check --address" in line
    assert line.isprintable()


STATUS_PROGRAM = """
import sys
from pipelines.cli import main
code = main(["submit", "--status", "genmod-train-1", "--json", "--address", sys.argv[1]])
assert not {"ray", "torch", "mlflow", "aiohttp"} & set(sys.modules)
sys.exit(code)
"""


def test_the_status_of_a_job_needs_no_ray():
    job = {
        "submission_id": "genmod-train-1", "job_id": None, "status": "FAILED",
        "message": "exit code 1\nmore", "driver_exit_code": 1,
    }  # fmt: skip
    with web_server(200, json.dumps(job).encode()) as url:
        done = subprocess.run(
            [sys.executable, "-c", STATUS_PROGRAM, url],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["job"], result["status"]) == ("genmod-train-1", "failed")
    assert result["message"] == "exit code 1"
    assert done.stderr == "genmod: genmod-train-1: FAILED exit code 1\n"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b"Job x does not exist", "has no job 'x'"),
        (401, b"Unauthorized", "refuses this token"),
        (302, b"", "not as a Ray job server (HTTP 302)"),
    ],
)
def test_what_a_job_server_refuses_is_one_line(status, body, words, capsys):
    with web_server(status, body) as url:
        assert main(["submit", "--status", "x", "--address", url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    "address",
    ["http://user:hunter2@host:8265", "http://host:8265/?token=hunter2", "ftp://host", "a::b"],
)
def test_addresses_of_job_servers_are_checked(address, capsys):
    assert main(["submit", "--status", "x", "--address", address]) == 2
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "", "no json", "[1]", "3", "{" * 10_000, '{"a": NaN}', '{"a": 1e999}', '{"a": "\udc9b"',
        '{"a": "' + "x" * (5 * _LAST_LINE_CHARS) + '"}',
    ],
    ids=range(9),
)  # fmt: skip
def test_a_last_line_that_is_no_result(line):
    assert _job_result(line) == {"status": "done"}


def test_a_log_is_shown_escaped_and_its_result_read_in_full(capsys):
    tail = _Tail()
    result = {"status": "done", "note": "\x1b[2J", "long": "y" * 10_000}
    for part in (
        "loss 3\rgenmod: done\n\x1b]52;c;cm0=\x07\n",
        json.dumps(result)[:50],
        json.dumps(result)[50:],
    ):
        tail.write(part)
    assert _job_result(tail.last_line) == result
    err = capsys.readouterr().err
    assert [char for char in err if not char.isprintable() and char != "\n"] == []
    assert err.splitlines()[0] == "loss 3\\rgenmod: done"


def test_a_line_without_end_takes_no_memory(capsys):
    tail = _Tail()
    for _ in range(40):
        tail.write("x" * 100_000)
    assert len(tail.last_line) <= _LAST_LINE_CHARS + 100_001
    tail.write('\n{"status": "done"}\n')
    assert tail.last_line == '{"status": "done"}'
