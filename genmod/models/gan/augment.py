"""Augmentations of all images that D sees, real and generated alike, against overfitting of small datasets.

Colour, translation and cutout are those of Zhao et al. 2020, Differentiable augmentation for data-efficient
GAN training, sec. 3.2. Each is applied to a row with probability p. Adaptation of p: Karras et al. 2020,
Training generative adversarial networks with limited data (ADA), sec. 3. All randomness is addressed by row.

Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genmod.config import Config
from genmod.interface.options import MAX_NIMG
from genmod.rng import Rng

SHIFT_SHARE = 0.125
"""Largest translation, as a share of the image's side."""
CUT_SHARE = 0.5
"""Side of the cutout square, as a share of the image's side."""

Kind = Literal["colour", "translation", "cutout"]


class AugmentConfig(Config):
    """Kinds of augmentation and their probability."""

    kinds: tuple[Kind, ...] = Field(
        default=("colour", "translation", "cutout"), min_length=1, max_length=16
    )
    """Augmentations, in the order in which they are applied."""
    probability: float = Field(default=1.0, ge=0, le=1)
    """Of each kind for each image; the initial value if it adapts."""
    target: float | None = Field(default=None, gt=0, lt=1)
    """Adapt the probability so that the overfitting heuristic r_t stays near this value (ADA uses 0.6); null
    for a constant probability. r_t is E sign(D(x)), or E sign(D(x) - D(G(z))) for the relativistic loss."""
    adapt_nimg: int = Field(default=500_000, gt=0, le=MAX_NIMG)
    """Images in which the probability can rise from 0 to 1."""


def augmented(x_BCHW: Tensor, rng: Rng, kinds: tuple[Kind, ...], probability: Tensor) -> Tensor:
    """Apply each kind to each row with the scalar probability; differentiable by the image."""
    for kind in kinds:
        draws = rng.fold(kind)
        changed_BCHW = _KINDS[kind](x_BCHW, draws)
        use_B111 = draws.fold("use").uniform(1, 1, 1, dtype=x_BCHW.dtype) < probability
        x_BCHW = torch.where(use_B111, changed_BCHW, x_BCHW)
    return x_BCHW


def adapted(
    probability: Tensor, overfitting_heuristic: Tensor, config: AugmentConfig, images: int
) -> Tensor:
    """The probability after a batch of ``images`` with this value of the overfitting heuristic."""
    assert config.target is not None
    step = images / config.adapt_nimg
    return (probability + step * torch.sign(overfitting_heuristic - config.target)).clamp(0.0, 1.0)


def _colour(x_BCHW: Tensor, rng: Rng) -> Tensor:
    """Brightness by up to a quarter of the range, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    draws_B3 = rng.uniform(3, dtype=x_BCHW.dtype)
    bright, saturation, contrast = (draws_B3[:, n].view(-1, 1, 1, 1) for n in range(3))
    x_BCHW = x_BCHW + (bright - 0.5)
    if x_BCHW.shape[1] > 1:
        grey_B1HW = x_BCHW.mean(dim=1, keepdim=True)
        x_BCHW = grey_B1HW + (x_BCHW - grey_B1HW) * (2.0 * saturation)
    mean_B111 = x_BCHW.mean(dim=(1, 2, 3), keepdim=True)
    return mean_B111 + (x_BCHW - mean_B111) * (0.5 + contrast)


def _translation(x_BCHW: Tensor, rng: Rng) -> Tensor:
    """Translation by whole pixels, padded with middle grey."""
    rows, channels, height, width = x_BCHW.shape
    down, right = max(1, round(height * SHIFT_SHARE)), max(1, round(width * SHIFT_SHARE))
    y_B = rng.fold("y").integers(2 * down + 1, 1)
    x_B = rng.fold("x").integers(2 * right + 1, 1)
    here = x_BCHW.device
    padded = F.pad(x_BCHW, (right, right, down, down))
    return padded[
        torch.arange(rows, device=here)[:, None, None, None],
        torch.arange(channels, device=here)[None, :, None, None],
        (torch.arange(height, device=here) + y_B)[:, None, :, None],
        (torch.arange(width, device=here) + x_B)[:, None, None, :],
    ]


def _cutout(x_BCHW: Tensor, rng: Rng) -> Tensor:
    """A rectangle of middle grey around a random pixel."""
    _, _, height, width = x_BCHW.shape
    inside: list[Tensor] = []
    for name, size in (("y", height), ("x", width)):
        centre_B1 = rng.fold(name).integers(size, 1)
        distance = (torch.arange(size, device=x_BCHW.device) - centre_B1).abs()
        inside.append(distance < max(1.0, size * CUT_SHARE / 2))
    cut_BHW = inside[0][:, :, None] & inside[1][:, None, :]
    return x_BCHW.masked_fill(cut_BHW[:, None], 0.0)


_KINDS = {"colour": _colour, "translation": _translation, "cutout": _cutout}
