"""log p(x) of the probability flow with adaptive steps, chosen for each row.

The ODE of :mod:`genmod.likelihood.ode` in t = ln sigma, with x normalised by the prior's mean m and by
s^2 = sigma^2 + scale^2:

    y = (x - m) / s,      dy/dt = (x - D(x; sigma)) / s - y sigma^2 / s^2
    log p(x) = log p_prior(x(t_end)) + dims log(s_end / s_start) + integral of div(dy/dt) dt
    div(dy/dt) = dims - tr dD/dx - dims sigma^2 / s^2

If the data are Gaussian with std ``scale``, y is constant. All numbers are of order 1. The solver is Dormand
and Prince's method of order 5(4) in float64. A step is accepted if its estimated error is below the
tolerance: the larger of the root mean square over y and the error of the integral per dimension.
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
"""Untyped, because torchode's annotations use array types that pyright cannot read."""

_NFE_PER_STEP, _NFE_AT_START = 6, 2
"""Evaluations of Dormand and Prince's method: its seventh stage is the first of the next step."""


class _ExactEnd(_solvers.Dopri5):
    """The method without interpolation at the end of a solve.

    torchode interpolates within the last step, in which other rows may have been done already. Rounding would
    then tell which row was the last, so the bits of a row would depend on the others.
    """

    def build_interpolation(self, data: Any) -> _End:
        """The state of each row after its own last step."""
        return _End(data)


@dataclass(frozen=True)
class _End:
    """The last step of a solve of several rows."""

    data: Any

    def evaluate(self, t_end_B: Tensor, row_B: Tensor) -> Tensor:
        """The state at the end: after the step, or before it for rows that were done."""
        data = self.data
        is_done_B = data.t0[row_B] >= t_end_B
        state_BF: Tensor = torch.where(is_done_B[:, None], data.y0[row_B], data.y1[row_B])
        return state_BF


@dataclass(frozen=True)
class AdaptiveSteps:
    """Range of noise levels and error control of the adaptive solver."""

    sigma_min: float
    sigma_max: float
    scale: float
    """Approximate standard deviation of the clean data."""
    tolerance: float
    """Largest error of a step, relative to numbers of order 1."""
    max_steps: int = 10_000
    """Largest number of steps of a row."""


@dataclass(frozen=True)
class FlowDensity:
    """Log densities of B rows, with the cost of each."""

    nats_B: Tensor
    """Log density at sigma_min, float64."""
    nfe_B: Tensor
    """Evaluations of the denoiser, int64."""


def log_density_adaptive(
    denoise: DenoiseRows,
    x_BCHW: Tensor,
    probe_BCHW: Tensor | None,
    span: AdaptiveSteps,
    prior: GaussianPrior,
) -> FlowDensity:
    """Log density of the flow at sigma_min, given its density at sigma_max.

    Args:
        denoise: D(x; sigma), differentiable in x; rows are independent.
        x_BCHW: the points at sigma_min.
        probe_BCHW: random signs -1 and +1; None for the exact trace, which costs D times as much.
        span: range of noise levels and error control.
        prior: the density at sigma_max.

    Raises:
        GenmodError: a row needs more than ``span.max_steps`` steps, or is not finite.
    """
    x_BCHW = x_BCHW.double()
    rows, shape = len(x_BCHW), x_BCHW.shape[1:]
    dims = math.prod(shape)

    def derivative(t_B: Tensor, state_BF: Tensor) -> Tensor:
        sigma_B = t_B.exp()
        share_B = sigma_B**2 / (sigma_B**2 + span.scale**2)
        s_B111 = (sigma_B**2 + span.scale**2).sqrt()[:, None, None, None]
        y_BCHW = state_BF[:, :dims].view(rows, *shape)
        x_BCHW = prior.mean_C11 + s_B111 * y_BCHW
        clean_BCHW, trace_B = trace(lambda x: denoise(x, sigma_B), x_BCHW, probe_BCHW)
        flow_BCHW = (x_BCHW - clean_BCHW) / s_B111 - share_B[:, None, None, None] * y_BCHW
        divergence_B = (1 - share_B) - trace_B / dims
        return torch.cat((flow_BCHW.flatten(1), divergence_B[:, None]), 1)

    start_s, end_s = (math.hypot(sigma, span.scale) for sigma in (span.sigma_min, span.sigma_max))
    y_BD = ((x_BCHW - prior.mean_C11) / start_s).flatten(1)
    state_BF, steps_B = _solve(derivative, torch.cat((y_BD, y_BD.new_zeros(rows, 1)), 1), span)
    end_BCHW = prior.mean_C11 + end_s * state_BF[:, :dims].view(rows, *shape)
    nats_B = prior.nats(end_BCHW) + dims * (state_BF[:, dims] + math.log(end_s / start_s))
    return FlowDensity(nats_B, _NFE_PER_STEP * steps_B + _NFE_AT_START)


def _solve(
    derivative: Callable[[Tensor, Tensor], Tensor], state_BF: Tensor, span: AdaptiveSteps
) -> tuple[Tensor, Tensor]:
    """State at sigma_max, and the number of attempted steps of each row."""
    term = _solvers.ODETerm(derivative, with_stats=False)
    control = _solvers.IntegralController(
        atol=span.tolerance, rtol=span.tolerance, term=term, norm=_norm
    )
    method = _ExactEnd(term=term)
    solver = _solvers.AutoDiffAdjoint(method, control, max_steps=span.max_steps)
    start_B, end_B = (
        state_BF.new_full((len(state_BF),), math.log(sigma))
        for sigma in (span.sigma_min, span.sigma_max)
    )
    with torch.no_grad():
        solution = solver.to(state_BF.device).solve(
            _solvers.InitialValueProblem(state_BF, start_B, end_B)
        )
    if bool((solution.status != torchode.Status.SUCCESS.value).any()):
        max_steps = int(solution.stats["n_steps"].max())
        raise GenmodError(
            f"probability flow: a row did not reach the tolerance {span.tolerance:g} in {max_steps} steps; "
            "increase score.tolerance, or train the model longer"
        )
    return solution.ys[:, -1], solution.stats["n_steps"]


def _norm(error_BF: Tensor) -> Tensor:
    """Error norm of each row, (B,): the larger of the root mean square over y and the integral's error."""
    rms_B = error_BF[:, :-1].square().mean(1).sqrt()
    return torch.maximum(rms_B, error_BF[:, -1].abs())
