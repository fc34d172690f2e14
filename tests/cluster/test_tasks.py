"""The loop over Ray tasks: results, limits, errors; and tasks that are ended after an error."""

import os
import re
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from cluster.tasks import TaskOptions, run_tasks, stop
from genmod.errors import ConfigError, GenmodError

OPTIONS = TaskOptions(limit_hint="look at the cluster", cpus=0.1)


def square(number: int, folder: str) -> int:
    Path(folder, f"{number}-{os.getpid()}-{time.monotonic_ns()}").touch()
    if number < 0:
        raise ConfigError(f"{number} is negative; give a positive number")
    return number * number


def fail_once(folder: str, error: str) -> str:
    """Fails in its first attempt."""
    first = not any(Path(folder).iterdir())
    Path(folder, f"{time.monotonic_ns()}").touch()
    if first and error == "died":
        os._exit(1)
    if first:
        raise OSError("storage hiccup")
    return "second attempt"


def divide(number: int) -> float:
    return 1 / number


def nap(seconds: float, started: str) -> None:
    Path(started).touch()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        time.sleep(0.1)


@pytest.mark.ray
def test_results_arrive_by_name_and_calls_are_made_lazily(ray_session, tmp_path):
    submitted = []

    def calls():
        for number in range(6):
            submitted.append(number)
            yield f"task-{number}", (number, str(tmp_path))

    options = TaskOptions(limit_hint="", cpus=0.1, max_in_progress=2)
    results = {}
    for name, result in run_tasks(square, calls(), options):
        results[name] = result
        assert len(submitted) <= len(results) + 1
    assert results == {f"task-{number}": number**2 for number in range(6)}


@pytest.mark.ray
def test_tasks_wait_for_resources_that_others_hold_and_say_so(busy_cluster, tmp_path, caplog):
    options = TaskOptions(limit_hint="", memory_bytes=1 << 20, wait_s=60)
    timer = threading.Timer(4, busy_cluster)
    timer.start()
    results = list(run_tasks(square, [("only", (3, str(tmp_path)))], options))
    timer.join()
    assert results == [("only", 9)]
    (record,) = caplog.records
    assert record.getMessage() == (
        "waiting up to 60 s for 1 CPUs and 1 MiB of memory: 0 of 1 workers fit now; the rest is held by "
        "tasks of other jobs"
    )


@pytest.mark.ray
@pytest.mark.slow
def test_tasks_do_not_wait_for_ever(busy_cluster, tmp_path):
    with pytest.raises(GenmodError) as caught:
        list(run_tasks(square, [("only", (3, str(tmp_path)))], TaskOptions(limit_hint="")))
    waited = re.match(
        r"one task needs 1 CPUs, but after (\d+) s only 0 of 1 workers", str(caught.value)
    )
    assert waited is not None, caught.value
    assert int(waited[1]) >= 15  # _RELEASE_S; how much more depends on the machine


@pytest.mark.ray
def test_no_calls_yield_nothing(ray_session):
    assert list(run_tasks(square, [], OPTIONS)) == []


@pytest.mark.ray
@pytest.mark.parametrize("error", ["died", "OSError"])
def test_a_task_that_died_or_whose_storage_failed_is_repeated(ray_session, tmp_path, error):
    calls = [("only", (str(tmp_path), error))]
    assert list(run_tasks(fail_once, calls, OPTIONS)) == [("only", "second attempt")]


@pytest.mark.ray
def test_an_error_for_the_user_arrives_as_it_is_and_once(ray_session, tmp_path):
    with pytest.raises(ConfigError, match="-3 is negative; give a positive number"):
        list(run_tasks(square, [("bad", (-3, str(tmp_path)))], OPTIONS))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.ray
def test_any_other_error_is_one_line_that_names_the_task(ray_session):
    with pytest.raises(GenmodError, match=r"zero: the task failed .*division by zero.*") as error:
        list(run_tasks(divide, [("zero", (0,))], OPTIONS))
    assert "\n" not in str(error.value)


@pytest.mark.ray
@pytest.mark.parametrize("limit", ["stall_s", "deadline_s"])
def test_a_time_limit_names_the_unfinished_tasks(ray_session, tmp_path, limit):
    options = TaskOptions(limit_hint="look at the cluster", cpus=0.1, grace_s=0.1, **{limit: 0.5})
    calls = [(name, (9.0, str(tmp_path / name))) for name in ("b", "a")]
    with pytest.raises(GenmodError, match="unfinished: a, b; look at the cluster"):
        list(run_tasks(nap, calls, options))


@pytest.mark.ray
def test_a_caller_that_stops_ends_the_tasks(ray_session, tmp_path):
    import ray

    calls = [(str(number), (number, str(tmp_path))) for number in range(4)]
    with closing(run_tasks(square, calls, OPTIONS)) as results:
        next(results)
    assert ray.is_initialized()


@pytest.mark.ray
@pytest.mark.slow
def test_short_tasks_end_and_long_ones_are_cancelled(ray_session, tmp_path):
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(nap)
    short = task.remote(0.5, str(tmp_path / "short"))
    long = task.remote(600, str(tmp_path / "long"))
    deadline_s = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2:  # a worker takes its time to start
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    start_s = time.monotonic()
    stop([short, long], grace_s=10.0)
    assert ray.get(short, timeout=10) is None
    with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
        ray.get(long, timeout=60)
    assert time.monotonic() - start_s < 100


def test_nothing_to_stop_needs_no_ray():
    stop([])
