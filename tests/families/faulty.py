"""A VAE with a planted fault: it makes one image only, repeats a given one, or fails at an index.

The folder of this file is in ``GENMOD_FAMILIES`` while tests run, and nothing else names it.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Annotated, Any, Self, final

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from genmod import units
from genmod.errors import GenmodError
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase
from genmod.interface.options import FamilyConfig
from genmod.manifest import ImageSpec
from genmod.models.vae.config import VAEConfig, VAESample, VAEScore
from genmod.models.vae.model import Model as VAE
from genmod.rng import Rng

ROWS_SEEN = "GENMOD_TEST_ROWS"
"""Variable with a folder to which each process writes position and digest of the rows that it learns from."""

_STEP_S = 0.02
"""Shortest time of a step that notes its rows, in seconds."""

COPY_EVERY = 1_000
"""Samples of which one is the given image."""


class FaultyConfig(FamilyConfig):
    """The fault that the model gets."""

    collapsed: bool = False
    """All samples are one image."""
    copy_of: tuple[Annotated[int, Field(ge=0, le=255)], ...] = Field(default=(), max_length=4_096)
    """Grey levels of an image that one sample of 1,000 repeats; none if empty."""
    not_finite_at: int | None = Field(default=None, ge=0, le=1 << 40)
    """Index of a sample that is not a number."""
    crashes_at: int | None = Field(default=None, ge=0, le=1 << 40)
    """Index of a sample whose generation raises an error."""
    hangs_at: int | None = Field(default=None, ge=0, le=1 << 40)
    """Index of a sample whose generation does not end."""
    refused_at: int | None = Field(default=None, ge=0, le=1 << 40)
    """Index of a sample for which a foreseen error is raised."""
    of_scores: bool = False
    """The index is that of a row whose log-likelihood has the fault; samples have none."""

    @classmethod
    def tiny(cls) -> Self:
        """The default is small enough."""
        return cls()


@final
class Model(GenerativeModel):
    """A small VAE whose samples have a fault."""

    Config = FaultyConfig
    Sample = VAESample
    Score = VAEScore
    config: FaultyConfig

    def __init__(self, config: FaultyConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__(config, spec, stats)
        self.vae = VAE(VAEConfig(latents=16, widths=(32,), components=3), spec, stats)

    def phases(self) -> tuple[Phase, ...]:
        """The phase of the VAE."""
        return tuple(Phase(phase.name, ("vae",)) for phase in self.vae.phases())

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """The loss of the VAE."""
        if self.training and ROWS_SEEN in os.environ:
            _note(batch)
        losses = self.vae.loss(phase, batch, rng, nimg)
        return Losses(losses.total, {"elbo_nats": losses.terms["elbo_nats"]})

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, options: Any) -> Tensor:
        """Samples of the VAE, or what the fault makes of them."""
        if not self.config.of_scores:
            self._fail(rng)
        x_BCHW = self.vae.sample(labels_B, rng, options)
        if not self.config.of_scores:
            x_BCHW[rng.index_B == self.config.not_finite_at] = torch.nan
        if self.config.collapsed:
            return torch.zeros_like(x_BCHW)
        if self.config.copy_of:
            pixels_D = torch.tensor(self.config.copy_of, dtype=torch.uint8, device=x_BCHW.device)
            copy_CHW = units.to_network(pixels_D, x_BCHW.dtype).view(self.spec.shape)
            is_copy_B = rng.index_B % COPY_EVERY == 0
            return torch.where(is_copy_B[:, None, None, None], copy_CHW, x_BCHW)
        return x_BCHW

    def log_prob(self, batch: Batch, rng: Rng, options: Any) -> LogProb:
        """The bound of the VAE, or what the fault makes of it."""
        if not self.config.of_scores:
            return self.vae.log_prob(batch, rng, options)
        self._fail(rng)
        result = self.vae.log_prob(batch, rng, options)
        result.nats_B[rng.index_B == self.config.not_finite_at] = torch.nan
        return result

    def _fail(self, rng: Rng) -> None:
        """Raise an error, or wait for ever, if the index with the fault is among these."""
        config = self.config
        indices = rng.index_B.tolist()
        if config.crashes_at in indices:
            raise ValueError("a planted error")
        if config.refused_at in indices:
            raise GenmodError("a planted refusal")
        if config.hangs_at in indices:
            time.sleep(3600)


def _note(batch: Batch) -> None:
    """Append a line for each row to this process's file; slow, so that nodes come and go."""
    time.sleep(_STEP_S)
    rank = dist.get_rank() if dist.is_initialized() else 0
    size = dist.get_world_size() if dist.is_initialized() else 1
    with Path(os.environ[ROWS_SEEN], f"{size}-{rank}-{os.getpid()}").open("a") as file:
        for index, pixels in zip(batch.index_B, batch.pixels_BCHW, strict=True):
            digest = hashlib.sha256(pixels.cpu().numpy().tobytes()).hexdigest()
            file.write(f"{int(index)} {digest}\n")
