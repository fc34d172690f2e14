"""Precision, recall, density, coverage and memorisation against their definitions."""

from __future__ import annotations

import pytest
import torch

from genmod.metrics import neighbours
from genmod.metrics.neighbours import memorisation, neighbourhoods, squared_distances
from genmod.rng import rng_for


def normal(purpose, rows, dims=3):
    return rng_for(0, purpose, range(rows)).normal(dims, dtype=torch.float64)


def by_definition(fake, real, k):
    """Naeem et al. 2020, Eq. 1 to 4, with loops."""

    def radius(rows, i):
        return sorted(float((rows[i] - r).norm()) for j, r in enumerate(rows) if j != i)[k - 1]

    def inside(point, rows, i):
        return float((point - rows[i]).norm()) < radius(rows, i)

    n, m = range(len(fake)), range(len(real))
    in_real = [[inside(fake[j], real, i) for i in m] for j in n]
    in_fake = [[inside(real[i], fake, j) for j in n] for i in m]
    return {
        "precision": sum(any(row) for row in in_real) / len(fake),
        "recall": sum(any(row) for row in in_fake) / len(real),
        "density": sum(sum(row) for row in in_real) / (k * len(fake)),
        "coverage": sum(any(in_real[j][i] for j in n) for i in m) / len(real),
    }


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block_rows", [5, 1024])
def test_they_are_their_definitions(monkeypatch, k, block_rows):
    monkeypatch.setattr(neighbours, "DISTANCE_BLOCK_ROWS", block_rows)
    fake_ND, real_MD = 0.7 * normal("fake", 17) + 0.4, normal("real", 17)
    found = neighbourhoods(fake_ND, real_MD, k, replicates=20, seed=0)
    for name, wanted in by_definition(fake_ND, real_MD, k).items():
        value, interval = getattr(found, name)
        assert value == pytest.approx(wanted), name
        assert interval.low <= value <= interval.high


def test_identical_sets_are_perfect():
    rows_ND = normal("rows", 50)
    found = neighbourhoods(rows_ND, rows_ND, k=5, replicates=20, seed=0)
    assert found.precision[0] == found.recall[0] == found.coverage[0] == 1
    assert found.density[0] == pytest.approx(1)  # each ball holds itself and k - 1 others


def test_dropped_modes_cost_coverage_and_recall_but_not_precision():
    real_MD = torch.cat((normal("left", 100), normal("right", 100) + 50))
    found = neighbourhoods(normal("only-left", 200), real_MD, k=5, replicates=50, seed=0)
    assert found.precision[1].high > 0.9
    assert found.coverage[1].high < 0.7
    assert found.recall[1].high < 0.7


def test_far_samples_have_nothing():
    found = neighbourhoods(normal("far", 40) + 1e3, normal("real", 40), 5, replicates=20, seed=0)
    values = found.precision[0], found.recall[0], found.density[0], found.coverage[0]
    assert values == (0, 0, 0, 0)


def test_distances_of_pixels_are_exact():
    pixels_ND = rng_for(0, "pixels", range(30)).integers(256, 700).to(torch.float64)
    wanted = (pixels_ND[:, None] - pixels_ND[None]).square().sum(2)
    assert torch.equal(squared_distances(pixels_ND, pixels_ND), wanted)


def test_replayed_training_images_are_memorised_and_fresh_draws_are_not():
    train_TD, held_MD = normal("train", 400, 8), normal("held", 200, 8)
    copies = memorisation(train_TD[:100], train_TD, held_MD, replicates=50, seed=0)
    assert copies.share == 1
    assert torch.equal(copies.nearest_N, torch.arange(100))
    fresh = memorisation(normal("fresh", 400, 8), train_TD, held_MD, replicates=100, seed=0)
    assert fresh.interval.low < 0.05 < fresh.interval.high
    near = train_TD[:100] + 0.05 * normal("jitter", 100, 8)
    assert memorisation(near, train_TD, held_MD, replicates=50, seed=0).share > 0.9


def test_copies_of_held_out_images_are_not_memorised():
    train_TD, held_MD = normal("train", 100), normal("held", 100)
    assert memorisation(held_MD, train_TD, held_MD, replicates=20, seed=0).share == 0
