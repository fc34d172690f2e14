"""Lanes: every image of a request is in exactly one unit; differences and covers are those of sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmod.generation.lanes import Cover, LaneRange, Lanes, joined, without

INTERVALS = st.lists(
    st.builds(
        lambda lane, start, rows: LaneRange(lane, start, start + rows),
        st.integers(0, 2),
        st.integers(0, 40),
        st.integers(0, 20),
    ),
    max_size=8,
)


def members(intervals):
    return {(lane, i) for lane, start, stop in intervals for i in range(start, stop)}


@given(INTERVALS, INTERVALS)
def test_differences_are_those_of_sets(some, others):
    assert members(joined(some)) == members(some)
    assert members(without(some, others)) == members(some) - members(others)
    assert joined(joined(some)) == joined(some)


@given(INTERVALS, st.integers(1, 9), st.sampled_from([0, 1, 4]))
def test_every_image_is_in_one_unit(some, rows, block):
    lanes = Lanes(block, (0, 1, 2)) if block else Lanes()
    asked = joined(i for i in some if block or i.lane == 0)
    units = list(lanes.units(asked, rows))
    found = [
        (lane, i)
        for unit in units
        for lane, start, stop in unit.intervals
        for i in range(start, stop)
    ]
    assert len(found) == len(set(found))
    assert set(found) == members(asked)
    indices = [index for unit in units for part in unit.ranges() for index in part]
    assert indices == sorted(indices)
    assert [lanes.place(index) for index in indices] == found
    assert all(unit.rows <= max(rows, block) for unit in units)
    assert len({unit.name for unit in units}) == len(units)


@given(st.integers(0, 500), st.integers(1, 7), st.sets(st.integers(0, 9), min_size=1))
def test_an_index_has_one_place(index, block, classes):
    lanes = Lanes(block, tuple(sorted(classes)))
    assert lanes.index(*lanes.place(index)) == index


@pytest.mark.parametrize(
    ("lanes", "parts", "sizes"),
    [
        (Lanes(3, (0, 1)), [LaneRange(0, 0, 5), LaneRange(1, 2, 4)], [4, 3]),
        (Lanes(), [LaneRange(0, 2, 12)], [4, 6]),
        (Lanes(), [LaneRange(0, 0, 3)], []),
    ],
)
def test_halves_of_a_unit_are_its_micro_batches(lanes, parts, sizes):
    (unit,) = lanes.units(parts, 100)[:1] if not lanes.block else [lanes.units(parts, 100)[0]]
    halves = unit.halves(3)
    assert [half.rows for half in halves] == sizes
    if halves:
        indices = [index for half in halves for part in half.ranges() for index in part]
        assert indices == [index for part in unit.ranges() for index in part]
        assert all(len({index // 3 for index in part}) for half in halves for part in half.ranges())


def test_a_cover_gives_each_image_once():
    cover = Cover([LaneRange(0, 0, 10)])
    assert cover.take([LaneRange(0, 2, 5)])
    assert not cover.take([LaneRange(0, 4, 6)])
    assert not cover.take([LaneRange(1, 0, 1)])
    assert not cover.take([LaneRange(0, 8, 11)])
    assert cover.left() == (LaneRange(0, 0, 2), LaneRange(0, 5, 10))


def test_a_number_outside_the_units_is_an_error():
    units = Lanes().units([LaneRange(0, 0, 10)], 4)
    assert [unit.rows for unit in units] == [4, 4, 2]
    assert units[-1].intervals == (LaneRange(0, 8, 10),)
    with pytest.raises(IndexError):
        units[3]
