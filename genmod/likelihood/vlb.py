"""The variational bound on log P(pixels) of a diffusion model, a sum over noise levels or an integral.

    -log P(x) <= KL(q(x_T | x) || p(x_T)) - E log p(x | x_0) + sum over i of KL(q(x_{i-1} | x_i, x) || p)
    KL_i = 1/2 (1 / sigma_{i-1}^2 - 1 / sigma_i^2) |x - D(x_i; sigma_i)|^2          sec. 4, Kingma et al. 2021
    with ever more levels:   integral of |x - D(x_sigma; sigma)|^2 / sigma^2 d ln sigma            sec. 5

x is the middle of its pixel's bin and x_i = x + sigma_i eps, so there is no dequantisation, and
p(x | x_0) is proportional to q(x_0 | x) over all levels of a pixel (sec. 3.3). The levels are equal steps
of ln sigma, which is a linear log signal-to-noise ratio. They are drawn by strata, so the estimate has no
bias whatever their number. Letters: B rows, C channels, H height, W width, N calls, J neighbours.

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
"""Standard deviations of the least noise within which other pixels are told from a pixel's own."""


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels that a bound is over."""

    sigma_min: float
    sigma_max: float
    terms: int | None
    """T, KL terms between sigma_min and sigma_max; None for infinitely many."""

    @property
    def length(self) -> float:
        """Of the range, in ln sigma."""
        return math.log(self.sigma_max / self.sigma_min)

    def at(self, u_B: Tensor) -> tuple[Tensor, Tensor]:
        """The noise levels that uniform numbers in [0, 1) stand for, and the weights of |x - D|^2 there.

        The mean of weight times squared error over u is the sum, or integral, of all terms in nats.
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
    """One evaluation of the bound: its expectation is at most log P(pixels), (B,) in nats.

    Args:
        process: the model.
        x_BCHW: float64, the middles of the pixels' bins.
        rng: B rows.
        terms: T, None for infinitely many.
        nfe: network evaluations, one noise level of each of so many strata.
    """
    noise_levels = NoiseLevels(process.sigma_min, process.sigma_max, terms)
    jitter_BN = rng.fold("level").uniform(nfe, dtype=torch.float64)
    loss_B = _ends(process, x_BCHW, rng.fold("decoder"))
    for n in range(nfe):
        sigma_B, weight_B = noise_levels.at((n + jitter_BN[:, n]) / nfe)
        error_B = _squared_error(process, x_BCHW, sigma_B, rng.fold(f"noise/{n}"))
        loss_B = loss_B + weight_B * error_B / nfe
    return -loss_B


def training_loss(process: Process, x_BCHW: Tensor, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
    """The bound with infinitely many terms, from one call for each row, in nats per dimension.

    Noise levels are evenly spread over the rows of a batch and of all batches together, which makes the loss
    of a batch less noisy (App. I.1, Kingma et al. 2021).

    Args:
        process: the model, differentiable in its weights.
        x_BCHW: the middles of the pixels' bins.
        rng: B rows.

    Returns:
        A scalar to descend, and detached terms: the bound in bits per dimension, and the squared error of the
        implied noise per dimension.
    """
    noise_levels, dims = NoiseLevels(process.sigma_min, process.sigma_max, None), process.spec.dims
    sigma_B, weight_B = (
        t.to(x_BCHW.dtype) for t in noise_levels.at(rng.fold("level").quasi_uniform())
    )
    error_B = _squared_error(process, x_BCHW, sigma_B, rng.fold("noise"))
    with torch.no_grad():
        ends_B = _ends(process, x_BCHW, rng.fold("decoder"))
    total = ((weight_B * error_B + ends_B) / dims).mean()
    bits = torch.as_tensor(units.bits_per_dim(-total.detach(), 1))
    noise_mse = (error_B / sigma_B**2).mean().detach() / dims
    return total, {"bound_bits_per_dim": bits, "noise_mse": noise_mse}


def _squared_error(process: Process, x_BCHW: Tensor, sigma_B: Tensor, rng: Rng) -> Tensor:
    """|x - D(x + sigma eps; sigma)|^2, (B,)."""
    eps_BCHW = rng.normal(*process.spec.shape, dtype=x_BCHW.dtype)
    noisy_BCHW = x_BCHW + sigma_B[:, None, None, None] * eps_BCHW
    return (x_BCHW - process.denoise(noisy_BCHW, sigma_B)).square().flatten(1).sum(1)


def _ends(process: Process, x_BCHW: Tensor, rng: Rng) -> Tensor:
    """The terms that no net is in: the prior's and the decoder's, (B,)."""
    prior_B = prior_nats(x_BCHW, process.sigma_max, process.prior)
    return prior_B + decoder_nats(x_BCHW, rng, process.sigma_min, process.spec)


def prior_nats(x_BCHW: Tensor, sigma_max: float, prior: GaussianPrior) -> Tensor:
    """KL(N(x, sigma_max^2 I) || prior), (B,)."""
    dims = math.prod(x_BCHW.shape[1:])
    ratio = (sigma_max / prior.std) ** 2
    shift_B = ((x_BCHW - prior.mean_C11) / prior.std).square().flatten(1).sum(1)
    return 0.5 * (shift_B + dims * (ratio - 1 - math.log(ratio)))


def decoder_nats(x_BCHW: Tensor, rng: Rng, sigma_min: float, spec: ImageSpec) -> Tensor:
    """-log p(x | x + sigma_min eps) for one eps of each row, (B,)."""
    spacing = 2.0 / units.LEVELS * (units.LEVELS - 1) / (spec.levels - 1)
    reach = min(spec.levels - 1, math.ceil(_REACH * sigma_min / spacing) + 1)
    level_BCHW = ((x_BCHW + 1) * (spec.levels / 2)).floor()
    eps_BCHW = rng.normal(*spec.shape, dtype=x_BCHW.dtype)
    offset_J = torch.arange(-reach, reach + 1, dtype=x_BCHW.dtype, device=x_BCHW.device)
    place_BCHWJ = level_BCHW[..., None] + offset_J
    apart_BCHWJ = eps_BCHW[..., None] - offset_J * (spacing / sigma_min)
    fits = (place_BCHWJ >= 0) & (place_BCHWJ < spec.levels)
    each_BCHWJ = torch.where(fits, -0.5 * apart_BCHWJ.square(), -math.inf)
    own_BCHW = -0.5 * eps_BCHW.square()
    return (each_BCHWJ.logsumexp(-1) - own_BCHW).flatten(1).sum(1)
