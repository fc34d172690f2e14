import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmod.data.order import Deal, Order
from genmod.errors import ConfigError


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_is_every_row_once_in_an_order_of_its_own(rows, seed, epoch):
    order = Order(rows, seed)
    at = np.arange(rows, dtype=np.int64) + epoch * rows
    here = order.rows_at(at)
    assert sorted(here.tolist()) == list(range(rows))
    if rows >= 50:
        assert here.tolist() != order.rows_at(at + rows).tolist()
        assert here.tolist() != Order(rows, seed + 1).rows_at(at).tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(0, 3000), st.integers(1, 200))
def test_a_row_depends_on_its_position_alone(rows, start, count):
    order = Order(rows, 7)
    at = np.arange(start, start + count, dtype=np.int64)
    together = order.rows_at(at)
    half = count // 2
    assert together.tolist() == [*order.rows_at(at[:half]), *order.rows_at(at[half:])]
    assert order.rows_at(at[::-1]).tolist() == together[::-1].tolist()


@given(st.integers(0, 10**12), st.integers(1, 4))
def test_every_world_deals_the_same_global_batches(start, batches):
    for size in range(1, 6):
        deals = [Deal(60, rank, size).positions(start, batches) for rank in range(size)]
        together = np.concatenate(deals, axis=1)
        wanted = start + np.arange(60 * batches).reshape(batches, 60)
        assert np.array_equal(together, wanted)


def test_a_batch_that_cannot_be_dealt():
    with pytest.raises(ConfigError, match="64 images cannot be dealt to 3"):
        Deal(64, 0, 3)
