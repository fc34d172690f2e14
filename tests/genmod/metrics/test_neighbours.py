"""Precision, recall, density and coverage against their definitions."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import scipy.stats
import torch

from genmod.metrics import neighbours
from genmod.metrics.clipped import MOST
from genmod.metrics.neighbours import neighbourhoods, squared_distances
from genmod.rng import rng_for


def normal(purpose, rows, dims=3):
    return rng_for(0, purpose, range(rows)).normal(dims, dtype=torch.float64)


def by_definition(fake, real, k):
    """Naeem et al. 2020, Eq. 1 to 4, and Salvy et al. 2026, with loops and closed balls."""

    def radius(rows, i):
        return sorted(float((rows[i] - r).norm()) for j, r in enumerate(rows) if j != i)[k - 1]

    def inside(point, rows, i):
        return float((point - rows[i]).norm()) <= radius(rows, i)

    n, m = range(len(fake)), range(len(real))
    # Salvy et al. 2026, sec. 4.1: radii up to their median, real rows without their own balls as the scale.
    radii = [radius(real, i) for i in m]
    median = statistics.median(radii)

    def near(point, i):
        return float((point - real[i]).norm()) <= min(radii[i], median)

    of_fakes = [sum(near(fake[j], i) for i in m) for j in n]
    of_reals = [sum(near(real[j], i) for i in m if i != j) for j in m]
    real_share = sum(min(count / k, 1) for count in of_reals) / len(real)
    # Sec. 4.2: draws of real rows that cover as much on average, at most four times the samples.
    draws = np.arange(4 * len(fake) + 1)
    share_D = np.minimum(draws / k, 1)
    covered = [
        float(scipy.stats.betabinom(d, k, len(real) - k).pmf(draws) @ share_D) for d in draws
    ]
    counts = [sum(inside(fake[j], real, i) for j in n) for i in m]
    unscaled = sum(min(count / k, 1) for count in counts) / len(real)
    in_real = [[inside(fake[j], real, i) for i in m] for j in n]
    in_fake = [[inside(real[i], fake, j) for j in n] for i in m]
    return {
        "precision": sum(any(row) for row in in_real) / len(fake),
        "recall": sum(any(row) for row in in_fake) / len(real),
        "density": sum(sum(row) for row in in_real) / (k * len(fake)),
        "coverage": sum(any(in_real[j][i] for j in n) for i in m) / len(real),
        "clipped_density": sum(min(count / k, 1) for count in of_fakes) / len(fake) / real_share,
        "clipped_coverage": float(np.interp(unscaled, covered, draws)) / len(fake),
    }


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    ("constant", "size"),
    [("DISTANCE_BLOCK_ROWS", 5), ("DISTANCE_CELLS", 40), ("TILE_ROWS", 3), (None, 0)],
)
def test_they_are_their_definitions(monkeypatch, k, constant, size):
    if constant:
        monkeypatch.setattr(neighbours, constant, size)
    fake_ND, real_MD = 0.7 * normal("fake", 17) + 0.4, normal("real", 17)
    found = neighbourhoods(fake_ND, real_MD, k, seed=0)
    for name, wanted in by_definition(fake_ND, real_MD, k).items():
        value, interval = getattr(found, name)
        assert value == pytest.approx(wanted), name
        assert interval.low <= value <= interval.high


def test_no_more_distances_than_the_limit_are_in_memory(monkeypatch):
    monkeypatch.setattr(neighbours, "DISTANCE_CELLS", 100)
    monkeypatch.setattr(neighbours, "TILE_ROWS", 7)
    seen = []

    def recorded(a_BD, b_MD):
        squares_BM = squared_distances(a_BD, b_MD)
        seen.append(squares_BM.numel())
        return squares_BM

    monkeypatch.setattr(neighbours, "squared_distances", recorded)
    neighbourhoods(normal("fake", 30), normal("real", 30), k=3, seed=0)
    assert 60 <= max(seen) <= 100


def test_identical_sets_are_perfect():
    rows_ND = normal("rows", 50)
    found = neighbourhoods(rows_ND, rows_ND, k=5, seed=0)
    assert found.precision[0] == found.recall[0] == found.coverage[0] == 1
    assert found.density[0] == pytest.approx(6 / 5)  # each ball holds its row and k others


def whole(purpose, rows, levels, dims=2):
    """Rows of whole numbers, so that distances tie, and are exact in the loops."""
    return rng_for(0, purpose, range(rows)).integers(levels, dims).to(torch.float64)


# Pairs of rows: radii are 1 or 3, and their median 2. Samples are 2.1 from a row.
PAIRS = torch.tensor(
    [[start + side] for start in range(0, 1200, 100) for side in (0, 1 + 2 * (start > 500))]
).double()

CORNERS = {
    "few distinct rows": (whole("fake", 24, 2), whole("real", 24, 2)),
    "fewer than k distinct": (whole("fake", 24, 2, 1), whole("real", 24, 2, 1)),
    "one row again and again": (torch.ones(12, 3).double(), torch.ones(12, 3).double()),
    "copies of one row, wrong": (torch.zeros(12, 3).double(), torch.ones(12, 3).double()),
    "a grid": (whole("fake", 24, 4), whole("real", 24, 4)),
    "collapsed samples": (torch.ones(24, 2).double(), whole("real", 24, 4)),
    "few distinct, one is missing": (
        torch.arange(24)[:, None].double() % 3,
        torch.arange(24)[:, None].double() % 4,
    ),
    "few distinct, one is wrong": (
        torch.arange(24)[:, None].double() % 5,
        torch.arange(24)[:, None].double() % 4,
    ),
    "a median between two radii": (PAIRS - 2.1, PAIRS),
}


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("k", [1, 5])
def test_ties_and_repeated_rows_are_by_definition(corner, k):
    fake_ND, real_MD = CORNERS[corner]
    found = neighbourhoods(fake_ND, real_MD, k, seed=0)
    for name, wanted in by_definition(fake_ND, real_MD, k).items():
        assert getattr(found, name)[0] == pytest.approx(wanted), name


def test_a_perfect_model_of_few_distinct_images_is_perfect_despite_rounding():
    """Seven images in features that are no round numbers, those of samples with the noise of float32."""
    seven_7D = 10 + normal("distinct", 7, 64)
    real_MD = seven_7D[torch.arange(140) % 7]
    fake_ND = seven_7D[torch.arange(140) * 3 % 7].float().double()
    found = neighbourhoods(fake_ND, real_MD, k=5, seed=0)
    assert found.precision[0] == found.recall[0] == found.coverage[0] == 1
    assert found.density[0] == pytest.approx(20 / 5)  # the balls of all 20 copies
    assert found.clipped_density[0] == 1
    assert (
        found.clipped_coverage[0] == MOST
    )  # no number of draws of distinct rows covers all of them
    wrong = neighbourhoods(fake_ND + 0.01, real_MD, k=5, seed=0)
    assert wrong.precision[0] == wrong.recall[0] == wrong.coverage[0] == wrong.density[0] == 0
    assert wrong.clipped_density[0] == wrong.clipped_coverage[0] == 0


def test_dropped_modes_cost_coverage_and_recall_but_not_precision():
    real_MD = torch.cat((normal("left", 100), normal("right", 100) + 50))
    found = neighbourhoods(normal("only-left", 200), real_MD, k=5, seed=0)
    assert found.precision[1].high > 0.9
    assert found.coverage[1].high < 0.7
    assert found.recall[1].high < 0.7


def test_far_samples_have_nothing():
    found = neighbourhoods(normal("far", 40) + 1e3, normal("real", 40), 5, seed=0)
    values = found.precision[0], found.recall[0], found.density[0], found.coverage[0]
    assert values == (0, 0, 0, 0)


def test_distances_of_pixels_are_exact():
    pixels_ND = rng_for(0, "pixels", range(30)).integers(256, 700).to(torch.float64)
    wanted = (pixels_ND[:, None] - pixels_ND[None]).square().sum(2)
    assert torch.equal(squared_distances(pixels_ND, pixels_ND), wanted)
