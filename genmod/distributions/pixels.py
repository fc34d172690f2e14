"""The likelihoods of pixels by name."""

from __future__ import annotations

from typing import Literal

from genmod.distributions.decoders import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    PixelLikelihood,
)
from genmod.distributions.noise import LearnedGaussian, LearnedSigma
from genmod.errors import ConfigError
from genmod.manifest import ImageSpec

LikelihoodName = Literal[
    "auto", "bernoulli", "discretised_logistic", "categorical_256", "gaussian_sigma"
]
"""``auto`` is ``bernoulli`` for binary data and ``discretised_logistic`` for 8-bit data. ``gaussian_sigma``
has one trained sigma for all pixels and is dequantised; it blurs less than squared error does."""


def check(name: LikelihoodName, spec: ImageSpec, family: str) -> None:
    """Refuse a likelihood that is none for such pixels.

    Bernoulli of grey values, as it is often trained, adds up to something else than 1.
    """
    if name != "auto" and (name == "bernoulli") != (spec.levels == 2):
        raise ConfigError(
            f"{family}: likelihood {name!r} is not a probability of pixels with "
            f"{spec.levels} levels; set net.likelihood to auto"
        )


def likelihood_of(
    name: LikelihoodName, spec: ImageSpec, components: int, noise: LearnedSigma | None
) -> PixelLikelihood:
    """The likelihood; ``noise`` is needed by ``gaussian_sigma`` alone."""
    if name == "gaussian_sigma":
        assert noise is not None, "gaussian_sigma has a sigma"
        return LearnedGaussian(noise)
    if name == "categorical_256":
        return Categorical()
    return Bernoulli() if spec.levels == 2 else DiscretisedLogistic(components)
