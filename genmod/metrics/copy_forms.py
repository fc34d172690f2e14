"""Kinds of copies: what is left of an image after its original was shifted, flipped or rescaled to fit it.

The residual of a copy is the rounding of pixels, or white noise. The residual of two different images that
look alike has a structure: neighbouring pixels of it are alike, or a few of them are large.
Letters: B images of a block, N candidates of an image, C channels, H height, W width, D pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.metrics.near_copies import (
    FLIPPED,
    UNCHANGED,
    VIEWS,
    Candidates,
    CopySearch,
    flat,
    interior,
)

ROUNDING_RMS = 0.6
"""Largest root mean square of a residual that rounding explains, in grey levels of 0 to 255."""

NOISE_RMS = 2.0
"""Smallest root mean square of a residual that counts as noise. Data has weaker noise between images."""

NOISE_PEAK = 5.5
"""Largest ratio of a noise residual's greatest value to its root mean square; a normal law has 3 to 4.5."""

NOISE_CORRELATION = 0.15
"""Largest correlation of neighbouring pixels of a noise residual, besides 4 standard errors."""

NOISE_LOW = 2.0
"""Largest ratio of a noise residual's variance in the leading components to that of white noise."""

SCALE_RANK = 10
"""An image's own scale is its distance to its training row of this rank: copies of one original are fewer."""

_EXAMINED = 3
"""Candidates whose pixels are compared."""

_MAX_GAIN, _MAX_OFFSET = 0.03, 1.5
"""A copy whose contrast and brightness changed by less has neither in its kind."""

LEAST_CLOSENESS = 1.0
"""Of an image that is less close, the form of the residual says nothing: noise, and the few pixels of small
images, look like a copy's. Its kind is :data:`SIMILAR`."""

SIMILAR = "similar"
"""Kind of an image whose residual has a structure."""


@dataclass(frozen=True)
class Likeness:
    """How much images are like their most similar training image."""

    row_B: Tensor
    """Number of the training row, int64."""
    closeness_B: Tensor
    """Logarithm of an image's own scale over its distance to that row, float64: 0 to 1 for new images, 2 to 6
    for copies."""
    is_copy_B: Tensor
    """Whether the residual has the form of a copy's, bool."""
    distance_B: Tensor
    """Root mean square of the residual in grey levels, float64."""
    kinds: tuple[str, ...]
    """``exact``, or those of ``shifted``, ``flipped``, ``contrast``, ``noisy`` that apply, or ``similar``."""

    @staticmethod
    def join(parts: list[Likeness]) -> Likeness:
        """The likeness of several blocks, in their order."""
        if not parts:
            none = torch.zeros(0, dtype=torch.float64)
            return Likeness(none.to(torch.int64), none, none.to(torch.bool), none, ())
        return Likeness(
            torch.cat([part.row_B for part in parts]),
            torch.cat([part.closeness_B for part in parts]),
            torch.cat([part.is_copy_B for part in parts]),
            torch.cat([part.distance_B for part in parts]),
            tuple(kind for part in parts for kind in part.kinds),
        )


