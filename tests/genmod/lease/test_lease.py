"""One works at a time: many at once, a killed holder, a frozen one, one that freezes while it publishes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from genmod import storage
from genmod.errors import DataError
from genmod.lease import Busy, LeaseHolder, LeaseLost, acquire
from genmod.lease import lease as leases
from genmod.lease.entries import LeaseEntry, LeaseLog
from tests.genmod.lease.workers import MANY, Worker
from tests.processes import TIMEOUT_S

LEASE_S = 1.5
SLACK_S = 20.0
"""For starting a process on a busy machine."""


@pytest.fixture(params=["files", pytest.param("s3", marks=pytest.mark.slow)])
def root(request, tmp_path):
    if request.param == "files":
        return str(tmp_path / "root")
    return request.getfixturevalue("s3_root")


@pytest.fixture
def start(root):
    """Starts workers, which are killed at the end."""
    workers = []

    def started(**options):
        workers.append(Worker(root, LEASE_S, **options))
        return workers[-1]

    yield started
    for worker in workers:
        worker.kill()


def test_of_sixty_started_at_once_one_works(root):
    many = subprocess.Popen(
        [sys.executable, "-c", MANY, root, "10", "60"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    try:
        lines = [many.stdout.readline().split() for _ in range(60)]
        many.stdin.write("end\n")
        many.stdin.flush()
        assert many.wait(TIMEOUT_S) == 0
    finally:
        many.kill()
        many.communicate()
    (worker,) = [line for line in lines if line[0] == "took"]
    assert worker[1] == "1"
    assert [line for line in lines if line[0] == "busy"] == [["busy", "1", worker[2]]] * 59


def test_the_next_one_works_when_the_first_has_ended(start):
    first = start()
    assert first.answer() == "took 1"
    second = start()
    assert second.answer() == f"busy 1 {first.process.pid} step 3 of 9"
    assert second.process.wait(TIMEOUT_S) == 0
    assert first.ask("create a.json") == "created True"
    assert first.ask("create a.json") == "created False"
    assert first.ask("end") == "ended"
    third = start()
    assert third.answer() == "took 5", "after acquired, published, published, released"
    assert third.ask("create a.json") == "created False"


def test_a_killed_holder_of_another_machine_is_replaced_within_twice_the_lease(start):
    first = start(machine="another")
    assert first.answer() == "took 1"
    first.kill()
    start_s = time.monotonic()
    second = start()
    assert second.answer() == "took 2"
    assert LEASE_S <= time.monotonic() - start_s < 2 * LEASE_S + SLACK_S


@pytest.mark.parametrize("lease_s", [1.0, 60.0, 600.0])
@pytest.mark.parametrize("answer_share", [0.0, 0.1])
def test_the_lease_of_a_killed_holder_is_taken_after_it_and_within_twice_its_time(
    tmp_path, monkeypatch, lease_s, answer_share
):
    """On a clock on which only pauses, and answers of the store, take time.

    ``answer_share``: time of a look at the log, as a share of the lease.
    """
    root, clock_s = str(tmp_path), [1e6]

    def pause(seconds):
        clock_s[0] += seconds

    def now():
        pause(answer_share * lease_s)
        return clock_s[0]

    log = LeaseLog(storage.join(root, "leases", "work"))
    assert log.append(1, forged(lease_s=lease_s))  # and no heartbeat follows
    monkeypatch.setattr(leases, "time", SimpleNamespace(sleep=pause))
    with acquire(root, "work", lease_s, now=now) as lease:
        assert lease.number == 2
        assert lease_s <= clock_s[0] - 1e6 < 2 * lease_s


def test_a_killed_holder_of_this_machine_is_replaced_at_once(tmp_path):
    worker = Worker(str(tmp_path), lease_s=3600)
    assert worker.answer() == "took 1"
    worker.kill()
    with acquire(str(tmp_path), "work", 3600) as lease:
        assert lease.number == 2


def test_a_frozen_holder_publishes_nothing_after_it_wakes_up(start, root):
    first = start()
    assert first.answer() == "took 1"
    assert first.ask("create before.json") == "created True"
    first.signal(signal.SIGSTOP)
    second = start()
    assert second.answer() == "took 3"
    first.send("create after.json")
    first.signal(signal.SIGCONT)
    answer = first.answer()
    assert answer.startswith("lost ")
    assert f"pid {second.process.pid}" in answer
    assert "nothing more was published" in answer
    assert not storage.exists(storage.join(root, "after.json"))
    assert first.ask("check").startswith("lost ")
    assert second.ask("create after.json") == "created True"
    assert storage.read_bytes(storage.join(root, "after.json")) == b"by 3"
    assert first.ask("end") == "ended"
    assert second.ask("check") == "held"


def test_a_file_outside_the_root_is_written_while_the_lease_is_held(tmp_path):
    root, url = str(tmp_path / "root"), str(tmp_path / "ledger" / "a.json")
    with acquire(root, "work", 3600) as lease:
        assert lease.create(url, b"1")
        log = LeaseLog(storage.join(root, "leases", "work"))
        assert log.append(2, forged(number=2))
        with pytest.raises(LeaseLost):
            lease.create(str(tmp_path / "ledger" / "b.json"), b"2")
    assert [path.name for path in (tmp_path / "ledger").iterdir()] == ["a.json"]


def test_a_frozen_holder_notices_by_itself(start):
    first = start()
    assert first.answer() == "took 1"
    first.signal(signal.SIGSTOP)
    assert start().answer() == "took 2"
    first.signal(signal.SIGCONT)
    assert first.ask("wait") == "noticed True True"


def test_what_a_holder_had_decided_before_it_froze_is_published_by_the_next_one(start, root):
    first = start(stop_after=True)
    assert first.answer() == "took 1"
    first.send("create decision.json")
    assert first.answer() == "stopped"
    assert not storage.exists(storage.join(root, "decision.json"))
    second = start()
    assert second.answer() == "took 3"
    assert storage.read_bytes(storage.join(root, "decision.json")) == b"by 1"
    first.signal(signal.SIGCONT)
    assert first.answer() == "created False"
    assert first.ask("create other.json").startswith("lost ")
    assert not storage.exists(storage.join(root, "other.json"))


def test_it_is_announced_when_a_holder_shows_no_sign_of_life(tmp_path):
    worker = Worker(str(tmp_path), lease_s=LEASE_S)
    try:
        assert worker.answer() == "took 1"
        worker.signal(signal.SIGSTOP)
        said = []
        lease = acquire(str(tmp_path), "work", 1, on_wait=lambda *words: said.append(words))
        assert lease.number == 2
        lease.release()
        ((holder, wait_s),) = said
        assert holder.pid == worker.process.pid
        assert 0 < wait_s <= LEASE_S * 2 / 3
    finally:
        worker.kill()


def forged(**changes):
    holder = LeaseHolder(user="eve", host="x", pid=1, since="now")
    entry = LeaseEntry(kind="acquired", number=1, holder=holder, lease_s=1)
    return entry.model_copy(update=changes)


def test_a_forged_log_is_an_error_and_nothing_is_written_elsewhere(tmp_path):
    root = str(tmp_path / "root")
    log = LeaseLog(storage.join(root, "leases", "work"))
    bad = forged().model_dump(mode="json")
    for change in (
        {"path": "../../out.json", "kind": "published"},
        {"path": "/etc/out.json", "kind": "published"},
        {"kind": "published"},
        {"path": "a"},
        {"lease_s": 1e9},
        {"lease_s": float("1e-400")},
        {"number": 2},
        {"command": "rm"},
    ):
        storage.write_bytes(
            storage.join(log.folder, "log", "00000001.json"),
            json.dumps({**bad, **change}).encode(),
        )
        with pytest.raises(DataError) as caught:
            acquire(root, "work", 1)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    storage.write_bytes(storage.join(log.folder, "log", "99999999.json"), b"{}")
    with pytest.raises(DataError, match="remove it"):
        acquire(root, "work", 1)


def test_a_forged_holder_is_only_waited_for(tmp_path):
    """Its process is not signalled, and its link to a file outside is not followed."""
    root = str(tmp_path / "root")
    log = LeaseLog(storage.join(root, "leases", "work"))
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        holder = forged().holder.model_copy(update={"pid": bystander.pid})
        assert log.append(1, forged(holder=holder))
        start_s = time.monotonic()
        lease = acquire(root, "work", 1)
        assert not isinstance(lease, Busy)
        lease.release()
        assert time.monotonic() - start_s >= 1
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n")
