"""Many images as one picture. Letters: N images, C channels, H height, W width."""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.data.format.codecs import Codec
from genmod.manifest import ImageSpec

GAP = 1
"""Pixels between two images."""


def grid(pixels_NCHW: Tensor, columns: int, scale: int = 1, paper: int = 128) -> Tensor:
    """Images side by side, row by row: uint8 pixels (C, H, W).

    Args:
        pixels_NCHW: uint8, at least one.
        columns: images of a row.
        scale: each pixel becomes a square of so many.
        paper: what shows between images and where the last row is short.
    """
    count, channels, height, width = pixels_NCHW.shape
    rows = -(-count // columns)
    tall, wide = height * scale + GAP, width * scale + GAP
    picture_CHW = torch.full(
        (channels, rows * tall - GAP, columns * wide - GAP), paper, dtype=torch.uint8
    )
    for i, image_CHW in enumerate(pixels_NCHW):
        large_CHW = image_CHW.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        top, left = i // columns * tall, i % columns * wide
        picture_CHW[:, top : top + tall - GAP, left : left + wide - GAP] = large_CHW
    return picture_CHW


def png(picture_CHW: Tensor) -> bytes:
    """A grey or RGB picture (uint8) as a PNG file."""
    channels, height, width = picture_CHW.shape
    assert channels in (1, 3)
    codec = Codec(ImageSpec(channels=channels, height=height, width=width, classes=0))
    return codec.encode(picture_CHW.permute(1, 2, 0).contiguous().numpy())


def gallery_rows(labels_N: Tensor | None, rows: int, columns: int, classes: int) -> Tensor:
    """Which images to show: the first ones, or where there are labels the first of each class in turn.

    Args:
        labels_N: of the images; they are shown class by class, a class a row if ``rows`` >= classes.
        rows: of the picture.
        columns: of the picture.
        classes: how many there are.

    Returns:
        int64 indices, at most rows x columns.
    """
    if labels_N is None:
        return torch.arange(rows * columns)
    per_class = max(1, rows // classes) * columns
    chosen = [(labels_N == c).nonzero()[:per_class, 0] for c in range(min(classes, rows))]
    return torch.cat(chosen)[: rows * columns]
