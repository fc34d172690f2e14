"""Mixing in exact proportions and balancing classes: laws over random weights and labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmod.data.order import balanced as balance
from genmod.data.order.balanced import BalancedOrder, ClassIndex
from genmod.data.order.mixed import Interleave, MixedOrder, integer_weights
from genmod.data.order.row_order import UniformOrder
from genmod.errors import ConfigError, DataError

WEIGHTS = st.lists(st.integers(1, 50), min_size=1, max_size=12)


def test_weights_are_the_decimals_that_are_written():
    assert integer_weights([0.1, 0.2]) == (1, 2)
    assert integer_weights([3, 1.5]) == (2, 1)
    assert integer_weights([0.7, 0, 0.3]) == (7, 0, 3)
    assert integer_weights([1e-3, 1]) == (1, 1000)
    for weights, words in (([0, 0], "not all of them 0"), ([1, 1e-12], "fewer digits")):
        with pytest.raises(ConfigError, match=words):
            integer_weights(weights)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS)
def test_every_component_has_its_share_of_any_stretch(weights):
    """Exactly over a period; from the first position on less than 4 rows away from it."""
    interleave = Interleave(weights)
    count = min(3 * interleave.total, 1500)
    component_N, number_N = interleave.assign(np.arange(count, dtype=np.int64))
    prefix_NK = np.cumsum(component_N[:, None] == np.arange(len(weights)), axis=0)
    share_K = np.array(weights) / interleave.total
    assert np.abs(prefix_NK - np.arange(1, count + 1)[:, None] * share_K).max() < 4
    whole = count // interleave.total * interleave.total
    for begin in range(0, whole, interleave.total):
        period = component_N[begin : begin + interleave.total]
        assert np.bincount(period, minlength=len(weights)).tolist() == weights
    for k in range(len(weights)):
        numbers = number_N[component_N == k]
        assert numbers.tolist() == list(range(len(numbers)))


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_a_component_depends_on_its_position_alone_however_far(weights, positions):
    interleave = Interleave(weights)
    at = np.array(positions, np.int64)
    component_N, number_N = interleave.assign(at)
    alone = [interleave.assign(at[i : i + 1]) for i in range(len(at))]
    assert component_N.tolist() == [int(k[0]) for k, _ in alone]
    periods = [p // interleave.total for p in positions]
    near, near_N = interleave.assign(at % interleave.total)
    assert component_N.tolist() == near.tolist()
    expected = [
        int(n) + period * weights[k] for n, k, period in zip(near_N, near, periods, strict=True)
    ]
    assert number_N.tolist() == expected


def test_the_largest_weights_do_not_overflow():
    weights = integer_weights([2**31 - 2, 1])
    period = 2**31 - 1
    ends_N = np.array([0, period - 1, 5 * period, 2**62], np.int64)
    component_N, number_N = Interleave(weights).assign(ends_N)
    for k, n, p in zip(component_N.tolist(), number_N.tolist(), ends_N.tolist(), strict=True):
        assert abs(n - p * weights[k] / period) < 1024  # of which 2**62 in float64 is 512
    assert number_N[component_N == 1].tolist() == sorted(number_N[component_N == 1].tolist())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=4))
def test_every_component_has_exact_epochs(parts):
    rows, weights = [r for r, _ in parts], [w for _, w in parts]
    orders = [UniformOrder(r, 1, f"order/{k}") for k, r in enumerate(rows)]
    mixed = MixedOrder(orders, rows, weights)
    row_N = mixed.rows_at(np.arange(600, dtype=np.int64))
    first = 0
    for size in rows:
        numbers = row_N[(row_N >= first) & (row_N < first + size)] - first
        for begin in range(0, len(numbers) - size + 1, size):
            assert sorted(numbers[begin : begin + size].tolist()) == list(range(size))
        first += size


@st.composite
def labelled_shards(draw):
    classes = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 25), min_size=1, max_size=6))
    labels = [
        np.array(draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)), np.int32)
        for n in sizes
    ]
    labels[0] = np.concatenate([np.arange(classes, dtype=np.int32), labels[0]])
    return classes, labels


@settings(max_examples=30, deadline=None)
@given(labelled_shards(), st.integers(0, 2**31), st.sampled_from([1, 20, 1 << 22]))
def test_classes_come_equally_often_and_each_has_exact_epochs(shards, seed, held_rows):
    classes, labels = shards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "LABEL_CACHE_ROWS", held_rows)
        index = ClassIndex([len(own) for own in labels], classes, lambda number: labels[number])
        order = BalancedOrder(index, seed)
        row_N = order.rows_at(np.arange(60 * classes, dtype=np.int64))
        far_N = order.rows_at(np.array([10**15, 3, 10**15], np.int64))
    label_R = np.concatenate(labels)
    assert index.rows_K.tolist() == np.bincount(label_R, minlength=classes).tolist()
    label_N = label_R[row_N]
    assert np.array_equal(
        np.sort(label_N.reshape(60, classes)), np.tile(np.arange(classes), (60, 1))
    )
    for k in range(classes):
        rows, numbers = np.flatnonzero(label_R == k), row_N[label_N == k]
        for begin in range(0, len(numbers) - len(rows) + 1, len(rows)):
            assert sorted(numbers[begin : begin + len(rows)].tolist()) == rows.tolist()
    assert far_N[1] == row_N[3]
    assert far_N[0] == far_N[2]


def test_a_balanced_order_is_uniform_over_a_class_and_over_places():
    from scipy import stats

    labels = [np.array([0, 1, 0, 0, 2, 1, 0, 2], np.int32)]
    order = BalancedOrder(ClassIndex([8], 3, lambda number: labels[0]), 1)
    row_BK = order.rows_at(np.arange(3 * 8000, dtype=np.int64)).reshape(-1, 3)
    classes = np.bincount(labels[0][row_BK[:, 0]], minlength=3)
    assert stats.chisquare(classes).pvalue > 1e-3
    zeros = row_BK[labels[0][row_BK] == 0].reshape(-1, 4)
    place = np.arange(4) * 8 + zeros
    counts = np.bincount(place.ravel(), minlength=32).reshape(4, 8)[:, [0, 2, 3, 6]]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_a_class_without_rows_is_left_out():
    labels = [np.array([1, 3, 3], np.int32), np.array([3, 1, 1, 1], np.int32)]
    order = BalancedOrder(ClassIndex([3, 4], 5, lambda number: labels[number]), 1)
    label_N = np.concatenate(labels)[order.rows_at(np.arange(40, dtype=np.int64))]
    assert np.array_equal(np.sort(label_N.reshape(20, 2)), np.tile([1, 3], (20, 1)))


def test_a_row_without_a_class_cannot_be_balanced():
    with pytest.raises(DataError, match="no label below 2"):
        ClassIndex([2], 2, lambda number: np.array([1, -1], np.int32))
