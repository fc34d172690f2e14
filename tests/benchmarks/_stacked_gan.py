"""Stacked digits: how many of 1,000 modes a GAN covers, with the default loss and with none of its help.

    .venv/bin/python -m tests.benchmarks._stacked_gan [--minutes 5] [--seed 0]

Metz et al. 2017 (Unrolled generative adversarial networks, sec. 3.3.1): three digits, drawn alike and apart,
in the three channels of an image, so that there are 10 x 10 x 10 modes, equally often. ``make bench`` leaves
it out. Protocol: one core, CPU time of training alone, the 5,000 digits of ``builtin:mnist5k`` (not MNIST's
60,000), nets and settings of the quality benchmark, averaged weights, no labels; 10,000 samples, each channel
named by a classifier of single digits; modes that were made at least once, and KL(made || even) in nats. Real
stacks are the reference: a finite number of draws is never quite even.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.metrics.features import Extractor, fit_extractor
from genmod.models.gan import GanSample, Model
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks import _equal_time as shared
from tests.benchmarks._data_sets import pin
from tests.benchmarks._quality_gan import BATCH, GAMMA, HALFLIFE_SHARE, NET, OPTIM

SPEC = ImageSpec(channels=3, height=28, width=28)
LOSSES: dict[str, dict[str, Any]] = {
    "rpgan, r1 and r2": {},
    "non-saturating, no penalty": {"loss": "non_saturating", "penalty": "none"},
}
DRAWS, PROBE_NIMG, MODES = 10_000, 3_200, 1_000
QUICK = shared.QUICK | {"DRAWS": 500, "PROBE_NIMG": 32}
QUICK_ARGS = ["--minutes", "0.01"]


def digits() -> tuple[Tensor, Tensor]:
    """uint8 (N, 1, 28, 28) and int64 (N,)."""
    return shared.digits(1)


def stacked(digits_NCHW: Tensor, seed: int, purpose: str, index_B: Tensor) -> Tensor:
    """Three digits an image."""
    row_B3 = rng_for(seed, purpose, index_B).integers(len(digits_NCHW), 3)
    return torch.cat([digits_NCHW[row_B3[:, channel]] for channel in range(3)], dim=1)


def modes(extractor: Extractor, pixels_NCHW: Tensor) -> tuple[int, float]:
    """Modes that occur, and KL to all of them alike, in nats."""
    mode_N = torch.zeros(len(pixels_NCHW), dtype=torch.int64)
    for channel in range(3):
        classes_N = extractor.extract(pixels_NCHW[:, channel : channel + 1]).classes_N
        assert classes_N is not None
        mode_N = mode_N * 10 + classes_N
    share_M = torch.bincount(mode_N, minlength=MODES).double() / len(mode_N)
    kl_nats = torch.special.xlogy(share_M, share_M * MODES).sum()
    return int((share_M > 0).sum()), float(kl_nats)


def trained(
    digits_NCHW: Tensor, changes: dict[str, Any], seed: int, cpu_s: float
) -> tuple[Model, int, float]:
    """Averaged weights after so much CPU time, images seen, CPU seconds."""

    def run(nimg: int) -> tuple[Model, float]:
        config = TrainConfig.model_validate({
            "nimg": nimg, "batch": BATCH, "log_every_nimg": 6_400, "optim": OPTIM,
            "ema_halflife_nimg": int(HALFLIFE_SHARE * nimg), "ema_rampup": 0.1,
        })  # fmt: skip
        gamma = {"base": GAMMA[0], "final": GAMMA[1], "nimg": nimg}
        stats = DataStats(mean=(-0.7,) * 3, std=(0.6,) * 3)
        net = NET | {"gamma": gamma} | changes
        model = ModelConfig(family="gan", net=net, spec=SPEC, stats=stats).build(seed)

        def batches(start: int) -> Iterator[Batch]:
            while True:
                index_B = torch.arange(start, start + BATCH)
                yield Batch(stacked(digits_NCHW, seed, "bench/stack", index_B), None, index_B)
                start += BATCH

        start_s = time.process_time()
        state = train(model, batches, SingleProcess(), Plan(config, seed))  # type: ignore[arg-type]
        assert isinstance(state.ema, Model)
        return state.ema, time.process_time() - start_s

    _, probe_s = run(PROBE_NIMG)
    nimg = int(cpu_s / (probe_s / PROBE_NIMG)) // BATCH * BATCH
    model, taken_s = run(nimg)
    return model, nimg, taken_s


def main(argv: Sequence[str] | None = None) -> None:
    """A line for real stacks and one for each loss."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args(argv)
    torch.set_num_threads(1)
    pin()
    pixels_NCHW, labels_N = digits()
    extractor = fit_extractor(shared.FEATURES, SPEC.model_copy(update={"channels": 1, "classes": 10}),
                    pixels_NCHW, labels_N, 0)  # fmt: skip
    right = (extractor.extract(pixels_NCHW).classes_N == labels_N).double().mean()
    real = stacked(pixels_NCHW, 1, "bench/real", torch.arange(DRAWS))
    covered, kl_nats = modes(extractor, real)
    print(f"{extractor.label} names {right:.1%} of its digits right", flush=True)
    print(f"real stacks: {covered} of {MODES} modes, KL {kl_nats:.3f} nats", flush=True)
    for name, changes in LOSSES.items():
        model, nimg, cpu_s = trained(pixels_NCHW, changes, wanted.seed, 60 * wanted.minutes)
        made = torch.cat([
            units.to_pixels(model.sample(None, rng_for(2, "bench/draw", range(i, i + 500)), GanSample()))
            for i in range(0, DRAWS, 500)
        ])  # fmt: skip
        covered, kl_nats = modes(extractor, made)
        print(f"{name}: {covered} of {MODES} modes, KL {kl_nats:.3f} nats "
              f"({nimg:,} images, {cpu_s / 60:.2f} CPU minutes)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
