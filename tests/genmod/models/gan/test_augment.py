"""Augmentations: addressed, differentiable, as often as asked; the adaptive probability."""

from __future__ import annotations

import pytest
import torch

from genmod.models.gan.augment import AugmentConfig, adapted, augmented
from genmod.rng import rng_for

ALL = ("colour", "translation", "cutout")


def images(rows: int = 8, channels: int = 3) -> torch.Tensor:
    return rng_for(0, "images", range(rows)).uniform(channels, 8, 12, dtype=torch.float64) * 2 - 1


def half() -> torch.Tensor:
    return torch.tensor(0.5, dtype=torch.float64)


def test_a_row_does_not_depend_on_its_batch():
    x, rng = images(), rng_for(1, "augment", range(8))
    whole = augmented(x, rng, ALL, half())
    for part in (slice(0, 3), slice(3, 8)):
        torch.testing.assert_close(augmented(x[part], rng.rows(part), ALL, half()), whole[part])


@pytest.mark.parametrize("kind", ALL)
def test_each_kind_is_used_as_often_as_asked(kind):
    x, rng = images(2000, 1), rng_for(1, "augment", range(2000))
    for p in (0.0, 0.3, 1.0):
        changed = augmented(x, rng, (kind,), torch.tensor(p, dtype=torch.float64)) != x
        share = changed.flatten(1).any(1).double().mean().item()
        # Of 3 x 5 translations one is by nothing.
        wanted = p * (14 / 15 if kind == "translation" else 1)
        assert share == pytest.approx(wanted, abs=4 * 0.5 / 2000**0.5 if p else 0)


@pytest.mark.parametrize("kind", ALL)
def test_the_gradient_by_the_image_is_the_true_one(kind):
    x, rng = images(2).requires_grad_(), rng_for(1, "augment", range(2))
    one = torch.ones((), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y: augmented(y, rng, (kind,), one), (x,))


def test_translation_moves_and_cutout_cuts():
    x = images(64, 1) + 3.0
    one, rng = torch.ones((), dtype=torch.float64), rng_for(1, "augment", range(64))
    moved = augmented(x, rng, ("translation",), one)
    values = [set(row.flatten().tolist()) - {0.0} for row in moved]
    assert all(v <= set(r.flatten().tolist()) for v, r in zip(values, x, strict=True))
    assert {len(v) for v in values} >= {96, 7 * 10}
    cut = (augmented(x, rng, ("cutout",), one) == 0).sum(dim=(1, 2, 3))
    assert cut.max() == 3 * 5
    assert cut.min() >= 2 * 3


def test_probability_follows_sureness_and_stays_one():
    config = AugmentConfig(target=0.6, adapt_nimg=100)
    p = torch.zeros((), dtype=torch.float64)
    for _ in range(3):
        p = adapted(p, torch.tensor(0.9), config, images=25)
    assert p.item() == 0.75
    assert adapted(p, torch.tensor(0.2), config, images=25).item() == 0.5
    assert adapted(p, torch.tensor(0.9), config, images=90).item() == 1.0
    assert adapted(half() * 0.1, torch.tensor(-1.0), config, images=50).item() == 0.0
