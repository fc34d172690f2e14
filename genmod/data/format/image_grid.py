"""Grids of images, as PNG files. Letters: N images, C channels, H height, W width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmod.data.format.codecs import Codec
from genmod.manifest import ImageSpec

GAP = 1
"""Pixels between two images of a grid."""

SHEET_BACKGROUND = 128
"""Grey level of cells of a contact sheet without an image."""

_THUMBNAIL_PIXELS = 64
"""Longer side of a thumbnail. Larger images are reduced to it, smaller ones enlarged by an integer."""


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


def pixel_scale(spec: ImageSpec) -> int:
    """Side of the square that each pixel of a small image becomes in a grid; 1 for images of 56 pixels."""
    return max(1, 56 // max(spec.height, spec.width))


def png(image_CHW: Tensor) -> bytes:
    """Encode a grey or RGB image, uint8 (C, H, W), as a PNG file."""
    channels, height, width = image_CHW.shape
    assert channels in (1, 3)
    codec = Codec(ImageSpec(channels=channels, height=height, width=width, classes=0))
    return codec.encode(image_CHW.permute(1, 2, 0).contiguous().numpy())


def thumbnail_spec(spec: ImageSpec) -> ImageSpec:
    """Shape of an image of a dataset on a contact sheet."""
    shrink = max(1.0, max(spec.height, spec.width) / _THUMBNAIL_PIXELS)
    height, width = (max(1, round(side / shrink)) for side in (spec.height, spec.width))
    return ImageSpec(channels=spec.channels, height=height, width=width, classes=0)


def draw_sheet(
    parts: Sequence[Sequence[NDArray[np.uint8]]], thumb: ImageSpec, columns: int
) -> bytes:
    """Draw thumbnails as a PNG file; every part begins a new row and is as high as the largest.

    Args:
        parts: uint8 (H, W, C) of each part; at least one image in all.
        thumb: shape of the thumbnails.
        columns: maximum number of images per row.
    """
    most = max(map(len, parts))
    columns = min(columns, most)
    cells = -(-most // columns) * columns
    images_NCHW = np.full((cells * len(parts), *thumb.shape), SHEET_BACKGROUND, dtype=np.uint8)
    for number, part in enumerate(parts):
        for cell, image_HWC in enumerate(part, number * cells):
            images_NCHW[cell] = image_HWC.transpose(2, 0, 1)
    scale = max(1, _THUMBNAIL_PIXELS // max(thumb.height, thumb.width))
    return png(grid(torch.from_numpy(images_NCHW), columns, scale, SHEET_BACKGROUND))


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
