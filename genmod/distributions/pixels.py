"""The pixel likelihoods of a decoder, by the name that a recipe gives."""

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
"""Names of pixel likelihoods.

``auto``: ``bernoulli`` for binary data, ``discretised_logistic`` for 8-bit data. ``gaussian_sigma``: a
Gaussian with one trained sigma for all pixels, on dequantised data.
"""


def check_likelihood(name: LikelihoodName, spec: ImageSpec, family: str) -> None:
    """Check that a likelihood is a probability of such pixels.

    A Bernoulli likelihood of grey values, though common, does not sum to 1.

    Args:
        name: the likelihood.
        spec: image format.
        family: name of the family, for the error.

    Raises:
        ConfigError: it is not.
    """
    if name != "auto" and (name == "bernoulli") != (spec.levels == 2):
        raise ConfigError(
            f"{family}: net.likelihood={name!r} is not a probability of pixels with "
            f"{spec.levels} levels; set net.likelihood to auto"
        )


def likelihood_of(
    name: LikelihoodName, spec: ImageSpec, components: int, noise: LearnedSigma | None
) -> PixelLikelihood:
    """The pixel likelihood with a name.

    Args:
        name: the likelihood.
        spec: image format.
        components: logistics per pixel, for ``discretised_logistic``.
        noise: the trained sigma, for ``gaussian_sigma``.
    """
    if name == "gaussian_sigma":
        assert noise is not None, "gaussian_sigma needs a LearnedSigma"
        return LearnedGaussian(noise)
    if name == "categorical_256":
        return Categorical()
    return Bernoulli() if spec.levels == 2 else DiscretisedLogistic(components)
