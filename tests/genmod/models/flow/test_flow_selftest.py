"""A flow density with a common mistake: the family's density checks detect it."""

import math
from dataclasses import replace

import pytest

from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.flow.selftest import mass_of_pairs


@pytest.mark.slow
def test_a_density_without_the_volume_of_its_box_is_detected(monkeypatch):
    """The check of the integral needs no training."""
    spec = ImageSpec(channels=1, height=1, width=2, classes=0)
    stats = DataStats(mean=(0.0,), std=(1.0,))
    model = ModelConfig(family="flow", net={}, spec=spec, stats=stats).build()
    assert mass_of_pairs(model, 0).passed
    correct = type(model).log_prob

    def wrong(self, batch, rng, options):
        score = correct(self, batch, rng, options)
        return replace(score, nats_B=score.nats_B + 0.5 * math.log(2))

    monkeypatch.setattr(type(model), "log_prob", wrong)
    assert "off by" in mass_of_pairs(model, 0).problem
