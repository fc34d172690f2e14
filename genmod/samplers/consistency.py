"""Easy consistency tuning: a denoiser becomes the function that takes each point of a flow line to its end.

    loss = E |f(y + t n; t) - stop(f(y + r n; r))| / (t - r),  r < t,  the same n on both sides

While r is 0, f is still told the image itself, as a denoiser is; then r draws near to t in stages, so that
what f says at t is taken from ever nearer by. Letters: B batch, C channels, H height, W width.

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
"""k: how much nearer to each other small noise levels' pairs are. Sec. 3.2, Geng et al. 2024."""

PSEUDO_HUBER_C = 0.00054
"""c of the pseudo-Huber norm for each root of a dimension. Sec. 3.3, Song and Dhariwal 2023."""


def previous_level(t_B: Tensor, stage: int, sigma_min: float) -> Tensor:
    """r: the level that is learnt from at t, 0 for the image itself. Sec. 3.2, Geng et al. 2024.

    Args:
        t_B: noise levels.
        stage: from 1; each one halves 1 - r / t.
        sigma_min: what is below counts as no noise.
    """
    apart_B = (1 + _ECT_K * torch.sigmoid(-t_B)) / 2**stage
    r_B = t_B * (1 - apart_B)
    return r_B.where(r_B >= sigma_min, 0.0)


def consistency_loss(
    f: DenoiseRows, y_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, r_B: Tensor
) -> Tensor:
    """The loss of each row, (B,), about 1 for a denoiser in the first stage.

    Args:
        f: the function that learns.
        y_BCHW: clean images.
        noise_BCHW: standard normal.
        t_B: noise levels above 0.
        r_B: lower ones; 0 for the image itself.
    """
    t_B111, r_B111 = t_B[:, None, None, None], r_B[:, None, None, None]
    with torch.no_grad():
        some_B = r_B.where(r_B > 0, t_B)  # f knows no level of 0; what it says there is not used
        told_BCHW = f(y_BCHW + r_B111 * noise_BCHW, some_B)
        told_BCHW = torch.where(r_B111 > 0, told_BCHW, y_BCHW)
    error_B = (f(y_BCHW + t_B111 * noise_BCHW, t_B) - told_BCHW).square().flatten(1).mean(1)
    return ((error_B + PSEUDO_HUBER_C**2).sqrt() - PSEUDO_HUBER_C) / (t_B - r_B)
