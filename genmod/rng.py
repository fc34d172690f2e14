"""Counter-based random numbers: each one is a pure function of (seed, purpose, index, step, position).

The generator is Philox4x32-10 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3) in
vectorised integer operations, so the bits are the same on every device and for every split of the rows
into batches. There is no state: drawing changes nothing, and nothing needs to be saved.

    key      64 bits   blake2b(seed, purpose)
    counter 128 bits   (block within the draw, step, index low, index high)

Letters: B rows, N numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MULTIPLIERS_21 = np.array([[_MULTIPLIER_0], [_MULTIPLIER_1]], dtype=np.uint64)


def philox4x32(counter_4N: Tensor, key: tuple[int, int]) -> Tensor:
    """Apply ten rounds of Philox4x32 to counters.

    Args:
        counter_4N: int64 of shape (4, N), each value a 32-bit word.
        key: two 32-bit words.

    Returns:
        int64 of shape (4, N), each value a 32-bit word.
    """
    if counter_4N.device.type == "cpu":
        words_4N = philox4x32_numpy(counter_4N.numpy().astype(np.uint32), key)
        return torch.from_numpy(words_4N.astype(np.int64))
    return philox4x32_torch(counter_4N, key)


def philox4x32_torch(counter_4N: Tensor, key: tuple[int, int]) -> Tensor:
    """:func:`philox4x32` in operations that every torch device supports."""
    device = counter_4N.device
    even = counter_4N[0::2]  # words 0 and 2, which are multiplied
    odd = counter_4N[1::2]  # words 1 and 3, which are only mixed in
    multipliers = torch.tensor([[_MULTIPLIER_0], [_MULTIPLIER_1]], dtype=torch.int64, device=device)
    keys_R21 = torch.from_numpy(np.stack(_round_keys(key)).astype(np.int64)).to(device)
    for key_21 in keys_R21:
        product = even * multipliers  # wraps modulo 2**64; its upper word is bits 32..63
        high = (product >> 32).flip(0)
        even = high.bitwise_xor_(odd).bitwise_xor_(key_21).bitwise_and_(_MASK32)
        odd = product.flip(0)  # only its lower 32 bits are used; they are masked at each use
    return torch.stack((even[0], odd[0] & _MASK32, even[1], odd[1] & _MASK32))


def philox4x32_numpy(counter_4N: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """:func:`philox4x32` in three numpy calls per round, since small draws are bound by call overhead."""
    even, odd = counter_4N[0::2], counter_4N[1::2]
    products_22N = np.empty((2, *even.shape), dtype="<u8")  # two buffers, used in turn
    swapped_22N2 = products_22N.view("<u4").reshape(2, *even.shape, 2)[:, ::-1]
    buffers = tuple(zip(products_22N, swapped_22N2[..., 1], swapped_22N2[..., 0], strict=True))
    mixed = np.empty_like(even)
    for key_21, (product, high, low) in zip(_round_keys(key), buffers * 5, strict=True):
        np.multiply(even, _MULTIPLIERS_21, product)
        np.bitwise_xor(high, odd, mixed)
        np.bitwise_xor(mixed, key_21, mixed)
        even, odd = mixed, low
    return np.stack((even[0], odd[0], even[1], odd[1]))


@lru_cache(maxsize=256)
def _round_keys(key: tuple[int, int]) -> tuple[NDArray[np.uint32], ...]:
    """The keys of the ten rounds, each of shape (2, 1)."""
    words = (
        [(key[0] + r * _WEYL_0) & _MASK32, (key[1] + r * _WEYL_1) & _MASK32] for r in range(10)
    )
    return tuple(np.array(pair, dtype=np.uint32)[:, None] for pair in words)


@lru_cache(maxsize=256)
def philox_key(seed: int, purpose: str) -> tuple[int, int]:
    """The 64-bit Philox key of a seed and a purpose, as two 32-bit words.

    >>> philox_key(0, "train") == philox_key(0, "train")
    True
    >>> philox_key(0, "train") == philox_key(0, "sample")
    False
    """
    text = f"{seed}\x00{purpose}".encode()
    digest = hashlib.blake2b(text, digest_size=8, person=b"genmod.rng").digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@dataclass(frozen=True)
class Rng:
    """Random numbers for B rows, each row addressed by its own index.

    ``Rng(seed, "train/noise", index_B).normal(C, H, W)`` returns a (B, C, H, W) tensor whose row b depends
    only on (seed, purpose, index_B[b], step). Drawing twice returns the same numbers: independent draws need
    different purposes (``rng.fold("time")``) or different steps (``rng.at(1)``).

    >>> rng = rng_for(0, "example", [3, 4])
    >>> bool((rng.uniform(2) == rng.uniform(2)).all())
    True
    >>> bool((rng.uniform(2)[1] == rng_for(0, "example", [4]).uniform(2)[0]).all())
    True
    """

    seed: int
    purpose: str
    index_B: Tensor
    """int64, at least 0: the address of each row, e.g. its position in the training stream."""
    step: int = 0
    """Draw number, 0 to 2**32 - 1, e.g. the step of a solver."""

    def __len__(self) -> int:
        return self.index_B.shape[0]

    def fold(self, purpose: str) -> Self:
        """The same rows with ``purpose`` appended to the purpose."""
        return replace(self, purpose=f"{self.purpose}/{purpose}")

    def at(self, step: int) -> Self:
        """The same rows and purpose, at another step."""
        return replace(self, step=step)

    def rows(self, which: slice | Tensor) -> Self:
        """A subset of the rows, by a slice, a mask or row numbers."""
        return replace(self, index_B=self.index_B[which])

    def repeat(self, times: int) -> Self:
        """``times`` independent copies of every row: (B,) -> (B * times,), copies of a row adjacent.

        Copy k of row b has the index ``index * times + k``. Fold a purpose that names the copies, so that
        they are independent of the original rows.
        """
        copies = torch.arange(times, device=self.index_B.device)
        return replace(self, index_B=(self.index_B[:, None] * times + copies).reshape(-1))

    def bits(self, count: int) -> Tensor:
        """Random 32-bit words, (B, count) int64."""
        blocks = -(-count // 4)
        index_B = self.index_B
        if index_B.device.type == "cpu":
            return torch.from_numpy(self._words(blocks)[:, :count].astype(np.int64))
        shape = (len(self), blocks)
        counter_4BK = torch.empty((4, *shape), dtype=torch.int64, device=index_B.device)
        counter_4BK[0] = torch.arange(blocks, device=index_B.device)
        counter_4BK[1] = self.step & _MASK32
        counter_4BK[2] = (index_B & _MASK32)[:, None]
        counter_4BK[3] = ((index_B >> 32) & _MASK32)[:, None]
        words_4N = philox4x32(counter_4BK.view(4, -1), philox_key(self.seed, self.purpose))
        return words_4N.view(4, *shape).permute(1, 2, 0).reshape(len(self), blocks * 4)[:, :count]

    def _words(self, blocks: int) -> NDArray[np.uint32]:
        """Random 32-bit words on the CPU, (B, 4 blocks)."""
        halves_B2 = self.index_B.contiguous().numpy().view("<u4").reshape(len(self), 2)
        counter_4BK = np.empty((4, len(self), blocks), dtype=np.uint32)
        counter_4BK[0] = np.arange(blocks)
        counter_4BK[1] = self.step & _MASK32
        counter_4BK[2:] = halves_B2.T[..., None]
        words_4N = philox4x32_numpy(counter_4BK.reshape(4, -1), philox_key(self.seed, self.purpose))
        return words_4N.T.reshape(len(self), 4 * blocks)

    def _middles(self, count: int) -> Tensor:
        """Random 32-bit words plus 0.5, so never 0: (B, count) float64."""
        if self.index_B.device.type == "cpu":
            return torch.from_numpy(np.add(self._words(-(-count // 4))[:, :count], 0.5))
        return self.bits(count).to(torch.float64).add_(0.5)

    def _unit(self, count: int, bits: int) -> Tensor:
        """Multiples of 2**-bits in [0, 1), (B, count) float64."""
        if self.index_B.device.type == "cpu":
            words = self._words(-(-count // 4))[:, :count]
            shifted = words if bits == 32 else words >> (32 - bits)
            return torch.from_numpy(np.multiply(shifted, 2.0**-bits))
        return (self.bits(count) >> (32 - bits)).to(torch.float64).mul_(2.0**-bits)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape), with 24 random bits in float32 and 32 in float64."""
        unit = self._unit(math.prod(shape), 32 if dtype == torch.float64 else 24)
        return unit.to(dtype).reshape(len(self), *shape)

    def quasi_uniform(self) -> Tensor:
        """Quasi-random numbers in [0, 1), (B,) float64: a low-discrepancy sequence over consecutive indices.

        Weyl's sequence: index times the golden ratio, modulo 1, shifted by (seed, purpose, step).
        """
        low, high = philox_key(self.seed, f"{self.purpose}/{self.step}")
        word_B = self.index_B * (0x9E3779B97F4A7C15 - 2**64) + (high - 2**31 << 32) + low  # wraps
        return (word_B >> 11 & (1 << 53) - 1).to(torch.float64) * 2.0**-53

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, (B, *shape) in ``dtype``, by Box and Muller 1958 from 32-bit words."""
        count = math.prod(shape)
        pairs = -(-count // 2)
        words = self._middles(2 * pairs)
        radius = torch.rsub(words[:, :pairs].log(), 64 * math.log(2), alpha=2).sqrt_()
        angle = words[:, pairs:].mul_(2.0**-31 * math.pi).to(dtype)
        normals = torch.empty((len(self), 2 * pairs), dtype=dtype, device=words.device)
        torch.mul(radius, angle.cos(), out=normals[:, :pairs])
        torch.mul(radius, angle.sin(), out=normals[:, pairs:])
        return normals[:, :count].reshape(len(self), *shape)

    def rademacher(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random signs -1 and +1, (B, *shape), each with probability one half."""
        sign = (self.bits(math.prod(shape)) >> 31) * 2 - 1
        return sign.to(dtype).reshape(len(self), *shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers uniform in [0, high), (B, *shape) int64.

        Args:
            high: 1 .. 2**31. The bias is below high / 2**63.
            shape: numbers per row.

        Raises:
            ValueError: ``high`` is out of range.
        """
        if not 1 <= high <= 2**31:
            raise ValueError(f"integers: got high={high}, expected 1 .. 2**31")
        count = math.prod(shape)
        words = self.bits(2 * count)
        # Lemire's multiply-shift on 63 bits would overflow, so take the remainder of 62 random bits.
        value = (words[:, :count] >> 1) << 31 | (words[:, count:] >> 1)
        return (value % high).reshape(len(self), *shape)


def rng_for(
    seed: int,
    purpose: str,
    index: Sequence[int] | Tensor | range,
    device: torch.device | str = "cpu",
) -> Rng:
    """An :class:`Rng` over the given indices: a range, a list or a tensor.

    >>> rng_for(0, "example", range(3)).normal(2, 2).shape
    torch.Size([3, 2, 2])
    """
    if isinstance(index, range):
        index_B = torch.arange(index.start, index.stop, index.step, device=device)
    else:
        index_B = torch.as_tensor(index, dtype=torch.int64, device=device)
    return Rng(seed, purpose, index_B)
