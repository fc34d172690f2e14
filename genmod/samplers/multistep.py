"""Solvers that use what they were told before: DPM-Solver++(2M) and UniPC, one call of the net a step.

Both solve the flow exactly but for D, which they extrapolate in lambda = -ln sigma:

    x(t) = (sigma_t / sigma_s) x(s) + sigma_t integral over lambda of e^lambda D        Eq. 9, Lu et al. 2022

The equations of the papers are for x alpha; divided by alpha they are these, so one code serves nets of every
noise schedule. States are float64. Letters: B batch, C channels, H height, W width, K past calls.

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
    """DPM-Solver++(2M), len(sigmas) - 1 calls. Alg. 2, Lu et al. 2022.

    Args:
        denoise: D(x; sigma).
        x_BCHW: images at the level ``sigmas[0]``.
        sigmas: falling; may end with 0, where the last step is of first order.

    Returns:
        Images at the level ``sigmas[-1]``, float64.
    """
    levels: list[float] = sigmas.tolist()
    x_BCHW = x_BCHW.to(torch.float64)
    before_BCHW = None
    for i in range(len(levels) - 1):
        sigma, sigma_next = levels[i], levels[i + 1]
        clean_BCHW = denoise(x_BCHW, sigma).to(torch.float64)
        ahead_BCHW = clean_BCHW
        if before_BCHW is not None and sigma_next > 0:
            # The past step over this one, both in lambda.
            ratio = math.log(levels[i - 1] / sigma) / math.log(sigma / sigma_next)
            ahead_BCHW = clean_BCHW + (clean_BCHW - before_BCHW) / (2 * ratio)
        kept = sigma_next / sigma
        x_BCHW = kept * x_BCHW + (1 - kept) * ahead_BCHW
        before_BCHW = clean_BCHW
    return x_BCHW


def unipc(denoise: Denoise, x_BCHW: Tensor, sigmas: Tensor, order: int = 3) -> Tensor:
    """UniPC with B(h) = e^h - 1, len(sigmas) - 1 calls. Alg. 5 to 8, Zhao et al. 2023.

    Each call serves twice: it corrects the step that led to it and predicts the next one. The first steps
    are of lower order, for there is no past yet, and so are the last ones, which are the stiffest.

    Args:
        denoise: D(x; sigma).
        x_BCHW: images at the level ``sigmas[0]``.
        sigmas: falling; may end with 0, where the last step is of first order.
        order: of the predictor; the corrector's is one more.

    Returns:
        Images at the level ``sigmas[-1]``, float64.
    """
    levels: list[float] = sigmas.tolist()
    steps = len(levels) - 1
    x_BCHW = start_BCHW = x_BCHW.to(torch.float64)
    past: list[tuple[float, Tensor]] = []
    used = 0
    for i in range(steps):
        clean_BCHW = denoise(x_BCHW, levels[i]).to(torch.float64)
        if i > 0:
            now = levels[i], clean_BCHW
            x_BCHW = _step(start_BCHW, past[-used:], levels[i], _corrector(used), now)
        past = [*past, (levels[i], clean_BCHW)][-order:]
        used = min(order, i + 1, steps - i)
        start_BCHW = x_BCHW
        x_BCHW = _step(start_BCHW, past[-used:], levels[i + 1], _predictor(used), None)
    return x_BCHW


def _predictor(order: int) -> float | None:
    """The one weight that is fixed instead of solved for, as the authors do. Sec. 3.2, Zhao et al. 2023."""
    return 0.5 if order == 2 else None


def _corrector(order: int) -> float | None:
    return 0.5 if order == 1 else None


def _step(
    x_BCHW: Tensor,
    past: list[tuple[float, Tensor]],
    sigma_next: float,
    fixed: float | None,
    now: tuple[float, Tensor] | None,
) -> Tensor:
    """From the newest level of ``past`` to ``sigma_next`` with D as a polynomial. Eq. 3, Zhao et al. 2023.

    Args:
        x_BCHW: the state at the newest level of ``past``.
        past: levels and D there, oldest first.
        sigma_next: where to.
        fixed: the weight of the only difference, None to solve for all weights.
        now: ``sigma_next`` and D at the predicted state there, for the corrector.
    """
    sigma, clean_BCHW = past[-1]
    kept = sigma_next / sigma
    ahead_BCHW = kept * x_BCHW + (1 - kept) * clean_BCHW
    others = [*past[-2::-1], *([now] if now is not None else [])]
    if not others:
        return ahead_BCHW
    h = math.log(sigma / sigma_next)
    ratios_K = [math.log(sigma / level) / h for level, _ in others]
    weights_K = [fixed] if fixed is not None else _weights(ratios_K, h)
    for ratio, weight, (_, other_BCHW) in zip(ratios_K, weights_K, others, strict=True):
        ahead_BCHW = ahead_BCHW + (1 - kept) * weight / ratio * (other_BCHW - clean_BCHW)
    return ahead_BCHW


def _weights(ratios_K: list[float], h: float) -> list[float]:
    """A of R(h) a = phi(h) / B(h): exact for polynomials of D in lambda. Eq. 5, Zhao et al. 2023.

    With z = -h, for predictions of D: phi_1 = (e^z - 1) / z, phi_{k+1} = (phi_k - 1/k!) / z.
    """
    z, targets = -h, list[float]()
    phi = math.expm1(z) / z
    for k in range(1, len(ratios_K) + 1):
        phi = (phi - 1 / math.factorial(k)) / z
        targets.append(phi * math.factorial(k) * z / math.expm1(z))
    ratios = torch.tensor(ratios_K, dtype=torch.float64)
    powers_KK = torch.stack([ratios**k for k in range(len(ratios_K))])
    return torch.linalg.solve(powers_KK, torch.tensor(targets, dtype=torch.float64)).tolist()
