"""A group of training workers: it waits for resources; forged files in its folder do no harm."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster.resources import ResourceRequest
from cluster.world import GroupOptions, run_group
from genmod.world import World
from tests.cluster.held import held_cpus
from tests.processes import TIMEOUT_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HANG_S = 3
WAIT_S = 60
HELD_S = 4.0
"""Longer than a wait that is not reported."""


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


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture(scope="module")
def launched(ray_session, tmp_path_factory):
    """A group of one worker that started while another job held the CPUs, and was attacked while it worked.

    Text of a file and whether a process lives, which the attack names; folder of stacks; what was logged.
    """
    import ray

    folder = tmp_path_factory.mktemp("group")
    scratch, file = folder / "scratch", folder / "precious"
    started, stop, stacks = folder / "started", folder / "stop", folder / "stacks"
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
        resources=ResourceRequest("cpu", 1, 0, wait_s=WAIT_S),
        scratch=str(scratch),
        hang_timeout_s=HANG_S,
        stacks=str(stacks),
        max_failures=0,
    )
    messages = Messages()
    logging.getLogger("genmod").addHandler(messages)
    try:
        with pytest.MonkeyPatch.context() as patch, held_cpus(patch) as end_holder:
            timer = threading.Timer(HELD_S, end_holder)
            timer.start()
            run_group(make_progress, {"started": str(started), "stop": str(stop)}, options)
        attacker.join()
        is_alive = victim.poll() is None
    finally:
        logging.getLogger("genmod").removeHandler(messages)
        victim.kill()
        victim.wait()
    return SimpleNamespace(
        text=file.read_text(), is_alive=is_alive, stacks=stacks, messages=messages.texts
    )


def test_a_group_waits_for_resources_that_others_hold_and_says_so(launched):
    (text,) = [text for text in launched.messages if text.startswith("waiting ")]
    assert text == (
        f"waiting up to {WAIT_S} s for 1 CPUs: 0 of 1 workers fit now; the rest is held by tasks of other "
        "jobs"
    )


def test_a_forged_heartbeat_kills_no_process_and_deletes_no_file(launched):
    assert launched.is_alive
    assert launched.text == "precious"
    assert not launched.stacks.exists()
