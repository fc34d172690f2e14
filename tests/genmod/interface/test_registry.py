"""A new family is one new file: put there, everything that names no family has it."""

import sys

import torch

import genmod.models as package
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, families
from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess

FILE = '''
"""Independent binary pixels."""

import torch
from torch import nn

from genmod import units
from genmod.interface.log_prob import LogProb
from genmod.interface.options import FamilyConfig, SampleOptions, ScoreOptions
from genmod.interface.model import GenerativeModel, Losses, Phase


class CoinsConfig(FamilyConfig):
    start: float = 0.0

    @classmethod
    def tiny(cls):
        return cls()


class Model(GenerativeModel):
    Config, Sample, Score = CoinsConfig, SampleOptions, ScoreOptions

    def __init__(self, config, spec, stats):
        super().__init__(config, spec, stats)
        self.odds = nn.ParameterList([torch.full(spec.shape, config.start)])

    def phases(self):
        return (Phase("coins", ("odds",)),)

    def nats(self, batch):
        on = (batch.x_BCHW() > 0).float()
        logits = self.odds[0].expand_as(on)
        return -nn.functional.binary_cross_entropy_with_logits(logits, on, reduction="none").sum((1, 2, 3))

    def loss(self, phase, batch, rng, nimg):
        total = -self.nats(batch).mean()
        return Losses(total, {"nll_nats": total.detach()})

    @torch.no_grad()
    def sample(self, labels_B, rng, how):
        return units.binarise((rng.uniform(*self.spec.shape) < self.odds[0].sigmoid()).float() - 0.5)

    @torch.no_grad()
    def log_prob(self, batch, rng, how):
        nats = self.nats(batch).double()
        return LogProb(nats, torch.zeros_like(nats), "exact", "coins", "pixels", units.COUNTS, {})
'''


def test_a_file_is_a_family(tmp_path, monkeypatch):
    (tmp_path / "coins.py").write_text(FILE)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "genmod.models.coins", raising=False)
    assert "coins" in families()
    spec = ImageSpec(channels=1, height=2, width=2, levels=2)
    stats = DataStats(mean=(0.0,), std=(1.0,))
    model = ModelConfig(family="coins", net={"start": 0.1}, spec=spec, stats=stats).build()

    def rows(first, count):
        rng = rng_for(0, "rows", range(first, first + count))
        pixels = (rng.uniform(*spec.shape) < 0.9).to(torch.uint8) * 255
        return Batch(pixels, None, rng.index_B)

    def stream(start):
        return (rows(nimg, 16) for nimg in range(start, 10**9, 16))

    def score(model):
        return model.log_prob(rows(5000, 200), rng_for(0, "s", range(200)), model.Score()).nats_B

    before = score(model).mean().item()
    optim = OptimConfig(lr=0.1, warmup_nimg=0)
    config = TrainConfig(nimg=1600, batch=16, optim=optim, ema_halflife_nimg=100)
    trained = train(model, stream, SingleProcess(), Plan(config, 0)).ema
    entropy = 4 * -(0.9 * torch.tensor(0.9).log() + 0.1 * torch.tensor(0.1).log()).item()
    assert before < -2.4 < -entropy - 0.4 < score(trained).mean().item() < -entropy + 0.4
    x = trained.sample(None, rng_for(0, "x", range(500)), trained.Sample())
    assert abs((x > 0).float().mean().item() - 0.9) < 0.05
