"""Ctrl-C at work, in each stage of a run: one line, the exit code of shells, and no process is left.

The next command resumes, so the stages that were interrupted are done in the end.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.pipelines.test_remote import write_recipe
from tests.processes import TIMEOUT_S, kill_marked

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MARK = "GENMOD_TEST_INTERRUPTED"
STAGES = {
    "shard": "  shard: 0/",
    "train": "  train ",
    "sample": "  sample ",
    "score": "  score ",
    "evaluate": "  evaluate: ",
}
"""How the first line of progress of each stage starts, which is written while its workers run."""

RUN = """
import signal, sys
from pipelines.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
"""Shells ignore SIGINT in background jobs, and Python then does too."""


@pytest.fixture
def folder():
    """A short name: Ray keeps sockets below it."""
    folder = Path(tempfile.mkdtemp(prefix="gmint-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def marked(mark):
    """Command lines of the processes with the mark in their environment."""
    entry_bytes, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if entry_bytes in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" "))
    return found


def test_ctrl_c_at_work_leaves_no_process(folder):
    interrupt(folder, "shard", ["shard"])
    assert (folder / "root" / "data" / "dataset.json").exists()


@pytest.mark.long
def test_ctrl_c_in_each_stage_leaves_no_process(folder):
    interrupt(folder, "run", list(STAGES))
    assert (folder / "root" / "report" / "report.html").exists()


def interrupt(folder, command, stages):
    """Run a command, press Ctrl-C in each of these stages, and run it to its end."""
    recipe, mark = write_recipe(folder, str(folder / "root")), secrets.token_hex(8)
    environment = os.environ | {MARK: mark, "RAY_TMPDIR": str(folder)}
    environment.pop("RAY_ADDRESS", None)
    words = [sys.executable, "-c", RUN, command, "--recipe", recipe]
    try:
        for stage in stages:
            process = subprocess.Popen(
                words, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
            )
            said = []
            for text in process.stderr:
                said.append(text)
                if text.startswith(STAGES[stage]) and process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    break
            rest = process.stderr.read()
            assert process.wait(TIMEOUT_S) == 128 + signal.SIGINT, "".join([*said, rest])
            errors = [text for text in rest.splitlines() if text.startswith("genmod: error:")]
            assert len(errors) == 1, rest
            assert "interrupted" in errors[0], stage
            deadline_s = time.monotonic() + 60
            while left := marked(mark):
                assert time.monotonic() < deadline_s, (stage, left)
                time.sleep(0.2)
            assert not list(folder.glob("genmod-ray-*")), stage
        done = subprocess.run(
            words, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    finally:
        kill_marked(MARK, mark)
