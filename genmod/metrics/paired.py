"""Differences of metrics between two models, with standard errors from paired samples.

Both models' samples have the same noise, image by image, and are judged on the same reference rows. So part
of their noise is common, and the difference has less noise than that of two independent values. Its standard
error is that of a grouped jackknife: both models lose the same group of images, and the difference is
computed again (Efron and Tibshirani 1993, An introduction to the bootstrap, sec. 11.5; Shao and Tu 1995, The
jackknife and bootstrap, sec. 2.3). It is the error over new draws of the noise, with models and reference
fixed. Balls of recall keep their radii, which makes its error too large, about twice.

Letters: N sample rows, M real rows, D features, G groups, K classes, B rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from genmod.metrics.features import Features
from genmod.metrics.frechet import FeatureMoments, covariance_root, feature_moments, frechet
from genmod.metrics.kernel import KERNEL_BLOCK_ROWS, cubic_kernel
from genmod.metrics.neighbours import (
    DISTANCE_BLOCK_ROWS,
    neighbour_radii,
    squared_distances,
    widened,
)
from genmod.permutation import shuffle

GROUPS = 50
"""Groups of the jackknife."""


@dataclass(frozen=True)
class GroupedValue:
    """A metric of all samples, and of all but one group, for each group."""

    value: float
    without_G: Tensor
    """(G,), float64."""


def paired_stderr(candidate: GroupedValue, champion: GroupedValue) -> float:
    """Standard error of a metric's difference between two models whose groups are of the same images."""
    without_G = candidate.without_G - champion.without_G
    groups = len(without_G)
    return ((1 - 1 / groups) * float((without_G - without_G.mean()).square().sum())) ** 0.5


def jackknife_groups(rows: int, seed: int) -> Tensor:
    """The group of each row, (N,), in random order, so that no group is of one class."""
    return shuffle(torch.arange(rows), rows, seed, "evaluate/jackknife") % min(GROUPS, rows)


