"""A job that must wait for resources says for what and who holds them, and waits as the recipe says."""

import pytest

from cluster import resources
from cluster.resources import ResourceRequest, wait_until_free
from genmod.errors import GenmodError


@pytest.fixture
def cluster(monkeypatch):
    """A cluster with these free CPUs at each poll; a poll takes a second."""
    state = {"free": [0.0], "now_s": 0.0}

    def free():
        values = state["free"]
        return {"CPU": values.pop(0) if len(values) > 1 else values[0]}

    def sleep(seconds):
        state["now_s"] += 1.0

    monkeypatch.setattr(resources, "local_folder", lambda: None)
    monkeypatch.setattr(resources, "other_jobs", lambda: [("python train.py", 2)])
    monkeypatch.setattr(resources.time, "monotonic", lambda: state["now_s"])
    monkeypatch.setattr(resources.time, "sleep", sleep)
    monkeypatch.setattr("ray.available_resources", free)
    return state


def test_free_resources_need_no_word(cluster, caplog):
    cluster["free"] = [1.0, 3.0]
    wait_until_free(ResourceRequest("cpu", 1, 0, wait_s=60), 3, "train.workers")
    assert not caplog.records
    assert cluster["now_s"] == 1


def test_a_wait_is_reported_once_with_the_holder(cluster, caplog):
    cluster["free"] = [1.0] * 30 + [3.0]
    wait_until_free(ResourceRequest("cpu", 1, 0, wait_s=60), 3, "train.workers")
    (record,) = caplog.records
    assert record.getMessage() == (
        "waiting up to 60 s for 3 CPUs: 1 of 3 workers fit now; the rest is held by "
        "'python train.py' (2 actors)"
    )


def test_the_wait_ends_as_the_recipe_says(cluster):
    cluster["free"] = [2.0]
    with pytest.raises(
        GenmodError, match=r"train\.workers needs 6 CPUs, but after 61 s only 1 of 3"
    ):
        wait_until_free(ResourceRequest("cpu", 2, 0, wait_s=60), 3, "train.workers")


def test_a_request_that_ray_has_granted_ends_the_wait(cluster):
    cluster["free"] = [0.0]
    answers = [False, True]
    wait_until_free(ResourceRequest("cpu", 1, 0, wait_s=60), 1, "one task", lambda: answers.pop(0))
    assert cluster["now_s"] == 1


def test_gpus_count_too(cluster):
    with pytest.raises(GenmodError, match=r"needs 0\.002 CPUs and 2 GPUs"):
        wait_until_free(ResourceRequest("cuda", 0.001, 1), 2, "train.workers")
