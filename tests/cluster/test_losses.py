"""Losses of workers: by chance, by one unit, by all units."""

import random
from collections import Counter

from cluster.losses import MOST_LOSSES, is_to_blame


def test_a_unit_that_alone_loses_three_workers_is_to_blame():
    attempts = dict.fromkeys(range(100), 1)
    assert not is_to_blame(7, attempts | {7: 3}, 100)
    assert is_to_blame(7, attempts | {7: 4}, 100)
    assert is_to_blame(0, {0: 4}, 1)


def test_losses_by_chance_blame_no_unit():
    """Every second worker is lost, in a job of 2,000 units."""
    rng, blamed, attempts = random.Random(0), [], Counter()
    remaining = list(range(2_000))
    while remaining:
        number = remaining.pop(rng.randrange(len(remaining)))
        attempts[number] += 1
        if is_to_blame(number, attempts, 2_000):
            blamed.append(number)
        elif rng.random() < 0.5:
            remaining.append(number)
    assert attempts.total() > 3_500
    assert len(blamed) <= 2


def test_a_bad_unit_among_losses_is_found():
    rng, attempts = random.Random(1), Counter()
    for number in range(500):
        attempts[number] = 1 + (rng.random() < 0.1)
    attempts[3] = 8
    assert is_to_blame(3, attempts, 500)


def test_a_job_whose_every_unit_loses_its_workers_ends():
    attempts = dict.fromkeys(range(20), MOST_LOSSES + 1)
    assert all(is_to_blame(number, attempts, 20) for number in attempts)
