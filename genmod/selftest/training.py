"""A short training on rows of a known distribution, for checks that need a trained model."""

from __future__ import annotations

from collections.abc import Callable, Generator

from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.rng import Rng, rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess

_BATCH = 256
_WARMUP_STEPS = 10


def train_briefly(
    model: GenerativeModel, draw: Callable[[Rng], Batch], *, seed: int, steps: int, lr: float
) -> GenerativeModel:
    """Train for a few seconds; return the EMA model (half-life of ten steps).

    Args:
        model: a new model.
        draw: rows of the training distribution, addressed by the rng.
        seed: of the rows and of the training.
        steps: optimizer steps, each on 256 new rows.
        lr: learning rate after a warm-up of ten steps.
    """
    config = TrainConfig(
        nimg=steps * _BATCH,
        batch=_BATCH,
        optim=OptimConfig(lr=lr, warmup_nimg=_WARMUP_STEPS * _BATCH),
        ema_halflife_nimg=_WARMUP_STEPS * _BATCH,
    )

    def stream(start: int) -> Generator[Batch, None, None]:
        for first in range(start, config.nimg, _BATCH):
            yield draw(rng_for(seed, "selftest/train", range(first, first + _BATCH)))

    return train(model, stream, SingleProcess(), Plan(config, seed)).ema
