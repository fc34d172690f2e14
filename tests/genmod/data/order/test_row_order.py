"""Laws of the order of training: uniform, in windows, dealt to any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genmod.data.order.row_order import RankSlice, UniformOrder, WindowOrder, epoch_rows
from genmod.errors import ConfigError

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_is_every_row_once_in_a_new_order(rows, seed, epoch):
    order = UniformOrder(rows, seed)
    at = np.arange(rows, dtype=np.int64) + epoch * rows
    here = order.rows_at(at)
    assert sorted(here.tolist()) == list(range(rows))
    if rows >= 50:
        assert here.tolist() != order.rows_at(at + rows).tolist()
        assert here.tolist() != UniformOrder(rows, seed + 1).rows_at(at).tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(0, 3000), st.integers(1, 200))
def test_a_row_depends_on_its_position_alone(rows, start, count):
    order = UniformOrder(rows, 7)
    at = np.arange(start, start + count, dtype=np.int64)
    together = order.rows_at(at)
    half = count // 2
    assert together.tolist() == [*order.rows_at(at[:half]), *order.rows_at(at[half:])]
    assert order.rows_at(at[::-1]).tolist() == together[::-1].tolist()


@pytest.mark.parametrize("rows", [7, 24])
def test_no_position_prefers_a_row_and_no_pair_a_pair(rows):
    """Chi-square over all positions x rows, and over all ordered pairs at distances 1, 2 and half."""
    epochs = 400 * rows
    order = UniformOrder(rows, 11)
    row_EN = order.rows_at(np.arange(epochs * rows, dtype=np.int64)).reshape(epochs, rows)
    cells = np.arange(rows) * rows + row_EN
    assert stats.chisquare(np.bincount(cells.ravel(), minlength=rows * rows)).pvalue > 1e-3
    for distance in (1, 2, rows // 2):
        pair_EM = row_EN[:, :-distance] * rows + row_EN[:, distance:]
        counts = np.bincount(pair_EM.ravel(), minlength=rows * rows).reshape(rows, rows)
        assert counts.trace() == 0
        free = counts[~np.eye(rows, dtype=bool)]
        assert stats.chisquare(free).pvalue > 1e-3


def test_a_long_epoch_is_as_shuffled_as_independent_draws():
    """Neighbours, epochs and the deal to ranks: no correlation, and inversions as many as expected."""
    rows = 1_000_003
    order = UniformOrder(rows, 3)
    at = np.arange(40_000, dtype=np.int64)
    first, second = order.rows_at(at), order.rows_at(at + rows)
    limit = 4 / np.sqrt(len(at))
    for distance in (1, 2, 64, 4096):
        assert abs(np.corrcoef(first[:-distance], first[distance:])[0, 1]) < limit
    assert abs(np.corrcoef(first, second)[0, 1]) < limit
    assert abs(stats.kendalltau(at, first).statistic) < limit
    assert stats.kstest(first / rows, "uniform").pvalue > 1e-3
    assert len(np.unique(first)) == len(at)


def test_the_chance_to_meet_a_row_again_soon_is_that_of_uniform_epochs():
    """Gaps between a row's places in two epochs have the triangular distribution."""
    rows, epochs = 40, 3000
    row_EN = (
        UniformOrder(rows, 5)
        .rows_at(np.arange(epochs * rows, dtype=np.int64))
        .reshape(epochs, rows)
    )
    place_EN = np.argsort(row_EN, axis=1)
    gaps = rows + place_EN[1::2] - place_EN[0:-1:2]
    expected = np.array([rows - abs(gap - rows) for gap in range(1, 2 * rows)], dtype=float)
    counts = np.bincount(gaps.ravel(), minlength=2 * rows)[1:]
    assert stats.chisquare(counts, expected / expected.sum() * gaps.size).pvalue > 1e-3


