"""Which workers hang and which wait; the stack of a real process that is stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
from hypothesis import given
from hypothesis import strategies as st

from cluster.watchdog import find_hanging, stack_of


def record(rank, count, tick_s, progress_s):
    return {
        "rank": rank,
        "pid": 100 + rank,
        "count": count,
        "tick_s": tick_s,
        "progress_s": progress_s,
    }


def ranks(records):
    return [record["rank"] for record in records]


def test_a_worker_without_ticks_is_frozen_and_the_others_wait():
    records = [record(0, 7, 100, 80), record(1, 7, 80, 80), record(2, 8, 99, 80)]
    hanging, waiting = find_hanging(records, 100, 20)
    assert (ranks(hanging), ranks(waiting)) == ([1], [0, 2])
    assert find_hanging(records, 99.9, 20) == ([], [])


def test_of_workers_without_progress_the_lowest_count_hangs():
    records = [record(0, 9, 100, 75), record(1, 8, 100, 70), record(2, 9, 100, 71)]
    hanging, waiting = find_hanging(records, 100, 25)
    assert (ranks(hanging), ranks(waiting)) == ([1], [0, 2])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 200))
def test_none_hangs_while_one_makes_progress(counts, hang_timeout_s):
    records = [record(rank, count, 1000, 0) for rank, count in enumerate(counts)]
    records[0]["progress_s"] = 1000
    assert find_hanging(records, 1000 + min(hang_timeout_s, 80) - 1, hang_timeout_s) == ([], [])


HUNG = """
import faulthandler, json, os, signal, sys, tempfile, time
handle, stack = tempfile.mkstemp(dir=sys.argv[1])
faulthandler.register(signal.SIGUSR1, file=handle, all_threads=True)
print(json.dumps({"pid": os.getpid(), "stack": stack}), flush=True)
def a_function_that_hangs():
    time.sleep(1000)
a_function_that_hangs()
"""


def test_a_stopped_process_writes_its_stack_and_is_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HUNG, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        heartbeat = json.loads(process.stdout.readline())
        heartbeat["born_s"] = psutil.Process(process.pid).create_time()
        assert stack_of(heartbeat | {"born_s": heartbeat["born_s"] - 5}, kill=True) is None, (
            "another process"
        )
        deadline_s = time.monotonic() + 120
        while "a_function_that_hangs" not in (stack_of(heartbeat, kill=False) or ""):
            assert time.monotonic() < deadline_s
        os.kill(process.pid, signal.SIGSTOP)
        assert "a_function_that_hangs" in stack_of(heartbeat, kill=True)
        assert process.wait(60) == -signal.SIGKILL
        assert stack_of(heartbeat, kill=True) is None
    finally:
        process.kill()
        process.wait()