def likeness(search: CopySearch, images_BCHW: Tensor, excluded_B: Tensor | None = None) -> Likeness:
    """Compare images with all training rows; any block of images, in any process, gives the same.

    Args:
        search: the training rows.
        images_BCHW: uint8 images.
        excluded_B: for each image the training row that it is, if it is one.
    """
    found = search.nearest(images_BCHW, excluded_B)
    examined = Candidates(
        found.row_BN[:, :_EXAMINED], found.view_BN[:, :_EXAMINED], found.distance_BN[:, :_EXAMINED]
    )
    views_BVCHW = torch.stack([interior(images_BCHW, view) for view in range(VIEWS)], 1)
    images, examined_rows = examined.row_BN.shape
    one_B = torch.arange(images)[:, None]
    image_BNCHW = views_BVCHW[one_B, examined.view_BN].to(torch.float64)
    originals = search.pixels(examined.row_BN.flatten())
    original_BNCHW = interior(originals, UNCHANGED).to(torch.float64)
    original_BNCHW = original_BNCHW.reshape(images, examined_rows, *original_BNCHW.shape[1:])
    fit = _fit(image_BNCHW, original_BNCHW)
    low_BN = _low(search, fit.residual_BNCHW)
    best_B1 = low_BN.argmin(1, keepdim=True)
    best = _Residual.of(fit, low_BN, best_B1, search)
    components = search.space.basis_DK.shape[1]
    # Rounding alone leaves residuals of this length, so nothing is nearer.
    floor = (components / 12) ** 0.5 / search.space.pool
    inner_B1CHW = views_BVCHW[:, UNCHANGED : UNCHANGED + 1].to(torch.float64)
    length_B, low_B = _length(search, inner_B1CHW), _low(search, inner_B1CHW)[:, 0]
    rank = min(SCALE_RANK, found.distance_BN.shape[1]) - 1
    # With a gain of 0, any training row leaves no more than the image itself.
    scale_B = torch.minimum(found.distance_BN[:, rank] * length_B, low_B)
    closeness_B = torch.log((scale_B + floor) / (low_BN.gather(1, best_B1)[:, 0] + floor))
    view_B = examined.view_BN.gather(1, best_B1)[:, 0]
    return Likeness(
        examined.row_BN.gather(1, best_B1)[:, 0],
        # Rounded, so that the order of additions in a block does not decide ranks.
        (closeness_B * 1e6).round() / 1e6,
        best.is_rounding_B | best.is_noise_B,
        best.rms_B,
        best.kinds(view_B, closeness_B),
    )


@dataclass(frozen=True)
class _Fit:
    """Originals times a gain plus an offset, clipped to 0 .. 255, and what is left of the images."""

    residual_BNCHW: Tensor
    gain_BN: Tensor
    offset_BN: Tensor


def _fit(image_BNCHW: Tensor, original_BNCHW: Tensor) -> _Fit:
    """The best of three: unchanged, least squares over all pixels, and over those that are not clipped."""
    shape = image_BNCHW.shape
    x_BND, t_BND = image_BNCHW.flatten(2), original_BNCHW.flatten(2)
    gain_BN = torch.ones(shape[:2], dtype=torch.float64)
    offset_BN = torch.zeros_like(gain_BN)
    residual_BND = x_BND - t_BND
    least_BN = residual_BND.square().sum(2)
    everywhere_BND = torch.ones_like(x_BND)
    for weight_BND in (everywhere_BND, ((x_BND > 0) & (x_BND < 255)).to(torch.float64)):
        count_BN1 = weight_BND.sum(2, keepdim=True).clamp(min=1)
        x_mean_BN1 = (x_BND * weight_BND).sum(2, keepdim=True) / count_BN1
        t_mean_BN1 = (t_BND * weight_BND).sum(2, keepdim=True) / count_BN1
        centred_BND = (t_BND - t_mean_BN1) * weight_BND
        gain_BN1 = (centred_BND * (x_BND - x_mean_BN1)).sum(2, keepdim=True)
        gain_BN1 = gain_BN1 / centred_BND.square().sum(2, keepdim=True).clamp(min=1e-9)
        offset_BN1 = x_mean_BN1 - gain_BN1 * t_mean_BN1
        left_BND = x_BND - (gain_BN1 * t_BND + offset_BN1).round().clamp(0, 255)
        square_BN = left_BND.square().sum(2)
        better_BN = square_BN < least_BN
        least_BN = torch.where(better_BN, square_BN, least_BN)
        gain_BN = torch.where(better_BN, gain_BN1[..., 0], gain_BN)
        offset_BN = torch.where(better_BN, offset_BN1[..., 0], offset_BN)
        residual_BND = torch.where(better_BN[..., None], left_BND, residual_BND)
    return _Fit(residual_BND.reshape(shape), gain_BN, offset_BN)