@dataclass(frozen=True)
class GroupedMeter:
    """Measures samples of several models, with and without each group, against the same real rows."""

    real: Features
    """Features of the reference images."""
    k: int
    """k of precision, recall, density and coverage."""
    group_N: Tensor
    """Group of each sample row, the same for all models."""
    _one_hot_NG: Tensor = field(init=False)

    def __post_init__(self) -> None:
        groups = int(self.group_N.max()) + 1
        one_hot_NG = F.one_hot(self.group_N, groups).to(torch.float64)
        object.__setattr__(self, "_one_hot_NG", one_hot_NG)

    def measure(self, fake: Features, labels_N: Tensor | None = None) -> dict[str, GroupedValue]:
        """All metrics of one model's samples; those of classes only if the features have classes.

        Args:
            fake: features of the samples, in the order of the groups.
            labels_N: requested classes of the samples.
        """
        fake_ND, real_MD = fake.features_ND, self.real.features_ND
        values = {"fd": self.frechet(fake_ND), "kid": self._kernel(fake_ND, real_MD)}
        values |= self.fidelity_and_coverage(fake_ND) | {"recall": self._recall(fake_ND)}
        if fake.classes_N is not None and self.real.classes_N is not None:
            values |= self._class_shares(fake.classes_N, self.real.classes_N)
            if labels_N is not None:
                values["label_accuracy"] = self._mean(fake.classes_N == labels_N)
        return values

    def _without(self, values_N: Tensor) -> Tensor:
        """Sums over the rows of all but one group, for each group; any trailing axes are kept."""
        total = values_N.sum(0)
        return total - torch.tensordot(self._one_hot_NG.T, values_N, dims=1)

    def _rows(self) -> Tensor:
        """Rows of all but one group, (G,)."""
        return self._without(torch.ones(len(self.group_N), dtype=torch.float64))

    def _mean(self, values_N: Tensor) -> GroupedValue:
        values_N = values_N.to(torch.float64)
        return GroupedValue(float(values_N.mean()), self._without(values_N) / self._rows())

    def frechet(self, fake_ND: Tensor) -> GroupedValue:
        """The squared Fréchet distance of features in the order of the groups."""
        real = feature_moments(self.real.features_ND)
        root_DD = covariance_root(real.cov_DD)
        value = frechet(real, feature_moments(fake_ND), root_DD)
        # Moments about the mean of all rows, so that sums of squares keep their digits.
        centre_D = fake_ND.to(torch.float64).mean(0)
        rows_ND = fake_ND.to(torch.float64) - centre_D
        sums_GD, rows_G = self._without(rows_ND), self._rows()
        squares_DD = rows_ND.T @ rows_ND
        without: list[float] = []
        for group, (sum_D, rows) in enumerate(zip(sums_GD, rows_G.tolist(), strict=True)):
            part_BD = rows_ND[self.group_N == group]
            mean_D = sum_D / rows
            cov_DD = squares_DD - part_BD.T @ part_BD - rows * torch.outer(mean_D, mean_D)
            moments = FeatureMoments(mean_D + centre_D, cov_DD / (rows - 1))
            without.append(frechet(real, moments, root_DD))
        return GroupedValue(value, torch.tensor(without, dtype=torch.float64))

    def _kernel(self, fake_ND: Tensor, real_MD: Tensor) -> GroupedValue:
        """Unbiased MMD², from sums of the kernel by pairs of groups."""
        fake_ND, real_MD = fake_ND.to(torch.float64), real_MD.to(torch.float64)
        groups = self._one_hot_NG.shape[1]
        across_N: list[Tensor] = []
        pairs_GG = torch.zeros(groups, groups, dtype=torch.float64)
        for begin in range(0, len(fake_ND), KERNEL_BLOCK_ROWS):
            block_BD = fake_ND[begin : begin + KERNEL_BLOCK_ROWS]
            across_N.append(cubic_kernel(block_BD, real_MD).sum(1))
            one_hot_BG = self._one_hot_NG[begin : begin + KERNEL_BLOCK_ROWS]
            pairs_GG += one_hot_BG.T @ cubic_kernel(block_BD, fake_ND) @ self._one_hot_NG
        own_N = (fake_ND.square().mean(1) + 1) ** 3
        pairs_GG -= torch.diag(self._one_hot_NG.T @ own_N)
        n, rows_G = len(fake_ND), self._rows()
        total = float(pairs_GG.sum())
        within_G = total - 2 * pairs_GG.sum(1) + pairs_GG.diagonal()
        cross_N, m = torch.cat(across_N), len(real_MD)
        value = total / (n * (n - 1)) - 2 * float(cross_N.mean()) / m
        without_G = within_G / (rows_G * (rows_G - 1)) - 2 * self._without(cross_N) / (rows_G * m)
        real = self._real_kernel(real_MD)
        return GroupedValue(value + real, without_G + real)

    def _real_kernel(self, real_MD: Tensor) -> float:
        blocks = real_MD.split(KERNEL_BLOCK_ROWS)
        total = sum(float(cubic_kernel(block_BD, real_MD).sum()) for block_BD in blocks)
        own = float(((real_MD.square().mean(1) + 1) ** 3).sum())
        return (total - own) / (len(real_MD) * (len(real_MD) - 1))

    def fidelity_and_coverage(self, fake_ND: Tensor) -> dict[str, GroupedValue]:
        """Precision, density and coverage of as many samples as real rows, in the balls of the latter."""
        meter, fake_ND, real_MD = self._equally_many(fake_ND)
        radius_M = widened(neighbour_radii(real_MD, self.k), real_MD)
        balls_N = torch.zeros(len(fake_ND), dtype=torch.float64)
        covered_G = torch.zeros(meter._one_hot_NG.shape[1] + 1, dtype=torch.float64)
        for real_BD, radius_B in zip(*_blocks(real_MD, radius_M), strict=True):
            inside_BN = squared_distances(real_BD, fake_ND) <= radius_B[:, None]
            balls_N += inside_BN.sum(0)
            covered_G += _hits(inside_BN, meter._one_hot_NG)
        density = meter._mean(balls_N)
        return {
            "precision": meter._mean(balls_N > 0),
            "density": GroupedValue(density.value / self.k, density.without_G / self.k),
            "coverage": _share(covered_G, len(real_MD)),
        }

    def _recall(self, fake_ND: Tensor) -> GroupedValue:
        """Recall of as many samples as real rows; balls keep their radii without a group."""
        meter, fake_ND, real_MD = self._equally_many(fake_ND)
        radius_N = widened(neighbour_radii(fake_ND, self.k), real_MD)
        recalled_G = torch.zeros(meter._one_hot_NG.shape[1] + 1, dtype=torch.float64)
        for real_BD in real_MD.split(DISTANCE_BLOCK_ROWS):
            inside_BN = squared_distances(real_BD, fake_ND) <= radius_N
            recalled_G += _hits(inside_BN, meter._one_hot_NG)
        return _share(recalled_G, len(real_MD))

    def _equally_many(self, fake_ND: Tensor) -> tuple[GroupedMeter, Tensor, Tensor]:
        """The first rows of samples and reference, about the latter's mean, and their meter."""
        real_MD = self.real.features_ND.to(torch.float64)
        rows, mean_D = min(len(fake_ND), len(real_MD)), real_MD.mean(0)
        meter = self
        if rows < len(self.group_N):
            meter = GroupedMeter(self.real, self.k, self.group_N[:rows])
        return meter, fake_ND[:rows].to(torch.float64) - mean_D, real_MD[:rows] - mean_D

    def _class_shares(self, fake_N: Tensor, real_N: Tensor) -> dict[str, GroupedValue]:
        """Class balance (total variation distance) and class coverage (least ratio, at most 1)."""
        classes = int(max(fake_N.max(), real_N.max())) + 1
        real_K = real_N.bincount(minlength=classes).to(torch.float64) / len(real_N)
        one_hot_NK = F.one_hot(fake_N, classes).to(torch.float64)
        # The shares of all samples last.
        without_GK = self._without(one_hot_NK) / self._rows()[:, None]
        share_GK = torch.cat((without_GK, one_hot_NK.mean(0, keepdim=True)))
        balance_G = (share_GK - real_K).abs().sum(1) / 2
        present_K = real_K > 0
        ratio_G = (share_GK[:, present_K] / real_K[present_K]).amin(1).clamp(max=1)
        return {
            "class_balance": GroupedValue(float(balance_G[-1]), balance_G[:-1]),
            "class_coverage": GroupedValue(float(ratio_G[-1]), ratio_G[:-1]),
        }


def _blocks(rows_MD: Tensor, radius_M: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return rows_MD.split(DISTANCE_BLOCK_ROWS), radius_M.split(DISTANCE_BLOCK_ROWS)


def _hits(near_BN: Tensor, one_hot_NG: Tensor) -> Tensor:
    """Real rows of a block that are near to a sample outside of each group and, last, to any sample."""
    near_BG = near_BN.to(torch.float32) @ one_hot_NG.to(torch.float32)
    outside_G = (near_BG.sum(1, keepdim=True) - near_BG > 0.5).sum(0)
    return torch.cat((outside_G, near_BN.any(1).sum()[None])).to(torch.float64)


def _share(hits_G: Tensor, rows: int) -> GroupedValue:
    """The share of real rows, from their counts by group and, last, of all samples."""
    return GroupedValue(float(hits_G[-1]) / rows, hits_G[:-1] / rows)
