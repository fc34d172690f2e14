"""Lanes: the images that a request asks for, as intervals, and the work units that generate them.

A stream is an endless sequence of images, addressed by index. It has one lane, in which image t has index t.
Where a request has numbers of images by class, each class has a lane of its own: the classes take turns by
blocks of indices, so image t of a class is always the same, whatever is asked of the other classes. A request
is a set of intervals of lanes. So a larger request contains the smaller one, and what is left to do is a
difference of intervals. Letters: N intervals, U units, B images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from genmod.config import fingerprint


class LaneRange(NamedTuple):
    """Images ``start`` to ``stop`` of a lane, without ``stop``."""

    lane: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of images in it."""
        return self.stop - self.start


@dataclass(frozen=True)
class Lanes:
    """The lanes of a stream.

    >>> lanes = Lanes(block=2, dealt=(0, 2))
    >>> [lanes.index(2, t) for t in range(5)]
    [2, 3, 6, 7, 10]
    >>> lanes.place(7)
    (2, 3)
    """

    block: int = 0
    """Consecutive indices of a class; 0 for one lane, which is number 0."""
    dealt: tuple[int, ...] = ()
    """The classes that take turns, ascending; each is the number of its lane."""

    def index(self, lane: int, ordinal: int) -> int:
        """Index of an image of a lane."""
        if not self.block:
            return ordinal
        number, row = divmod(ordinal, self.block)
        return (number * len(self.dealt) + self.dealt.index(lane)) * self.block + row

    def place(self, index: int) -> tuple[int, int]:
        """Lane of an image, and its number in the lane."""
        if not self.block:
            return 0, index
        number, row = divmod(index, self.block)
        turn, lane = divmod(number, len(self.dealt))
        return self.dealt[lane], turn * self.block + row

    def indices(self, interval: LaneRange) -> range:
        """Indices of an interval, which is within one block where lanes have blocks."""
        start = self.index(interval.lane, interval.start)
        return range(start, start + interval.rows)

    def units(self, intervals: Iterable[LaneRange], rows: int) -> Units:
        """Divide intervals into work units of about so many images, in the order of the indices.

        Args:
            intervals: disjoint.
            rows: images of a unit; in lanes with blocks, at least one block.
        """
        step = self.block or rows
        parts = [_cut(interval, step) for interval in sorted(intervals) if interval.rows]
        if not parts:
            none_N = np.zeros(0, np.int64)
            return Units(self, np.zeros(0, np.int32), none_N, none_N, none_N)
        lane_N, start_N, stop_N = (np.concatenate(column) for column in zip(*parts, strict=True))
        per_unit = 1
        if self.block:
            turn_N = np.searchsorted(np.array(self.dealt), lane_N)
            block_N = start_N // self.block * len(self.dealt) + turn_N
            order_N = np.argsort(block_N * self.block + start_N % self.block, kind="stable")
            lane_N, start_N, stop_N = lane_N[order_N], start_N[order_N], stop_N[order_N]
            per_unit = max(1, rows // self.block)
        return Units(self, lane_N, start_N, stop_N, np.arange(0, len(lane_N), per_unit))


def _cut(
    interval: LaneRange, step: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Cut an interval at the multiples of a step: lanes, starts and stops."""
    lane, start, stop = interval
    start_N = np.arange(start // step, -(-stop // step), dtype=np.int64) * step
    stop_N = np.minimum(start_N + step, stop)
    start_N[0] = start
    return np.full(len(start_N), lane, np.int32), start_N, stop_N


@dataclass(frozen=True)
class SampleUnit:
    """The images of one work unit, in the order of their indices."""

    lanes: Lanes
    intervals: tuple[LaneRange, ...]

    @property
    def rows(self) -> int:
        """Number of images in it."""
        return sum(interval.rows for interval in self.intervals)

    @property
    def name(self) -> str:
        """Name of its receipt: the first index, and a digest of the intervals."""
        first = self.lanes.index(self.intervals[0].lane, self.intervals[0].start)
        return f"train-{first:012d}-{fingerprint(self.intervals)[:10]}"

    def ranges(self) -> Iterator[range]:
        """Ranges of indices, in order."""
        return map(self.lanes.indices, self.intervals)

    def halves(self, micro_batch: int) -> tuple[SampleUnit, ...]:
        """Two units with about half of the micro-batches each; none if there is only one.

        The images of a micro-batch are computed together, so it cannot be divided.
        """
        step = self.lanes.block or micro_batch
        pieces = [
            LaneRange(interval.lane, *bounds)
            for interval in self.intervals
            for bounds in zip(
                *(column.tolist() for column in _cut(interval, step)[1:]), strict=True
            )
        ]
        if len(pieces) < 2:
            return ()
        halves = pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :]
        merge = tuple if self.lanes.block else joined
        return tuple(SampleUnit(self.lanes, merge(half)) for half in halves)


class Units(Sequence[SampleUnit]):
    """Work units, made when they are asked for: 20 bytes of memory for each interval."""

    def __init__(
        self,
        lanes: Lanes,
        lane_N: NDArray[np.int32],
        start_N: NDArray[np.int64],
        stop_N: NDArray[np.int64],
        first_U: NDArray[np.int64],
    ) -> None:
        self._lanes = lanes
        self._lane_N, self._start_N, self._stop_N = lane_N, start_N, stop_N
        self._first_U = first_U

    def __len__(self) -> int:
        return len(self._first_U)

    @overload
    def __getitem__(self, number: int) -> SampleUnit: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[SampleUnit]: ...

    def __getitem__(self, number: int | slice) -> SampleUnit | Sequence[SampleUnit]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        first = int(self._first_U[number])
        last = int(self._first_U[number + 1]) if number + 1 < len(self) else len(self._lane_N)
        columns = (column[first:last].tolist() for column in self._columns)
        return SampleUnit(self._lanes, tuple(map(LaneRange, *columns)))

    @property
    def _columns(self) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        return self._lane_N, self._start_N, self._stop_N

    @property
    def rows(self) -> int:
        """Images of all units together."""
        return int((self._stop_N - self._start_N).sum())


def joined(intervals: Iterable[LaneRange]) -> tuple[LaneRange, ...]:
    """The same images with as few intervals as possible, in order: the normal form of a request.

    >>> joined([LaneRange(0, 5, 9), LaneRange(0, 0, 5)])
    (LaneRange(lane=0, start=0, stop=9),)
    """
    result: list[LaneRange] = []
    for interval in sorted(interval for interval in intervals if interval.rows):
        last = result[-1] if result else None
        if last is not None and last.lane == interval.lane and interval.start <= last.stop:
            result[-1] = LaneRange(last.lane, last.start, max(last.stop, interval.stop))
        else:
            result.append(interval)
    return tuple(result)


def without(intervals: Iterable[LaneRange], removed: Iterable[LaneRange]) -> tuple[LaneRange, ...]:
    """The images of some intervals that are not in others.

    >>> without([LaneRange(0, 0, 9)], [LaneRange(0, 2, 4)])
    (LaneRange(lane=0, start=0, stop=2), LaneRange(lane=0, start=4, stop=9))
    """
    by_lane: dict[int, list[LaneRange]] = {}
    for interval in joined(removed):
        by_lane.setdefault(interval.lane, []).append(interval)
    result: list[LaneRange] = []
    for lane, start, stop in joined(intervals):
        begin = start
        for hole in by_lane.get(lane, ()):
            if hole.stop <= begin or hole.start >= stop:
                continue
            if hole.start > begin:
                result.append(LaneRange(lane, begin, hole.start))
            begin = hole.stop
        if begin < stop:
            result.append(LaneRange(lane, begin, stop))
    return tuple(result)


class Cover:
    """A set of images from which shards are taken, each at most once."""

    def __init__(self, intervals: Iterable[LaneRange]) -> None:
        self._left: dict[int, list[LaneRange]] = {}
        for interval in joined(intervals):
            self._left.setdefault(interval.lane, []).append(interval)

    def take(self, parts: Sequence[LaneRange]) -> bool:
        """Remove the images of a shard, if all of them are left; False if not."""
        if not all(any(_contains(whole, part) for whole in self._of(part)) for part in parts):
            return False
        lanes: Mapping[int, list[LaneRange]] = self._left
        for part in parts:
            rest = without(lanes[part.lane], [part])
            self._left[part.lane] = list(rest)
        return True

    def _of(self, part: LaneRange) -> Sequence[LaneRange]:
        return self._left.get(part.lane, ())

    def left(self) -> tuple[LaneRange, ...]:
        """The images that no shard has."""
        return joined(interval for lane in self._left.values() for interval in lane)


def _contains(whole: LaneRange, part: LaneRange) -> bool:
    return whole.start <= part.start and part.stop <= whole.stop
