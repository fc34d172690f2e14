"""A top-down path through groups of latents, which the decoder and the encoder share.

    s_0 = constant,  s_{g+1} = s_g + W_g z_g + f_g(s_g, z_g),  p(x | z) from s_G
    raw q(z_g | x, z_<g) = (V h(x))_g + c_g(h(x), s_g)

Each z_g is standard normal; the dependence on earlier groups is in f_g. All f and c start at zero, so an
untrained hierarchy is the linear map of all latents that a plain VAE has.
Letters: B batch, Z latents, S state, F features, V latents of one group.

References:
    Ladder variational autoencoders, Sonderby et al. 2016, https://arxiv.org/abs/1602.02282
    NVAE (normals relative to the prior's), Vahdat and Kautz 2020, https://arxiv.org/abs/2007.03898
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmod.nets.linear import Linear


class TopDownNet(nn.Module):
    """State vectors between groups of latents, and the encoder's Gaussian of each group."""

    def __init__(self, groups: int, group: int, width: int) -> None:
        """``group`` latents in each of ``groups``; ``width`` is the length of states and features."""
        super().__init__()
        self.groups, self.group, self.width = groups, group, width
        self.first = nn.Parameter(torch.zeros(width))
        self.entries = nn.ModuleList(Linear(group, width, bias=False) for _ in range(groups))
        self.steps = nn.ModuleList(_correction(width + group, width, width) for _ in range(groups))
        self.features = Linear(width, 2 * groups * group)
        self.heads = nn.ModuleList(
            _correction(2 * width, width, 2 * group) for _ in range(groups - 1)
        )

    def start(self, rows: int) -> Tensor:
        """The state before the first group, (B, S)."""
        return self.first.expand(rows, self.width)

    def step(self, number: int, s_BS: Tensor, z_BV: Tensor) -> Tensor:
        """The state after a group, (B, S)."""
        z_BV = z_BV.to(s_BS.dtype)
        r_BS = self.steps[number](torch.cat((s_BS, z_BV), dim=1))
        return s_BS + self.entries[number](z_BV) + r_BS

    def raw(self, h_BF: Tensor) -> tuple[Tensor, ...]:
        """(B, 2V) for each group: the raw mean and width of q from the image alone."""
        return self.features(h_BF).chunk(self.groups, dim=1)

    def head(self, number: int, raw_B2V: Tensor, h_BF: Tensor, s_BS: Tensor) -> Tensor:
        """(B, 2V): the raw mean and width of q of a group, given the groups before it."""
        if not number:
            return raw_B2V
        return raw_B2V + self.heads[number - 1](torch.cat((h_BF, s_BS.to(h_BF.dtype)), dim=1))

    def forward(self, z_BZ: Tensor) -> Tensor:
        """The state after all groups, (B, S)."""
        s_BS = self.start(z_BZ.shape[0])  # unlike len(), an exporter follows it
        for number, z_BV in enumerate(z_BZ.split(self.group, dim=1)):
            s_BS = self.step(number, s_BS, z_BV)
        return s_BS


def _correction(inputs: int, width: int, out: int) -> nn.Sequential:
    """Two layers whose output starts at zero."""
    last = Linear(width, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(Linear(inputs, width), nn.SiLU(), last)
