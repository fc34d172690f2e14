"""``genmod schedule`` as processes: several on one store, kills, signals, ``--once``; and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from genmod import storage
from genmod.errors import StorageError
from pipelines.cli import main
from pipelines.commands.schedule import ScheduleRequest, run_once
from pipelines.commands.scheduler import TickRun
from tests.processes import TIMEOUT_S
from tests.stores.proxy import Fault

RECIPE = """
root: {root}
data: {{source: "folder:images"}}
model: {{vae: {{family: vae}}}}
schedule: {{cron: "* * * * *", lease_s: 2, catch_up: all}}
"""
ROOT = Path(__file__).parents[3]

FAST = """
import os, sys, time
from datetime import timedelta
from pipelines.commands import schedule, scheduler
class Fast(scheduler.SystemClock):  # one minute a second
    def __init__(self):
        self.base, self.start = super().now(), float(sys.argv[3])
        self.base += timedelta(seconds=self.start - self.base.timestamp())
    def now(self):
        return self.base + 60 * timedelta(seconds=time.time() - self.start)
    def sleep(self, seconds):
        time.sleep(min(seconds, 30) / 60)
def run(name):
    with open(sys.argv[2], "a") as log:
        log.write(name + chr(10))
    time.sleep(0.2)
    return scheduler.TickRun(0, "done")
request = schedule.ScheduleRequest(sys.argv[1], (), (), ())
clock = Fast()
one = schedule._scheduler(request, clock, run)
print("ready", flush=True)
while True:
    wake = one.step()
    while clock.now() < wake:
        clock.sleep((wake - clock.now()).total_seconds())
