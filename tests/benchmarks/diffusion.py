"""Diffusion's step, samplers and scores through the model interface against bare calls of the same U-Net.

The peers do only what is indispensable: as many passes of the net, forward or forward and back to the
input, as the solver makes. Ours adds addressed noise, preconditioning, the solver in float64 and the trace.
And one U-Net of diffusers', trained by our loop and by a loop like diffusers' own example: whole steps, with
batches, noise, loss, gradients clipped, AdamW and one average.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.diffusion import DiffusionSample, DiffusionScore, Model
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks import _quality_diffusion_peer as diffusers_side
from tests.benchmarks._data_sets import CONTROL
from tests.benchmarks._equal_time import GREY, batches

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
BATCH, ROUNDS = 50, 7
SAME = {"unshuffle": 2, "widths": [32, 64], "attention": False, "lr": 1e-3, "ema": [0.1],
        "schedule": "squaredcos_cap_v2", "prediction": "v_prediction"}  # fmt: skip
SAME_STEPS = 10
QUICK = {"BATCH": 2, "ROUNDS": 1, "SAME_STEPS": 1, "_quality_diffusion_peer.BATCH": 4}


def _model() -> Model:
    net = {"unshuffle": 2, "widths": [32, 64], "blocks": 1, "attention": [1], "embedding": 64}
    stats = DataStats(mean=(-0.7,), std=(0.6,))
    model = ModelConfig(family="diffusion", net=net, spec=SPEC, stats=stats).build(0)
    assert isinstance(model, Model)
    return model


def _batch() -> Batch:
    made = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, *SPEC.shape), generator=made).to(torch.uint8)
    return Batch(pixels, torch.arange(BATCH) % SPEC.classes, torch.arange(BATCH))


def _bare_step(model: Model, batch: Batch) -> None:
    """The U-Net forward and backward, with torch's own noise and a plain squared error."""
    model.zero_grad()
    x_BCHW = batch.x_BCHW()
    noise_BCHW = torch.randn_like(x_BCHW)
    raw_BCHW = model.denoiser.unet(x_BCHW + noise_BCHW, torch.randn(BATCH), batch.labels_B)
    (raw_BCHW - noise_BCHW).square().mean().backward()


@torch.no_grad()
def _bare_calls(model: Model, batch: Batch, calls: int) -> None:
    x_BCHW, noise_B = batch.x_BCHW(), torch.zeros(BATCH)
    for _ in range(calls):
        model.denoiser.unet(x_BCHW, noise_B, batch.labels_B)


def _bare_products(model: Model, batch: Batch, calls: int) -> None:
    """Forward, and a vector times the Jacobian."""
    x_BCHW, noise_B = batch.x_BCHW().requires_grad_(True), torch.zeros(BATCH)
    for _ in range(calls):
        raw_BCHW = model.denoiser.unet(x_BCHW, noise_B, batch.labels_B)
        torch.autograd.grad(raw_BCHW, x_BCHW, x_BCHW.detach())


def _cpu_s(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _paired(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    peer_name: str,
    nimg: int | None = None,
) -> dict:
    """Rounds in turn, in one process: the ratio is the median over rounds, so drift cancels."""
    nimg = nimg or BATCH
    ours(), peer()
    rounds = [(_cpu_s(ours), _cpu_s(peer)) for _ in range(ROUNDS)]
    return {
        "name": name,
        "unit": "images per CPU second",
        "ours": nimg / statistics.median(mine for mine, _ in rounds),
        "peer": nimg / statistics.median(theirs for _, theirs in rounds),
        "peer_name": peer_name,
        "ratio": statistics.median(theirs / mine for mine, theirs in rounds),
    }


class _Theirs(nn.Module):
    """diffusers' U-Net in the place of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = diffusers_side.unet(SAME)

    @property
    def stem(self) -> nn.Module:
        return self.unet.conv_in

    def forward(self, x_BCHW: Tensor, noise_B: Tensor, class_B: Tensor | None) -> Tensor:
        assert class_B is None
        folded_BNHW = F.pixel_unshuffle(x_BCHW, 2).contiguous(memory_format=torch.channels_last)
        return F.pixel_shuffle(self.unet(folded_BNHW, noise_B).sample, 2)


def _same_net() -> list[dict]:
    """Whole steps of one U-Net in both loops."""
    size = diffusers_side.BATCH
    made = torch.Generator().manual_seed(0)
    pixels_NCHW = torch.randint(0, 256, (1_000, *GREY.shape), generator=made).to(torch.uint8)
    stats = DataStats(mean=(0.0,), std=(0.6,))
    small = {"widths": [8], "attention": []}
    model = ModelConfig(family="diffusion", net=small, spec=GREY, stats=stats).build(0)
    assert isinstance(model, Model)
    model.denoiser.unet = _Theirs()  # type: ignore[assignment]
    nimg = SAME_STEPS * size
    plan = Plan(TrainConfig(nimg=nimg, batch=size, log_every_nimg=nimg), 0)
    loop = diffusers_side.Training(SAME, pixels_NCHW)
    loop.average(SAME_STEPS)

    def ours() -> None:
        train(model, lambda start: batches(pixels_NCHW, 0, size, start), SingleProcess(), plan)  # type: ignore[arg-type,return-value]

    def theirs() -> None:
        for _ in range(SAME_STEPS):
            loop.step(0.5)

    return [
        _paired("diffusion/the same U-Net, whole steps", ours, theirs, "diffusers' loop", nimg),
        _paired("diffusion/the same U-Net, control", theirs, theirs, CONTROL, nimg),
    ]


def bench() -> list[dict]:
    """Training step (without the optimiser), samplers, two steps against Heun, and log p."""
    torch.set_num_threads(1)
    model, batch = _model(), _batch()
    rng = rng_for(0, "bench", batch.index_B)

    def step() -> None:
        model.zero_grad()
        model.loss("denoise", batch, rng, 0).total.backward()

    def sampled(calls: int, **options: str | int | float) -> dict:
        how = DiffusionSample.model_validate(options)
        return _paired(
            f"diffusion/sample {how.sampler}",
            lambda: model.sample(batch.labels_B, rng, how),
            lambda: _bare_calls(model, batch, calls),
            f"{calls} bare calls of the net",
        )

    many, two = DiffusionSample(), DiffusionSample(solver="consistency", steps=2)
    how = DiffusionScore(steps=20, draws=2)
    products = 2 * 21 + 11  # the last ones tell the solver's error
    return [
        *_same_net(),
        _paired("diffusion/step", step, lambda: _bare_step(model, batch), "the net, torch's noise"),
        sampled(23, steps=12),
        sampled(24, solver="ddim", steps=24),
        sampled(12, solver="dpm_solver", steps=12),
        sampled(12, solver="unipc", steps=12),
        _paired(
            "diffusion/sample in two steps",
            lambda: model.sample(batch.labels_B, rng, two),
            lambda: model.sample(batch.labels_B, rng, many),
            "Heun in 18 steps, 35 calls",
        ),
        _paired(
            "diffusion/sample in two steps, control",
            lambda: model.sample(batch.labels_B, rng, two),
            lambda: model.sample(batch.labels_B, rng, two),
            CONTROL,
        ),
        sampled(46, steps=12, guidance=2.0),
        _paired(
            "diffusion/score 20 steps, 2 draws",
            lambda: model.log_prob(batch, rng, how),
            lambda: _bare_products(model, batch, products),
            f"{products} bare vector-Jacobian products",
        ),
    ]


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=2))
