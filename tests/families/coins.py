"""A toy family in one file: the bits of pixels are independent coins. Tests train, sample and score it.

    p(x | y) = prod_n sigmoid(a_ny)^x_n (1 - sigmoid(a_ny))^(1 - x_n)        x_n the n-th bit of the image

The folder of this file is in ``GENMOD_FAMILIES`` while tests run, and nothing else names it.
Letters: B batch, K bits of a pixel or inputs, D dimensions, N = K D bits of an image.
"""

from __future__ import annotations

import math
from typing import Any, Self, final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase
from genmod.interface.options import FamilyConfig, SampleOptions, ScoreOptions
from genmod.manifest import ImageSpec
from genmod.rng import Rng


class CoinsConfig(FamilyConfig):
    """How the coins start."""

    start: float = Field(default=0.0, ge=-10, le=10)
    """Mean of the initial logits."""

    @classmethod
    def tiny(cls) -> Self:
        """The default is small enough."""
        return cls()


@final
class Model(GenerativeModel):
    """Each bit of each pixel is a coin of its own, whose logit is linear in the one-hot label."""

    Config, Sample, Score = CoinsConfig, SampleOptions, ScoreOptions
    config: CoinsConfig

    def __init__(self, config: CoinsConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__(config, spec, stats)
        self.bits = int(math.log2(spec.levels))
        self.logits = nn.Linear(max(1, spec.classes), spec.dims * self.bits)
        nn.init.constant_(self.logits.bias, config.start)

    def phases(self) -> tuple[Phase, ...]:
        """One: maximum likelihood."""
        return (Phase("coins", ("logits",)),)

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """Negative log-likelihood in nats."""
        assert phase == "coins", phase
        total = -self._nats(batch).mean()
        return Losses(total, {"nll_nats": total.detach()})

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, options: Any) -> Tensor:
        """Toss the coins of each image."""
        logits_BN = self._logits(labels_B, len(rng))
        heads_BN = rng.uniform(logits_BN.shape[1], dtype=logits_BN.dtype) < logits_BN.sigmoid()
        places_K = 2 ** torch.arange(self.bits, device=heads_BN.device)
        level_BD = (heads_BN.unflatten(1, (-1, self.bits)) * places_K).sum(2)
        pixels_BD = (level_BD * (255 // (self.spec.levels - 1))).to(torch.uint8)
        return units.to_network(pixels_BD.view(-1, *self.spec.shape), self.logits.weight.dtype)

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng, options: Any) -> LogProb:
        """Exact: the sum over all coins."""
        nats_B = self._nats(batch).double()
        stderr_B = torch.zeros_like(nats_B)
        return LogProb(nats_B, stderr_B, "exact", "coins", "coins of all bits", units.COUNTS, {})

    def _logits(self, labels_B: Tensor | None, rows: int) -> Tensor:
        """(B, N) for N = D bits."""
        weight = self.logits.weight
        inputs_BK = torch.ones(rows, 1, dtype=weight.dtype, device=weight.device)
        if labels_B is not None:
            inputs_BK = F.one_hot(labels_B, self.spec.classes).to(weight.dtype)
        logits_BN = self.logits(inputs_BK)
        return logits_BN.to(torch.promote_types(logits_BN.dtype, torch.float32))

    def _nats(self, batch: Batch) -> Tensor:
        """Log-likelihood of each row, (B,)."""
        logits_BN = self._logits(batch.labels_B, len(batch))
        level_BD = batch.pixels_BCHW.flatten(1).long() // (255 // (self.spec.levels - 1))
        places_K = 2 ** torch.arange(self.bits, device=level_BD.device)
        heads_BN = (level_BD[:, :, None] & places_K).ne(0).flatten(1).to(logits_BN.dtype)
        return -F.binary_cross_entropy_with_logits(logits_BN, heads_BN, reduction="none").sum(1)
