"""Configuration of the GAN: sizes of both nets, loss, penalty, augmentation."""

from __future__ import annotations

import math
from typing import Literal, Self, final

from pydantic import Field

from genmod.config import Config
from genmod.interface.options import (
    MAX_LEVELS,
    MAX_NIMG,
    MAX_WIDTH,
    FamilyConfig,
    SampleOptions,
    Width,
)
from genmod.likelihood.noisy_generator import NoisyGeneratorScore
from genmod.models.gan.augment import AugmentConfig
from genmod.models.gan.losses import DEFAULT_CRITIC_STEPS, DEFAULT_PENALTY, LossName, PenaltyName
from genmod.nets.blocks import stride_of


class Penalty(Config):
    """gamma, the weight of both gradient penalties: a half cosine from ``base`` to ``final``."""

    base: float = Field(default=1.0, gt=0, le=1e6)
    """At the start. Larger images need more; with too little, D memorises the data or diverges."""
    final: float = Field(default=0.1, gt=0, le=1e6)
    """From ``nimg`` images on."""
    nimg: int = Field(default=100_000, gt=0, le=MAX_NIMG)
    """Images seen when ``final`` is reached."""

    def at(self, nimg: int) -> float:
        """The weight after ``nimg`` images."""
        done = min(nimg / self.nimg, 1.0)
        return self.final + (self.base - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


class Tower(Config):
    """Size of the generator or of the discriminator."""

    widths: tuple[Width, ...] = Field(min_length=1, max_length=MAX_LEVELS)
    """Channels of each level, finest first; each next level has half the sides."""
    blocks: int = Field(default=1, gt=0, le=64)
    """Residual blocks on each level."""
    patch: int = Field(default=2, gt=0, le=64)
    """Side of the pixel square that one position of the finest level covers."""

    @property
    def multiple(self) -> int:
        """What height and width of images must be multiples of."""
        return stride_of(self.patch, self.widths)


@final
class GanConfig(FamilyConfig):
    """Sizes of both nets, the loss, the penalty and the augmentation."""

    z_dim: int = Field(default=64, gt=0, le=MAX_WIDTH)
    """Z, length of the latent vector."""
    generator: Tower = Tower(widths=(32, 96), blocks=1, patch=2)
    """Size of G, which runs from the coarsest level to the finest."""
    discriminator: Tower = Tower(widths=(64,), blocks=2, patch=4)
    """Size of D, which runs from the finest level to the coarsest."""
    features: int = Field(default=128, gt=0, le=MAX_WIDTH)
    """Length of D's feature vector of an image."""
    loss: LossName = "rpgan"
    """Adversarial loss of both nets."""
    penalty: PenaltyName | Literal["usual"] = "usual"
    """Penalty on D's gradient; ``usual`` is the one that the loss was published with."""
    penalty_every: int | None = Field(default=None, gt=0, le=1_000_000)
    """k: one row in k is penalised, with k times the weight; null for the loss's default."""
    critic_steps: int | None = Field(default=None, gt=0, le=1_000)
    """Steps of D for each step of G. Each has its own batch, which counts as images seen; G takes part in the
    last, with that batch's labels. Null for the loss's default: 5 for ``wgan_gp``, else 1."""
    gamma: Penalty = Penalty()
    augment: AugmentConfig | None = None
    """Augmentation of all images that D sees, for small datasets; null for none."""

    @property
    def penalties(self) -> tuple[PenaltyName, int]:
        """The penalty, and k: one row in k is penalised."""
        penalty, every = DEFAULT_PENALTY[self.loss]
        if self.penalty != "usual":
            penalty, every = self.penalty, 1
        return penalty, self.penalty_every or every

    @property
    def generator_every(self) -> int:
        """k: G takes part in one step of k, the last."""
        return self.critic_steps or DEFAULT_CRITIC_STEPS[self.loss]

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """The other losses; augmentation, adaptive too."""
        tiny, always = cls.tiny(), AugmentConfig()
        adaptive = AugmentConfig(probability=0.5, target=0.6, adapt_nimg=100)
        return (
            tiny.model_copy(update={"loss": "non_saturating", "penalty_every": 3}),
            tiny.model_copy(update={"loss": "hinge", "augment": always}),
            tiny.model_copy(update={"loss": "wgan_gp", "critic_steps": 3}),
            tiny.model_copy(update={"augment": adaptive}),
        )

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of a dozen channels."""
        tower = Tower(widths=(8, 12), blocks=1, patch=2)
        return cls(
            z_dim=8, generator=tower, discriminator=tower, features=16, gamma=Penalty(nimg=1000)
        )


class GanSample(SampleOptions):
    """Sampling options of a GAN."""

    psi: float = Field(default=1.0, ge=0, le=100)
    """Truncation: factor on z. Below 1, images are more typical and less diverse, and not draws from p(x)."""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Sampling with truncation of z."""
        return (cls(psi=0.7),)

    @property
    def draws_from_p(self) -> bool:
        """True only without truncation."""
        return self.psi == 1.0

    @property
    def sampler(self) -> str:
        """``generator``, with the truncation if there is any."""
        return "generator" if self.psi == 1.0 else f"generator-psi={self.psi:g}"


class GanScore(NoisyGeneratorScore):
    """Options of the bound on the density of the generator under declared noise."""
