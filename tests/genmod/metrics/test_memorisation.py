"""p-values of copies, false discovery rates, and the tail beyond the last real image."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest, genpareto

from genmod.metrics.copy_forms import Likeness
from genmod.metrics.memorisation import (
    Tail,
    generalised_pareto,
    memorisation,
    name,
    q_values,
)
from genmod.rng import rng_for


def uniform(purpose, rows, columns=1):
    return rng_for(0, purpose, range(rows)).uniform(columns, dtype=torch.float64)


def exponential(purpose, rows, columns=1):
    return -torch.log1p(-uniform(purpose, rows, columns))


def likeness(closeness_B, copies=0):
    """Made up: the last ``copies`` have the form of a copy."""
    rows = len(closeness_B)
    return Likeness(
        torch.arange(rows),
        closeness_B,
        torch.arange(rows) >= rows - copies,
        torch.ones(rows, dtype=torch.float64),
        ("similar",) * rows,
    )


def test_p_values_of_real_images_are_uniform():
    real, new = exponential("real", 4000)[:, 0], exponential("new", 4000)[:, 0]
    p_N = Tail.fit(real).p_values(new)
    for level in (0.001, 0.01, 0.1, 0.5, 0.9):
        assert binomtest(int((p_N <= level).sum()), 4000, level).pvalue > 1e-3, level
    alone = Tail.fit(real[:200]).p_values(torch.tensor([-1.0, math.inf, -math.inf]))
    assert alone[0] == 1
    assert alone[2] == 1
    assert alone[1] <= 1 / 201


def test_a_few_calibration_images_give_no_smaller_p_than_their_number_allows():
    p_N = Tail.fit(exponential("few", 100)[:, 0]).p_values(torch.tensor([50.0]))
    assert p_N.item() == pytest.approx(1 / 101)


@pytest.mark.parametrize("index", [0.0, 0.3])
def test_the_tail_beyond_the_last_real_image_is_not_too_light(index):
    """Over 100 calibrations, new images have p < 1e-4 less than once in 10,000; with 2,000 real ones each."""
    u_RM = uniform(f"tail/{index}", 100, 2000)
    score_RM = -torch.log1p(-u_RM) if not index else ((1 - u_RM) ** -index - 1) / index
    rates = []
    for real_M in score_RM:
        tail = Tail.fit(real_M)
        grid = torch.logspace(-2, 6, 2001, dtype=torch.float64)
        first = grid[(tail.p_values(grid) <= 1e-4).to(torch.int8).argmax()]
        survival = math.exp(-first) if not index else (1 + index * float(first)) ** (-1 / index)
        rates.append(survival)
    assert sum(rates) / len(rates) < 1e-4
    assert max(rates) > 1e-9  # cautious, not blind


def test_the_fit_recovers_its_law():
    for index, scale in ((-0.2, 1.0), (0.1, 2.0), (0.6, 0.5)):
        x = (
            torch.from_numpy(genpareto.ppf(uniform(f"gpd/{index}", 4000)[:, 0].numpy(), index))
            * scale
        )
        found = generalised_pareto(x)
        assert found == pytest.approx((index, scale), abs=0.08)


def test_the_false_discovery_rate_is_kept_with_shared_calibration():
    """20 copies among 1,000 samples, 100 times, p-values from the same real images within a time."""
    proportions, found = [], []
    for draw in range(100):
        real, new = (
            exponential(f"fdr/real/{draw}", 2000)[:, 0],
            exponential(f"fdr/new/{draw}", 1000)[:, 0],
        )
        new[:20] += 8
        named = name(Tail.fit(real).p_values(new), 0.2, 1.0)
        proportions.append(float(named[20:].sum()) / max(1, int(named.sum())))
        found.append(float(named[:20].to(torch.float64).mean()))
    assert sum(proportions) / 100 < 0.2
    assert sum(found) / 100 > 0.9


def test_names_are_those_of_the_step_up_procedure():
    p_N = torch.tensor([0.04, 0.001, 0.03, 0.5, 0.012], dtype=torch.float64)
    assert name(p_N, 0.05, 1.0).tolist() == [True, True, True, False, True]
    clear_N = torch.cat((torch.full((40,), 1e-6), torch.tensor([0.03]))).to(torch.float64)
    assert name(clear_N, 0.05, 1.0).all()
    assert name(clear_N, 0.05, 0.02).tolist() == [True] * 40 + [False]
    assert q_values(p_N).tolist() == pytest.approx([0.05, 0.005, 0.05, 0.5, 0.03])
    assert not name(torch.ones(3, dtype=torch.float64), 0.05, 1.0).any()


def test_a_model_that_replays_is_found_where_the_data_repeats_itself():
    """Some real images have exact copies, so that no sample is rarer than one in a hundred."""
    real = exponential("repeats", 2000)[:, 0] / 10
    real[-20:] = 6.0
    held_out, others = likeness(real[:500]), likeness(real[500:], copies=20)
    copies = torch.full((300,), 6.0, dtype=torch.float64)
    replay = memorisation(likeness(copies, 300), held_out, others, 0.05)
    assert replay.p_N.min() > 0.01
    assert replay.named_N.all()
    assert replay.interval.low > 0.98
    assert replay.calibration == (500, 1500)
    honest = memorisation(likeness(exponential("honest", 300)[:, 0] / 10), held_out, others, 0.05)
    assert not honest.named_N.any()


def test_a_form_that_no_real_image_has_is_evidence():
    real = likeness(exponential("formless", 4000)[:, 0] / 10)
    real.closeness_B[:8] = 5.0  # as close, but of no copy's form
    none = likeness(torch.zeros(0, dtype=torch.float64))
    samples = likeness(torch.cat((exponential("new", 990)[:, 0] / 10, torch.full((10,), 2.0))), 10)
    found = memorisation(samples, real, none, 0.05)
    assert found.named_N.nonzero()[:, 0].tolist() == list(range(990, 1000))
    assert sorted(found.most_suspicious(10).tolist()) == list(range(990, 1000))


def test_images_that_are_near_nothing_have_p_1():
    real = likeness(exponential("real", 400)[:, 0])
    blank = likeness(torch.zeros(5, dtype=torch.float64), copies=5)
    assert memorisation(blank, real, real, 0.05).p_N.tolist() == [1.0] * 5


def test_no_honest_sample_is_named_next_to_many_copies():
    """Half of the samples are copies. The false discovery rate alone would let 2 % of the others join."""
    real = likeness(exponential("half/real", 20_000)[:, 0] / 10)
    new = torch.cat((exponential("half/new", 5000)[:, 0] / 10, torch.full((5000,), 6.0)))
    found = memorisation(likeness(new), real, likeness(new[:0]), 0.05)
    assert found.named_N[5000:].all()
    assert int(found.named_N[:5000].sum()) <= 1
