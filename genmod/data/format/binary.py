"""Binarisation by sampling: a pixel is on (255) with probability grey / 255.

Training on a new draw at each visit (dynamic binarisation) and evaluating on one fixed draw is the protocol
of Burda et al. 2016, Importance weighted autoencoders, https://arxiv.org/abs/1509.00519, for MNIST. Greys of
0 and 255 do not change. Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.rng import rng_for


def draw(grey_BCHW: Tensor, seed: int, purpose: str, index_B: Tensor) -> Tensor:
    """Draw pixels 0 or 255; row b depends only on its greys, ``seed``, ``purpose`` and ``index_B[b]``.

    Args:
        grey_BCHW: uint8 greys.
        seed: seed of the draw.
        purpose: distinguishes draws with the same seed, e.g. the splits.
        index_B: int64, the address of each row's randomness.

    Returns:
        uint8 (B, C, H, W) with values 0 and 255.
    """
    u_BCHW = rng_for(seed, f"binary/{purpose}", index_B).uniform(*grey_BCHW.shape[1:])
    return (u_BCHW * 255 < grey_BCHW).to(torch.uint8) * 255