@settings(max_examples=25, deadline=None)
@given(SHARDS, st.integers(1, 5), st.integers(0, 2**31), st.integers(0, 3))
def test_a_windows_shards_are_read_in_one_stretch_and_every_row_once(rows_S, window, seed, epoch):
    order = WindowOrder(rows_S, window, seed)
    rows = sum(rows_S)
    row_N = order.rows_at(np.arange(rows, dtype=np.int64) + epoch * rows)
    assert sorted(row_N.tolist()) == list(range(rows))
    shard_N = np.repeat(np.arange(len(rows_S)), rows_S)[row_N]
    begin = 0
    seen = set()
    while begin < rows:  # a window is the rows of `window` shards, wholly
        size, here = 0, []
        while begin + size < rows and (len(here) < window or shard_N[begin + size] in here):
            if shard_N[begin + size] not in here:
                here.append(shard_N[begin + size])
            size += 1
        expected = sum(rows_S[shard] for shard in here)
        assert size == expected
        assert not seen & set(here)
        seen |= set(here)
        begin += size


@settings(max_examples=25, deadline=None)
@given(SHARDS, st.integers(1, 5), st.data())
def test_a_window_orders_row_depends_on_its_position_alone(rows_S, window, data):
    order = WindowOrder(rows_S, window, 3)
    at = np.array(data.draw(st.lists(st.integers(0, 1000), min_size=1, max_size=30)), np.int64)
    together = order.rows_at(at).tolist()
    fresh = [int(WindowOrder(rows_S, window, 3).rows_at(at[i : i + 1])[0]) for i in range(len(at))]
    assert together == fresh


def test_windows_of_one_shard_and_of_two():
    """Over epochs every row is as likely at every position, and within a window so is every pair."""
    epochs, rows = 400, 12
    for window in (1, 2):
        order = WindowOrder([3, 3, 3, 3], window, 1)
        row_EN = order.rows_at(np.arange(epochs * rows, dtype=np.int64)).reshape(epochs, rows)
        cells = (np.arange(rows) * rows + row_EN).ravel()
        assert stats.chisquare(np.bincount(cells, minlength=rows * rows)).pvalue > 1e-3
        same = (row_EN[:, 0] // 3 == row_EN[:, 1] // 3).mean()
        assert same == pytest.approx(2 / (3 * window - 1), abs=0.09)


def test_a_billion_rows_cost_what_their_shards_cost():
    import tracemalloc

    rows_S = np.full(100_000, 10_000, np.int64)
    at = np.arange(10**15, 10**15 + 4096, dtype=np.int64)
    tracemalloc.start()
    row_N = UniformOrder(10**9, 1).rows_at(at)
    window_N = WindowOrder(rows_S, 8, 1).rows_at(at)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 << 20
    for found_N in (row_N, window_N):
        assert len(np.unique(found_N)) == len(at)
        assert 0 <= found_N.min() <= found_N.max() < 10**9
    assert len(np.unique(window_N // 10_000)) <= 16


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 4))
def test_the_last_batch_wraps_or_is_dropped(rows, batch, epoch):
    assert epoch_rows(rows, batch, "wrap") == rows
    if rows < batch:
        with pytest.raises(ConfigError, match="do not fill one batch"):
            epoch_rows(rows, batch, "drop")
        return
    length = epoch_rows(rows, batch, "drop")
    assert length == rows // batch * batch
    shards = [rows // 2, rows - rows // 2] if rows > 1 else [rows]
    for order in (UniformOrder(rows, 3, epoch=length), WindowOrder(shards, 1, 3, epoch=length)):
        row_N = order.rows_at(np.arange(length, dtype=np.int64) + epoch * length)
        assert len(np.unique(row_N)) == length
        assert row_N.max() < rows


def test_dropped_rows_are_others_in_each_epoch():
    order = UniformOrder(10, 3, epoch=8)
    row_EN = order.rows_at(np.arange(8 * 400, dtype=np.int64)).reshape(400, 8)
    counts = np.bincount(row_EN.ravel(), minlength=10)
    assert counts.min() > 280
    assert counts.max() < 360


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 4))
def test_every_world_reads_the_same_global_batches(start, batches):
    for size in range(1, 8):
        deals = [RankSlice(420, rank, size).positions(start, batches) for rank in range(size)]
        together = np.concatenate(deals, axis=1)
        expected = start + np.arange(420 * batches).reshape(batches, 420)
        assert np.array_equal(together, expected)


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(ConfigError, match="64 images cannot be divided equally among 3"):
        RankSlice(64, 0, 3)
