"""Keyed random permutations of any size, computed per position without storing a table.

Uses 64-bit integers with wrap-around, so the values are the same on every machine. Letters: N positions,
M positions that are still outside the range.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmod.rng import philox_key

_Words = NDArray[np.uint64]
_Sizes = np.uint64 | _Words

_ONE, _GOLDEN = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_MULTIPLIER_1, _MULTIPLIER_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def shuffle(
    position_N: Tensor, size: int | Tensor, seed: int, purpose: str, which_N: Tensor | None = None
) -> Tensor:
    """Map positions through a keyed random permutation of ``range(size)``.

    A generalised Feistel network of 16 rounds on range(a) x range(b), with a b >= size and SplitMix64 as
    round function; values of ``size`` or more pass through the network again (cycle walking; Black and
    Rogaway 2002, Ciphers with arbitrary finite domains, methods 2 and 3). a and b are close to the square
    root of ``size``, so walking is rare. Each position has a uniform image; whole permutations are nearly
    uniform for ten or more elements only.

    >>> shuffle(torch.arange(8), 8, seed=0, purpose="example").sort().values.tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]

    Args:
        position_N: int64 positions in [0, size).
        size: size of the permutation, at most 2**62. Or int64 sizes in [1, 2**52), one per position, which
            yields the same values.
        seed: seed of the run.
        purpose: name of the permutation, e.g. ``shard/train``.
        which_N: int64 numbers of at least 0 that select one of many permutations for each position, e.g. the
            epoch; 0 by default.

    Returns:
        int64 of the same shape; over all positions, every value of [0, size) once.
    """
    value_N = _words(position_N)
    which_N = torch.zeros_like(position_N) if which_N is None else which_N
    low, high = philox_key(seed, f"shuffle/{purpose}")
    key_N = _mix64(_words(which_N) + np.uint64((high + 2**31 << 32) % 2**64))
    key_N = _mix64(key_N + np.uint64(low))
    if isinstance(size, Tensor):
        shuffled_N = _walk(value_N, key_N, _words(size))
    else:
        shuffled_N = _walk(value_N, key_N, np.uint64(size)) if size > 1 else value_N
    return torch.from_numpy(shuffled_N.astype(np.int64)).reshape(position_N.shape)


def _words(number_N: Tensor) -> _Words:
    return number_N.flatten().numpy().astype(np.uint64)


def _walk(value_N: _Words, key_N: _Words, size: _Sizes) -> _Words:
    """Apply the network until each value is below ``size`` (cycle walking)."""
    value_N = _feistel(value_N, key_N, size)
    while len(outside_M := np.flatnonzero(value_N >= size)):
        size_M = size[outside_M] if isinstance(size, np.ndarray) else size
        value_N[outside_M] = _feistel(value_N[outside_M], key_N[outside_M], size_M)
    return value_N


def _feistel(value_N: _Words, key_N: _Words, size: _Sizes) -> _Words:
    """16 rounds of the Feistel network on range(a) x range(b)."""
    if isinstance(size, np.ndarray):
        a = np.sqrt((size - _ONE).astype(np.float64)).astype(np.uint64) + _ONE  # exact below 2**52
    else:
        a = np.uint64(math.isqrt(int(size) - 1) + 1)
    b = (size + a - _ONE) // a
    right_N = value_N // a
    left_N = value_N - right_N * a
    for number in range(0, 16, 2):
        left_N = _add(left_N, right_N, key_N + np.uint64(number), a)
        right_N = _add(right_N, left_N, key_N + np.uint64(number + 1), b)
    return right_N * a + left_N


def _add(half_N: _Words, other_N: _Words, key_N: _Words, size: _Sizes) -> _Words:
    """Round function: add 63 random bits, a hash of the other half and the key, modulo ``size``."""
    word_N = _mix64(other_N * _GOLDEN + key_N) >> _ONE
    remainder_N = word_N - word_N // size * size  # numpy has vector instructions for //, not for %
    sum_N = half_N + remainder_N
    return np.minimum(sum_N, sum_N - size)  # sum - size wraps to a large number if it is negative


def _mix64(word_N: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), a bijection of 64-bit words."""
    word_N = (word_N ^ (word_N >> _SHIFT_1)) * _MULTIPLIER_1
    word_N = (word_N ^ (word_N >> _SHIFT_2)) * _MULTIPLIER_2
    return word_N ^ (word_N >> _SHIFT_3)
