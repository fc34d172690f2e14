"""Ctrl-C and SIGTERM end a command with one line and the exit code of shells; a second one at once."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

PROGRAM = """
import signal, subprocess, sys, time
from pipelines.cli import app, program
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs of shells
def run():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        print(child.pid, flush=True)
        time.sleep(300)
    finally:
        if sys.argv[1] == "slow":
            print("cleaning", flush=True)
            time.sleep(300)
sys.exit(program._run_guarded(app.Invocation("train", run, False, False), time.monotonic()))
"""


@pytest.fixture(params=["quick", "slow"])
def command(request):
    """A command with a process below it; a slow one takes long to clean up."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, request.param],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process, request.param
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_the_processes_below_it(command, number):
    process, kind = command
    child = psutil.Process(int(process.stdout.readline()))
    os.kill(process.pid, number)
    if kind == "slow":
        assert process.stdout.readline() == "cleaning\n"
        os.kill(process.pid, number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    (line,) = error.splitlines()
    assert line.startswith("genmod: error: interrupted")
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
