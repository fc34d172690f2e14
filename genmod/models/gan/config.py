"""Sizes of generator and discriminator, and what they play for."""

from __future__ import annotations

import math
from typing import Literal, Self, final

from pydantic import Field

from genmod.config import Config
from genmod.interface.options import FamilyConfig
from genmod.models.gan.augment import AugmentConfig
from genmod.models.gan.losses import USUAL, USUAL_CRITIC_STEPS, LossName, PenaltyName


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
    loss: LossName = "rpgan"
    penalty: PenaltyName | Literal["usual"] = "usual"
    """On D's gradient; ``usual`` is the one that the loss was published with."""
    penalty_every: int | None = Field(default=None, gt=0)
    """One row of so many pays it, so many times over; null for what is usual."""
    critic_steps: int | None = Field(default=None, gt=0)
    """Steps of D for one of G, each on a batch of its own, all of which count as images seen: G takes part in
    the last, with that batch's labels. Null for what is usual: 5 for ``wgan_gp``, else 1."""
    gamma: Penalty = Penalty()
    augment: AugmentConfig | None = None
    """Of all that D sees, for small data; null for none."""

    @property
    def penalties(self) -> tuple[PenaltyName, int]:
        """Which penalty, and that every how many rows pay it."""
        usual, every = USUAL[self.loss]
        if self.penalty != "usual":
            usual, every = self.penalty, 1
        return usual, self.penalty_every or every

    @property
    def generator_every(self) -> int:
        """G takes part in the last of so many steps."""
        return self.critic_steps or USUAL_CRITIC_STEPS[self.loss]

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
