"""A short version of the soak test; `make soak` is the long one."""

import json

import pytest

from tests.soak.soak import Soak


def check(soak: Soak, kills: int) -> None:
    assert sum(soak.killed.values()) >= kills
    assert (soak.lost, soak.doubled, soak.differing) == (0, 0, [])
    lines = [json.loads(line) for line in (soak.folder / "log.jsonl").read_text().splitlines()]
    assert [line["kill"] for line in lines if "kill" in line] == list(range(1, 1 + len(lines) - sum(
        soak.rounds.values())))  # fmt: skip


@pytest.mark.slow
def test_trainings_under_random_kills_of_their_ranks(tmp_path):
    soak = Soak(tmp_path, seed=5, kills=8, stages=("ranks",))
    soak.run()
    check(soak, 8)


@pytest.mark.ray
@pytest.mark.slow
def test_stages_under_random_kills_of_drivers_and_workers(ray_session, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    stages = ("shard", "sample-filters-twice", "score")
    soak = Soak(tmp_path, seed=6, kills=17, stages=stages, address=address)
    soak.run()
    check(soak, 17)
