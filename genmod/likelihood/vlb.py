"""The variational bound on log P(pixels) of a diffusion model: a sum or an integral over noise levels.

    -log P(x) <= KL(q(x_T | x) || p(x_T)) - E log p(x | x_0) + sum over i of KL(q(x_{i-1} | x_i, x) || p)
    KL_i = 1/2 (1 / sigma_{i-1}^2 - 1 / sigma_i^2) |x - D(x_i; sigma_i)|^2          sec. 4, Kingma et al. 2021
    in the limit of many levels:   integral of |x - D(x_sigma; sigma)|^2 / sigma^2 d ln sigma      sec. 5

x is the middle of its pixel's bin and x_i = x + sigma_i eps, so nothing is dequantised. p(x | x_0) is
proportional to q(x_0 | x) over all values of a pixel (sec. 3.3). The noise levels are evenly spaced in
ln sigma, so the log signal-to-noise ratio is linear. They are drawn by stratified sampling, so the estimate
is unbiased for any number of draws. Letters: B rows, C channels, H height, W width, N evaluations,
J neighbours.

References:
    Variational diffusion models, Kingma et al. 2021, https://arxiv.org/abs/2107.00630
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genmod import units
from genmod.likelihood.process import GaussianPrior, Process
from genmod.manifest import ImageSpec
from genmod.rng import Rng

_REACH = 12.0
"""Radius, in standard deviations of the lowest noise, of the pixel values that the decoder term compares."""


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels that a bound sums or integrates over."""

    sigma_min: float
    sigma_max: float
    terms: int | None
    """T, the number of KL terms between sigma_min and sigma_max; None for the integral."""

    @property
    def length(self) -> float:
        """Length of the range in ln sigma."""
        return math.log(self.sigma_max / self.sigma_min)

    def quantile(self, u_B: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform numbers in [0, 1) to noise levels (B,), and return the weight of |x - D|^2 at each.

        The mean over u of weight times squared error is the sum or integral of all terms, in nats.
        """
        if self.terms is None:
            sigma_B = (math.log(self.sigma_min) + self.length * u_B).exp()
            return sigma_B, self.length / sigma_B**2
        step = self.length / self.terms
        upper_B = (u_B * self.terms).floor() + 1
        sigma_B = (math.log(self.sigma_min) + step * upper_B).exp()
        return sigma_B, 0.5 * self.terms * math.expm1(2 * step) / sigma_B**2


def variational_bound(
    process: Process, x_BCHW: Tensor, rng: Rng, *, terms: int | None, nfe: int
) -> Tensor:
    """One evaluation of the bound, (B,) in nats; its expectation is at most log P(pixels).

    Args:
        process: the diffusion model.
        x_BCHW: float64 images in network units, the middles of the pixels' bins.
        rng: B rows.
        terms: T, the number of terms; None for the integral.
        nfe: network evaluations: strata of noise levels, one draw from each.
    """
    noise_levels = NoiseLevels(process.sigma_min, process.sigma_max, terms)
    jitter_BN = rng.fold("level").uniform(nfe, dtype=torch.float64)
    loss_B = _ends(process, x_BCHW, rng.fold("decoder"))
    for n in range(nfe):
        sigma_B, weight_B = noise_levels.quantile((n + jitter_BN[:, n]) / nfe)
        error_B = _squared_error(process, x_BCHW, sigma_B, rng.fold(f"noise/{n}"))
        loss_B = loss_B + weight_B * error_B / nfe
    return -loss_B


def training_loss(process: Process, x_BCHW: Tensor, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative bound (integral form) in nats per dimension, with one network evaluation per row.

    Noise levels form a low-discrepancy sequence over the rows of all batches, which reduces the variance of
    the loss (App. I.1, Kingma et al. 2021).

    Args:
        process: the diffusion model, differentiable in its weights.
        x_BCHW: images in network units, the middles of the pixels' bins.
        rng: B rows.

    Returns:
        The loss, a scalar; and detached terms: the bound in bits per dimension, and the mean squared error
        of the predicted noise.
    """
    noise_levels, dims = NoiseLevels(process.sigma_min, process.sigma_max, None), process.spec.dims
    u_B = rng.fold("level").quasi_uniform()
    sigma_B, weight_B = (t.to(x_BCHW.dtype) for t in noise_levels.quantile(u_B))
    error_B = _squared_error(process, x_BCHW, sigma_B, rng.fold("noise"))
    with torch.no_grad():
        ends_B = _ends(process, x_BCHW, rng.fold("decoder"))
    total = ((weight_B * error_B + ends_B) / dims).mean()
    bits = torch.as_tensor(units.bits_per_dim(-total.detach(), 1))
    noise_mse = (error_B / sigma_B**2).mean().detach() / dims
    return total, {"bound_bits_per_dim": bits, "noise_mse": noise_mse}


def _squared_error(process: Process, x_BCHW: Tensor, sigma_B: Tensor, rng: Rng) -> Tensor:
    """Squared error of the denoiser, |x - D(x + sigma eps; sigma)|^2, (B,)."""
    eps_BCHW = rng.normal(*process.spec.shape, dtype=x_BCHW.dtype)
    noisy_BCHW = x_BCHW + sigma_B[:, None, None, None] * eps_BCHW
    return (x_BCHW - process.denoise(noisy_BCHW, sigma_B)).square().flatten(1).sum(1)


def _ends(process: Process, x_BCHW: Tensor, rng: Rng) -> Tensor:
    """Prior term plus decoder term, which do not depend on the network, (B,) in nats."""
    prior_B = prior_nats(x_BCHW, process.sigma_max, process.prior)
    return prior_B + decoder_nats(x_BCHW, rng, process.sigma_min, process.spec)


def prior_nats(x_BCHW: Tensor, sigma_max: float, prior: GaussianPrior) -> Tensor:
    """Prior term: KL(N(x, sigma_max^2 I) || prior), (B,) in nats."""
    dims = math.prod(x_BCHW.shape[1:])
    ratio = (sigma_max / prior.std) ** 2
    shift_B = ((x_BCHW - prior.mean_C11) / prior.std).square().flatten(1).sum(1)
    return 0.5 * (shift_B + dims * (ratio - 1 - math.log(ratio)))


def decoder_nats(x_BCHW: Tensor, rng: Rng, sigma_min: float, spec: ImageSpec) -> Tensor:
    """Decoder term: -log p(x | x + sigma_min eps) for one eps per row, (B,) in nats."""
    # Distance of neighbouring pixel values, and how many neighbours matter on each side.
    spacing = 2.0 / units.LEVELS * (units.LEVELS - 1) / (spec.levels - 1)
    reach = min(spec.levels - 1, math.ceil(_REACH * sigma_min / spacing) + 1)
    level_BCHW = ((x_BCHW + 1) * (spec.levels / 2)).floor()
    eps_BCHW = rng.normal(*spec.shape, dtype=x_BCHW.dtype)
    offset_J = torch.arange(-reach, reach + 1, dtype=x_BCHW.dtype, device=x_BCHW.device)
    neighbour_BCHWJ = level_BCHW[..., None] + offset_J
    distance_BCHWJ = eps_BCHW[..., None] - offset_J * (spacing / sigma_min)
    valid = (neighbour_BCHWJ >= 0) & (neighbour_BCHWJ < spec.levels)
    log_q_BCHWJ = torch.where(valid, -0.5 * distance_BCHWJ.square(), -math.inf)
    log_q_of_x_BCHW = -0.5 * eps_BCHW.square()
    return (log_q_BCHWJ.logsumexp(-1) - log_q_of_x_BCHW).flatten(1).sum(1)
