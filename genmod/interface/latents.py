"""Latent vectors of a model: how many units are active, and how much information they carry.

A collapsed posterior is equal to the prior and carries no information about the image.
Letters: B rows, Z latents.

References:
    Importance weighted autoencoders (active units, App. C), Burda et al. 2016, https://arxiv.org/abs/1509.00519
    ELBO surgery, Hoffman and Johnson 2016, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from genmod.distributions.gaussian import Gaussian
from genmod.distributions.prior import Prior, StandardNormalPrior
from genmod.interface.batch import Batch
from genmod.rng import Rng

_ACTIVE_SHARE = 0.01
"""A unit is active if the variance of its mean over images is above this share of the prior's variance."""


@dataclass(frozen=True)
class Latents:
    """q(z | x) of B rows, and one draw from each."""

    posterior: Gaussian
    """Of each group of latents, given the draws of the groups before it."""
    z_BZ: Tensor
    """One draw from each posterior."""
    groups: tuple[int, ...]
    """Number of latents in each group, in the order of drawing; their sum is Z."""
    prior: Prior = field(default_factory=StandardNormalPrior)
    """p(z) of all latents together."""

    def __post_init__(self) -> None:
        assert sum(self.groups) == self.z_BZ.shape[1], (self.groups, self.z_BZ.shape)


class LatentModel(nn.Module):
    """A module that may have latent vectors. By default it has none."""

    has_latents: ClassVar[bool] = False
    """Whether :meth:`latents` and :meth:`decode_latents` are implemented."""

    def latents(self, batch: Batch, rng: Rng) -> Latents:
        """Latent vectors of a batch. Row b depends on image b and on ``rng``'s row b."""
        raise AssertionError(f"{type(self).__name__} has no latents")

    def decode_latents(self, z_BZ: Tensor, labels_B: Tensor | None) -> Tensor:
        """The expected images given latents, (B, C, H, W) in [-1, 1]."""
        raise AssertionError(f"{type(self).__name__} has no latents")


def latent_usage(latents: Latents) -> dict[str, float]:
    """Measure how these rows use the latents.

    Returns:
        ``active_units``: units whose mean has a variance over images above 0.01 of the prior's.
        ``kl_nats``: KL of q(z | x) from the prior, mean over rows. ``kl_nats_of_group/...`` and
        ``kl_nats_of_unit/...``: the same from the normal with the prior's mean and variance, which is the
        prior itself if that is N(0, 1). ``mutual_information_nats``: of x and the first group under q,
        E[log q(z | x) - log q(z)], where q(z) is the mixture over these rows; so it is at most log B
        (``mutual_information_limit_nats``).
    """
    q, z_BZ = latents.posterior.double(), latents.z_BZ.double()
    mean_BZ = q.mean_BZ
    kl_Z = kl_per_unit(latents)
    variance_1Z = (2 * latents.prior.moments(z_BZ).log_std_BZ).exp()
    active_Z = mean_BZ.var(0, correction=0) > _ACTIVE_SHARE * variance_1Z[0]
    usage = {
        "active_units": float(active_Z.sum()),
        "active_share": float(active_Z.double().mean()),
        "kl_nats": float(latents.prior.kl_nats(q, z_BZ).sum(1).mean()),
        "mutual_information_nats": _information(latents),
        "mutual_information_limit_nats": math.log(len(mean_BZ)),
    }
    if len(latents.groups) > 1:
        sums = [float(part.sum()) for part in kl_Z.split(latents.groups)]
        usage |= {f"kl_nats_of_group/{number:02d}": kl for number, kl in enumerate(sums)}
    return usage | {f"kl_nats_of_unit/{z:03d}": kl for z, kl in enumerate(kl_Z.tolist())}


def kl_per_unit(latents: Latents) -> Tensor:
    """KL of each unit from the normal with the prior's mean and variance, mean over rows: (Z,) float64."""
    q = latents.posterior.double()
    return q.kl_nats(latents.prior.moments(q.mean_BZ)).mean(0)


def _information(latents: Latents) -> float:
    """Mutual information of images and the first group, whose posterior depends on the image alone."""
    first, rows = latents.groups[0], len(latents.z_BZ)
    q = latents.posterior.double()
    q = Gaussian(q.mean_BZ[:, :first], q.log_std_BZ[:, :first])
    z_BZ = latents.z_BZ[:, :first].double()
    mixed_B = torch.stack(
        [torch.logsumexp(q.nats(z_Z.expand(rows, first)), 0) - math.log(rows) for z_Z in z_BZ]
    )
    return float((q.nats(z_BZ) - mixed_B).mean())
