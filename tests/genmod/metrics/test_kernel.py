"""Kernel distance: the unbiased estimator and its jackknife."""

from __future__ import annotations

import pytest
import torch

from genmod.metrics import kernel
from genmod.metrics.kernel import cubic_kernel, kernel_distance
from genmod.rng import rng_for


def normal(purpose, rows, dims=6):
    return rng_for(0, purpose, range(rows)).normal(dims, dtype=torch.float64)


def by_definition(fake_ND, real_MD):
    """Gretton et al. 2012, A kernel two-sample test, Eq. 3, with loops."""

    def mean_of_pairs(rows):
        pairs = [(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(((a @ b) / len(a) + 1) ** 3 for a, b in pairs) / len(pairs)

    cross = sum(((a @ b) / len(a) + 1) ** 3 for a in fake_ND for b in real_MD)
    cross = cross / (len(fake_ND) * len(real_MD))
    return float(mean_of_pairs(fake_ND) + mean_of_pairs(real_MD) - 2 * cross)


def test_known_kernel_values():
    a_ND = torch.tensor([[1.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    b_MD = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    assert cubic_kernel(a_ND, b_MD).tolist() == [[1.0], [8.0]]


def test_it_is_its_definition(monkeypatch):
    fake_ND, real_MD = normal("f", 9) + 0.3, normal("r", 7)
    wanted = by_definition(fake_ND, real_MD)
    assert kernel_distance(fake_ND, real_MD)[0] == pytest.approx(wanted, rel=1e-10)
    monkeypatch.setattr(kernel, "KERNEL_BLOCK_ROWS", 4)  # several blocks, the last one short
    assert kernel_distance(fake_ND, real_MD)[0] == pytest.approx(wanted, rel=1e-10)


def test_repeated_rows_are_by_definition():
    two_ND = normal("f", 2)[torch.arange(9) % 2]
    for fake_ND, real_MD in (
        (two_ND, normal("r", 7)),
        (two_ND, two_ND),
        (two_ND[:1].expand(5, -1), two_ND),
    ):
        wanted = by_definition(fake_ND, real_MD)
        assert kernel_distance(fake_ND, real_MD)[0] == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    same, _ = kernel_distance(two_ND[:1].expand(5, -1), two_ND[:1].expand(8, -1))
    assert same == pytest.approx(0, abs=1e-12)


def test_the_jackknife_leaves_out_one_row_at_a_time():
    fake_ND, real_MD = normal("f", 8) + 0.3, normal("r", 6)

    def spread(values):
        values = torch.tensor(values, dtype=torch.float64)
        return float((values - values.mean()).square().sum()) * (len(values) - 1) / len(values)

    def without(rows, i):
        return torch.cat((rows[:i], rows[i + 1 :]))

    variance = spread([by_definition(without(fake_ND, i), real_MD) for i in range(8)])
    value, interval = kernel_distance(fake_ND, real_MD)
    assert interval.high - value == pytest.approx(1.96 * variance**0.5, rel=1e-3)


def test_equal_distributions_are_at_zero_on_average():
    trials = 80
    measured = [kernel_distance(normal(f"a/{t}", 60), normal(f"b/{t}", 40)) for t in range(trials)]
    values = torch.tensor([value for value, _ in measured], dtype=torch.float64)
    assert abs(values.mean()) < 3 * values.std() / trials**0.5
    assert (values < 0).any()  # an unbiased estimate of zero must fall on both sides


def test_a_shift_is_seen_beyond_the_interval():
    value, interval = kernel_distance(normal("a", 300) + 0.5, normal("b", 300))
    assert 0 < interval.low < value
