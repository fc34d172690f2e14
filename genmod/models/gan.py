"""GAN: a relativistic pairing loss with two gradient penalties (RpGAN + R1 + R2, Huang et al. 2024, R3GAN).

    L_D = E softplus(-(D(x) - D(G(z)))) + gamma/2 (E ||grad_x D(x)||^2 + E ||grad_x D(G(z))||^2)
    L_G = E softplus(-(D(G(z)) - D(x)))

A real image is paired with one fake of the same label. Squared gradient norms are sums over C, H, W.
D sees real images at the middle of their pixels' bins: the penalties already smooth it over distances
far above half a bin, so dequantising them would add only noise.

Letters: B batch, C channels, H height, W width, Z latent dimensions.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genmod import units
from genmod.config import Config
from genmod.data.batch import Batch
from genmod.errors import ConfigError
from genmod.likelihood.augmentation import Augmentation, AugmentationScore
from genmod.manifest import ImageSpec
from genmod.models.base import (
    DataStats,
    FamilyConfig,
    GenerativeModel,
    LogProb,
    Losses,
    Phase,
    Prepared,
    SampleOptions,
    ScoreOptions,
)
from genmod.nets.gan import Discriminator, Generator
from genmod.rng import Rng

NO_DENSITY = "a GAN has no density of its own"


class Penalty(Config):
    """gamma, the weight of both gradient penalties: a half cosine from ``base`` to ``final``."""

    base: float = Field(default=1.0, gt=0)
    """At the start. Larger for larger images; too small, and D memorises or diverges."""
    final: float = Field(default=0.1, gt=0)
    """After ``nimg`` images and from then on."""
    nimg: int = Field(default=100_000, gt=0)
    """Images seen until ``final`` is reached."""

    def at(self, nimg: int) -> float:
        """The weight after ``nimg`` images."""
        done = min(nimg / self.nimg, 1.0)
        return self.final + (self.base - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


class Tower(Config):
    """Size of one of the two nets."""

    widths: tuple[int, ...] = Field(min_length=1)
    """Channels of each level, finest first; each next level has half the sides."""
    blocks: int = Field(default=1, gt=0)
    """Residual blocks on each level."""
    patch: int = Field(default=2, gt=0)
    """Side of the square of pixels that is one position of the finest level."""

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        return self.patch * 2 ** (len(self.widths) - 1)


@final
class GanConfig(FamilyConfig):
    """Sizes of both nets and the weight of the penalties."""

    z_dim: int = Field(default=64, gt=0)
    generator: Tower = Tower(widths=(32, 96), blocks=1, patch=2)
    """G's levels, run from the coarsest to the finest."""
    discriminator: Tower = Tower(widths=(64,), blocks=2, patch=4)
    """D's levels, run from the finest to the coarsest."""
    features: int = Field(default=128, gt=0)
    """Length of the vector that D makes of an image."""
    gamma: Penalty = Penalty()

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of a dozen channels."""
        tower = Tower(widths=(8, 12), blocks=1, patch=2)
        return cls(
            z_dim=8, generator=tower, discriminator=tower, features=16, gamma=Penalty(nimg=1000)
        )


class GanSample(SampleOptions):
    """How to sample a GAN."""

    psi: float = Field(default=1.0, ge=0)
    """Truncation: scales z. Below 1, images are more typical and less varied, and no draws from p(x)."""

    @property
    def draws_from_p(self) -> bool:
        """Only without truncation."""
        return self.psi == 1.0

    @property
    def sampler(self) -> str:
        """One pass of G, and the truncation if there is one."""
        return "generator" if self.psi == 1.0 else f"generator-psi={self.psi:g}"


class GanScore(AugmentationScore):
    """How to bound the density of the generator under declared noise."""


@final
class Model(GenerativeModel):
    """Generator G and discriminator D, each moved in a phase of its own."""

    Config: ClassVar[type[FamilyConfig]] = GanConfig
    Sample: ClassVar[type[SampleOptions]] = GanSample
    Score: ClassVar[type[ScoreOptions]] = GanScore

    def __init__(self, config: GanConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__(config, spec, stats)
        self.net = config
        self.generator = Generator(
            spec.shape,
            spec.classes,
            z_dim=config.z_dim,
            widths=config.generator.widths,
            blocks=config.generator.blocks,
            patch=config.generator.patch,
        )
        self.discriminator = Discriminator(
            spec.shape,
            spec.classes,
            features=config.features,
            widths=config.discriminator.widths,
            blocks=config.discriminator.blocks,
            patch=config.discriminator.patch,
        )

    @classmethod
    def check(cls, config: GanConfig, spec: ImageSpec) -> None:
        """Raise ConfigError unless the sides can be folded as often as the nets do."""
        for name, tower in (
            ("generator", config.generator),
            ("discriminator", config.discriminator),
        ):
            by = tower.multiple
            if spec.height % by or spec.width % by:
                near = "x".join(
                    str(max(by, round(side / by) * by)) for side in (spec.height, spec.width)
                )
                raise ConfigError(
                    f"gan: net.{name} has patch {tower.patch} and {len(tower.widths)} levels, which "
                    f"needs sides that are multiples of {by}, but images are "
                    f"{spec.height}x{spec.width}; use fewer levels or a smaller patch, "
                    f"or resize the data to {near}"
                )

    @classmethod
    def check_scorable(cls, config: Any, how: GanScore) -> None:
        """Raise Unscorable unless observation noise is declared."""
        how.require_sigma(NO_DENSITY)

    def phases(self) -> tuple[Phase, ...]:
        """D first, so that G follows the gradient of a D that knows its newest images."""
        return (Phase("discriminator", ("discriminator",)), Phase("generator", ("generator",)))

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """L_D or L_G; ``total`` of D includes both penalties."""
        if phase == "discriminator":
            return self._discriminator_loss(batch, rng.fold(phase), self.net.gamma.at(nimg))
        assert phase == "generator", f"no phase is called {phase!r}"
        return self._generator_loss(batch, rng.fold(phase))

    def _discriminator_loss(self, batch: Batch, rng: Rng, gamma: float) -> Losses:
        x_BCHW = batch.x_BCHW(self._dtype)
        with torch.no_grad():
            fake_BCHW = self._generate(batch.labels_B, rng, 1.0)
        real_B, r1_B = self._penalised(x_BCHW, batch.labels_B)
        fake_B, r2_B = self._penalised(fake_BCHW, batch.labels_B)
        gap_B = real_B - fake_B
        pairing = F.softplus(-gap_B).mean()
        r1, r2 = r1_B.mean(), r2_B.mean()
        terms = {
            "pairing_nats": pairing,
            "logit_gap": gap_B.mean(),
            "logit_real": real_B.mean(),
            "logit_fake": fake_B.mean(),
            "r1_sq_norm": r1,
            "r2_sq_norm": r2,
            "gamma": torch.full_like(r1, gamma),
        }
        total = pairing + 0.5 * gamma * (r1 + r2)
        return Losses(total, {name: value.detach() for name, value in terms.items()})

    def _penalised(self, x_BCHW: Tensor, labels_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (B,) and squared norms (B,) of their gradients by the image, both differentiable."""
        x_BCHW = x_BCHW.detach().requires_grad_()
        logits_B = self.discriminator(x_BCHW, labels_B)
        # Rows do not see one another, so the gradient of the sum holds each row's own.
        (slope_BCHW,) = torch.autograd.grad(logits_B.sum(), x_BCHW, create_graph=True)
        return logits_B, slope_BCHW.square().sum(dim=(1, 2, 3))

    def _generator_loss(self, batch: Batch, rng: Rng) -> Losses:
        with torch.no_grad():
            real_B = self.discriminator(batch.x_BCHW(self._dtype), batch.labels_B)
        fake_B = self.discriminator(self._generate(batch.labels_B, rng, 1.0), batch.labels_B)
        gap_B = fake_B - real_B
        total = F.softplus(-gap_B).mean()
        return Losses(total, {"pairing_nats": total.detach(), "logit_gap": gap_B.mean().detach()})

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.generator.parameters()).dtype

    def _generate(self, labels_B: Tensor | None, rng: Rng, psi: float) -> Tensor:
        z_BZ = rng.fold("z").normal(self.net.z_dim, dtype=self._dtype)
        return self.generator(z_BZ * psi, labels_B)

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, how: GanSample) -> Tensor:
        """G(psi z, label) cut to [-1, 1], z addressed by ``rng``."""
        x_BCHW = self._generate(labels_B, rng, how.psi)
        if self.spec.levels == 2:
            # The model of binary data is G followed by the nearer of the two levels.
            return units.to_network((x_BCHW >= 0).to(torch.uint8) * 255, x_BCHW.dtype)
        return x_BCHW.clamp(-1.0, 1.0)

    def log_prob(self, batch: Batch, rng: Rng, how: GanScore) -> LogProb:
        """A stochastic lower bound on the log density of G under noise, by annealed importance sampling."""
        how.require_sigma(NO_DENSITY)
        return self._augmentation().log_prob(batch, rng, how)

    def prepare_scores(self, batch: Batch | None, rng: Rng, how: GanScore) -> Prepared:
        """Fit sigma, measure the gap between lower and upper bound."""
        return self._augmentation().prepare(batch, rng, how)

    def _augmentation(self) -> Augmentation:
        return Augmentation(self.generator, self.net.z_dim, self.spec, self._dtype)
