"""The GAN's training step, loop and optimiser included, against the same step in plain torch; sampling too.

Plain torch has the same nets, loss and penalties, torch's own random numbers, its convolutions and its
``torch.optim.Adam``; neither a moving average nor a record of losses, which ours has. Two more rows: plain
torch against itself (the noise of the measurement), and ours with channels last in memory.
CPU seconds, rounds in turn in one process, medians of each round's ratio.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.gan import GanSample, Model
from genmod.nets.convolution import Conv2d
from genmod.nets.linear import Linear
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks._turns import Taken, compared, in_turns

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
BATCH, STEPS, ROUNDS, DRAWINGS = 64, 16, 9, 40
QUICK = {"BATCH": 4, "STEPS": 1, "ROUNDS": 1, "DRAWINGS": 1}
LR, BETAS = 2e-4, (0.0, 0.99)


def _model() -> Model:
    stats = DataStats(mean=(0.0,), std=(0.5,))
    model = ModelConfig(family="gan", net={}, spec=SPEC, stats=stats).build(0)
    assert isinstance(model, Model)
    return model


def _batches(start: int) -> Iterator[Batch]:
    made = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, *SPEC.shape), generator=made).to(torch.uint8)
    labels = torch.arange(BATCH) % SPEC.classes
    for nimg in itertools.count(start, BATCH):
        yield Batch(pixels, labels, torch.arange(nimg, nimg + BATCH))


def _ours(model: Model, channels_last: bool = False) -> Callable[[], object]:
    nimg = STEPS * BATCH
    optim = OptimConfig(lr=LR, betas=BETAS, warmup_nimg=0, decay="none", clip_norm=None)
    config = TrainConfig(
        nimg=nimg, batch=BATCH, log_every_nimg=nimg, optim=optim, channels_last=channels_last
    )
    return lambda: train(model, _batches, SingleProcess(), Plan(config, 0))  # type: ignore[arg-type]


def _plain(model: Model) -> Callable[[], object]:
    """What one writes by hand: one pass and one gradient for real images, then for fake ones."""
    generator, discriminator = model.generator, model.discriminator
    for layer in model.modules():  # the same weights, torch's own layers
        if isinstance(layer, Conv2d):
            layer.__class__ = torch.nn.Conv2d
        elif isinstance(layer, Linear):
            layer.__class__ = torch.nn.Linear
    z_dim, gamma = model.config.z_dim, model.config.gamma.base

    def penalised(x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        logits = discriminator(x, labels)
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return logits, slope.square().sum((1, 2, 3)).mean()

    def steps() -> None:
        adam_g, adam_d = (
            torch.optim.Adam(net.parameters(), lr=LR, betas=BETAS)
            for net in (generator, discriminator)
        )
        for batch in itertools.islice(_batches(0), STEPS):
            real, labels = batch.pixels_BCHW.float() / 127.5 - 1, batch.labels_B
            discriminator.requires_grad_(True)
            with torch.no_grad():
                fake = generator(torch.randn(BATCH, z_dim), labels)
            adam_d.zero_grad()
            (d_real, r1), (d_fake, r2) = penalised(real, labels), penalised(fake, labels)
            (F.softplus(d_fake - d_real).mean() + gamma / 2 * (r1 + r2)).backward()
            adam_d.step()
            discriminator.requires_grad_(False)
            adam_g.zero_grad()
            d_fake = discriminator(generator(torch.randn(BATCH, z_dim), labels), labels)
            with torch.no_grad():
                d_real = discriminator(real, labels)
            F.softplus(d_real - d_fake).mean().backward()
            adam_g.step()

    return steps


def _row(name: str, peer_name: str, images: int, timings: Taken, mine: int, theirs: int) -> dict:
    row = {"name": f"gan/{name}", "unit": "images per CPU second", "peer_name": peer_name}
    return row | compared(timings, mine, theirs, images)


def bench() -> list[dict]:
    """Training steps of both nets, and sampling."""
    torch.set_num_threads(1)
    model = _model()
    calls = [
        _ours(copy.deepcopy(model)),
        _plain(copy.deepcopy(model)),
        _plain(copy.deepcopy(model)),
        _ours(copy.deepcopy(model), channels_last=True),
    ]
    timings, images = in_turns(calls, ROUNDS), STEPS * BATCH
    model.requires_grad_(False)
    batch = next(_batches(0))

    def sample() -> None:
        for _ in range(DRAWINGS):
            model.sample(batch.labels_B, rng_for(0, "bench/sample", batch.index_B), GanSample())

    def plain_sample() -> None:
        with torch.no_grad():
            for _ in range(DRAWINGS):
                model.generator(torch.randn(BATCH, model.config.z_dim), batch.labels_B)

    drawn = in_turns([sample, plain_sample], ROUNDS)
    plain = "plain torch, same nets"
    return [
        _row("step", plain, images, timings, 0, 1),
        _row("control", "plain torch once more: noise", images, timings, 1, 2),
        _row("step, channels last", plain, images, timings, 3, 1),
        _row("channels last", "ours, default layout", images, timings, 3, 0),
        _row("sample", plain, DRAWINGS * BATCH, drawn, 0, 1),
    ]


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=2))
