"""Tests of chance against their definitions: enumeration of permutations, and known quantiles."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from genmod.metrics import chance
from genmod.metrics.chance import beats_chance, shares_differ
from genmod.rng import rng_for


def test_the_test_of_shares_has_the_quantiles_of_chi_square():
    """2 (a - b)^2 / (a + b) at sizes of 100; the 95 % quantile of one degree of freedom is 3.84."""
    assert not shares_differ(torch.tensor([50, 50]), torch.tensor([63, 37]))  # 3.44
    assert shares_differ(torch.tensor([50, 50]), torch.tensor([65, 35]))  # 4.60
    assert not shares_differ(torch.tensor([50, 0, 50]), torch.tensor([63, 0, 37]))
    assert not shares_differ(torch.tensor([7]), torch.tensor([900]))
    assert not shares_differ(torch.tensor([0, 0]), torch.tensor([9, 1]))
    assert shares_differ(torch.tensor([0, 20]), torch.tensor([90, 10]))


def test_shares_differ_by_chance_in_one_of_twenty_draws():
    drawn_RN = rng_for(0, "shares", range(1000)).integers(4, 400)
    counts_RK = torch.stack([(drawn_RN == c).sum(1) for c in range(4)], dim=1)
    found = sum(shares_differ(counts_RK[r], counts_RK[r + 1]) for r in range(0, 1000, 2))
    assert 10 < found < 45  # 25 expected of 500


@pytest.mark.parametrize("case", range(8))
def test_chance_is_that_of_all_permutations(case, monkeypatch):
    """Mean and variance of the hits over all orders of six labels."""
    labels_N = rng_for(case, "labels", range(6)).integers(3)
    predicted_N = rng_for(case, "predicted", range(6)).integers(3)
    hits = torch.tensor(
        [float((predicted_N == torch.tensor(order)).sum()) for order in permutations(labels_N.tolist())],
        dtype=torch.float64,
    )  # fmt: skip
    mean, deviation = float(hits.mean()), float(hits.std(correction=0))
    seen = float((predicted_N == labels_N).sum())
    for z in (-1.5, -0.5, 0.5, 1.5):
        monkeypatch.setattr(chance, "_Z", z)
        assert beats_chance(predicted_N, labels_N, 3) == (seen > mean + z * deviation + 1e-9)


def test_a_constant_guess_and_random_guesses_do_not_beat_chance():
    labels_N = (torch.arange(100) % 10 == 0).long()
    assert not beats_chance(torch.zeros(100, dtype=torch.int64), labels_N, 2)
    assert beats_chance(labels_N, labels_N, 2)
    assert not beats_chance(labels_N.roll(3), labels_N, 2)
    assert not beats_chance(labels_N[:1], labels_N[:1], 2)
