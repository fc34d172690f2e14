"""Files that others write into the folder of a launch end no process and reach no other file."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.resources import ResourceRequest
from cluster.world import GroupOptions, run_group
from genmod.world import World
from tests.processes import TIMEOUT_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HANG_S = 3


def make_progress(world: World, values: dict[str, Any]) -> None:
    """Work of a rank: until a file exists."""
    Path(values["started"]).touch()
    while not Path(values["stop"]).exists():
        world.heartbeat.mark("test")
        time.sleep(0.1)


def forge(scratch: Path, node: str, victim: subprocess.Popen[bytes], file: Path) -> None:
    """Write what looks like the heartbeat of a hung worker wherever one may be read."""
    record = {
        **{"rank": 9, "pid": victim.pid, "born_s": psutil.Process(victim.pid).create_time()},
        **{"node": node, "stack": str(file), "tick": 0, "count": 0, "at": "data"},
    }
    for folder in (scratch, scratch / "heartbeats", *scratch.glob("group-*")):
        folder.mkdir(exist_ok=True)
        (folder / "000009.json").write_text(json.dumps(record))


def test_a_forged_heartbeat_kills_no_process_and_deletes_no_file(ray_session, tmp_path):
    import ray

    scratch, file = tmp_path / "scratch", tmp_path / "precious"
    started, stop, stacks = tmp_path / "started", tmp_path / "stop", tmp_path / "stacks"
    file.write_text("precious")
    scratch.mkdir()
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10_000)"])
    node = ray.get_runtime_context().get_node_id()

    def attack() -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not started.exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        forge(scratch, node, victim, file)
        time.sleep(5 * HANG_S)  # the watchdog looks every HANG_S / 6
        stop.touch()

    attacker = threading.Thread(target=attack)
    attacker.start()
    options = GroupOptions(
        workers=1,
        resources=ResourceRequest("cpu", 1, 0),
        scratch=str(scratch),
        hang_timeout_s=HANG_S,
        stacks=str(stacks),
        max_failures=0,
    )
    try:
        run_group(make_progress, {"started": str(started), "stop": str(stop)}, options)
        attacker.join()
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    assert file.read_text() == "precious"
    assert not stacks.exists()
