"""log p(x) of the probability flow by an adaptive solver, each row with steps of its own.

The equation of :mod:`genmod.likelihood.ode` in t = ln sigma, for x relative to a Gaussian of the prior's
mean m and of variance s^2 = sigma^2 + scale^2:

    y = (x - m) / s,      dy/dt = (x - D(x; sigma)) / s - y sigma^2 / s^2
    log p(x) = log p_prior(x(t_end)) + dims log(s_end / s_start) + integral of div(dy/dt) dt
    div(dy/dt) = dims - tr dD/dx - dims sigma^2 / s^2

so that nothing moves where the data are that Gaussian, and all numbers are about 1. Dormand and Prince's
method of order 5(4) in float64. A step is taken if its estimated error, the root mean square over a row's y
and that of the integral per dimension, is below the tolerance.
Letters: B rows, C channels, H height, W width, D = C H W, F = D + 1.

References:
    torchode: a parallel ODE solver for PyTorch, Lienen and Guennemann 2022,
    https://arxiv.org/abs/2210.12375
    Score-based generative modeling through SDEs (App. D), Song et al. 2021, https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchode
from torch import Tensor

from genmod.errors import GenmodError
from genmod.likelihood.ode import trace
from genmod.likelihood.process import GaussianPrior
from genmod.samplers.ode import DenoiseRows

_solvers: Any = torchode
"""Its annotations name shapes in types of its own."""

_CALLS_A_STEP, _CALLS_AT_START = 6, 2
"""Of Dormand and Prince's method: its seventh stage is the next step's first."""


@dataclass(frozen=True)
class AdaptiveSteps:
    """From where to where, and how exactly."""

    sigma_min: float
    sigma_max: float
    scale: float
    """Standard deviation of the clean data, roughly."""
    tolerance: float
    """Of a step's error, relative to numbers of about 1."""
    max_steps: int = 10_000
    """Steps after which a row is given up."""


@dataclass(frozen=True)
class FlowDensity:
    """What the solver found for B rows."""

    nats_B: Tensor
    """Log density at sigma_min."""
    nfe_B: Tensor
    """Calls of the denoiser, int64."""


def log_density_adaptive(
    denoise: DenoiseRows,
    x_BCHW: Tensor,
    probe_BCHW: Tensor | None,
    span: AdaptiveSteps,
    prior: GaussianPrior,
) -> FlowDensity:
    """Log density at ``span.sigma_min`` of the flow that ends in ``prior``.

    Args:
        denoise: D(x; sigma), differentiable in x, each row on its own.
        x_BCHW: where the density is asked for.
        probe_BCHW: -1 and +1, one probe for each row; None for the exact trace, D times the work.
        span: the equation's ends and the tolerance.
        prior: the density at sigma_max.

    Raises:
        GenmodError: a row's equation cannot be solved.
    """
    x_BCHW = x_BCHW.double()
    rows, shape = len(x_BCHW), x_BCHW.shape[1:]
    dims = math.prod(shape)

    def slope(t_B: Tensor, state_BF: Tensor) -> Tensor:
        sigma_B = t_B.exp()
        share_B = sigma_B**2 / (sigma_B**2 + span.scale**2)
        s_B111 = (sigma_B**2 + span.scale**2).sqrt()[:, None, None, None]
        y_BCHW = state_BF[:, :dims].view(rows, *shape)
        here_BCHW = prior.mean_C11 + s_B111 * y_BCHW
        clean_BCHW, trace_B = trace(lambda x: denoise(x, sigma_B), here_BCHW, probe_BCHW)
        flow_BCHW = (here_BCHW - clean_BCHW) / s_B111 - share_B[:, None, None, None] * y_BCHW
        growth_B = (1 - share_B) - trace_B / dims
        return torch.cat((flow_BCHW.flatten(1), growth_B[:, None]), 1)

    start_s, end_s = (math.hypot(sigma, span.scale) for sigma in (span.sigma_min, span.sigma_max))
    y_BD = ((x_BCHW - prior.mean_C11) / start_s).flatten(1)
    state_BF, steps_B = _solve(slope, torch.cat((y_BD, y_BD.new_zeros(rows, 1)), 1), span)
    end_BCHW = prior.mean_C11 + end_s * state_BF[:, :dims].view(rows, *shape)
    nats_B = prior.nats(end_BCHW) + dims * (state_BF[:, dims] + math.log(end_s / start_s))
    return FlowDensity(nats_B, _CALLS_A_STEP * steps_B + _CALLS_AT_START)


def _solve(
    slope: Callable[[Tensor, Tensor], Tensor], state_BF: Tensor, span: AdaptiveSteps
) -> tuple[Tensor, Tensor]:
    """State at the end and the number of steps tried, by row."""
    term = _solvers.ODETerm(slope, with_stats=False)
    control = _solvers.IntegralController(
        atol=span.tolerance, rtol=span.tolerance, term=term, norm=_norm
    )
    method = _solvers.Dopri5(term=term)
    solver = _solvers.AutoDiffAdjoint(method, control, max_steps=span.max_steps)
    start_B, end_B = (
        state_BF.new_full((len(state_BF),), math.log(sigma))
        for sigma in (span.sigma_min, span.sigma_max)
    )
    with torch.no_grad():
        found = solver.to(state_BF.device).solve(
            _solvers.InitialValueProblem(state_BF, start_B, end_B)
        )
    if bool((found.status != torchode.Status.SUCCESS.value).any()):
        worst = int(found.stats["n_steps"].max())
        raise GenmodError(
            f"probability flow: a row's equation could not be solved to {span.tolerance:g} in {worst} "
            "steps; give a larger score.tolerance, or train the model longer"
        )
    return found.ys[:, -1], found.stats["n_steps"]


def _norm(error_BF: Tensor) -> Tensor:
    """(B,): the root mean square over y, or the integral's, whichever is larger."""
    images_B = error_BF[:, :-1].square().mean(1).sqrt()
    return torch.maximum(images_B, error_BF[:, -1].abs())
