"""Options of the variational autoencoder: net and objective, sampling, scoring."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from genmod.distributions.pixels import LikelihoodName
from genmod.interface.options import (
    MAX_LEVELS,
    MAX_NIMG,
    MAX_WIDTH,
    FamilyConfig,
    SampleOptions,
    Width,
)
from genmod.likelihood.vae_likelihood import VAEBoundOptions
from genmod.nets import dense


class VAEConfig(FamilyConfig):
    """Sizes of the nets, prior, likelihood and training objective."""

    latents: int = Field(default=32, ge=1, le=MAX_WIDTH)
    """Z, length of the latent vector."""
    groups: int = Field(default=1, ge=1, le=12)
    """Groups of latents, each given those before it (top down); divides ``latents``. 1 is a plain VAE. In two
    short runs 4 groups with ``ladder_width`` 64 gained 1.8 nats (tests/benchmarks/vae-options.md)."""
    ladder_width: int = Field(default=128, ge=1, le=MAX_WIDTH)
    """Length of the state vectors between groups, if there are several."""
    prior_components: int = Field(default=0, ge=0, le=4096)
    """Components of a trained Gaussian mixture as the prior of all latents; 0 for N(0, 1)."""
    unshuffle: int = Field(default=2, ge=1, le=64)
    """Side of the pixel squares that the nets fold into channels; 1 for none."""
    widths: tuple[Width, ...] = Field(default=(32, 64), min_length=1, max_length=MAX_LEVELS)
    """Channels of each level, finest first; each level after the first halves height and width."""
    blocks: int = Field(default=1, ge=0, le=64)
    """Residual blocks in each level of the encoder and of the decoder."""
    hidden: tuple[Width, ...] = Field(default=(), max_length=MAX_LEVELS)
    """Lengths of dense layers from pixels to latents, instead of convolutions; the decoder mirrors them."""
    activation: dense.Activation = "silu"
    """Activation after each dense layer."""
    embedding: int = Field(default=16, ge=1, le=MAX_WIDTH)
    """Length of a class's embedding, for data with labels."""
    likelihood: LikelihoodName = "auto"
    """Distribution of a pixel given z, see :mod:`genmod.distributions.pixels`."""
    components: int = Field(default=3, ge=1, le=256)
    """Components of the mixture of logistics of 8-bit pixels; 1 is the plain discretised logistic."""
    beta: float = Field(default=1.0, gt=0, le=1e6)
    """Weight of the KL term in training, after its warm-up. Above 1, latents carry less information and draws
    from the prior look cleaner, but the likelihood is worse; scores always use 1."""
    kl_warmup_nimg: int = Field(default=0, ge=0, le=MAX_NIMG)
    """Images over which the weight of the KL term grows linearly from 0 to ``beta``."""
    free_bits_nats: float = Field(default=0.0, ge=0, le=1e6)
    """KL of a group of latents below which its penalty stays constant, for each image."""
    free_bits_group: int = Field(default=1, ge=1, le=MAX_WIDTH)
    """Adjacent latents that share one ``free_bits_nats``; divides ``latents``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("free_bits_group", "groups"):
            if self.latents % getattr(self, name):
                raise ValueError(
                    f"{name} must divide latents ({self.latents}), got {getattr(self, name)}"
                )
        if self.free_bits_nats and self.prior_components:
            raise ValueError(
                "free_bits_nats needs prior_components 0 (a mixture has no KL per latent)"
            )
        return self

    @classmethod
    def tiny(cls) -> Self:
        """4 latents, one level of 8 channels."""
        return cls(latents=4, widths=(8,), embedding=4, kl_warmup_nimg=16)

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Other likelihoods of grey pixels, groups of latents, a trained prior, plain layers, free bits."""
        likelihoods = {"likelihood": "gaussian_sigma"}, {"likelihood": "categorical_256"}
        others = {"groups": 2, "ladder_width": 8}, {"prior_components": 3, "hidden": (12, 8)}
        one: dict[str, Any] = {"components": 1, "beta": 2.0, "free_bits_nats": 0.1}
        changes = *likelihoods, *others, one | {"free_bits_group": 2}
        return tuple(cls.tiny().model_copy(update=change) for change in changes)


class VAESample(SampleOptions):
    """Sampling options of a VAE: z from the prior, then pixels."""

    output: Literal["draw", "mean"] = "draw"
    """``draw``: pixels from p(x | z). ``mean``: the expected image given z, smoother than any draw."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Factor on the standard deviation of the prior's Gaussians; 1 samples the prior."""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """The decoder's mean, and a lower temperature."""
        return cls(output="mean"), cls(temperature=0.7)

    @property
    def draws_from_p(self) -> bool:
        """True only for pixels drawn from p(x | z) with z drawn from the prior."""
        return self.output == "draw" and self.temperature == 1.0

    @property
    def sampler(self) -> str:
        """``ancestral`` or ``decoder-mean``, with the temperature if it is not 1."""
        name = "ancestral" if self.output == "draw" else "decoder-mean"
        return name if self.temperature == 1.0 else f"{name}, temperature {self.temperature:g}"


class VAEScore(VAEBoundOptions):
    """Options of the bound on log p, which always has beta = 1."""
