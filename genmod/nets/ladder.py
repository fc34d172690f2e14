"""A top-down path through groups of latents, which the model and its encoder share.

    s_0 = constant,  s_{g+1} = s_g + f_g(s_g, z_g),  q(z_g | x, z_<g) from (h(x), s_g),  p(x | z) from s_G

Each z_g is standard normal; what depends on the groups before it is in f_g. Letters: B batch, Z latents,
S state, F features, V latents of one group.

References:
    Ladder variational autoencoders, Sonderby et al. 2016, https://arxiv.org/abs/1602.02282
    NVAE (normals relative to the prior's), Vahdat and Kautz 2020, https://arxiv.org/abs/2007.03898
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ladder(nn.Module):
    """States between groups of latents, and what the encoder says of each group."""

    def __init__(self, groups: int, group: int, width: int) -> None:
        """``group`` latents in each of ``groups``; ``width`` is the length of states and features."""
        super().__init__()
        self.groups, self.group, self.width = groups, group, width
        self.first = nn.Parameter(torch.zeros(width))
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Linear(width + group, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(groups)
        )
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 2 * group))
            for _ in range(groups)
        )

    def start(self, rows: int) -> Tensor:
        """The state before the first group, (B, S)."""
        return self.first.expand(rows, self.width)

    def step(self, number: int, s_BS: Tensor, z_BV: Tensor) -> Tensor:
        """The state after a group."""
        return s_BS + self.steps[number](torch.cat((s_BS, z_BV.to(s_BS.dtype)), dim=1))

    def head(self, number: int, h_BF: Tensor, s_BS: Tensor) -> Tensor:
        """(B, 2V): the raw mean and width of q of a group."""
        return self.heads[number](torch.cat((h_BF, s_BS.to(h_BF.dtype)), dim=1))

    def forward(self, z_BZ: Tensor) -> Tensor:
        """The state after all groups, (B, S)."""
        s_BS = self.start(len(z_BZ))
        for number, z_BV in enumerate(z_BZ.split(self.group, dim=1)):
            s_BS = self.step(number, s_BS, z_BV)
        return s_BS
