"""Adversarial losses and gradient penalties, as functions of logits.

Relativistic pairing and both penalties: Huang et al. 2024 (R3GAN), Eq. 2 and 7. Non-saturating: Goodfellow
et al. 2014, Generative adversarial nets, sec. 3. Hinge: Lim and Ye 2017, Geometric GAN. Wasserstein with a
penalty on the slope: Gulrajani et al. 2017, Eq. 3. R1: Mescheder et al. 2018, Eq. 9.

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

USUAL: dict[LossName, tuple[PenaltyName, int]] = {
    "rpgan": ("r1r2", 1),
    "non_saturating": ("r1", 16),
    "hinge": ("none", 1),
    "wgan_gp": ("gp", 1),
}
"""The penalty that each loss was published with, and that every how many rows pay it."""

USUAL_CRITIC_STEPS: dict[LossName, int] = {
    "rpgan": 1, "non_saturating": 1, "hinge": 1, "wgan_gp": 5
}  # fmt: skip
"""Steps of D for one of G; of the last, Gulrajani et al. 2017, Algorithm 1."""

GRADIENT_PENALTY_WEIGHT = 10.0
"""lambda of Gulrajani et al. 2017, sec. 4."""

Critic = Callable[[Tensor, Tensor], Tensor]
"""(images (N, C, H, W), their rows in the batch (N,)) -> logits (N,)."""


def discriminator_loss(name: LossName, real_B: Tensor, fake_B: Tensor) -> Tensor:
    """What D descends, without penalties: the mean over rows."""
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
    """What G descends; only the relativistic loss looks at real rows."""
    match name:
        case "rpgan":
            assert real_B is not None, "a pairing needs both sides"
            return F.softplus(real_B - fake_B).mean()
        case "non_saturating":
            return F.softplus(-fake_B).mean()
        case "hinge" | "wgan_gp":
            return -fake_B.mean()


@dataclass(frozen=True)
class Judged:
    """What D says of a batch, differentiable."""

    real_B: Tensor
    fake_B: Tensor
    r1: Tensor | None = None
    """Mean squared norm of D's gradient at real images."""
    r2: Tensor | None = None
    """The same at fake ones."""
    gp: Tensor | None = None
    """Mean of (norm - 1)^2 between real and fake images."""

    def penalty(self, gamma: Tensor) -> Tensor:
        """Half gamma times R1 + R2; lambda times the slope's; 0 if there are none."""
        norms = [value for value in (self.r1, self.r2) if value is not None]
        total = 0.5 * gamma * sum(norms) if norms else torch.zeros_like(gamma)
        return total if self.gp is None else total + GRADIENT_PENALTY_WEIGHT * self.gp


def judge(
    critics: tuple[Critic, Critic],
    real_BCHW: Tensor,
    fake_BCHW: Tensor,
    *,
    penalty: PenaltyName,
    every: int,
    index_B: Tensor,
    mix_B: Tensor,
) -> Judged:
    """Logits of both sides and the penalty.

    A lazy penalty (``every`` above 1; Karras et al. 2020, StyleGAN2, sec. 3.1) is paid here by the rows
    whose index is a multiple of ``every``, each ``every`` times, instead of by all rows of some steps: it
    costs the same, and does not depend on how rows are dealt to steps, parts and ranks.

    Args:
        critics: of real and of fake images.
        real_BCHW: images of the data.
        fake_BCHW: images of G, detached.
        penalty: which one.
        every: one row of so many pays it.
        index_B: addresses of the rows.
        mix_B: uniform in [0, 1), where between both images a slope is taken.
    """
    on_real, on_fake = critics
    rows_B = torch.arange(len(real_BCHW), device=real_BCHW.device)
    if every == 1 and penalty in ("r1", "r1r2"):
        real_B, r1_B = gradient_penalty(on_real, real_BCHW, rows_B)
        if penalty == "r1":
            return Judged(real_B, on_fake(fake_BCHW, rows_B), r1=r1_B.mean())
        fake_B, r2_B = gradient_penalty(on_fake, fake_BCHW, rows_B)
        return Judged(real_B, fake_B, r1=r1_B.mean(), r2=r2_B.mean())
    real_B, fake_B = on_real(real_BCHW, rows_B), on_fake(fake_BCHW, rows_B)
    if penalty == "none":
        return Judged(real_B, fake_B)
    rows_N = rows_B[index_B % every == 0]
    share = every / len(rows_B)
    if penalty == "gp":
        mix_N111 = mix_B[rows_N].view(-1, 1, 1, 1)
        between = torch.lerp(fake_BCHW[rows_N].to(real_BCHW.dtype), real_BCHW[rows_N], mix_N111)
        norm_N = (
            gradient_penalty(on_real, between, rows_N)[1] + 1e-12
        ).sqrt()  # differentiable at 0
        return Judged(real_B, fake_B, gp=(norm_N - 1.0).square().sum() * share)
    r1 = gradient_penalty(on_real, real_BCHW[rows_N], rows_N)[1].sum() * share
    if penalty == "r1":
        return Judged(real_B, fake_B, r1=r1)
    r2 = gradient_penalty(on_fake, fake_BCHW[rows_N], rows_N)[1].sum() * share
    return Judged(real_B, fake_B, r1=r1, r2=r2)


def gradient_penalty(critic: Critic, x_NCHW: Tensor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N,) and squared norms (N,) of their gradients by the image, both differentiable."""
    x_NCHW = x_NCHW.detach().requires_grad_()
    logits_N = critic(x_NCHW, rows_N)
    # Rows do not see one another, so the gradient of the sum holds each row's own.
    (slope_NCHW,) = torch.autograd.grad(logits_N.sum(), x_NCHW, create_graph=True)
    return logits_N, slope_NCHW.square().sum(dim=(1, 2, 3))
