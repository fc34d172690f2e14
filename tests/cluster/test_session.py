"""A local Ray that was not ready in Ray's time is started once more."""

import json
import subprocess
import sys
import textwrap

import pytest

START = """
    import json, subprocess, sys
    import psutil, ray
    from cluster.session import ClusterConfig, connect
    from genmod.errors import GenmodError

    folders, started = [], []

    def init(**options):
        folders.append(options["_temp_dir"])
        started.append(subprocess.Popen(["sleep", "100"]).pid)
        if len(folders) <= int(sys.argv[1]):
            raise Exception(sys.argv[2])

    ray.init = init
    own = subprocess.Popen(["sleep", "100"])
    try:
        connect(ClusterConfig(address="local"))
        error = ""
    except GenmodError as raised:
        error = str(raised)
    alive = [psutil.pid_exists(pid) for pid in started]
    print(json.dumps([len(set(folders)), alive, own.poll() is None, error]))
    own.kill()
    for process in psutil.Process().children():
        process.kill()
"""

TIMED_OUT = "The current node timed out during startup."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failures", "reason", "starts", "alive", "says"),
    [
        (1, TIMED_OUT, 2, [False, True], ""),
        (2, TIMED_OUT, 2, [False, True], f"({TIMED_OUT}); check the free memory"),
        (1, "no space", 1, [True], "(no space); check the free memory"),
    ],
)
def test_a_slow_start_is_repeated_once(failures, reason, starts, alive, says):
    words = [sys.executable, "-c", textwrap.dedent(START), str(failures), reason]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    folders, is_alive, is_own_alive, error = json.loads(done.stdout.splitlines()[-1])
    assert (folders, is_alive, is_own_alive) == (starts, alive, True)
    assert says in error
    assert bool(error) == bool(says)
    assert ("starting it once more" in done.stderr) == (reason == TIMED_OUT)
