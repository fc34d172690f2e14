"""The pool of actors: an error in one task is reported, bounded, and does not harm the other tasks."""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.actors import ATTEMPTS, Actor, run_actors
from cluster.resources import ResourceRequest, resource_request
from cluster.session import ClusterConfig
from genmod.errors import ConfigError, DataError, GenmodError

CPU = ResourceRequest("cpu", 1, 0)


def actor_class():
    """Defined in a function, so that it is pickled by value."""

    class Scribe(Actor):
        """Follows the task's ``act``, and creates a file per attempt."""

        def __init__(self, *, folder, **options):
            super().__init__(**options)
            self.folder = Path(folder)

        def do(self, task):
            first = not list(self.folder.glob(f"{task['name']}.*"))
            (self.folder / f"{task['name']}.{time.monotonic_ns()}").touch()
            act = task.get("act")
            if act == "hang":
                time.sleep(1000)
            if act == "die" or (act == "die once" and first):
                os._exit(9)
            if act == "hiccup once" and first:
                raise OSError("the store hiccups")
            if act == "store is gone":
                raise OSError("no route to the store")
            if act == "bug":
                raise ZeroDivisionError("a bug")
            if act == "refuse":
                raise ConfigError("correct your recipe")
            return {"name": task["name"], "pid": os.getpid()}

    return Scribe


def attempts(folder, name):
    return len(list(folder.glob(f"{name}.*")))


def tasks(*acts):
    return [{"name": f"{number:02d}", "act": act} for number, act in enumerate(acts)]


def run_one(scribe, name, act):
    """The result of one task, as Ray Data calls an actor."""
    batch = scribe({"task": [json.dumps({"name": name, "act": act})]})
    return json.loads(batch["result"][0])


@pytest.mark.slow
def test_an_actor_reports_errors_as_results(tmp_path):
    scribe = actor_class()(folder=tmp_path, device="cpu", threads=1, deadline_s=60)

    def result(name, act):
        return run_one(scribe, name, act)

    assert result("a", None)["name"] == "a"
    assert result("b", "refuse")["error"] == "correct your recipe"
    assert attempts(tmp_path, "b") == 1
    assert result("c", "hiccup once")["name"] == "c"
    assert attempts(tmp_path, "c") == 2
    gone = result("d", "store is gone")
    assert "no route to the store" in gone["error"]
    assert attempts(tmp_path, "d") == ATTEMPTS
    bug = result("e", "bug")
    assert bug["error"] == "ZeroDivisionError: a bug"
    assert "test_actors" in bug["trace"]
    assert attempts(tmp_path, "e") == 1


def test_a_task_that_hangs_is_abandoned_and_its_process_ends_with_the_next_task(
    tmp_path, monkeypatch
):
    scribe = actor_class()(folder=tmp_path, device="cpu", threads=1, deadline_s=0.2)
    assert run_one(scribe, "a", "hang")["error"] == "took longer than its deadline of 0.2 s"
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        run_one(scribe, "b", None)
    assert attempts(tmp_path, "b") == 0


def test_the_device_follows_the_recipe():
    assert resource_request("auto", ClusterConfig()) == CPU
    assert resource_request("auto", ClusterConfig(gpus_per_worker=0.5)) == ResourceRequest(
        "cuda", 1, 0.5
    )
    assert resource_request("cuda", ClusterConfig(cpus_per_worker=2)) == ResourceRequest(
        "cuda", 2, 1
    )
    assert resource_request("cpu", ClusterConfig(gpus_per_worker=1)) == CPU


def collect(results, into):
    """Names of the tasks that are done go into a list; returns the results of the others."""
    failed = []
    for result in results:
        failed.append(result) if "error" in result else into.append(result["name"])
    return failed


@pytest.mark.ray
@pytest.mark.slow
def test_failed_tasks_do_not_harm_the_others(ray_session, tmp_path):
    todo = tasks(None, "die once", "hang", None, "bug", None, None, None)
    results = run_actors(
        actor_class(), todo, workers=2, resources=CPU, deadline_s=5, folder=str(tmp_path)
    )
    done = []
    failed = {result["task"]["name"]: result for result in collect(results, done)}
    assert "deadline of 5 s" in failed["02"]["error"]
    assert "a bug" in failed["04"]["error"]
    assert all(result["divisible"] and result["node"] for result in failed.values())
    assert sorted(done) == ["00", "01", "03", "05", "06", "07"]
    assert attempts(tmp_path, "01") == 2
    assert attempts(tmp_path, "02") == 1
    assert len(failed) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_a_pool_outlives_its_workers_until_one_task_has_lost_three(ray_session, tmp_path):
    todo = tasks("die once", None, "die", *[None] * 5)
    results = run_actors(
        actor_class(), todo, workers=2, resources=CPU, deadline_s=60, folder=str(tmp_path)
    )
    done = []
    (failed,) = collect(results, done)
    assert failed["task"]["name"] == "02"
    assert failed["error"].startswith("3 workers were lost one after")
    assert sorted(done) == [task["name"] for task in todo if task["name"] != "02"]
    assert (attempts(tmp_path, "00"), attempts(tmp_path, "02")) == (2, 3)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_a_pool_outlives_any_number_of_workers_while_tasks_are_done(ray_session, tmp_path, workers):
    todo = tasks(*["die once"] * 12)
    results = run_actors(
        actor_class(), todo, workers=workers, resources=CPU, deadline_s=60, folder=str(tmp_path)
    )
    done = []
    assert collect(results, done) == []
    assert sorted(done) == [task["name"] for task in todo]
    assert [attempts(tmp_path, name) for name in sorted(done)] == [2] * 12


