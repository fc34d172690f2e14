"""Residual convolutional encoder and decoder between images and vectors, for any height and width.

Pixel (un)shuffles trade resolution for channels, so no convolution runs at full resolution.
There is no normalisation over rows or pixels and no dropout: a row's result depends on that row alone.
Letters: B batch, C channels, H height, W width, E embedding, Z vector, N width of a level.

References:
    Deep residual learning for image recognition, He et al. 2016, https://arxiv.org/abs/1512.03385
    FiLM: visual reasoning with a general conditioning layer, Perez et al. 2018,
    https://arxiv.org/abs/1709.07871
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from genmod.nets.blocks import stride_of
from genmod.nets.linear import Linear


class FilmBlock(nn.Module):
    """Residual block ``x + conv(silu(film(conv(silu(x)))))`` without normalisation, for autoencoders.

    FiLM scales and shifts each channel by an affine function of the conditioning vector. The weights of the
    last convolution start at zero.
    """

    def __init__(self, channels: int, embedding: int) -> None:
        """``embedding`` is the length of the conditioning vector, 0 for none."""
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        self.film = Linear(embedding, 2 * channels) if embedding else None

    def forward(self, h_BNHW: Tensor, e_BE: Tensor | None) -> Tensor:
        """(B, N, H, W) to the same shape."""
        r_BNHW = self.first(F.silu(h_BNHW))
        if self.film is not None:
            assert e_BE is not None, "a conditional block needs its conditioning vector"
            scale_BN, shift_BN = self.film(e_BE).chunk(2, dim=1)
            r_BNHW = r_BNHW * (1 + scale_BN[:, :, None, None]) + shift_BN[:, :, None, None]
        return h_BNHW + self.second(F.silu(r_BNHW))


def _grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of the coarsest level; images are padded up to a multiple of the stride."""
    height, width = size
    return -(-height // stride), -(-width // stride)


class ResNetEncoder(nn.Module):
    """Maps images to vectors by residual convolutions."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        out: int,
        *,
        unshuffle: int,
        widths: Sequence[int],
        blocks: int,
        embedding: int = 0,
    ) -> None:
        """Build the net.

        Args:
            channels: C of the images.
            size: (H, W) of the images, any.
            out: length of the output vector.
            unshuffle: side of the pixel squares that the stem folds into channels, 1 for none.
            widths: channels of each level; each level after the first halves height and width.
            blocks: residual blocks in each level.
            embedding: length of the conditioning vector, 0 for none.
        """
        super().__init__()
        stride = stride_of(unshuffle, widths)
        rows, columns = _grid(size, stride)
        self.unshuffle = unshuffle
        self.padding = (0, columns * stride - size[1], 0, rows * stride - size[0])
        self.stem = nn.Conv2d(channels * unshuffle**2, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            nn.ModuleList(FilmBlock(width, embedding) for _ in range(blocks)) for width in widths
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in itertools.pairwise(widths)
        )
        self.head = Linear(widths[-1] * rows * columns, out)

    def forward(self, x_BCHW: Tensor, e_BE: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] and the conditioning vectors (B, E) to (B, out)."""
        x_BCHW = F.pad(x_BCHW, self.padding)
        h_BNHW = self.stem(F.pixel_unshuffle(x_BCHW, self.unshuffle))
        for number, level in enumerate(self.levels):
            if number:
                h_BNHW = self.downs[number - 1](F.pixel_unshuffle(h_BNHW, 2))
            assert isinstance(level, nn.ModuleList)
            for block in level:
                h_BNHW = block(h_BNHW, e_BE)
        return self.head(F.silu(h_BNHW).flatten(1))


class ResNetDecoder(nn.Module):
    """Maps vectors to images by residual convolutions."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        size: tuple[int, int],
        *,
        unshuffle: int,
        widths: Sequence[int],
        blocks: int,
    ) -> None:
        """Build the net, the mirror of :class:`ResNetEncoder`.

        Args:
            inputs: length of the input vector, which also conditions every block.
            channels: C of the output image.
            size: (H, W) of the image, any.
            unshuffle: side of the pixel squares that each position of the finest level becomes.
            widths: channels of each level, finest first.
            blocks: residual blocks in each level.
        """
        super().__init__()
        rows, columns = _grid(size, stride_of(unshuffle, widths))
        self.size = size
        self.unshuffle = unshuffle
        self.coarsest = (widths[-1], rows, columns)
        self.stem = Linear(inputs, widths[-1] * rows * columns)
        self.levels = nn.ModuleList(
            nn.ModuleList(FilmBlock(width, inputs) for _ in range(blocks)) for width in widths[::-1]
        )
        self.ups = nn.ModuleList(
            nn.Conv2d(coarse, 4 * fine, 1) for coarse, fine in itertools.pairwise(widths[::-1])
        )
        self.head = nn.Conv2d(widths[0], channels * unshuffle**2, 3, padding=1)

    def forward(self, z_BZ: Tensor) -> Tensor:
        """(B, inputs) to (B, channels, H, W), unbounded."""
        h_BNHW = self.stem(z_BZ).unflatten(1, self.coarsest)
        for number, level in enumerate(self.levels):
            if number:
                h_BNHW = F.pixel_shuffle(self.ups[number - 1](h_BNHW), 2)
            assert isinstance(level, nn.ModuleList)
            for block in level:
                h_BNHW = block(h_BNHW, z_BZ)
        x_BCHW = F.pixel_shuffle(self.head(F.silu(h_BNHW)), self.unshuffle)
        return x_BCHW[:, :, : self.size[0], : self.size[1]]
