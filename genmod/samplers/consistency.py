"""Easy consistency tuning (ECT): turns a denoiser into a consistency function.

A consistency function maps each point of a flow trajectory to the trajectory's end.

    loss = E |f(y + t n; t) - stop_gradient(f(y + r n; r))| / (t - r),  r < t,  with the same noise n

At first r = 0 and the target is the clean image, as in denoiser training. Then r approaches t in stages.
Letters: B batch, C channels, H height, W width.

References:
    Consistency models made easy, Geng et al. 2024, https://arxiv.org/abs/2406.14548
    Improved techniques for training consistency models (the norm), Song and Dhariwal 2023,
    https://arxiv.org/abs/2310.14189
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.samplers.ode import DenoiseRows

_ECT_K = 8.0
"""k: controls 1 - r / t, which is larger at small noise levels. Sec. 3.2, Geng et al. 2024."""

PSEUDO_HUBER_C = 0.00054
"""c of the pseudo-Huber norm, divided by the root of the dimensions. Sec. 3.3, Song and Dhariwal 2023."""


def previous_level(t_B: Tensor, stage: int, sigma_min: float) -> Tensor:
    """The lower noise level r that provides the target at level t. Sec. 3.2, Geng et al. 2024.

    Args:
        t_B: noise levels above 0.
        stage: at least 1; each stage halves 1 - r / t.
        sigma_min: levels below it become 0, for which the target is the clean image.

    Returns:
        (B,) noise levels r < t.

    >>> previous_level(torch.tensor([0.1, 80.0]), 2, 0.002)[1]
    tensor(60.)
    """
    gap_B = (1 + _ECT_K * torch.sigmoid(-t_B)) / 2**stage
    r_B = t_B * (1 - gap_B)
    return r_B.where(r_B >= sigma_min, 0.0)


def consistency_loss(
    f: DenoiseRows, y_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, r_B: Tensor
) -> Tensor:
    """The consistency loss of each row, (B,), in the pseudo-Huber norm; about 1 for a denoiser in stage 1.

    Args:
        f: the function to train.
        y_BCHW: clean images.
        noise_BCHW: standard normal.
        t_B: noise levels above 0.
        r_B: lower noise levels, from :func:`previous_level`; 0 makes the clean image the target.
    """
    t_B111, r_B111 = t_B[:, None, None, None], r_B[:, None, None, None]
    with torch.no_grad():
        level_B = r_B.where(r_B > 0, t_B)  # f is undefined at 0; its value there is replaced below
        target_BCHW = f(y_BCHW + r_B111 * noise_BCHW, level_B)
        target_BCHW = torch.where(r_B111 > 0, target_BCHW, y_BCHW)
    error_B = (f(y_BCHW + t_B111 * noise_BCHW, t_B) - target_BCHW).square().flatten(1).mean(1)
    return ((error_B + PSEUDO_HUBER_C**2).sqrt() - PSEUDO_HUBER_C) / (t_B - r_B)
