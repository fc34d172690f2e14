"""Keyed permutations: bijections, the same for any company, uniform; a known answer."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genmod.permutation import shuffle


def test_known_answer():
    assert shuffle(torch.arange(10), 10, 0, "order").tolist() == [0, 2, 4, 1, 9, 6, 3, 8, 5, 7]
    large_N = shuffle(torch.tensor([0, 10**18]), 2**62, 1, "x")
    assert large_N.tolist() == [
        4607039696199993780,
        954301428089838135,
    ]
    which_N = torch.tensor([0, 7, 2**40])
    assert shuffle(torch.full((3,), 5), 10**6, 2, "y", which_N).tolist() == [589523, 195648, 919925]


def test_the_shape_of_positions_is_kept():
    flat_N = shuffle(torch.arange(12), 12, 0, "order")
    assert torch.equal(shuffle(torch.arange(12).view(3, 4), 12, 0, "order"), flat_N.view(3, 4))
    assert shuffle(torch.tensor(3), 12, 0, "order") == flat_N[3]
    assert shuffle(torch.arange(0), 12, 0, "order").shape == (0,)


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_shuffle_is_a_bijection(size, seed):
    image_N = shuffle(torch.arange(size), size, seed, "order")
    assert torch.equal(image_N.sort().values, torch.arange(size))


def test_shuffle_is_pointwise_and_works_for_a_billion():
    size = 10**9
    position_N = torch.tensor([0, 1, size // 2, size - 1])
    together = shuffle(position_N, size, 5, "order")
    alone = torch.cat([shuffle(position_N[i : i + 1], size, 5, "order") for i in range(4)])
    assert torch.equal(together, alone)
    assert int(together.max()) < size
    assert together.unique().numel() == 4


def test_many_permutations_in_one_call():
    size, which_N = 50, torch.tensor([0, 3, 2**40])
    at_N = torch.arange(size).repeat(3)
    together = shuffle(at_N, size, 5, "order", which_N.repeat_interleave(size)).view(3, size)
    for k, which in enumerate(which_N):
        alone = shuffle(torch.arange(size), size, 5, "order", which.repeat(size))
        assert torch.equal(together[k], alone)
        assert torch.equal(alone.sort().values, torch.arange(size))
    assert torch.equal(together[0], shuffle(torch.arange(size), size, 5, "order"))
    assert len({tuple(row.tolist()) for row in together}) == 3


@given(sizes=st.lists(st.integers(1, 300) | st.integers(1, 2**52 - 1), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_permutations_of_many_sizes_in_one_call(sizes):
    size_N = torch.tensor(sizes).repeat_interleave(2)
    at_N, which_N = size_N // 3, torch.arange(len(size_N))
    together = shuffle(at_N, size_N, 5, "order", which_N)
    for n, size in enumerate(size_N.tolist()):
        alone = shuffle(at_N[n : n + 1], size, 5, "order", which_N[n : n + 1])
        assert together[n] == alone[0]


def test_shuffle_is_uniform_in_first_and_last_place():
    size, runs = 8, 4000
    which_N = torch.arange(runs).repeat_interleave(2)
    ends_N = torch.tensor([0, size - 1]).repeat(runs)
    first = shuffle(ends_N, size, 1, "o", which_N).view(runs, 2)
    for column in first.T:
        assert stats.chisquare(torch.bincount(column, minlength=size).numpy()).pvalue > 1e-4
    assert not (first[:, 0] == first[:, 1]).any()
