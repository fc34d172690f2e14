"""Binary pixels drawn from greys: a pixel is on with the probability that its grey says, grey / 255.

Training on a new draw each time (dynamic binarisation) and judging by one that is fixed is the protocol of
Burda et al. 2016, Importance weighted autoencoders, https://arxiv.org/abs/1509.00519, for MNIST. Greys of 0
and 255 stay as they are. Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.rng import rng_for


def draw(grey_BCHW: Tensor, seed: int, purpose: str, index_B: Tensor) -> Tensor:
    """Pixels 0 and 255; row b's depend on its greys, the seed, the purpose and ``index_B[b]`` alone.

    Args:
        grey_BCHW: uint8.
        seed: of the draw.
        purpose: two draws with the same seed need two, e.g. two splits.
        index_B: int64.
    """
    u_BCHW = rng_for(seed, f"binary/{purpose}", index_B).uniform(*grey_BCHW.shape[1:])
    return (u_BCHW * 255 < grey_BCHW).to(torch.uint8) * 255
