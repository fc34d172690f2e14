"""The interval for a whole split is right as often as it says, with and without Monte Carlo errors."""

import math

import numpy as np
import pytest
import torch

from genmod.scoring.moments import RunningMoments
from genmod.scoring.split_mean import split_interval, split_metadata


@pytest.mark.parametrize("noise", [0.0, 1.5])
@pytest.mark.parametrize("drawn", [5, 40, 90, 100])
def test_the_interval_has_its_level(drawn, noise):
    """4,000 draws of rows without replacement from 100 rows with known scores."""
    rng = np.random.default_rng(drawn)
    truth_N = rng.normal(-100, 2, 100)
    hits, trials = 0, 4_000
    for _ in range(trials):
        row_n = rng.choice(100, drawn, replace=False)
        nats_n = torch.from_numpy(truth_N[row_n] + rng.normal(0, 1, drawn) * noise)
        interval = split_interval(RunningMoments.of(nats_n), 100, drawn * noise**2)
        hits += interval.low - 1e-9 <= truth_N.mean() <= interval.high + 1e-9
    expected = 1.0 if drawn == 100 and noise == 0 else 0.95
    assert abs(hits / trials - expected) < 0.012


def test_all_rows_without_errors_leave_no_doubt():
    total = RunningMoments.of(torch.tensor([1.0, 2.0, 6.0]))
    interval = split_interval(total, 3, 0.0)
    assert (interval.low, interval.high) == (3.0, 3.0)
    assert interval.method == "t, all 3 rows, Monte Carlo error alone"


def test_one_row_of_several_has_no_interval():
    total = RunningMoments.of(torch.tensor([1.0]))
    assert split_interval(total, 3, 0.0) is None
    assert split_metadata([total], 3, 0.0, float) == {"split_rows": 3}
    assert split_interval(total, 1, 0.0).low == 1.0


def test_bits_have_the_ends_of_nats_in_the_other_order():
    parts = [RunningMoments.of(torch.tensor([-5.0, -6.0])), RunningMoments.of(torch.tensor([-9.0]))]
    found = split_metadata(parts, 10, 0.3, lambda nats: -nats / math.log(2))
    nats, bits = found["split_mean_nats"], found["split_mean_bits_per_dim"]
    assert bits["low"] == pytest.approx(-nats["high"] / math.log(2))
    assert bits["high"] == pytest.approx(-nats["low"] / math.log(2))
    assert nats["low"] < -20 / 3 < nats["high"]
    assert nats["method"] == (
        "t, 3 of 10 rows drawn without replacement, finite-population correction"
    )
    assert nats["level"] == 0.95
