"""Many images as one picture."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from genmod.data.format.image_grid import GAP, gallery_rows, grid, png


def test_a_grid_contains_every_image_in_reading_order():
    pixels_NCHW = torch.arange(5 * 3 * 2 * 4, dtype=torch.uint8).view(5, 3, 2, 4)
    picture_CHW = grid(pixels_NCHW, columns=3, scale=2, background=9)
    assert picture_CHW.shape == (3, 2 * 4 + GAP, 3 * 8 + 2 * GAP)
    for i, image_CHW in enumerate(pixels_NCHW):
        top, left = i // 3 * (4 + GAP), i % 3 * (8 + GAP)
        part_CHW = picture_CHW[:, top : top + 4, left : left + 8]
        assert torch.equal(part_CHW[:, ::2, ::2], image_CHW)
        assert torch.equal(part_CHW[:, 1::2, 1::2], image_CHW)
    assert (picture_CHW[:, 4 + GAP :, 16 + 2 * GAP :] == 9).all()  # the sixth place is empty


def test_a_png_gives_back_the_pixels():
    grey_CHW = torch.arange(35, dtype=torch.uint8).view(1, 5, 7)
    assert np.array_equal(Image.open(io.BytesIO(png(grey_CHW))), grey_CHW[0].numpy())
    colour_CHW = torch.arange(105, dtype=torch.uint8).view(3, 5, 7)
    found_HWC = np.asarray(Image.open(io.BytesIO(png(colour_CHW))))
    assert np.array_equal(found_HWC, colour_CHW.permute(1, 2, 0).numpy())


def test_a_gallery_shows_each_class_in_its_own_row():
    labels_N = torch.tensor([2, 0, 1, 0, 2, 1, 0, 0, 2, 1])
    assert gallery_rows(labels_N, 3, 2, 3).tolist() == [1, 3, 2, 5, 0, 4]
    assert gallery_rows(None, 2, 2, 0).tolist() == [0, 1, 2, 3]
    assert len(gallery_rows(torch.arange(100), 10, 10, 100)) == 10  # more classes than rows
