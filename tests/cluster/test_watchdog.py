"""Who hangs and who waits; the stack of a real process that is stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
from hypothesis import given
from hypothesis import strategies as st

from cluster.watchdog import choose, stack_of


def beat(rank, count, beat_s, moved_s):
    return {"rank": rank, "pid": 100 + rank, "count": count, "beat_s": beat_s, "moved_s": moved_s}


def ranks(beats):
    return [beat["rank"] for beat in beats]


def test_who_does_not_beat_is_frozen_and_the_others_wait():
    beats = [beat(0, 7, 100, 80), beat(1, 7, 80, 80), beat(2, 8, 99, 80)]
    late, others = choose(beats, 100, 20)
    assert (ranks(late), ranks(others)) == ([1], [0, 2])
    assert choose(beats, 99.9, 20) == ([], [])


def test_among_those_that_beat_the_furthest_behind_hangs():
    beats = [beat(0, 9, 100, 75), beat(1, 8, 100, 70), beat(2, 9, 100, 71)]
    late, others = choose(beats, 100, 25)
    assert (ranks(late), ranks(others)) == ([1], [0, 2])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 200))
def test_nobody_hangs_while_one_comes_further(counts, hang_timeout_s):
    beats = [beat(rank, count, 1000, 0) for rank, count in enumerate(counts)]
    beats[0]["moved_s"] = 1000
    assert choose(beats, 1000 + min(hang_timeout_s, 80) - 1, hang_timeout_s) == ([], [])


HUNG = """
import faulthandler, json, os, signal, sys, tempfile, time
handle, stack = tempfile.mkstemp(dir=sys.argv[1])
faulthandler.register(signal.SIGUSR1, file=handle, all_threads=True)
print(json.dumps({"pid": os.getpid(), "stack": stack}), flush=True)
def a_function_that_hangs():
    time.sleep(1000)
a_function_that_hangs()
"""


def test_a_stopped_process_gives_its_stack_and_ends(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HUNG, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        told = json.loads(process.stdout.readline())
        told["born_s"] = psutil.Process(process.pid).create_time()
        assert stack_of(told | {"born_s": told["born_s"] - 5}, end=True) is None, "another process"
        deadline_s = time.monotonic() + 120
        while "a_function_that_hangs" not in (stack_of(told, end=False) or ""):
            assert time.monotonic() < deadline_s
        os.kill(process.pid, signal.SIGSTOP)
        assert "a_function_that_hangs" in stack_of(told, end=True)
        assert process.wait(60) == -signal.SIGKILL
        assert stack_of(told, end=True) is None
    finally:
        process.kill()
        process.wait()