def fragile_class(breaks):
    """Workers that replace the first one, which dies after some results, cannot start ``breaks`` times."""

    class Fragile(actor_class()):
        def __init__(self, *, folder, **options):
            super().__init__(folder=folder, **options)
            if attempts(self.folder, "03") and attempts(self.folder, "broken") < breaks:
                (self.folder / f"broken.{time.monotonic_ns()}").touch()
                raise RuntimeError("this host is cut off")

        def do(self, task):
            end_s = time.monotonic() + 50
            while task["act"] and attempts(self.folder, "seen") < 2 and time.monotonic() < end_s:
                time.sleep(0.05)
            return super().do(task)

    return Fragile


def noted(results, folder):
    """The results, each of which leaves a file that the workers see."""
    for result in results:
        (folder / f"seen.{time.monotonic_ns()}").touch()
        yield result


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("breaks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_lost_pool_is_started_again_if_tasks_were_done_since_its_start(
    ray_session, tmp_path, caplog, breaks
):
    todo = tasks(None, None, None, "die once", None)
    results = run_actors(
        fragile_class(breaks), todo, workers=1, resources=CPU, deadline_s=60, folder=str(tmp_path)
    )
    results = noted(results, tmp_path)
    done = []
    if breaks == 1:
        assert collect(results, done) == []
        assert sorted(done) == [task["name"] for task in todo]
        assert attempts(tmp_path, "03") == 2
    else:
        with pytest.raises(GenmodError, match=r"of 1 workers was lost .*cut off\)") as caught:
            collect(results, done)
        assert "\n" not in str(caught.value)
        assert "run the same command again to resume" in str(caught.value)
        assert sorted(done) in (["00", "01"], ["00", "01", "02"])
    (line,) = [record.getMessage() for record in caplog.records if record.name == "genmod"]
    assert re.fullmatch(
        r"the pool of 1 workers was lost \(.*\) after (2 units; starting it again for 3|3 units; starting it "
        r"again for 2) more",
        line,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_for_the_user_stops_the_job(ray_session, tmp_path):
    todo = tasks("refuse", *[None] * 400)
    results = run_actors(
        actor_class(), todo, workers=1, resources=CPU, deadline_s=9, folder=str(tmp_path)
    )
    with pytest.raises(DataError, match="00: correct your recipe"):
        collect(results, [])
    assert attempts(tmp_path, "00") == 1
    time.sleep(1)  # tasks in progress when the job stopped
    settled = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == settled < 200


@pytest.mark.ray
@pytest.mark.slow
def test_actors_wait_for_resources_that_others_hold_and_say_so(busy_cluster, tmp_path, caplog):
    timer = threading.Timer(4, busy_cluster)
    timer.start()
    request = ResourceRequest("cpu", 1, 0, wait_s=60)
    results = run_actors(
        actor_class(),
        tasks(None),
        workers=1,
        resources=request,
        deadline_s=60,
        folder=str(tmp_path),
    )
    assert [result["name"] for result in results] == ["00"]
    timer.join()
    (record,) = caplog.records
    assert record.getMessage() == (
        "waiting up to 60 s for 1 CPUs: 0 of 1 workers fit now; the rest is held by tasks of other jobs"
    )


@pytest.mark.ray
def test_an_actor_that_fits_on_no_node_is_refused_at_once(ray_session):
    gpu = ResourceRequest("cuda", 1, 1)
    with pytest.raises(ConfigError, match="no node of the cluster has the 1 CPUs and 1 GPUs"):
        list(run_actors(actor_class(), tasks(None), workers=1, resources=gpu, deadline_s=9))


def test_no_work_needs_no_ray():
    assert list(run_actors(actor_class(), [], workers=1, resources=CPU, deadline_s=9)) == []
