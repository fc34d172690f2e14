"""q(z | x) of groups of latents, each given those before it.

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
    """The product of q(z_g | x, z_<g), one for each row."""

    net: TopDownNet
    h_BF: Tensor
    """What the encoder makes of the images."""

    def draw(self, rng: Rng) -> Tensor:
        """(B, Z): group by group, addressed by ``rng``'s rows."""
        return self.draw_with_conditionals(rng)[0]

    def draw_with_conditionals(self, rng: Rng) -> tuple[Tensor, Gaussian]:
        """The same draws, and each group's Gaussian given them, by one way down."""
        eps_BZ = rng.normal(self._latents, dtype=self._dtype)
        return self._walk(eps_BZ, eps_BZ)

    def conditional(self, z_BZ: Tensor) -> Gaussian:
        """Each group's Gaussian given the groups before it in these latents."""
        return self._walk(None, z_BZ)[1]

    def gaussian_approximation(self) -> Gaussian:
        """Given the mean of each group before it: a Gaussian of all latents, from which chains may start."""
        eps_BZ = torch.zeros(
            len(self.h_BF), self._latents, dtype=self._dtype, device=self.h_BF.device
        )
        return self._walk(eps_BZ, eps_BZ)[1]

    def nats(self, z_BZ: Tensor) -> Tensor:
        """Log density, (B,) in nats."""
        q = self.conditional(z_BZ)
        return (q.double() if z_BZ.dtype == torch.float64 else q).nats(z_BZ)

    def rows(self, which_N: Tensor) -> HierarchicalPosterior:
        """Some of the rows, which may be repeated."""
        return HierarchicalPosterior(self.net, self.h_BF[which_N])

    def double(self) -> HierarchicalPosterior:
        """Itself: densities of float64 latents are float64."""
        return self

    @property
    def _latents(self) -> int:
        return self.net.groups * self.net.group

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.h_BF.dtype, torch.float32)

    def _walk(self, eps_BZ: Tensor | None, z_BZ: Tensor) -> tuple[Tensor, Gaussian]:
        """Down all groups: draws made of standard normals, or the latents that are given."""
        group = self.net.group
        s_BS = self.net.start(len(self.h_BF))
        found: list[Gaussian] = []
        drawn: list[Tensor] = []
        for number, raw_B2V in enumerate(self.net.raw(self.h_BF)):
            here = slice(number * group, (number + 1) * group)
            q = bounded_posterior(self.net.head(number, raw_B2V, self.h_BF, s_BS))
            z_BV = z_BZ[:, here]
            if eps_BZ is not None:
                z_BV = q.mean_BZ + q.log_std_BZ.exp() * eps_BZ[:, here]
            s_BS = self.net.step(number, s_BS, z_BV)
            found.append(q)
            drawn.append(z_BV)
        means, log_stds = [q.mean_BZ for q in found], [q.log_std_BZ for q in found]
        return torch.cat(drawn, 1), Gaussian(torch.cat(means, 1), torch.cat(log_stds, 1))
