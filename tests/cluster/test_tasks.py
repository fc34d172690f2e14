"""Tasks that nobody waits for: those that end soon end, the others are cancelled."""

import time

import pytest

from cluster.tasks import stop

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def naps(seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        time.sleep(0.1)


@pytest.mark.parametrize("force", [False, True])
def test_who_ends_soon_ends_and_the_others_are_cancelled(ray_session, force):
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(naps)
    short, long = task.remote(0.5), task.remote(600)
    begun_s = time.monotonic()
    stop([short, long], force=force, grace_s=10.0)
    assert ray.get(short, timeout=10) is None
    with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
        ray.get(long, timeout=60)
    assert time.monotonic() - begun_s < 100


def test_nothing_to_stop_needs_no_ray():
    stop([])
