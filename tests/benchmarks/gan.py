"""The GAN's step through the model interface against the same step written bare; sampling likewise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from genmod.data.batch import Batch
from genmod.manifest import ImageSpec
from genmod.models.base import DataStats, ModelConfig
from genmod.models.gan import GanSample, Model
from genmod.rng import rng_for

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
BATCH = 64
ROUNDS = 7


def _model() -> Model:
    stats = DataStats(mean=(0.0,), std=(0.5,))
    model = ModelConfig(family="gan", net={}, spec=SPEC, stats=stats).build(0)
    assert isinstance(model, Model)
    return model


def _batch() -> Batch:
    made = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, *SPEC.shape), generator=made).to(torch.uint8)
    return Batch(pixels, torch.arange(BATCH) % SPEC.classes, torch.arange(BATCH))


def _only(model: Model, phase: str) -> None:
    for other in model.phases():
        for weight in model.parameters_of(other).values():
            weight.requires_grad_(other.name == phase)


def _ours(model: Model, batch: Batch) -> Callable[[], None]:
    def step() -> None:
        rng = rng_for(0, "bench", batch.index_B)
        for phase in model.phases():
            _only(model, phase.name)
            model.zero_grad()
            model.loss(phase.name, batch, rng, 0).total.backward()

    return step


def _bare(model: Model, batch: Batch) -> Callable[[], None]:
    """What one writes by hand: one pass and one gradient for real images, then for fake ones."""
    generator, discriminator = model.generator, model.discriminator
    z_dim, gamma = model.net.z_dim, model.net.gamma.base
    labels = batch.labels_B

    def penalised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        logits = discriminator(x, labels)
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return logits, slope.square().sum((1, 2, 3)).mean()

    def step() -> None:
        real = batch.pixels_BCHW.float() / 127.5 - 1
        _only(model, "discriminator")
        model.zero_grad()
        with torch.no_grad():
            fake = generator(torch.randn(BATCH, z_dim), labels)
        (d_real, r1), (d_fake, r2) = penalised(real), penalised(fake)
        (F.softplus(d_fake - d_real).mean() + gamma / 2 * (r1 + r2)).backward()
        _only(model, "generator")
        model.zero_grad()
        d_fake = discriminator(generator(torch.randn(BATCH, z_dim), labels), labels)
        with torch.no_grad():
            d_real = discriminator(real, labels)
        F.softplus(d_real - d_fake).mean().backward()

    return step


def _cpu_s(call: Callable[[], None], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        call()
    return time.process_time() - start


def _paired(name: str, ours: Callable[[], None], peer: Callable[[], None], times: int) -> dict:
    """Rounds in turn, in one process: the ratio is the median over rounds, so drift cancels."""
    _cpu_s(ours, 2), _cpu_s(peer, 2)
    rounds = [(_cpu_s(ours, times), _cpu_s(peer, times)) for _ in range(ROUNDS)]
    images = BATCH * times
    return {
        "name": name,
        "unit": "images per CPU second",
        "ours": images / statistics.median(mine for mine, _ in rounds),
        "peer": images / statistics.median(theirs for _, theirs in rounds),
        "peer_name": "plain torch, same nets",
        "ratio": statistics.median(theirs / mine for mine, theirs in rounds),
    }


def bench() -> list[dict]:
    """Training step (both phases, without the optimiser) and sampling."""
    torch.set_num_threads(1)
    model, batch = _model(), _batch()
    step = _paired("gan/step", _ours(model, batch), _bare(model, batch), times=4)
    model.requires_grad_(False)

    def sample() -> None:
        model.sample(batch.labels_B, rng_for(0, "bench/sample", batch.index_B), GanSample())

    def bare_sample() -> None:
        with torch.no_grad():
            model.generator(torch.randn(BATCH, model.net.z_dim), batch.labels_B)

    return [step, _paired("gan/sample", sample, bare_sample, times=40)]


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=2))
