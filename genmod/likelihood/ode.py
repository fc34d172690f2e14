"""log p(x) of the probability-flow equation, by the change of variables along it.

    dx/dsigma = (x - D(x; sigma)) / sigma,      d log p(x(sigma)) / dsigma = -(dims - tr dD/dx) / sigma
    log p(x; sigma_min) = log p(x(sigma_max); sigma_max) + integral of (dims - tr dD/dx) d ln sigma

Solved from sigma_min up to sigma_max on a fixed grid in t = ln sigma, in float64, so rows depend neither
on each other nor on how they are batched. The part of the equation that is linear in x is solved exactly,

    x(t2) = e^(t2 - t1) x(t1) - integral from t1 to t2 of e^(t2 - t) D(t) dt,

with D a polynomial in t through its last values: an exponential Adams method, predictor and corrector with
one call of the denoiser a step. So dimensions in which the data hardly vary (D constant), and those in which
the noise is small against the data (D = x), are solved without error. The trace is v^T (dD/dx) v with a probe
v of random signs that is fixed over the solve (Skilling-Hutchinson), or exact by one product for every
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
"""Lengths of the first steps, where there is no history yet, in steps."""
_QUADRATURE_NODES = 4


@dataclass(frozen=True)
class FixedSteps:
    """Steps from sigma_min to sigma_max, equal in ln sigma but for two short ones at the beginning."""

    steps: int
    """At least 3. The denoiser is called steps + 1 times, each time with its derivative."""
    order: int
    """1 .. 4: values of D that the predictor's polynomial goes through; the corrector's takes one more."""
    sigma_min: float
    sigma_max: float

    def budget(self) -> dict[str, int | float | str]:
        """All of it, as a likelihood's label says it."""
        return {"solver": "exponential-adams", **asdict(self), "evaluations": self.steps + 1}

    def times(self) -> list[float]:
        """The ends of all steps as ln sigma, rising."""
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
    times = grid.times()
    dims = math.prod(x_BCHW.shape[1:])
    x_BCHW = x_BCHW.double()
    integral_B = x_BCHW.new_zeros(len(x_BCHW))
    values: list[Tensor] = []  # D at the last times
    for n, (time, share) in enumerate(zip(times, _quadrature(times), strict=True)):
        first = max(0, n - grid.order)
        guess_BCHW = _advance(x_BCHW, times[first:n], values, times, n)
        sigma = math.exp(time)
        clean_BCHW, trace_B = trace(lambda x, s=sigma: denoise(x, s), guess_BCHW, probe_BCHW)
        integral_B = integral_B + share * (dims - trace_B)
        values = [*values, clean_BCHW]
        x_BCHW = _advance(x_BCHW, times[first : n + 1], values, times, n)
        values = values[-grid.order :]
    return prior.nats(x_BCHW) + integral_B


def _advance(
    x_BCHW: Tensor, nodes: Sequence[float], values: Sequence[Tensor], times: Sequence[float], n: int
) -> Tensor:
    """Go from times[n - 1] to times[n], with D the polynomial through ``values`` at ``nodes``."""
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
    """Weights of all times for an integral over them: cubic through the four nearest, step by step."""
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
    places, shares = np.polynomial.legendre.leggauss(12)
    t = (start + end) / 2 + (end - start) / 2 * places
    measure = (end - start) / 2 * shares * factor(t)
    result: list[float] = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        basis = math.prod((t - other) / (node - other) for other in others)
        result.append(float(np.sum(measure * basis)))
    return result


def trace(
    denoise: Callable[[Tensor], Tensor], x_BCHW: Tensor, probe_BCHW: Tensor | None
) -> tuple[Tensor, Tensor]:
    """D(x) and the trace of its Jacobian, (B,): exact, or without bias by a probe for each row."""
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
    """The diagonal's sum, one vector-Jacobian product for every dimension."""
    trace_B = x_BCHW.new_zeros(len(x_BCHW))
    flat_BD = clean_BCHW.flatten(1)
    for d in range(flat_BD.shape[1]):
        (row_BCHW,) = torch.autograd.grad(flat_BD[:, d].sum(), x_BCHW, retain_graph=True)
        trace_B = trace_B + row_BCHW.flatten(1)[:, d]
    return trace_B
