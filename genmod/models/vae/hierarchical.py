"""The posterior q(z | x) of a hierarchy of latent groups, each given the groups before it.

Letters: B rows, Z latents, F features, V latents of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.distributions.gaussian import Gaussian, bounded_posterior
from genmod.models.vae.hierarchical_net import TopDownNet
from genmod.rng import Rng


@dataclass(frozen=True)
class HierarchicalPosterior:
    """The product of q(z_g | x, z_<g) over groups g, for each row."""

    net: TopDownNet
    """Computes each group's Gaussian from the groups before it."""
    h_BF: Tensor
    """The encoder's features of the images."""

    def draw(self, rng: Rng) -> Tensor:
        """Draw latents (B, Z) group by group, addressed by ``rng``'s rows."""
        return self.draw_with_conditionals(rng)[0]

    def draw_with_conditionals(self, rng: Rng) -> tuple[Tensor, Gaussian]:
        """The same draws, and each group's Gaussian given the drawn groups before it, in one pass."""
        eps_BZ = rng.normal(self._latents, dtype=self._dtype)
        return self._walk(eps_BZ, eps_BZ)

    def conditional(self, z_BZ: Tensor) -> Gaussian:
        """Each group's Gaussian given the groups before it in ``z_BZ``."""
        return self._walk(None, z_BZ)[1]

    def gaussian_approximation(self) -> Gaussian:
        """Each group's Gaussian given the means of the groups before it: a starting point for MCMC chains."""
        eps_BZ = torch.zeros(
            len(self.h_BF), self._latents, dtype=self._dtype, device=self.h_BF.device
        )
        return self._walk(eps_BZ, eps_BZ)[1]

    def nats(self, z_BZ: Tensor) -> Tensor:
        """Log density of the latents, (B,) in nats."""
        q = self.conditional(z_BZ)
        return (q.double() if z_BZ.dtype == torch.float64 else q).nats(z_BZ)

    def rows(self, which_N: Tensor) -> HierarchicalPosterior:
        """Select rows, possibly repeated."""
        return HierarchicalPosterior(self.net, self.h_BF[which_N])

    def double(self) -> HierarchicalPosterior:
        """Return self: densities of float64 latents are float64 already."""
        return self

    @property
    def _latents(self) -> int:
        return self.net.groups * self.net.group

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.h_BF.dtype, torch.float32)

    def _walk(self, eps_BZ: Tensor | None, z_BZ: Tensor) -> tuple[Tensor, Gaussian]:
        """Run down all groups, with draws computed from ``eps_BZ``, or with the latents ``z_BZ``."""
        group = self.net.group
        s_BS = self.net.start(len(self.h_BF))
        conditionals: list[Gaussian] = []
        drawn: list[Tensor] = []
        for number, raw_B2V in enumerate(self.net.raw(self.h_BF)):
            latents = slice(number * group, (number + 1) * group)
            q = bounded_posterior(self.net.head(number, raw_B2V, self.h_BF, s_BS))
            z_BV = z_BZ[:, latents]
            if eps_BZ is not None:
                z_BV = q.mean_BZ + q.log_std_BZ.exp() * eps_BZ[:, latents]
            s_BS = self.net.step(number, s_BS, z_BV)
            conditionals.append(q)
            drawn.append(z_BV)
        means, log_stds = [q.mean_BZ for q in conditionals], [q.log_std_BZ for q in conditionals]
        return torch.cat(drawn, 1), Gaussian(torch.cat(means, 1), torch.cat(log_stds, 1))
