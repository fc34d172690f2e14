"""log p(x) of the probability flow with fixed steps, by the change of variables formula.

    dx/dsigma = (x - D(x; sigma)) / sigma,      d log p(x(sigma)) / dsigma = -(dims - tr dD/dx) / sigma
    log p(x; sigma_min) = log p(x(sigma_max); sigma_max) + integral of (dims - tr dD/dx) d ln sigma

The ODE is solved from sigma_min to sigma_max on a fixed grid in t = ln sigma, in float64, so rows depend
neither on each other nor on how they are batched. The part that is linear in x is solved exactly,

    x(t2) = e^(t2 - t1) x(t1) - integral from t1 to t2 of e^(t2 - t) D(t) dt,

with D a polynomial in t through its last values: an exponential Adams method with predictor and corrector and
one evaluation of D per step. So there is no error in dimensions where the data hardly vary (D constant) or
where the noise is small compared with the data (D = x). The trace is v^T (dD/dx) v with a probe v of random
signs that is fixed during the solve (Skilling-Hutchinson), or exact with one vector-Jacobian product per
dimension. Letters: B batch, C channels, H height, W width.

References:
    Score-based generative modeling through SDEs (App. D), Song et al. 2021, https://arxiv.org/abs/2011.13456
    FFJORD (probes fixed over the solve), Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367
    Elucidating the design space of diffusion-based generative models (Eq. 3), Karras et al. 2022,
    https://arxiv.org/abs/2206.00364
    Exponential integrators (sec. 2.5, exponential multistep methods), Hochbruck and Ostermann 2010,
    https://doi.org/10.1017/S0962492910000048
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from genmod.likelihood.process import GaussianPrior
from genmod.samplers.ode import Denoise

_SHORT_STEPS = (0.25, 0.5)
"""Lengths of the first steps, relative to the others: there are no past values yet."""
_QUADRATURE_NODES = 4
"""Nodes of the polynomial that integrates the trace."""


@dataclass(frozen=True)
class FixedSteps:
    """Steps from sigma_min to sigma_max, equal in ln sigma except for two short ones at the start."""

    steps: int
    """At least 3. D and its derivative are evaluated steps + 1 times."""
    order: int
    """1 .. 4: number of values of D in the predictor's polynomial; the corrector's has one more."""
    sigma_min: float
    sigma_max: float

    def budget(self) -> dict[str, int | float | str]:
        """The solver's settings, for the label of a likelihood."""
        return {"solver": "exponential-adams", **asdict(self), "evaluations": self.steps + 1}

    def times(self) -> list[float]:
        """Ln sigma at the ends of all steps, increasing."""
        lengths = [*_SHORT_STEPS, *[1.0] * (self.steps - len(_SHORT_STEPS))]
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        ends = itertools.accumulate(lengths, initial=0.0)
        return [low + (high - low) * end / sum(lengths) for end in ends]


def log_density_fixed(
    denoise: Denoise,
    x_BCHW: Tensor,
    probe_BCHW: Tensor | None,
    grid: FixedSteps,
    prior: GaussianPrior,
) -> Tensor:
    """Log density of the flow at sigma_min, given its density at sigma_max.

    Args:
        denoise: D(x; sigma), differentiable in x; rows are independent.
        x_BCHW: float64, the points at sigma_min.
        probe_BCHW: random signs -1 and +1; None for the exact trace, which costs C H W times as much.
        grid: the solver's steps.
        prior: the density at sigma_max.

    Returns:
        (B,) float64 in nats: unbiased over probes, up to the solver's error.
    """
    times = grid.times()
    dims = math.prod(x_BCHW.shape[1:])
    x_BCHW = x_BCHW.double()
    integral_B = x_BCHW.new_zeros(len(x_BCHW))
    values: list[Tensor] = []  # D at the last times
    for n, (time, weight) in enumerate(zip(times, _quadrature(times), strict=True)):
        # Predict x at this time, evaluate D and its trace there, then correct x.
        first = max(0, n - grid.order)
        predicted_BCHW = _advance(x_BCHW, times[first:n], values, times, n)
        sigma = math.exp(time)
        clean_BCHW, trace_B = trace(lambda x, s=sigma: denoise(x, s), predicted_BCHW, probe_BCHW)
        integral_B = integral_B + weight * (dims - trace_B)
        values = [*values, clean_BCHW]
        x_BCHW = _advance(x_BCHW, times[first : n + 1], values, times, n)
        values = values[-grid.order :]
    return prior.nats(x_BCHW) + integral_B


def _advance(
    x_BCHW: Tensor, nodes: Sequence[float], values: Sequence[Tensor], times: Sequence[float], n: int
) -> Tensor:
    """Step from times[n - 1] to times[n], with D the polynomial through ``values`` at ``nodes``."""
    if n == 0:
        return x_BCHW
    start, end = times[n - 1], times[n]
    x_BCHW = math.exp(end - start) * x_BCHW
    for weight, value_BCHW in zip(
        _weights(nodes, start, end, lambda t: np.exp(end - t)), values, strict=True
    ):
        x_BCHW = x_BCHW - weight * value_BCHW
    return x_BCHW


def _quadrature(times: Sequence[float]) -> list[float]:
    """Weights of a quadrature over all times: a cubic through the four nearest nodes of each step."""
    total = np.zeros(len(times))
    for n, (start, end) in enumerate(itertools.pairwise(times)):
        first = min(max(0, n - 1), len(times) - _QUADRATURE_NODES)
        nodes = slice(first, first + _QUADRATURE_NODES)
        total[nodes] += _weights(times[nodes], start, end, np.ones_like)
    return total.tolist()


def _weights(
    nodes: Sequence[float], start: float, end: float, factor: Callable[[np.ndarray], np.ndarray]
) -> list[float]:
    """Integrals from start to end of ``factor`` times each Lagrange polynomial of the nodes."""
    points, weights = np.polynomial.legendre.leggauss(12)
    t = (start + end) / 2 + (end - start) / 2 * points
    measure = (end - start) / 2 * weights * factor(t)
    result: list[float] = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        basis = math.prod((t - other) / (node - other) for other in others)
        result.append(float(np.sum(measure * basis)))
    return result


def trace(
    denoise: Callable[[Tensor], Tensor], x_BCHW: Tensor, probe_BCHW: Tensor | None
) -> tuple[Tensor, Tensor]:
    """D(x), and the trace of its Jacobian, (B,): exact, or an unbiased estimate with one probe per row.

    Args:
        denoise: D at fixed noise levels.
        x_BCHW: the points.
        probe_BCHW: random signs; None for the exact trace.
    """
    with torch.enable_grad():
        x_BCHW = x_BCHW.detach().requires_grad_(True)
        clean_BCHW = denoise(x_BCHW)
        if probe_BCHW is not None:
            (product_BCHW,) = torch.autograd.grad(clean_BCHW, x_BCHW, probe_BCHW)
            trace_B = (product_BCHW * probe_BCHW).flatten(1).sum(1)
        else:
            trace_B = _exact_trace(clean_BCHW, x_BCHW)
    return clean_BCHW.detach(), trace_B


def _exact_trace(clean_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Sum of the Jacobian's diagonal, with one vector-Jacobian product per dimension."""
    trace_B = x_BCHW.new_zeros(len(x_BCHW))
    flat_BD = clean_BCHW.flatten(1)
    for d in range(flat_BD.shape[1]):
        (row_BCHW,) = torch.autograd.grad(flat_BD[:, d].sum(), x_BCHW, retain_graph=True)
        trace_B = trace_B + row_BCHW.flatten(1)[:, d]
    return trace_B
