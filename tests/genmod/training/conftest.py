"""A model whose gradients are known: x ~ N(m, 1), one phase, one number."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from genmod.interface.batch import Batch
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase
from genmod.interface.options import FamilyConfig
from genmod.manifest import ImageSpec
from genmod.rng import rng_for


class GaussianConfig(FamilyConfig):
    @classmethod
    def tiny(cls):
        return cls()


class Gaussian(GenerativeModel):
    Config = GaussianConfig
    poisoned_nimg = -1

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__(GaussianConfig(), spec, DataStats(mean=(0.0,), std=(1.0,)))
        self.net = nn.Linear(1, 1, bias=False).double()
        nn.init.constant_(self.net.weight, 2.0)

    def phases(self):
        return (Phase("fit", ("net",)),)

    def loss(self, phase, batch, rng, nimg):
        x = batch.x_BCHW(torch.float64).flatten(1)
        mean = self.net(torch.ones(1, 1, dtype=torch.float64))
        total = 0.5 * (x - mean).square().mean()
        if nimg == self.poisoned_nimg:
            total = total * float("nan")
        return Losses(total, {"mean": mean.detach().squeeze()})

    def sample(self, labels_B, rng, options):
        raise NotImplementedError

    def log_prob(self, batch, rng, options):
        raise NotImplementedError


SPEC = ImageSpec(channels=1, height=2, width=2)


def rows(index) -> Batch:
    rng = rng_for(1, "toy", index)
    return Batch(rng.integers(256, *SPEC.shape).to(torch.uint8), None, rng.index_B)


@pytest.fixture
def gaussian():
    return Gaussian(SPEC)


@pytest.fixture
def gaussian_rows():
    return rows


@pytest.fixture
def gaussian_stream():
    """Batches of 4; ``stop``: the stream breaks there."""

    def stream(stop=None):
        def batches(start):
            for nimg in itertools.count(start, 4):
                if nimg == stop:
                    raise ConnectionError("the power failed")
                yield rows(range(nimg, nimg + 4))

        return batches

    return stream
