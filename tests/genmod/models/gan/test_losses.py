"""Losses by hand, penalties in closed form, lazy penalties that do not depend on the split."""

from __future__ import annotations

import math

import pytest
import torch

from genmod.models.gan.losses import (
    DiscriminatorOutput,
    discriminate,
    discriminator_loss,
    generator_loss,
)

REAL = torch.tensor([0.3, -2.0, 4.0], dtype=torch.float64)
FAKE = torch.tensor([1.2, 0.1, -0.7], dtype=torch.float64)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


BY_HAND = {
    "rpgan": (lambda r, f: softplus(f - r), lambda r, f: softplus(r - f)),
    "non_saturating": (lambda r, f: softplus(-r) + softplus(f), lambda r, f: softplus(-f)),
    "hinge": (lambda r, f: max(0, 1 - r) + max(0, 1 + f), lambda r, f: -f),
    "wgan_gp": (lambda r, f: f - r, lambda r, f: -f),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_losses_by_hand(name):
    for found, each in zip(
        (discriminator_loss(name, REAL, FAKE), generator_loss(name, FAKE, REAL)),
        BY_HAND[name],
        strict=True,
    ):
        wanted = sum(each(r, f) for r, f in zip(REAL.tolist(), FAKE.tolist(), strict=True)) / 3
        assert found.item() == pytest.approx(wanted, rel=1e-12)


def discriminated(
    penalty: str, every: int, rows: slice, weight: float = 1.5
) -> DiscriminatorOutput:
    """D(x) = weight |x|^2 / 2: its gradient is weight x."""
    made = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 12, 1, 2, 3, dtype=torch.float64, generator=made)
    mix = torch.rand(12, dtype=torch.float64, generator=made)

    def logits_of(x, _):
        return 0.5 * weight * x.square().sum(dim=(1, 2, 3))

    return discriminate(
        logits_of, logits_of, real[rows], fake[rows], penalty=penalty, every=every,
        index_B=torch.arange(100, 112)[rows], mix_B=mix[rows],
    )  # fmt: skip


@pytest.mark.parametrize(("penalty", "field"), [("r1", "r1"), ("r1r2", "r2"), ("gp", "gp")])
@pytest.mark.parametrize("every", [1, 4])
def test_a_penalty_of_the_whole_is_the_mean_over_its_parts(penalty, field, every):
    whole = getattr(discriminated(penalty, every, slice(None)), field)
    parts = [
        getattr(discriminated(penalty, every, slice(row, row + 1)), field).item()
        for row in range(12)
    ]
    assert whole.item() == pytest.approx(sum(parts) / 12, rel=1e-12)
    assert sum(part > 0 for part in parts) == 12 // every


def test_penalties_in_closed_form():
    made = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 12, 6, dtype=torch.float64, generator=made)
    mix = torch.rand(12, dtype=torch.float64, generator=made)[:, None]
    both = discriminated("r1r2", 1, slice(None))
    assert both.r1.item() == pytest.approx(2.25 * real.square().sum(1).mean().item())
    assert both.r2.item() == pytest.approx(2.25 * fake.square().sum(1).mean().item())
    gamma = torch.tensor(0.4, dtype=torch.float64)
    assert both.penalty(gamma).item() == pytest.approx(0.2 * (both.r1 + both.r2).item())
    between = mix * real + (1 - mix) * fake
    slope = (1.5 * between.norm(dim=1) - 1).square().mean().item()
    found = discriminated("gp", 1, slice(None))
    assert found.gp.item() == pytest.approx(slope, rel=1e-9)
    assert found.penalty(gamma).item() == pytest.approx(10 * slope, rel=1e-9)
    assert discriminated("none", 1, slice(None)).penalty(gamma).item() == 0


@pytest.mark.parametrize("name", BY_HAND)
def test_the_best_critic_is_a_log_ratio_to_the_generator_and_no_log_density(name):
    """Of three images, as often as counted: the loss rests at log p / q or nowhere, not at log p, log q."""
    p, q = torch.tensor([1, 2, 5]), torch.tensor([4, 2, 2])
    pairs = torch.cartesian_prod(*(torch.arange(3).repeat_interleave(n) for n in (p, q)))
    log_p, log_q = p.double().div(8).log(), q.double().div(8).log()

    def pull(logits):
        logits = logits.clone().requires_grad_()
        discriminator_loss(name, logits[pairs[:, 0]], logits[pairs[:, 1]]).backward()
        return float(logits.grad.abs().max())

    rests = pull(log_p - log_q) < 1e-12
    assert rests == (name in ("rpgan", "non_saturating"))
    assert min(pull(log_p), pull(log_q)) > 0.01
