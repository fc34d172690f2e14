"""A U-Net conditioned on noise level and class, from 0.2 million parameters to the size for CIFAR-10.

    image -> unshuffle, stem -> level 0 -> level 1 -> ... -> middle -> ... -> level 1 -> level 0 -> head
                                   '---------'------- skips ----------------'---------'

Each level after the first has half the height and width. The output of every block on the way down is a
skip connection to its mirror on the way up.
Letters: B batch, C channels, H height, W width, E embedding, N width of a level.

References:
    U-Net: convolutional networks for biomedical image segmentation, Ronneberger et al. 2015,
    https://arxiv.org/abs/1505.04597
    Denoising diffusion probabilistic models (a U-Net with time and attention), Ho et al. 2020,
    https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmod.nets.blocks import (
    Down,
    GroupNormBlock,
    NoiseEmbedding,
    SelfAttention,
    Up,
    group_norm,
    zeroed,
)


class UNetBlock(nn.Module):
    """A residual block, followed by self-attention if ``head`` is not 0."""

    def __init__(self, channels: int, out: int, embedding: int, head: int) -> None:
        super().__init__()
        self.block = GroupNormBlock(channels, out, embedding)
        self.attention = SelfAttention(out, head) if head else nn.Identity()

    def forward(self, h_BCHW: Tensor, e_BE: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, H, W)."""
        return self.attention(self.block(h_BCHW, e_BE))


class UNet(nn.Module):
    """F(x; noise level, class), which maps an image to an image of its shape. A new net returns zeros."""

    def __init__(
        self,
        channels: int,
        *,
        unshuffle: int,
        widths: Sequence[int],
        blocks: int,
        attention: Collection[int],
        head: int,
        embedding: int,
        classes: int,
        inputs_per_channel: int = 1,
    ) -> None:
        """Build the net.

        Args:
            channels: C of the images.
            unshuffle: side of the pixel squares that the stem folds into channels, 1 for none.
            widths: channels of each level, finest first.
            blocks: residual blocks of each level, on the way down and on the way up.
            attention: levels with self-attention after each block; the middle has it if the coarsest level
                has it.
            head: channels in each attention head; divides the widths of those levels.
            embedding: length of the vector that conditions every block.
            classes: rows of the class embedding, 0 for none; the caller decides their meaning.
            inputs_per_channel: input channels for each image channel: itself and its Fourier features.
        """
        super().__init__()
        self.unshuffle = unshuffle
        self.noise = NoiseEmbedding(min(64, 2 * embedding), embedding)
        self.classes = nn.Embedding(classes, embedding) if classes else None
        folded = channels * unshuffle**2
        self.stem = nn.Conv2d(inputs_per_channel * folded, widths[0], 3, padding=1)
        levels = range(len(widths))
        heads = [head if level in attention else 0 for level in levels]

        def stages(level: int, inputs: Sequence[int]) -> nn.ModuleList:
            width = widths[level]
            return nn.ModuleList(UNetBlock(n, width, embedding, heads[level]) for n in inputs)

        self.down = nn.ModuleList(stages(level, [widths[level]] * blocks) for level in levels)
        self.coarser = nn.ModuleList(Down(widths[i], widths[i + 1]) for i in levels[:-1])
        self.middle = UNetBlock(widths[-1], widths[-1], embedding, heads[-1])
        self.up = nn.ModuleList(stages(level, [2 * widths[level]] * blocks) for level in levels)
        self.finer = nn.ModuleList(Up(widths[i + 1], widths[i]) for i in levels[:-1])
        self.norm = group_norm(widths[0])
        self.head = zeroed(nn.Conv2d(widths[0], folded, 3, padding=1))

    def forward(self, x_BCHW: Tensor, noise_B: Tensor, class_B: Tensor | None) -> Tensor:
        """Apply the net.

        Args:
            x_BCHW: images scaled to about unit variance.
            noise_B: noise level, scaled to about unit size.
            class_B: int64 rows of the class embedding, None for a net without.

        Returns:
            (B, C, H, W), unbounded.
        """
        e_BE = self.noise(noise_B)
        if self.classes is not None:
            assert class_B is not None, "a class-conditional net needs class_B"
            e_BE = e_BE + self.classes(class_B)
        e_BE = F.silu(e_BE)
        folded_BNHW = F.pixel_unshuffle(x_BCHW, self.unshuffle)
        # Convolutions are fastest in this layout on CPU and GPU, and keep it.
        h_BNHW = self.stem(folded_BNHW.contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for level, stages in enumerate(self.down):
            if level:
                h_BNHW = self.coarser[level - 1](h_BNHW)
            assert isinstance(stages, nn.ModuleList)
            for stage in stages:
                h_BNHW = stage(h_BNHW, e_BE)
                skips.append(h_BNHW)
        h_BNHW = self.middle(h_BNHW, e_BE)
        for level in reversed(range(len(self.up))):
            stages = self.up[level]
            assert isinstance(stages, nn.ModuleList)
            for stage in stages:
                h_BNHW = stage(torch.cat((h_BNHW, skips.pop()), dim=1), e_BE)
            if level:
                h_BNHW = self.finer[level - 1](h_BNHW)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h_BNHW))), self.unshuffle)
