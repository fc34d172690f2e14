"""Several streams as one, in exact proportions: a pure function of position.

A stream of endless positions is divided in two by floor(p u / v), the smallest number of rows that a share of
u / v can have had by position p, and each part again, until every component has its own positions, numbered
from 0 without a gap. So the components' epochs are exact, whatever their sizes, and nothing is counted or
stored. Letters: N positions, K components.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from genmod.data.order.row_order import RowOrder
from genmod.errors import ConfigError

MAX_TOTAL = 2**31
"""Of whole-numbered weights without a common divisor, so that products stay below 2**62."""


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The same proportions in the smallest whole numbers; 0.1 is taken for one tenth, as it is written.

    Raises:
        ConfigError: none is above 0, or the numbers would be too large.
    """
    parts = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(part.denominator for part in parts))
    whole = [int(part * scale) for part in parts]
    divisor = gcd(*whole)
    if divisor == 0 or min(whole) < 0:
        raise ConfigError(f"weights are {list(weights)}, wanted none below 0 and some above")
    whole = [weight // divisor for weight in whole]
    if sum(whole) > MAX_TOTAL:
        raise ConfigError(
            f"weights {list(weights)} are proportions of numbers above {MAX_TOTAL}; give fewer digits"
        )
    return tuple(whole)


@dataclass(frozen=True)
class _Fork:
    """Positions go left or right, a share of ``left_weight / weight`` of them left."""

    left: _Fork | int
    right: _Fork | int
    """A component's number, or another fork."""
    left_weight: int
    weight: int

    def divide(self, at_N: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether each position goes left, and its number there: how many went the same way before."""
        periods_N, rest_N = at_N // self.weight, at_N % self.weight
        before_N = periods_N * self.left_weight + rest_N * self.left_weight // self.weight
        is_left_N = (rest_N + 1) * self.left_weight // self.weight > (
            rest_N * self.left_weight // self.weight
        )
        return is_left_N, np.where(is_left_N, before_N, at_N - before_N)


class Interleave:
    """Which component has each position, and the how-manieth of that component it is.

    Any p positions from the first on have w p of a component of share w, give or take less than 4, and any
    ``total`` positions from a multiple of ``total`` on have exactly its weight. (In Huffman's tree a fork has
    at most two thirds of the fork above it, so errors of less than 1 a level add up to less than 4.)
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """Components with the given weights, whole numbers above 0."""
        assert weights
        assert min(weights) > 0
        self.components = len(weights)
        self.total = sum(weights)
        heap: list[tuple[int, int, _Fork | int]] = [(w, k, k) for k, w in enumerate(weights)]
        heapq.heapify(heap)
        for number in range(len(weights), 2 * len(weights) - 1):
            low_weight, _, low = heapq.heappop(heap)
            high_weight, _, high = heapq.heappop(heap)
            weight = low_weight + high_weight
            heapq.heappush(heap, (weight, number, _Fork(low, high, low_weight, weight)))
        self._root = heap[0][2]

    def deal(self, position_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Component and number within it, for each position; at least 0, in any order."""
        component_N, number_N = np.empty_like(position_N), np.empty_like(position_N)
        to_do = [(self._root, np.arange(len(position_N)), position_N)]
        while to_do:
            node, where_N, at_N = to_do.pop()
            if isinstance(node, int):
                component_N[where_N], number_N[where_N] = node, at_N
                continue
            is_left_N, inside_N = node.divide(at_N)
            for child, mine_N in ((node.left, is_left_N), (node.right, ~is_left_N)):
                if mine_N.any():
                    to_do.append((child, where_N[mine_N], inside_N[mine_N]))
        return component_N, number_N


class MixedOrder:
    """Components in declared proportions, each in an order and with epochs of its own."""

    def __init__(
        self, orders: Sequence[RowOrder], rows: Sequence[int], weights: Sequence[int]
    ) -> None:
        """Rows are numbered through all components, in the order given.

        Args:
            orders: of each component.
            rows: that each has.
            weights: whole numbers above 0.
        """
        assert len(orders) == len(rows) == len(weights)
        self.interleave = Interleave(weights)
        self._orders = tuple(orders)
        self._first = np.cumsum([0, *rows])[:-1].tolist()

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at positions of the stream."""
        component_N, number_N = self.interleave.deal(position_N)
        row_N = np.empty_like(position_N)
        for component in np.unique(component_N).tolist():
            here_N = np.flatnonzero(component_N == component)
            rows_N = self._orders[component].rows_at(number_N[here_N])
            row_N[here_N] = self._first[component] + rows_N
        return row_N
