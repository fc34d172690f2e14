import copy

import pytest
import torch

from genmod.training import ema
from genmod.training.plan import TrainConfig


def test_distance_halves_in_a_half_life(gaussian):
    average, target = ema.averaged(gaussian), copy.deepcopy(gaussian)
    torch.nn.init.constant_(target.net.weight, 10.0)
    config = TrainConfig(batch=8, ema_halflife_nimg=64, ema_rampup=None)
    for halvings in range(1, 4):
        for _ in range(8):
            ema.Average(average, target).update(ema.decay_at(config, 10**6))
        assert float(average.net.weight) == pytest.approx(10 - 8 * 0.5**halvings, rel=1e-12)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert float(gaussian.net.weight.detach()) == 2.0


def test_half_life_grows_with_the_images_seen():
    config = TrainConfig(batch=10, ema_halflife_nimg=100, ema_rampup=0.5)
    assert ema.decay_at(config, 20) == 0.5
    assert ema.decay_at(config, 40) == pytest.approx(0.5**0.5)
    assert ema.decay_at(config, 10**6) == pytest.approx(0.5**0.1)
    assert ema.decay_at(TrainConfig(ema_halflife_nimg=0), 1000) == 0
