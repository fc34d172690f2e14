"""log p(x) of the probability-flow equation, by the change of variables along it.

    dx/dsigma = (x - D(x; sigma)) / sigma,      d log p(x(sigma)) / dsigma = -(dims - tr dD/dx) / sigma
    log p(x; sigma_min) = log p(x(sigma_max); sigma_max) + integral of (dims - tr dD/dx) / sigma dsigma

The equation is solved from sigma_min up to sigma_max on a fixed grid by an explicit Runge-Kutta method, in
float64, so rows depend neither on each other nor on how they are batched. The trace is v^T (dD/dx) v with a
probe v of random signs that is fixed over the solve (Skilling-Hutchinson), or exact by one product for
every dimension. Letters: B batch, C channels, H height, W width.

References:
    Score-based generative modeling through SDEs (App. D), Song et al. 2021, https://arxiv.org/abs/2011.13456
    FFJORD (probes fixed over the solve), Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367
    Elucidating the design space of diffusion-based generative models (Eq. 3), Karras et al. 2022,
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from genmod.samplers.ode import Denoise

Solver = Literal["heun", "rk3", "rk4"]

Row = tuple[float, ...]
# Nodes c, coefficients a and weights b, with orders 2, 3 and 4 (Hairer, Norsett and Wanner 1993, II.1).
_TABLEAUS: dict[Solver, tuple[Row, tuple[Row, ...], Row]] = {
    "heun": ((0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "rk3": ((0, 1 / 3, 2 / 3), ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    "rk4": (
        (0, 1 / 2, 1 / 2, 1),
        ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


@dataclass(frozen=True)
class Grid:
    """Steps from sigma_min to sigma_max, equal in sigma^(1/rho)."""

    solver: Solver
    steps: int
    sigma_min: float
    sigma_max: float
    rho: float

    @property
    def evaluations(self) -> int:
        """Calls of the denoiser, each with its derivative."""
        return self.steps * len(_TABLEAUS[self.solver][0])

    def budget(self) -> dict[str, int | float | str]:
        """All of it, as a likelihood's label says it."""
        return {**asdict(self), "evaluations": self.evaluations}


@dataclass(frozen=True)
class Prior:
    """N(mean, std^2 I) at sigma_max: what the sampler starts from."""

    mean_C11: Tensor
    std: float

    def nats(self, x_BCHW: Tensor) -> Tensor:
        """Log density of each row, (B,)."""
        dims = math.prod(x_BCHW.shape[1:])
        squares_B = ((x_BCHW - self.mean_C11) / self.std).square().flatten(1).sum(1)
        return -0.5 * squares_B - dims * (math.log(self.std) + 0.5 * math.log(2 * math.pi))


def log_density(
    denoise: Denoise, x_BCHW: Tensor, probe_BCHW: Tensor | None, grid: Grid, prior: Prior
) -> Tensor:
    """Log density at sigma_min of the flow that ends in ``prior``.

    Args:
        denoise: D(x; sigma), differentiable in x, each row on its own.
        x_BCHW: float64, where the density is asked for.
        probe_BCHW: -1 and +1, one probe for each row; None for the exact trace, C H W times the work.
        grid: how the equation is solved.
        prior: the density at sigma_max.

    Returns:
        (B,) nats, float64: without bias in the probes, up to the solver's error.
    """
    nodes, coefficients, weights = _TABLEAUS[grid.solver]
    ends = _levels(grid)
    x_BCHW = x_BCHW.double()
    integral_B = x_BCHW.new_zeros(len(x_BCHW))
    for start, end in itertools.pairwise(ends):
        step = end - start
        slopes_BCHW: list[Tensor] = []
        for node, row, weight in zip(nodes, coefficients, weights, strict=True):
            inner_BCHW = x_BCHW
            for factor, slope_BCHW in zip(row, slopes_BCHW, strict=True):
                if factor:
                    inner_BCHW = inner_BCHW + step * factor * slope_BCHW
            # With sigma = u^rho: dx/du = rho / u (x - D).
            u = start + node * step
            clean_BCHW, trace_B = _denoise_and_trace(
                denoise, inner_BCHW, u**grid.rho, probe_BCHW, weight != 0
            )
            slopes_BCHW.append((inner_BCHW - clean_BCHW) * (grid.rho / u))
            if trace_B is not None:
                divergence_B = math.prod(x_BCHW.shape[1:]) - trace_B
                integral_B = integral_B + step * weight * (grid.rho / u) * divergence_B
        for weight, slope_BCHW in zip(weights, slopes_BCHW, strict=True):
            if weight:
                x_BCHW = x_BCHW + step * weight * slope_BCHW
    return prior.nats(x_BCHW) + integral_B


def _levels(grid: Grid) -> list[float]:
    """sigma^(1/rho) at the ends of all steps, rising."""
    low, high = grid.sigma_min ** (1 / grid.rho), grid.sigma_max ** (1 / grid.rho)
    return [low + (high - low) * i / grid.steps for i in range(grid.steps + 1)]


def _denoise_and_trace(
    denoise: Denoise, x_BCHW: Tensor, sigma: float, probe_BCHW: Tensor | None, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """D(x; sigma) and the trace of its Jacobian, (B,) or None if it is not wanted."""
    if not wanted:
        with torch.no_grad():
            return denoise(x_BCHW, sigma), None
    with torch.enable_grad():
        x_BCHW = x_BCHW.detach().requires_grad_(True)
        clean_BCHW = denoise(x_BCHW, sigma)
        if probe_BCHW is not None:
            (product_BCHW,) = torch.autograd.grad(clean_BCHW, x_BCHW, probe_BCHW)
            trace_B = (product_BCHW * probe_BCHW).flatten(1).sum(1)
        else:
            trace_B = _exact_trace(clean_BCHW, x_BCHW)
    return clean_BCHW.detach(), trace_B


def _exact_trace(clean_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """The diagonal's sum, one vector-Jacobian product for every dimension."""
    trace_B = x_BCHW.new_zeros(len(x_BCHW))
    flat_BD = clean_BCHW.flatten(1)
    for d in range(flat_BD.shape[1]):
        (row_BCHW,) = torch.autograd.grad(flat_BD[:, d].sum(), x_BCHW, retain_graph=True)
        trace_B = trace_B + row_BCHW.flatten(1)[:, d]
    return trace_B
