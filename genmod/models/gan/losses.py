"""Adversarial losses and gradient penalties, as functions of logits.

Relativistic loss, R1 and R2: Huang et al. 2024 (R3GAN), Eq. 2 and 7. Non-saturating: Goodfellow
et al. 2014, Generative adversarial nets, sec. 3. Hinge: Lim and Ye 2017, Geometric GAN. Wasserstein with
gradient penalty (WGAN-GP): Gulrajani et al. 2017, Eq. 3. R1: Mescheder et al. 2018, Eq. 9.

Letters: B batch, C channels, H height, W width, N the rows that are penalised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["rpgan", "non_saturating", "hinge", "wgan_gp"]
PenaltyName = Literal["r1r2", "r1", "gp", "none"]

DEFAULT_PENALTY: dict[LossName, tuple[PenaltyName, int]] = {
    "rpgan": ("r1r2", 1),
    "non_saturating": ("r1", 16),
    "hinge": ("none", 1),
    "wgan_gp": ("gp", 1),
}
"""The penalty that each loss was published with, and its ``every``: one row in so many is penalised."""

DEFAULT_CRITIC_STEPS: dict[LossName, int] = {
    "rpgan": 1, "non_saturating": 1, "hinge": 1, "wgan_gp": 5
}  # fmt: skip
"""Steps of D for each step of G; for ``wgan_gp``, Gulrajani et al. 2017, Algorithm 1."""

GRADIENT_PENALTY_WEIGHT = 10.0
"""lambda of Gulrajani et al. 2017, sec. 4."""

LogitsFn = Callable[[Tensor, Tensor], Tensor]
"""(images (N, C, H, W), their rows in the batch (N,)) -> logits (N,)."""


def discriminator_loss(name: LossName, real_B: Tensor, fake_B: Tensor) -> Tensor:
    """D's loss without penalties, the mean over rows."""
    match name:
        case "rpgan":
            return F.softplus(fake_B - real_B).mean()
        case "non_saturating":
            return (F.softplus(-real_B) + F.softplus(fake_B)).mean()
        case "hinge":
            return (F.relu(1.0 - real_B) + F.relu(1.0 + fake_B)).mean()
        case "wgan_gp":
            return (fake_B - real_B).mean()


def generator_loss(name: LossName, fake_B: Tensor, real_B: Tensor | None) -> Tensor:
    """G's loss, the mean over rows; only the relativistic loss uses real rows."""
    match name:
        case "rpgan":
            assert real_B is not None, "the relativistic loss needs real logits"
            return F.softplus(real_B - fake_B).mean()
        case "non_saturating":
            return F.softplus(-fake_B).mean()
        case "hinge" | "wgan_gp":
            return -fake_B.mean()


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Logits of a batch and means of its gradient penalties, all differentiable."""

    real_B: Tensor
    """Logits of the real images."""
    fake_B: Tensor
    """Logits of the generated images."""
    r1: Tensor | None = None
    """Mean squared norm of D's gradient at real images."""
    r2: Tensor | None = None
    """Mean squared norm of D's gradient at generated images."""
    gp: Tensor | None = None
    """Mean of (gradient norm - 1)^2 between real and generated images."""

    def penalty(self, gamma: Tensor) -> Tensor:
        """gamma/2 (R1 + R2), or lambda times the gradient penalty of WGAN-GP; 0 if there is neither."""
        norms = [value for value in (self.r1, self.r2) if value is not None]
        total = 0.5 * gamma * sum(norms) if norms else torch.zeros_like(gamma)
        return total if self.gp is None else total + GRADIENT_PENALTY_WEIGHT * self.gp


def discriminate(
    on_real: LogitsFn,
    on_fake: LogitsFn,
    real_BCHW: Tensor,
    fake_BCHW: Tensor,
    *,
    penalty: PenaltyName,
    every: int,
    index_B: Tensor,
    mix_B: Tensor,
) -> DiscriminatorOutput:
    """Compute D's logits of real and generated images, and the gradient penalty.

    A lazy penalty (``every`` above 1; Karras et al. 2020, StyleGAN2, sec. 3.1) is computed for the rows
    whose index is a multiple of ``every``, with ``every`` times the weight, instead of for all rows of some
    steps. The cost is the same, and the result does not depend on how rows are split over steps,
    accumulation and ranks.

    Args:
        on_real: D of real images.
        on_fake: D of generated images.
        real_BCHW: images of the data.
        fake_BCHW: images of G, detached.
        penalty: which gradient penalty.
        every: one row in ``every`` is penalised.
        index_B: addresses of the rows.
        mix_B: uniform in [0, 1): the point between both images where WGAN-GP's gradient is taken.
    """
    rows_B = torch.arange(len(real_BCHW), device=real_BCHW.device)
    if every == 1 and penalty in ("r1", "r1r2"):  # one pass for logits and gradients
        real_B, r1_B = gradient_penalty(on_real, real_BCHW, rows_B)
        if penalty == "r1":
            return DiscriminatorOutput(real_B, on_fake(fake_BCHW, rows_B), r1=r1_B.mean())
        fake_B, r2_B = gradient_penalty(on_fake, fake_BCHW, rows_B)
        return DiscriminatorOutput(real_B, fake_B, r1=r1_B.mean(), r2=r2_B.mean())
    real_B, fake_B = on_real(real_BCHW, rows_B), on_fake(fake_BCHW, rows_B)
    if penalty == "none":
        return DiscriminatorOutput(real_B, fake_B)
    rows_N = rows_B[index_B % every == 0]
    share = every / len(rows_B)
    if penalty == "gp":
        mix_N111 = mix_B[rows_N].view(-1, 1, 1, 1)
        between = torch.lerp(fake_BCHW[rows_N].to(real_BCHW.dtype), real_BCHW[rows_N], mix_N111)
        squared_N = gradient_penalty(on_real, between, rows_N)[1]
        norm_N = (squared_N + 1e-12).sqrt()  # differentiable at 0
        return DiscriminatorOutput(real_B, fake_B, gp=(norm_N - 1.0).square().sum() * share)
    r1 = gradient_penalty(on_real, real_BCHW[rows_N], rows_N)[1].sum() * share
    if penalty == "r1":
        return DiscriminatorOutput(real_B, fake_B, r1=r1)
    r2 = gradient_penalty(on_fake, fake_BCHW[rows_N], rows_N)[1].sum() * share
    return DiscriminatorOutput(real_B, fake_B, r1=r1, r2=r2)


def gradient_penalty(logits_of: LogitsFn, x_NCHW: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N,) and squared norms (N,) of their gradients by the image, both differentiable."""
    x_NCHW = x_NCHW.detach().requires_grad_()
    logits_N = logits_of(x_NCHW, rows_N)
    # A row's logit depends on its own image alone, so this gradient contains each row's own.
    (gradient_NCHW,) = torch.autograd.grad(logits_N.sum(), x_NCHW, create_graph=True)
    return logits_N, gradient_NCHW.square().sum(dim=(1, 2, 3))
