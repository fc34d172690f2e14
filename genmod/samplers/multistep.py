"""Multistep solvers: DPM-Solver++(2M) and UniPC, with one network evaluation per step.

Both solve the linear part of the flow exactly and extrapolate D in lambda = -ln sigma from past steps:

    x(t) = (sigma_t / sigma_s) x(s) + sigma_t integral over lambda of e^lambda D        Eq. 9, Lu et al. 2022

The papers state them for x alpha. Divided by alpha, they are the same for every noise schedule. States are
float64. Letters: B batch, C channels, H height, W width, K past evaluations.

References:
    DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models, Lu et al. 2022,
    https://arxiv.org/abs/2211.01095
    UniPC: a unified predictor-corrector framework for fast sampling of diffusion models, Zhao et al. 2023,
    https://arxiv.org/abs/2302.04867
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmod.samplers.ode import Denoise


def dpm_solver(denoise: Denoise, x_BCHW: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M), with len(sigmas) - 1 network evaluations. Alg. 2, Lu et al. 2022.

    Args:
        denoise: D(x; sigma).
        x_BCHW: images with noise of level ``sigmas[0]``.
        sigmas: decreasing noise levels; if the last one is 0, the last step is of first order.

    Returns:
        Images with noise of level ``sigmas[-1]``, float64.
    """
    levels: list[float] = sigmas.tolist()
    x_BCHW = x_BCHW.to(torch.float64)
    previous_BCHW = None
    for i in range(len(levels) - 1):
        sigma, sigma_next = levels[i], levels[i + 1]
        clean_BCHW = denoise(x_BCHW, sigma).to(torch.float64)
        extrapolated_BCHW = clean_BCHW
        if previous_BCHW is not None and sigma_next > 0:
            # The previous step divided by this one, both in lambda.
            ratio = math.log(levels[i - 1] / sigma) / math.log(sigma / sigma_next)
            extrapolated_BCHW = clean_BCHW + (clean_BCHW - previous_BCHW) / (2 * ratio)
        kept = sigma_next / sigma
        x_BCHW = kept * x_BCHW + (1 - kept) * extrapolated_BCHW
        previous_BCHW = clean_BCHW
    return x_BCHW


def unipc(denoise: Denoise, x_BCHW: Tensor, sigmas: Tensor, order: int = 3) -> Tensor:
    """UniPC with B(h) = e^h - 1 and len(sigmas) - 1 network evaluations. Alg. 5 to 8, Zhao et al. 2023.

    Each evaluation is used twice: to correct the step that led to it and to predict the next one. The first
    steps have a lower order because there are no past values yet, the last ones because they are stiff.

    Args:
        denoise: D(x; sigma).
        x_BCHW: images with noise of level ``sigmas[0]``.
        sigmas: decreasing noise levels; if the last one is 0, the last step is of first order.
        order: order of the predictor; the corrector's is one higher.

    Returns:
        Images with noise of level ``sigmas[-1]``, float64.
    """
    levels: list[float] = sigmas.tolist()
    steps = len(levels) - 1
    x_BCHW = start_BCHW = x_BCHW.to(torch.float64)
    past: list[tuple[float, Tensor]] = []
    step_order = 0
    for i in range(steps):
        clean_BCHW = denoise(x_BCHW, levels[i]).to(torch.float64)
        # Correct the step that led here.
        if i > 0:
            new = levels[i], clean_BCHW
            fixed = _corrector_weight(step_order)
            x_BCHW = _step(start_BCHW, past[-step_order:], levels[i], fixed, new)
        # Predict the next state from the newest values.
        past = [*past, (levels[i], clean_BCHW)][-order:]
        step_order = min(order, i + 1, steps - i)
        start_BCHW = x_BCHW
        fixed = _predictor_weight(step_order)
        x_BCHW = _step(start_BCHW, past[-step_order:], levels[i + 1], fixed, None)
    return x_BCHW


def _predictor_weight(order: int) -> float | None:
    """The predictor's weight if it is fixed, as in sec. 3.2, Zhao et al. 2023; None if it is solved for."""
    return 0.5 if order == 2 else None


def _corrector_weight(order: int) -> float | None:
    """The corrector's weight if it is fixed, as in sec. 3.2, Zhao et al. 2023; None if it is solved for."""
    return 0.5 if order == 1 else None


def _step(
    x_BCHW: Tensor,
    past: list[tuple[float, Tensor]],
    sigma_next: float,
    fixed: float | None,
    new: tuple[float, Tensor] | None,
) -> Tensor:
    """One step from the newest level of ``past`` to ``sigma_next``, D a polynomial. Eq. 3, Zhao et al. 2023.

    Args:
        x_BCHW: the state at the newest level of ``past``.
        past: noise levels with D at each, oldest first.
        sigma_next: the noise level to go to.
        fixed: the weight of the only difference; None to solve for all weights.
        new: for the corrector, ``sigma_next`` and D at the predicted state; None for the predictor.
    """
    sigma, clean_BCHW = past[-1]
    kept = sigma_next / sigma
    x_next_BCHW = kept * x_BCHW + (1 - kept) * clean_BCHW
    others = [*past[-2::-1], *([new] if new is not None else [])]
    if not others:
        return x_next_BCHW
    h = math.log(sigma / sigma_next)
    ratios_K = [math.log(sigma / level) / h for level, _ in others]
    weights_K = [fixed] if fixed is not None else _weights(ratios_K, h)
    for ratio, weight, (_, other_BCHW) in zip(ratios_K, weights_K, others, strict=True):
        x_next_BCHW = x_next_BCHW + (1 - kept) * weight / ratio * (other_BCHW - clean_BCHW)
    return x_next_BCHW


def _weights(ratios_K: list[float], h: float) -> list[float]:
    """Solve R(h) a = phi(h) / B(h) for the weights a, exact for polynomials. Eq. 5, Zhao et al. 2023.

    For a net that predicts D, with z = -h: phi_1 = (e^z - 1) / z, phi_{k+1} = (phi_k - 1/k!) / z.
    """
    z, targets = -h, list[float]()
    phi = math.expm1(z) / z
    for k in range(1, len(ratios_K) + 1):
        phi = (phi - 1 / math.factorial(k)) / z
        targets.append(phi * math.factorial(k) * z / math.expm1(z))
    ratios = torch.tensor(ratios_K, dtype=torch.float64)
    powers_KK = torch.stack([ratios**k for k in range(len(ratios_K))])
    return torch.linalg.solve(powers_KK, torch.tensor(targets, dtype=torch.float64)).tolist()
