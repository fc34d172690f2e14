"""Spools on disk: every record that was appended is read, whatever ended the writer."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest

from genmod import storage
from pipelines.tracking import spool as spools
from pipelines.tracking.records import EndRecord, MetricsRecord, RunRecord
from pipelines.tracking.spool import Spool, SpoolBusy, exclusive, stored_spools
from pipelines.tracking.tracker import Tracker, TrackingConfig
from tests.processes import TIMEOUT_S

RUN = RunRecord(run=1, stage="train", name="vae", fingerprint="f", params={}, inputs={}, time_ms=1)

WRITER = """
import sys
from tests.pipelines.tracking.test_spool import RUN, point
from pipelines.tracking.spool import Spool
spool = Spool(sys.argv[1])
spool.append(RUN)
for nimg in range(10**9):
    spool.append(point(nimg))
    print(nimg, flush=True)
"""


def point(nimg):
    return MetricsRecord(run=1, points=((5, nimg, {"loss": float("inf"), "a": 0.1}),))


def test_a_killed_writer_loses_no_record_that_it_has_appended(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        for _ in range(500):
            reported = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        reported = max([reported, *map(int, writer.stdout.read().split("\n")[:-1])])
    (spool,) = stored_spools(str(tmp_path))
    assert spool.is_quiet()
    first, *points = spool.records()
    assert first == RUN
    assert points[: reported + 1] == [point(nimg) for nimg in range(reported + 1)]
    assert len(points) <= reported + 2
    assert spool.unreadable == 0


@pytest.mark.parametrize("length", range(1, len(point(2).model_dump_json()) + 1))
def test_a_line_that_was_cut_off_is_skipped(tmp_path, length):
    written = Spool(str(tmp_path))
    for record in (RUN, point(1), point(2)):
        written.append(record)
    written.close(sent=False)
    (spool,) = stored_spools(str(tmp_path))
    path = spool.urls[0]
    os.truncate(path, os.path.getsize(path) - length)
    assert list(spool.records()) == [RUN, point(1)]
    assert spool.unreadable == 1


def test_a_full_disk_costs_one_line(tmp_path, monkeypatch):
    spool = Spool(str(tmp_path))
    spool.append(RUN)
    write = os.write
    monkeypatch.setattr(spools.os, "write", lambda handle, data: write(handle, data[:9]))
    with pytest.raises(OSError, match="no space left"):
        spool.append(point(1))
    monkeypatch.undo()
    spool.append(point(2))
    spool.close(sent=False)
    (stored,) = stored_spools(str(tmp_path))
    assert list(stored.records()) == [RUN, point(2)]
    assert stored.unreadable == 1


def test_a_sent_spool_leaves_nothing(tmp_path):
    spool, other = Spool(str(tmp_path)), Spool(str(tmp_path))
    for each in (spool, other):
        each.enter()
        each.append(RUN)
    spool.close(sent=True)
    assert len(stored_spools(str(tmp_path))) == 1
    assert not stored_spools(str(tmp_path))[0].is_quiet()
    other.close(sent=True)
    assert os.listdir(tmp_path) == []


def test_it_is_for_this_user_alone(tmp_path):
    spool = Spool(str(tmp_path))
    spool.enter()
    spool.append(RUN)
    folder = tmp_path / spools.SPOOL_FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    spool.close(sent=True)


def test_without_a_folder_for_it_runs_are_logged(tmp_path, caplog):
    (tmp_path / spools.SPOOL_FOLDER).write_text("a file of the user")
    tracker = Tracker(TrackingConfig(), str(tmp_path))
    run = tracker.run("train", "vae", "f", {}, {})
    run.finish()
    assert tracker.close(TIMEOUT_S)
    assert run.run_id is not None
    (record,) = [record for record in caplog.records if record.name == "genmod"]
    assert "cannot keep what is logged to MLflow" in record.message


def test_a_replay_and_commands_hold_each_other_off(tmp_path):
    spool = Spool(str(tmp_path))
    with exclusive(str(tmp_path)), pytest.raises(SpoolBusy):
        spool.enter()
    spool.enter()
    with pytest.raises(SpoolBusy), exclusive(str(tmp_path)):
        pass
    spool.close(sent=True)
    with exclusive(str(tmp_path)):
        pass
    assert os.listdir(tmp_path) == []


def test_a_remote_spool_is_objects_until_it_is_sent(s3_root):
    root = s3_root
    end = EndRecord(run=1, status="FAILED", tags={}, time_ms=2)
    spool = Spool(root)
    spool.append(RUN)
    spool.flush()
    spool.append(end)
    assert not stored_spools(root)[0].is_quiet()
    spool.close(sent=False)
    (stored,) = stored_spools(root)
    assert list(stored.records())[:2] == [RUN, end]
    assert stored.is_quiet()
    stored.remove()
    assert storage.list_names(storage.join(root, spools.SPOOL_FOLDER)) == []
