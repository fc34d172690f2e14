"""Metrics are those of prdc 0.2 and torch-fidelity 0.4.0: the numbers that they printed for the same rows."""

from __future__ import annotations

import pytest
import torch

from genmod.metrics.frechet import frechet_distance
from genmod.metrics.kernel import kernel_distance
from genmod.metrics.neighbours import neighbourhoods
from genmod.rng import rng_for

PRDC = {
    3: {
        "precision": 0.9625,
        "recall": 0.5875,
        "density": 1.3291666666666666,
        "coverage": 0.875,
    },
    5: {"precision": 0.9875, "recall": 0.7, "density": 1.355, "coverage": 0.975},
}
"""prdc.compute_prdc(real, fake[:80], nearest_k)."""

FID = 0.9126156037365778
"""fid_statistics_to_metric of fid_features_to_statistics, in torch_fidelity.metric_fid."""

KID = 0.2739882237076037
"""torch_fidelity.metric_kid.kid_features_to_metric of fake[:80], one subset of all 80 rows."""


def rows(purpose, count):
    return rng_for(0, f"peers/{purpose}", range(count)).normal(6, dtype=torch.float64)


FAKE, REAL = 0.8 * rows("fake", 90) + 0.3, rows("real", 80)


@pytest.mark.parametrize("k", PRDC)
def test_neighbours_are_those_of_prdc(k):
    """torch-fidelity's precision and recall for k = 3 are the same numbers."""
    near = neighbourhoods(FAKE[:80], REAL, k, seed=0)
    for name, value in PRDC[k].items():
        assert getattr(near, name)[0] == pytest.approx(value, rel=1e-6), name


def test_distances_are_those_of_torch_fidelity():
    assert frechet_distance(FAKE, REAL)[0] == pytest.approx(FID, rel=1e-6)
    assert kernel_distance(FAKE[:80], REAL)[0] == pytest.approx(KID, rel=1e-6)
