"""The parts of a diffusion model that its likelihoods need.

Letters: B rows, C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from genmod.manifest import ImageSpec
from genmod.samplers.ode import DenoiseRows


@dataclass(frozen=True)
class GaussianPrior:
    """The distribution N(mean, std^2 I) at sigma_max, from which sampling starts."""

    mean_C11: Tensor
    """Mean of each channel."""
    std: float
    """Standard deviation, the same for all pixels."""

    def nats(self, x_BCHW: Tensor) -> Tensor:
        """Log density of each row, (B,) in nats."""
        dims = math.prod(x_BCHW.shape[1:])
        squares_B = ((x_BCHW - self.mean_C11) / self.std).square().flatten(1).sum(1)
        return -0.5 * squares_B - dims * (math.log(self.std) + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class Process:
    """A diffusion process: the denoiser for a batch of rows, its noise levels and its prior."""

    denoise: DenoiseRows
    """D(x; sigma), already bound to the labels of the rows."""
    prior: GaussianPrior
    """Distribution at sigma_max."""
    sigma_min: float
    sigma_max: float
    sigma_data: float
    """Standard deviation of the data, in network units."""
    spec: ImageSpec
    given: str
    """The condition of the density, as text for labels: ``, given the label``; empty for none."""
