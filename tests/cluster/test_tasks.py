"""Tasks that nobody waits for: those that end soon end, the others are cancelled."""

import time
from pathlib import Path

import pytest

from cluster.tasks import stop

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def naps(seconds: float, begun: str) -> None:
    Path(begun).touch()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        time.sleep(0.1)


def test_who_ends_soon_ends_and_the_others_are_cancelled(ray_session, tmp_path):
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(naps)
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