"""
"""Without the validation of the whole recipe, which imports torch."""

CHILD = """#!{python}
import os, signal, sys, time
def end(number, frame):
    time.sleep(0.5)
    open("{folder}/ended", "w").write(str(number))
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
open("{folder}/started", "w").write(" ".join(sys.argv[1:]))
time.sleep(600)
"""
"""Stands for the Python that runs ``genmod retrain``, since training takes long."""

COMMAND = """
import sys, time
from pipelines.cli import program
from pipelines.cli.invocation import Invocation
from pipelines.commands import schedule
schedule.sys = type("sys", (), {"executable": sys.argv[2], "stdout": sys.stdout})
request = schedule.ScheduleRequest(sys.argv[1], ("seed=3",), (), ("vae",))
invocation = Invocation("schedule", lambda: schedule.run_once(request), True, False)
sys.exit(program._run_guarded(invocation, time.monotonic()))
"""


def write_recipe(folder, root):
    path = folder / "my.yaml"
    path.write_text(RECIPE.format(root=root))
    return str(path)


def wait_for(condition):
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.mark.parametrize("where", ["files", pytest.param("s3", marks=pytest.mark.slow)])
def test_three_schedulers_under_kills_run_each_tick_once(where, request, tmp_path):
    root = str(tmp_path / "root") if where == "files" else request.getfixturevalue("s3_root")
    recipe, log = write_recipe(tmp_path, root), tmp_path / "log"
    words = [sys.executable, "-c", FAST, recipe, str(log), str(time.time())]

    def start():
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout.readline() == "ready\n"
        return process

    processes = [start() for _ in range(3)]
    runs = lambda: log.read_text().split() if log.exists() else []
    try:
        for number in range(3):
            wait_for(lambda number=number: len(runs()) >= 4 * number + 3)
            processes[number].kill()
            processes[number].wait()
            processes[number] = start()
        wait_for(lambda: len(runs()) >= 16)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    names = runs()
    (folder,) = storage.list_names(storage.join(root, "schedule"))
    base = storage.join(root, "schedule", folder)
    ticks = [name.removesuffix(".json") for name in storage.list_names(storage.join(base, "ticks"))]
    minutes = [int(name[9:11]) * 60 + int(name[11:13]) for name in ticks]
    assert [(b - a) % 1440 for a, b in pairwise(minutes)] == [1] * (len(minutes) - 1), (
        "no tick is missing"
    )
    again = len(names) - len(set(names))
    assert again <= 4, "only a tick whose scheduler was killed runs again"
    assert set(names) <= set(ticks)
    outcomes = storage.list_names(storage.join(base, "outcomes"))
    records = [
        json.loads(storage.read_bytes(storage.join(base, "outcomes", name))) for name in outcomes
    ]
    finished = [
        n.removesuffix(".json")
        for n, r in zip(outcomes, records, strict=True)
        if r["state"] == "finished"
    ]
    assert len(finished) >= 12
    assert set(finished) <= set(names)
    skipped = {n.removesuffix(".json") for n in outcomes} - set(finished)
    assert not skipped & set(names)


def test_of_many_once_one_runs_and_the_others_answer(tmp_path):
    """As jobs that a cluster's scheduler creates for each missed tick, all at once."""
    recipe = write_recipe(tmp_path, tmp_path / "root")
    program = f"""
import os, sys, time
from pipelines.commands import schedule, scheduler
request = schedule.ScheduleRequest({recipe!r}, ("schedule.cron=0 3 * * *",), (), ())
def run(name):
    time.sleep(8)
    return scheduler.TickRun(0, "done")
children = []
for _ in range(60):
    if not (child := os.fork()):
        result = schedule.run_once(request, run=run)
        os.write(1, (result["status"] + chr(10)).encode())
        os._exit(result.get("exit_code", 0))
    children.append(child)
sys.exit(any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT,
        timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    statuses = done.stdout.split("\n")[:-1]
    assert len(statuses) == 60
    assert statuses.count("done") == 1
    assert set(statuses) <= {"done", "already running", "already finished"}
    lines = [line for line in done.stderr.splitlines() if "already" in line]
    assert len(lines) == 59
    assert all(line.startswith("schedule: ") for line in lines)


def test_a_signal_ends_the_retrain_in_order_and_the_tick_is_run_again(tmp_path):
    recipe = write_recipe(tmp_path, tmp_path / "root")
    child = tmp_path / "python"
    child.write_text(CHILD.format(python=sys.executable, folder=tmp_path))
    child.chmod(0o755)
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, recipe, str(child)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        wait_for(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text())
        os.kill(command.pid, signal.SIGTERM)
        _, err = command.communicate(timeout=TIMEOUT_S)
    finally:
        command.kill()
        command.communicate()
    words = f"-m pipelines retrain --recipe {recipe} --json --set seed=3 --model vae"
    assert (tmp_path / "started").read_text() == words
    assert (tmp_path / "ended").read_text() == str(int(signal.SIGTERM))
    assert command.returncode == 143
    assert "a second signal ends both at once" in err
    assert err.splitlines()[-1].startswith("genmod: error: interrupted")
    request = ScheduleRequest(recipe, ("seed=3",), (), ("vae",))
    result = run_once(request, run=lambda name: TickRun(0, "done"))
    assert result["status"] == "done", "nothing was recorded, and the lease was given back"


def test_the_exit_code_of_the_retrain_is_that_of_once(tmp_path):
    recipe = write_recipe(tmp_path, tmp_path / "root")
    once = ScheduleRequest(recipe, (), ("schedule.cron='0 3 * * *'",), ())
    result = run_once(once, run=lambda name: TickRun(2, "refused"))
    assert (result["status"], result["exit_code"], result["retrain"]) == ("failed", 2, "refused")
    again = run_once(once, run=lambda name: TickRun(0))
    assert (again["status"], "exit_code" in again) == ("already finished", False)


@pytest.mark.slow
def test_a_real_retrain_without_a_dataset(tmp_path, capfd):
    recipe = write_recipe(tmp_path, tmp_path / "root")
    assert main(["schedule", "--recipe", recipe, "--cron", "0 3 * * *", "--once", "--json"]) == 2
    out, err = capfd.readouterr()
    assert json.loads(out)["retrain"] == "refused"
    assert "genmod: error: no dataset at" in err


def test_dry_run_lists_the_next_ticks_and_writes_nothing(tmp_path, capsys):
    recipe = write_recipe(tmp_path, tmp_path / "root")
    words = ["schedule", "--recipe", recipe, "--cron", "0 3 * * *", "--tz", "Europe/Berlin"]
    assert main([*words, "--dry-run", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tick", "Europe/Berlin", "starts"]
    assert len(json.loads(lines[-1])["ticks"]) == 10
    assert len(lines) == 12
    assert " 03:00 CE" in lines[1]
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--cron", "0 0 30 2 *"), "never fires"),
        (("--cron", "0 3 * *"), "has 4 fields, expected 5"),
        (("--cron", "0 25 * * *"), "wrong hour"),
        (("--cron", "0 3 * * * ; rm"), "fields, expected 5"),
        (("--cron", "0 3 * * $x"), "characters that cron does not know"),
        (("--tz", "Europe/Berln"), "did you mean 'Europe/Berlin'?"),
        (("--tz", "Berlin"), "did you mean 'Europe/Berlin'?"),
        (("--tz", "/etc/passwd"), "no time zone"),
        (("--jitter", "-5"), "greater than or equal to 0"),
        (("--jitter", "soon"), "schedule.jitter_s"),
        (("--jitter", "60"), "60 s apart"),
        (("--overlap", "run"), "'skip' or 'queue'"),
        (("--catch-up", "some"), "'none', 'latest' or 'all'"),
        (("--set", "schedule.crom=x"), "did you mean 'cron'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys, options, expected):
    recipe = write_recipe(tmp_path, tmp_path / "root")
    assert main(["schedule", "--recipe", recipe, *options, "--dry-run"]) == 2
    assert main(["schedule", "--recipe", recipe, *options, "--once"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(expected in line for line in lines), lines
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_a_store_without_create_if_absent_is_refused(tmp_path, proxied_root, proxy):
    proxy.faults = [Fault("unconditional", method="PUT", times=100)]
    recipe = write_recipe(tmp_path, proxied_root)
    with pytest.raises(StorageError, match="does not enforce create-if-absent"):
        run_once(ScheduleRequest(recipe, (), (), ()), run=lambda name: TickRun(0))
