"""Which workers hang and which wait; the stack of a real process that is stopped; broken heartbeats."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import compat
from cluster.heartbeats import HeartbeatCounts, WorkerProcess, read_heartbeats
from cluster.watchdog import Watchdog, WorkerRecord, find_hanging, stack_of
from genmod.config import canonical_json


def record(rank, count, tick_s, progress_s):
    process = WorkerProcess(node="ab", pid=100 + rank, born_s=0, stack="/none")
    counts = HeartbeatCounts(tick=0, count=count, at="start")
    return WorkerRecord(rank, process, counts, tick_s, progress_s)


def ranks(records):
    return [record.rank for record in records]


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
    first, *rest = enumerate(counts)
    records = [record(*first, 1000, 1000), *(record(*one, 1000, 0) for one in rest)]
    assert find_hanging(records, 1000 + min(hang_timeout_s, 80) - 1, hang_timeout_s) == ([], [])


def test_times_start_again_for_a_new_process():
    old = record(0, 5, 10, 10)
    counts = old.counts.model_copy(update={"tick": 1})
    newer = old.updated(old.process, counts, 20)
    assert (newer.tick_s, newer.progress_s) == (20, 10)
    replaced = newer.updated(old.process.model_copy(update={"pid": 7}), counts, 30)
    assert (replaced.tick_s, replaced.progress_s) == (30, 30)


HUNG = """
import os, sys, time
from cluster.heartbeats import stack_file
def a_function_that_hangs():
    time.sleep(1000)
with stack_file(sys.argv[1]) as path:
    print(path, flush=True)
    a_function_that_hangs()
"""


@pytest.fixture
def hung(tmp_path):
    """A process that hangs, and what it would register."""
    process = subprocess.Popen(
        [sys.executable, "-c", HUNG, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    stack = process.stdout.readline().strip()
    born_s = psutil.Process(process.pid).create_time()
    yield process, WorkerProcess(node="ab", pid=process.pid, born_s=born_s, stack=stack)
    process.kill()
    process.communicate()


def test_a_stopped_process_writes_its_stack_and_is_killed(hung):
    process, worker = hung
    folder = Path(worker.stack).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    other = worker.model_copy(update={"born_s": worker.born_s - 5})
    assert stack_of(other, kill=True) is None, "another process"
    deadline_s = time.monotonic() + 120
    while "a_function_that_hangs" not in (stack_of(worker, kill=False) or ""):
        assert time.monotonic() < deadline_s
    os.kill(process.pid, signal.SIGSTOP)
    assert "a_function_that_hangs" in (stack_of(worker, kill=True) or "")
    assert process.wait(60) == -signal.SIGKILL
    assert stack_of(worker, kill=True) is None
    assert not folder.exists()


def test_a_stack_is_read_from_a_regular_file_alone(hung, tmp_path):
    _, worker = hung
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.write_text("a secret")
    link.symlink_to(secret)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="symbolic links"):
        stack_of(worker.model_copy(update={"stack": str(link)}), kill=False)
    pipe = worker.model_copy(update={"stack": str(tmp_path / "pipe")})
    assert stack_of(pipe, kill=False) == "it wrote no stack in time"


BROKEN = {
    "000001/heartbeat": b"{}",
    "000002/heartbeat": b"\xff" * 10,
    "000003/heartbeat": b"[" * 4000,
    "000004/heartbeat": b" " * 100_000,
    "000005/heartbeat": b'{"tick": 1e400, "count": 0, "at": ""}',
    "000006/heartbeat": json.dumps({"tick": 0, "count": 0, "at": "\n" * 200}).encode(),
    "000007/process": b'{"node": "../", "pid": 1, "born_s": 0, "stack": ""}',
    "000008/process": b'{"node": "ab", "pid": -1, "born_s": 0, "stack": "/etc/passwd"}',
    "x/heartbeat": b"{}",
}


@pytest.mark.ray
def test_broken_heartbeats_are_reported_once_and_the_watchdog_lives_on(
    ray_session, hung, tmp_path, caplog
):
    import ray

    process, worker = hung
    worker = worker.model_copy(update={"node": ray.get_runtime_context().get_node_id()})
    good = {
        "process": canonical_json(worker.model_dump()),
        "heartbeat": canonical_json({"tick": 0, "count": 0, "at": "data\x1b[2J"}),
    }
    for rank in range(9):
        for kind, value in good.items():
            compat.put_value(f"broken/{rank:06d}/{kind}", value)
    for key, value in BROKEN.items():
        compat.put_value(f"broken/{key}", value)
    watchdog = Watchdog("broken", hang_timeout_s=3, stacks=str(tmp_path / "stacks"))
    with watchdog:
        assert process.wait(120) == -signal.SIGKILL
        deadline_s = time.monotonic() + 60
        while not watchdog.hangs:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    (hang,) = watchdog.hangs
    assert f"rank 0 (process {process.pid} on node" in hang
    assert hang.isprintable()
    (stack,) = (tmp_path / "stacks").iterdir()
    assert "a_function_that_hangs" in stack.read_text()
    messages = [record.getMessage() for record in caplog.records]
    lines = [line for line in messages if "the group is restarted" not in line]
    assert len(lines) == len(set(lines)) == len(BROKEN), lines
    assert all(line.isprintable() for line in lines)
    assert compat.read_values("broken/") == {}


@pytest.mark.ray
def test_ranks_of_a_larger_group_are_left_out_after_it_shrank(ray_session):
    def beat(rank, size):
        worker = WorkerProcess(node="ab", pid=100 + rank, born_s=0, stack="/none")
        counts = HeartbeatCounts(size=size, tick=0, count=0, at="data")
        compat.put_value(f"shrunk/{rank:06d}/process", canonical_json(worker.model_dump()))
        compat.put_value(f"shrunk/{rank:06d}/heartbeat", canonical_json(counts.model_dump()))

    try:
        for rank in range(3):
            beat(rank, 3)
        assert sorted(read_heartbeats("shrunk", pytest.fail)) == [0, 1, 2]
        beat(0, 1)  # ranks 1 and 2 were lost with their node
        assert sorted(read_heartbeats("shrunk", pytest.fail)) == [0]
        beat(0, 2)
        beat(1, 2)
        assert sorted(read_heartbeats("shrunk", pytest.fail)) == [0, 1]
    finally:
        compat.delete_values("shrunk/")
