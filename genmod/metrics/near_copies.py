"""Search for the training image that an image may be a copy of, also a shifted, flipped or rescaled one.

An image is compared by its interior, without the outermost pixels, so that an image shifted by one pixel
still has the whole interior of its original. Mean and length are removed, so that brightness and contrast do
not count. The comparison is in the leading principal components of the training images, where images differ
most and white noise least: noise has the same variance in all directions.
Letters: B images of a block, T training rows, V views, K components, D numbers of an interior, N candidates
of an image, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

SHIFTS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))
"""Offsets of the shifted views, in pixels."""

VIEWS = len(SHIFTS) + 1
"""Shifted views, then the one that is flipped left to right."""

UNCHANGED = len(SHIFTS) // 2
"""Number of the view without a shift."""

FLIPPED = len(SHIFTS)
"""Number of the flipped view."""

COMPONENTS = 64
"""Most principal components."""

CANDIDATES = 12
"""Training rows that a search returns for each image; fewer if there are fewer."""

FIT_ROWS = 10_000
"""Training rows from which the components are estimated, at most."""

_POOLED = 1024
"""Larger interiors are averaged over squares of pixels until they have no more numbers."""

_LEAST_SIDE = 6

_BLOCK_IMAGES = 128
_BLOCK_ROWS = 1 << 16
"""Images and training rows that are compared at a time: two matrices of 32 MiB."""

Pixels = Callable[[Tensor], Tensor]
"""Reads images by their row numbers, int64 (R,), as uint8 (R, C, H, W)."""


def interior(images_BCHW: Tensor, view: int) -> Tensor:
    """One view of images, (B, C, H - 2, W - 2): shifted by one pixel at most, or flipped.

    Images with a side of less than :data:`_LEAST_SIDE` get a black border first, and keep their size.
    """
    if min(images_BCHW.shape[-2:]) < _LEAST_SIDE:
        images_BCHW = torch.nn.functional.pad(images_BCHW, (1, 1, 1, 1))
    height, width = images_BCHW.shape[-2:]
    down, right = (0, 0) if view == FLIPPED else SHIFTS[view]
    if view == FLIPPED:
        images_BCHW = images_BCHW.flip(-1)
    return images_BCHW[..., 1 + down : height - 1 + down, 1 + right : width - 1 + right]


def blocks(rows: int, size: int) -> Iterator[Tensor]:
    """Row numbers 0 .. rows - 1 in blocks, int64."""
    yield from torch.arange(rows).split(size) if rows else ()


@dataclass(frozen=True)
class CopySpace:
    """The features in which copies are searched."""

    basis_DK: Tensor
    """Orthonormal components, float32."""
    pool: int
    """Side of the squares of pixels that are averaged."""

    @classmethod
    def fit(cls, images_RCHW: Tensor) -> Self:
        """Principal components of some training images, uint8 (R, C, H, W)."""
        inner_RCHW = interior(images_RCHW, UNCHANGED)
        channels, height, width = inner_RCHW.shape[1:]
        pool = 1
        while channels * (height // pool) * (width // pool) > _POOLED:
            pool += 1
        flat_RD = _unit(flat(inner_RCHW, pool))
        components = max(1, min(COMPONENTS, flat_RD.shape[1] // 2))
        covariance_DD = torch.cov(flat_RD.T).reshape(flat_RD.shape[1], -1)
        _, vectors_DD = torch.linalg.eigh(covariance_DD)
        basis_DK = vectors_DD.flip(1)[:, :components].to(torch.float32).contiguous()
        return cls(basis_DK, pool)

    def project(self, interior_BCHW: Tensor) -> Tensor:
        """Components of interiors in their own units, float64 (B, K)."""
        return flat(interior_BCHW, self.pool) @ self.basis_DK.to(torch.float64)

    def features(self, interior_BCHW: Tensor) -> Tensor:
        """Components of interiors of mean 0 and length 1, float32 (B, K)."""
        flat_BD = _unit(flat(interior_BCHW, self.pool))
        return (flat_BD @ self.basis_DK.to(torch.float64)).to(torch.float32)


@dataclass(frozen=True)
class Candidates:
    """For each image the nearest training rows, nearest first."""

    row_BN: Tensor
    """Training rows, int64."""
    view_BN: Tensor
    """The view of the image that is nearest to that row, int64."""
    distance_BN: Tensor
    """Distance between the features, float64, ascending."""


class CopySearch:
    """Searches all training rows. Needs ``4 * K`` bytes per training row, and 100 MB."""

    def __init__(self, pixels: Pixels, rows: int) -> None:
        """Read all training rows once.

        Args:
            pixels: reads training images.
            rows: number of training rows, at least 2.
        """
        assert rows > 1
        self.pixels, self.rows = pixels, rows
        self.candidates = min(CANDIDATES, rows - 1)
        step = -(-rows // FIT_ROWS)
        some_RCHW = pixels(torch.arange(0, rows, step))
        self.image_numbers = some_RCHW[0].numel()
        self.space = CopySpace.fit(some_RCHW)
        parts = [
            self.space.features(interior(pixels(row_R), UNCHANGED)) for row_R in blocks(rows, 4096)
        ]
        self.features_TK = torch.cat(parts)
        self._squares_T = self.features_TK.square().sum(1)

    def nearest(self, images_BCHW: Tensor, excluded_B: Tensor | None = None) -> Candidates:
        """The nearest training rows of each image, :data:`CANDIDATES` of them.

        Args:
            images_BCHW: uint8 images.
            excluded_B: for each image the training row that it is, if it is one.
        """
        found: list[Candidates] = []
        for row_B in blocks(len(images_BCHW), _BLOCK_IMAGES):
            views_VBK = torch.stack(
                [self.space.features(interior(images_BCHW[row_B], view)) for view in range(VIEWS)]
            )
            excluded = None if excluded_B is None else excluded_B[row_B]
            found.append(self._exact(views_VBK, self._coarse(views_VBK, excluded)))
        return Candidates(
            torch.cat([part.row_BN for part in found]),
            torch.cat([part.view_BN for part in found]),
            torch.cat([part.distance_BN for part in found]),
        )

    def _coarse(self, views_VBK: Tensor, excluded_B: Tensor | None) -> Tensor:
        """Rows of the smallest distances in float32, which loses digits where they are small."""
        images = views_VBK.shape[1]
        best_BN = torch.full((images, 0), torch.inf)
        row_BN = torch.zeros((images, 0), dtype=torch.int64)
        squares_VB1 = views_VBK.square().sum(2, keepdim=True)
        for begin in range(0, self.rows, _BLOCK_ROWS):
            end = min(begin + _BLOCK_ROWS, self.rows)
            rows_KR = self.features_TK[begin:end].T
            nearest_BR = torch.full((images, end - begin), torch.inf)
            for view_BK, square_B1 in zip(views_VBK, squares_VB1, strict=True):
                squares_BR = torch.addmm(self._squares_T[begin:end], view_BK, rows_KR, alpha=-2)
                torch.minimum(nearest_BR, squares_BR.add_(square_B1), out=nearest_BR)
            if excluded_B is not None:
                inside_B = ((excluded_B >= begin) & (excluded_B < end)).nonzero()[:, 0]
                nearest_BR[inside_B, excluded_B[inside_B] - begin] = torch.inf
            top = nearest_BR.topk(min(self.candidates, end - begin), largest=False)
            best_BN = torch.cat((best_BN, top.values), 1)
            row_BN = torch.cat((row_BN, top.indices + begin), 1)
            kept = best_BN.topk(min(self.candidates, best_BN.shape[1]), largest=False)
            best_BN, row_BN = kept.values, row_BN.gather(1, kept.indices)
        return row_BN

    def _exact(self, views_VBK: Tensor, row_BN: Tensor) -> Candidates:
        """Distances to some rows in float64, and the order that they give."""
        row_BN = row_BN.sort(dim=1).values
        rows_BNK = self.features_TK[row_BN].to(torch.float64)
        squares_VBN = torch.stack(
            [
                (rows_BNK - view_BK[:, None].to(torch.float64)).square().sum(2)
                for view_BK in views_VBK
            ]
        )
        square_BN, view_BN = squares_VBN.min(dim=0)
        order_BN = square_BN.sort(dim=1, stable=True).indices
        return Candidates(
            row_BN.gather(1, order_BN),
            view_BN.gather(1, order_BN),
            square_BN.gather(1, order_BN).sqrt(),
        )


def flat(interior_BCHW: Tensor, pool: int) -> Tensor:
    """Interiors as float64 rows (B, D), averaged over squares of ``pool`` pixels a side."""
    values_BCHW = interior_BCHW.to(torch.float64)
    if pool > 1:
        values_BCHW = torch.nn.functional.avg_pool2d(values_BCHW, pool)
    return values_BCHW.flatten(1)


def _unit(flat_BD: Tensor) -> Tensor:
    """Rows without their mean, of length 1; a constant image becomes 0."""
    flat_BD = flat_BD - flat_BD.mean(1, keepdim=True)
    length_B1 = flat_BD.norm(dim=1, keepdim=True)
    return torch.where(length_B1 > 1e-6, flat_BD / length_B1.clamp(min=1e-6), 0.0)
