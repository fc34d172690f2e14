"""Counter-based random numbers: known answers, addressing, distributions."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genmod.rng import Rng, philox4x32, philox4x32_torch, philox_key, rng_for

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES,) * 4, (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
@pytest.mark.parametrize("philox", [philox4x32, philox4x32_torch])
def test_known_answers_of_random123(philox, counter, key, answer):
    words_4N = philox(torch.tensor(counter)[:, None], key)
    assert " ".join(f"{word:08x}" for word in words_4N[:, 0].tolist()) == answer


def test_cpu_and_device_implementations_agree():
    counter_4N = Rng(3, "test", torch.arange(4000)).bits(4).T.contiguous()
    key = philox_key(5, "x")
    assert torch.equal(philox4x32(counter_4N, key), philox4x32_torch(counter_4N, key))


DRAWS = {
    "uniform": lambda rng: rng.uniform(3, 5),
    "uniform64": lambda rng: rng.uniform(15, dtype=torch.float64),
    "normal": lambda rng: rng.normal(1, 28, 28),
    "normal64": lambda rng: rng.normal(7, dtype=torch.float64),
    "rademacher": lambda rng: rng.rademacher(9),
    "integers": lambda rng: rng.integers(10, 4),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
@given(cuts=st.lists(st.integers(0, 50), max_size=4))
@settings(max_examples=10, deadline=None)
def test_same_bits_for_any_batch_split(draw, cuts):
    rng = rng_for(7, "test", range(50))
    whole = draw(rng)
    edges = [0, *sorted(cuts), 50]
    parts = [draw(rng.rows(slice(a, b))) for a, b in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)


def test_every_part_of_the_address_changes_the_numbers():
    base = rng_for(1, "a", [3]).normal(4)
    others = [
        rng_for(2, "a", [3]),
        rng_for(1, "b", [3]),
        rng_for(1, "a", [4]),
        rng_for(1, "a", [3 + 2**32]),
        rng_for(1, "a", [3]).at(1),
        rng_for(1, "a", [3]).fold("x"),
        rng_for(1, "a", [3]).repeat(2).rows(slice(1, 2)),
    ]
    assert all(not torch.equal(other.normal(4), base) for other in others)


def test_repeat_returns_independent_adjacent_copies():
    copies = rng_for(1, "a", [5, 9]).repeat(3)
    assert copies.index_B.tolist() == [15, 16, 17, 27, 28, 29]


def test_prefix_of_a_longer_draw_of_bits_is_the_shorter_one():
    rng = rng_for(1, "a", range(4))
    assert torch.equal(rng.bits(13)[:, :6], rng.bits(6))


def test_distributions():
    rng = rng_for(11, "distribution", range(4000))
    normal = rng.normal(25, dtype=torch.float64).flatten().numpy()
    uniform = rng.uniform(25, dtype=torch.float64).flatten().numpy()
    assert stats.kstest(normal, "norm").pvalue > 1e-4
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert abs(rng.rademacher(25).mean().item()) < 5 / math.sqrt(100_000)
    counts = torch.bincount(rng.integers(10, 25).flatten(), minlength=10)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert float(rng.uniform(25).min()) >= 0.0
    assert float(rng.uniform(25).max()) < 1.0


def test_keys_of_different_seeds_and_purposes_differ():
    assert philox_key(1, "1/x") != philox_key(11, "/x")
    assert all(0 <= word < 2**32 for word in philox_key(0, ""))


def test_integers_refuses_a_bad_limit():
    with pytest.raises(ValueError, match=r"2\*\*31"):
        rng_for(0, "a", [0]).integers(2**31 + 1)


def test_quasi_uniform_numbers_are_even_for_any_first_row():
    for first in (0, 17, 10**9):
        u_B = rng_for(3, "level", range(first, first + 1000)).quasi_uniform()
        assert 0 <= u_B.min() <= u_B.max() < 1
        counts = torch.bincount((u_B * 50).long(), minlength=50)
        assert counts.min() >= 17  # of 20; independent numbers leave some place with less than 12
        assert counts.max() <= 23
    rows = rng_for(3, "level", [5, 9])
    assert torch.equal(rows.quasi_uniform()[1:], rows.rows(slice(1, 2)).quasi_uniform())
    others = (rows.at(1), rows.fold("x"), rng_for(4, "level", [5, 9]))
    assert all(
        (rows.quasi_uniform() - other.quasi_uniform()).abs().min() > 1e-6 for other in others
    )


def test_length_is_the_number_of_rows():
    assert len(Rng(0, "a", torch.arange(6))) == 6
