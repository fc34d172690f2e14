"""Grids of images, as PNG files. Letters: N images, C channels, H height, W width."""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.data.format.codecs import Codec
from genmod.manifest import ImageSpec

GAP = 1
"""Pixels between two images of a grid."""


def grid(pixels_NCHW: Tensor, columns: int, scale: int = 1, background: int = 128) -> Tensor:
    """Arrange images in a grid, row by row.

    Args:
        pixels_NCHW: uint8, at least one image.
        columns: images per row.
        scale: side in pixels of the square that each pixel becomes.
        background: grey level between the images and after the last one.

    Returns:
        uint8 pixels (C, H, W) of the grid.
    """
    count, channels, height, width = pixels_NCHW.shape
    rows = -(-count // columns)
    tall, wide = height * scale + GAP, width * scale + GAP
    grid_CHW = torch.full(
        (channels, rows * tall - GAP, columns * wide - GAP), background, dtype=torch.uint8
    )
    for i, image_CHW in enumerate(pixels_NCHW):
        large_CHW = image_CHW.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        top, left = i // columns * tall, i % columns * wide
        grid_CHW[:, top : top + tall - GAP, left : left + wide - GAP] = large_CHW
    return grid_CHW


def png(image_CHW: Tensor) -> bytes:
    """Encode a grey or RGB image, uint8 (C, H, W), as a PNG file."""
    channels, height, width = image_CHW.shape
    assert channels in (1, 3)
    codec = Codec(ImageSpec(channels=channels, height=height, width=width, classes=0))
    return codec.encode(image_CHW.permute(1, 2, 0).contiguous().numpy())


def gallery_rows(labels_N: Tensor | None, rows: int, columns: int, classes: int) -> Tensor:
    """Choose images for a grid: the first ones, or with labels the first ones of each class.

    Args:
        labels_N: int64 labels; chosen images are sorted by class, one class per row if ``rows`` >= classes.
        rows: rows of the grid.
        columns: columns of the grid.
        classes: number of classes.

    Returns:
        int64 indices of at most rows x columns images.
    """
    if labels_N is None:
        return torch.arange(rows * columns)
    per_class = max(1, rows // classes) * columns
    chosen = [(labels_N == c).nonzero()[:per_class, 0] for c in range(min(classes, rows))]
    return torch.cat(chosen)[: rows * columns]