def _low(search: CopySearch, residual_BNCHW: Tensor) -> Tensor:
    """Length of residuals in the leading components, without their mean, (B, N)."""
    joined_BCHW = residual_BNCHW.flatten(0, 1)
    joined_BCHW = joined_BCHW - joined_BCHW.mean((1, 2, 3), keepdim=True)
    return search.space.project(joined_BCHW).norm(dim=1).reshape(residual_BNCHW.shape[:2])


def _length(search: CopySearch, inner_B1CHW: Tensor) -> Tensor:
    """Length of interiors without their mean, in the numbers of the search, (B,)."""
    flat_BD = flat(inner_B1CHW[:, 0], search.space.pool)
    return (flat_BD - flat_BD.mean(1, keepdim=True)).norm(dim=1)


@dataclass(frozen=True)
class _Residual:
    """The residual of each image for its most similar training row."""

    rms_B: Tensor
    gain_B: Tensor
    offset_B: Tensor
    is_rounding_B: Tensor
    is_noise_B: Tensor

    @classmethod
    def of(cls, fit: _Fit, low_BN: Tensor, best_B1: Tensor, search: CopySearch) -> _Residual:
        one_B = torch.arange(len(best_B1))
        residual_BCHW = fit.residual_BNCHW[one_B, best_B1[:, 0]]
        rms_B = residual_BCHW.square().mean((1, 2, 3)).sqrt()
        centred_BCHW = residual_BCHW - residual_BCHW.mean((1, 2, 3), keepdim=True)
        variance_B = centred_BCHW.square().mean((1, 2, 3)).clamp(min=1e-9)
        across_B = _correlation(centred_BCHW[..., 1:], centred_BCHW[..., :-1]) / variance_B
        down_B = _correlation(centred_BCHW[..., 1:, :], centred_BCHW[..., :-1, :]) / variance_B
        # White noise has the same variance in every component; averaging over squares divides it.
        components = search.space.basis_DK.shape[1]
        low_B = low_BN.gather(1, best_B1)[:, 0].square() / components * search.space.pool**2
        pixels = residual_BCHW[0].numel() if len(residual_BCHW) else 1
        limit = max(NOISE_CORRELATION, 4 / pixels**0.5)
        is_noise_B = (
            (rms_B >= NOISE_RMS)
            & (residual_BCHW.abs().amax((1, 2, 3)) <= NOISE_PEAK * rms_B)
            & (across_B.abs() <= limit)
            & (down_B.abs() <= limit)
            & (low_B <= NOISE_LOW * variance_B)
        )
        return cls(
            rms_B,
            fit.gain_BN.gather(1, best_B1)[:, 0],
            fit.offset_BN.gather(1, best_B1)[:, 0],
            rms_B <= ROUNDING_RMS,
            is_noise_B,
        )

    def kinds(self, view_B: Tensor, closeness_B: Tensor) -> tuple[str, ...]:
        """The kind of each image, given the view in which it is like its training row."""
        return tuple(
            self._kind(image, view) if close else SIMILAR
            for image, (view, close) in enumerate(
                zip(view_B.tolist(), (closeness_B >= LEAST_CLOSENESS).tolist(), strict=True)
            )
        )

    def _kind(self, image: int, view: int) -> str:
        if not (self.is_rounding_B[image] or self.is_noise_B[image]):
            return SIMILAR
        gain, offset = float(self.gain_B[image]), float(self.offset_B[image])
        # Noise that is clipped at black or white changes the mean of the pixels there.
        slack = float(self.rms_B[image]) * (not self.is_rounding_B[image])
        rescaled = abs(gain - 1) > _MAX_GAIN + slack / 100 or abs(offset) > _MAX_OFFSET + slack
        kinds = {
            "flipped": view == FLIPPED,
            "shifted": view not in (FLIPPED, UNCHANGED),
            "contrast": rescaled,
            "noisy": bool(self.is_noise_B[image]),
        }
        return "+".join(kind for kind, applies in kinds.items() if applies) or "exact"


def _correlation(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    return (a_BCHW * b_BCHW).mean((1, 2, 3))
