"""A diffusion model as its likelihoods see it. Letters: B rows, C channels, H height, W width."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from genmod.manifest import ImageSpec
from genmod.samplers.ode import DenoiseRows


@dataclass(frozen=True)
class GaussianPrior:
    """N(mean, std^2 I) at sigma_max: what the sampler starts from."""

    mean_C11: Tensor
    std: float

    def nats(self, x_BCHW: Tensor) -> Tensor:
        """Log density of each row, (B,)."""
        dims = math.prod(x_BCHW.shape[1:])
        squares_B = ((x_BCHW - self.mean_C11) / self.std).square().flatten(1).sum(1)
        return -0.5 * squares_B - dims * (math.log(self.std) + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class Process:
    """All of it."""

    denoise: DenoiseRows
    """D(x; sigma) of these rows."""
    prior: GaussianPrior
    """At sigma_max."""
    sigma_min: float
    sigma_max: float
    sigma_data: float
    spec: ImageSpec
    given: str
    """What the density is conditional on, for people: ``, given the label``."""
