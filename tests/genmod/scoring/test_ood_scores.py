"""Further score columns: ranks, conformal p, typicality, complexity; how well a column tells sides apart."""

from __future__ import annotations

import math
import zlib

import pytest
import torch

from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.scoring import ood_scores
from genmod.scoring.calibrated import add_ood_scores
from genmod.scoring.label import ScoreLabel
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, OOD_COLUMN, BitsPerDim, Calibration, auroc
from genmod.scoring.table import Rows, Scores

DIMS = 4
SPEC = ImageSpec(channels=1, height=2, width=2)
LABEL = ScoreLabel(label="exact", estimator="e", of="o", measure="counts", budget={})


def scores(nats, sizes=None, first=0):
    nats_B = torch.tensor(nats, dtype=torch.float64)
    sizes_B = torch.zeros_like(nats_B) if sizes is None else torch.tensor(sizes).double()
    index_B = torch.arange(len(nats_B)) + first
    rows = Rows([f"k{i}" for i in index_B.tolist()], index_B, None)
    return Scores(rows, nats_B, torch.zeros_like(nats_B), LABEL, {COMPRESSED_COLUMN: sizes_B})


KNOWN = scores([-10.0, -8.0, -8.0, -6.0, -2.0], [5.0, 4.0, 3.0, 2.0, 1.0])


def columns(nats, own=False, first=100, sizes=None):
    found = add_ood_scores(scores(nats, sizes, first), KNOWN, SPEC, own=own).columns
    return {name: values_B.tolist() for name, values_B in found.items()}


def test_ranks_among_five_rows():
    found = columns([-20.0, -8.0, -7.0, 0.0])
    assert found["percentile"] == pytest.approx([0, 40, 60, 100])
    assert found["p_two_sided"] == pytest.approx([2 / 6, 1.0, 1.0, 2 / 6])


def test_a_calibration_row_is_compared_with_the_others():
    found = columns([-10.0, -8.0, -8.0, -6.0, -2.0], own=True, first=0, sizes=[5, 4, 3, 2, 1])
    assert found["percentile"] == pytest.approx([0, 37.5, 37.5, 75, 100])
    assert found["p_two_sided"] == pytest.approx([2 / 5, 1.0, 1.0, 4 / 5, 2 / 5])
    assert min(found["p_corrected"]) == pytest.approx(1 / 5)
    stranger = columns([-10.0], own=True, first=77)  # of the same split, but not among them
    assert stranger["percentile"] == pytest.approx([10])


def test_typicality_is_the_distance_from_the_mean_in_bits_per_dim():
    mean = 6.8 / DIMS / math.log(2)
    found = columns([-6.8, -8.0, 0.0])
    wanted = [0, 1.2 / DIMS / math.log(2), mean]
    assert found["typicality_bits_per_dim"] == pytest.approx(wanted, abs=1e-12)


def test_compressible_rows_have_a_higher_corrected_score():
    """Eq. 2 of Serra et al.: bits of the model less bits of the compressor."""
    found = columns([-8.0, -8.0], sizes=[40.0, 0.0])
    bits = 8 / math.log(2)
    assert found[OOD_COLUMN] == pytest.approx([(bits - 40) / DIMS, bits / DIMS])
    assert found["p_corrected"][0] == pytest.approx(1.0)
    smaller = [n / math.log(2) - s for n, s in ((10, 5), (8, 4), (8, 3), (6, 2), (2, 1))]
    higher = sum(value >= bits for value in smaller)
    assert found["p_corrected"][1] == pytest.approx((1 + higher) / 6)


def test_conformal_p_values_are_valid_in_distribution():
    draws = rng_for(0, "calibration", range(4000)).normal(dtype=torch.float64)
    known_N, fresh_B = draws[:1000], draws[1000:]
    zeros = torch.zeros(3000, dtype=torch.float64)
    made = Calibration.of(known_N, zeros[:1000], BitsPerDim(1)).columns(
        fresh_B, zeros, zeros.bool()
    )
    for name in ("p_two_sided", "p_corrected"):
        for level in (0.02, 0.1, 0.5):
            share = float((made[name] <= level).double().mean())
            # Both samples are random: the share's error has a part of each.
            assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 / 1000 + 1 / 3000)))
    strange = Calibration.of(known_N, zeros[:1000], BitsPerDim(1)).columns(
        fresh_B + 9.0, zeros, zeros.bool()
    )
    assert float(strange["p_two_sided"].max()) < 0.01
    assert ood_scores.count_rare(strange) == {"p_two_sided": 3000, "p_corrected": 0}


def test_compressed_bits_are_those_of_the_compressor():
    flat = torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)
    noise = rng_for(0, "noise", [0]).integers(256, 3, 8, 8).to(torch.uint8)
    bits_B = ood_scores.compressed_bits(torch.cat((flat, noise)))
    raw = noise[0].permute(1, 2, 0).contiguous().numpy().tobytes()
    assert bits_B.tolist() == [
        8 * len(zlib.compress(bytes([7] * 192), 9)),
        8 * len(zlib.compress(raw, 9)),
    ]
    assert bits_B[0] < 160 < 8 * 192 <= bits_B[1]


def test_metadata_contains_the_typicality_quantile():
    metadata = Calibration.of(
        KNOWN.nats_B, KNOWN.columns[COMPRESSED_COLUMN], BitsPerDim(DIMS)
    ).metadata()
    assert metadata["rows"] == 5
    assert metadata["mean_bits_per_dim"] == pytest.approx(6.8 / DIMS / math.log(2))
    assert 0 < metadata["typicality_95_bits_per_dim"] <= 4.8 / DIMS / math.log(2)


def test_auroc_is_the_share_of_pairs_in_order():
    inside, outside = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0])
    value, stderr = auroc(inside.double(), outside.double())
    assert value == pytest.approx((1.5 + 3) / 6)
    assert stderr > 0
    mirrored, same = auroc(-inside.double(), -outside.double())
    assert (mirrored, same) == (pytest.approx(1 - value), pytest.approx(stderr))


def test_auroc_of_two_gaussians_is_known_and_its_error_honest():
    """P(a < b) for unit Gaussians 1 apart is Phi(1 / sqrt 2)."""
    truth = 0.5 * (1 + math.erf(0.5))
    draws = rng_for(0, "auroc", range(200)).normal(2, 150, dtype=torch.float64)
    found = [auroc(pair[0], pair[1] + 1) for pair in draws]
    values = torch.tensor([value for value, _ in found])
    assert float(values.mean()) == pytest.approx(
        truth, abs=4 * float(values.std()) / math.sqrt(200)
    )
    claimed = torch.tensor([stderr for _, stderr in found]).square().mean().sqrt()
    assert float(claimed / values.std()) == pytest.approx(1, abs=0.2)
