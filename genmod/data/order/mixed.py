"""Mixture of several streams in exact proportions: a pure function of position.

A binary tree divides the positions. A fork with share u / v sends floor(p u / v) of the first p positions to
the left, and each side is divided again, until every component has its own positions, numbered from 0 without
gaps. So each component has exact epochs, whatever its size, and no counter or state is needed. Letters:
N positions, M positions of one side, K components.
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

_MAX_TOTAL = 2**31
"""Maximum sum of the integer weights, so that products stay below 2**62."""


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Convert weights to the smallest integers with the same proportions; 0.1 means exactly one tenth.

    >>> integer_weights([0.1, 0.2, 0])
    (1, 2, 0)

    Raises:
        ConfigError: a weight is negative, all are 0, or the integers are too large.
    """
    parts = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(part.denominator for part in parts))
    scaled = [int(part * scale) for part in parts]
    divisor = gcd(*scaled)
    if divisor == 0 or min(scaled) < 0:
        raise ConfigError(
            f"weights are {list(weights)}, expected numbers of at least 0, not all of them 0"
        )
    integers = [weight // divisor for weight in scaled]
    if sum(integers) > _MAX_TOTAL:
        raise ConfigError(
            f"weights {list(weights)} have a common denominator above {_MAX_TOTAL}; use fewer digits"
        )
    return tuple(integers)


@dataclass(frozen=True)
class _Fork:
    """Divides positions: a share of ``left_weight / weight`` of them goes left."""

    left: _Fork | int
    right: _Fork | int
    """Another fork, or the number of a component."""
    left_weight: int
    weight: int

    def divide(self, position_N: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether each position goes left, and its number among the positions on the same side."""
        periods_N, rest_N = position_N // self.weight, position_N % self.weight
        before_N = periods_N * self.left_weight + rest_N * self.left_weight // self.weight
        is_left_N = (rest_N + 1) * self.left_weight // self.weight > (
            rest_N * self.left_weight // self.weight
        )
        return is_left_N, np.where(is_left_N, before_N, position_N - before_N)


class Interleave:
    """Assigns each position to a component, and numbers the positions of each component.

    The first p positions contain w p positions of a component of share w, with an error below 4. Each block
    of ``total`` positions contains exactly its weight. (In a Huffman tree a fork has at most two thirds of
    the weight of its parent, so errors below 1 per level add up to less than 4.)
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """Build the tree for components with positive integer weights."""
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

    def assign(self, position_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Component of each position, and its number within the component.

        Args:
            position_N: int64 positions of at least 0, in any order.
        """
        component_N, number_N = np.empty_like(position_N), np.empty_like(position_N)
        # Walk the tree; each entry is a node, the places of its positions in the input, the positions.
        stack = [(self._root, np.arange(len(position_N)), position_N)]
        while stack:
            node, place_M, position_M = stack.pop()
            if isinstance(node, int):
                component_N[place_M], number_N[place_M] = node, position_M
                continue
            is_left_M, child_position_M = node.divide(position_M)
            for child, mask_M in ((node.left, is_left_M), (node.right, ~is_left_M)):
                if mask_M.any():
                    stack.append((child, place_M[mask_M], child_position_M[mask_M]))
        return component_N, number_N


class MixedOrder:
    """Mixture of components in given proportions, each with its own order and epochs."""

    def __init__(
        self, orders: Sequence[RowOrder], rows: Sequence[int], weights: Sequence[int]
    ) -> None:
        """Combine components; their rows are numbered consecutively, in the given order.

        Args:
            orders: row order of each component.
            rows: number of rows of each component.
            weights: positive integer weight of each component.
        """
        assert len(orders) == len(rows) == len(weights)
        self.interleave = Interleave(weights)
        self._orders = tuple(orders)
        self._first = np.cumsum([0, *rows])[:-1].tolist()

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at stream positions."""
        component_N, number_N = self.interleave.assign(position_N)
        row_N = np.empty_like(position_N)
        for component in np.unique(component_N).tolist():
            here_N = np.flatnonzero(component_N == component)
            rows_N = self._orders[component].rows_at(number_N[here_N])
            row_N[here_N] = self._first[component] + rows_N
        return row_N
