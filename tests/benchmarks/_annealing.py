"""What it takes until the density of a real GAN under noise stands still: sigma by moves, bounds by budget.

    .venv/bin/python -m tests.benchmarks._annealing [--data digits] [--rows 8] [--rounds 300,600,1200]
        [--temperatures 125,500,2000]

``make bench`` leaves it out, for it takes minutes. Protocol: one core; a GAN on 60,000 images with their
labels, averaged weights; ``digits``: the 1,797 of 8x8 pixels of ``builtin:digits``, 16 latents; ``fashion``:
Fashion-MNIST's training images of 28x28, 64 latents, the generator of ``_quality_gan``. Sigma is fitted
to the same 32 images that are kept out of training, by more and more moves; with the last sigma both bounds
of so many images of the model's own and the lower bound of as many of those kept out, by more and more
temperatures. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from genmod.config import as_json
from genmod.data.sources.registry import open_source
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.likelihood.ais import AISOptions
from genmod.manifest import ImageSpec
from genmod.models.gan import GanScore, Model
from genmod.models.gan.config import GanConfig, Penalty, Tower
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks import _equal_time as shared
from tests.benchmarks._data_sets import pin
from tests.benchmarks._quality_gan import NET

TOWER = Tower(widths=(32, 64), blocks=1, patch=2)
GAMMA = Penalty(base=1.0, final=0.1, nimg=60_000)
NETS = {
    "digits": GanConfig(z_dim=16, generator=TOWER, discriminator=TOWER, gamma=GAMMA),
    "fashion": GanConfig.model_validate(NET | {"z_dim": 64, "gamma": GAMMA}),
}
NIMG, BATCH, HELD_OUT, SEED = 60_000, 32, 32, 0
QUICK = {"NIMG": 64}
QUICK_ARGS = ["--rows", "2", "--rounds", "4", "--temperatures", "4"]


def images(data: str) -> tuple[Tensor, Tensor]:
    """uint8 (N, 1, H, W) and int64 (N,)."""
    if data == "fashion":
        return shared.images("train"), shared.labels("train")
    source = open_source("builtin:digits")
    listing = source.listing()
    images = np.stack(list(source.fetch(listing.refs, listing.fingerprint)))
    assert listing.labels_N is not None
    labels_N = torch.from_numpy(listing.labels_N.astype(np.int64))
    return torch.from_numpy(images.reshape(-1, 1, 8, 8)), labels_N


def trained(net: GanConfig, pixels_NCHW: Tensor, labels_N: Tensor) -> Model:
    """Averaged weights."""
    spec = ImageSpec(
        channels=1, height=pixels_NCHW.shape[2], width=pixels_NCHW.shape[3], classes=10
    )
    x = pixels_NCHW.double() / 127.5 - 1
    stats = DataStats(mean=(float(x.mean()),), std=(float(x.std()),))
    model = ModelConfig(family="gan", net=as_json(net), spec=spec, stats=stats).build(SEED)
    config = TrainConfig.model_validate({
        "nimg": NIMG, "batch": BATCH, "ema_halflife_nimg": 3_000, "ema_rampup": 0.1,
        "optim": {"lr": 1e-3, "betas": [0.0, 0.95], "clip_norm": None, "floor": 0.05},
    })  # fmt: skip

    def batches(start: int) -> Iterator[Batch]:
        while True:
            index_B = torch.arange(start, start + BATCH)
            row_B = rng_for(SEED, "bench/row", index_B).integers(len(pixels_NCHW), 1)[:, 0]
            yield Batch(pixels_NCHW[row_B], labels_N[row_B], index_B)
            start += BATCH

    state = train(model, batches, SingleProcess(), Plan(config, SEED))  # type: ignore[arg-type]
    assert isinstance(state.ema, Model)
    return state.ema.requires_grad_(False)


def main(argv: Sequence[str] | None = None) -> None:
    """A line for each budget of the fit and of the chains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", choices=sorted(NETS), default="digits")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", default="300,600,1200")
    parser.add_argument("--temperatures", default="125,500,2000")
    wanted = parser.parse_args(argv)
    torch.set_num_threads(1)
    pin()
    start_s = time.process_time()
    pixels_NCHW, labels_N = images(wanted.data)
    order_N = torch.from_numpy(np.random.default_rng(SEED).permutation(len(pixels_NCHW)))
    pixels_NCHW, labels_N = pixels_NCHW[order_N], labels_N[order_N]
    model = trained(NETS[wanted.data], pixels_NCHW[HELD_OUT:], labels_N[HELD_OUT:])
    print(f"trained in {time.process_time() - start_s:.0f} s", flush=True)
    held_out = Batch(pixels_NCHW[:HELD_OUT], labels_N[:HELD_OUT], torch.arange(HELD_OUT))
    rng, sigma = rng_for(SEED, "bench/score", held_out.index_B), 0.0
    for rounds in map(int, wanted.rounds.split(",")):
        how = GanScore(sigma="fit", fit_rounds=rounds, simulated_rows=0)
        start_s = time.process_time()
        metadata = model.prepare_scores(held_out, rng, how).metadata
        sigma = metadata["sigma"]
        print(f"{rounds} rounds: sigma {sigma:.4f}, drift {metadata['sigma_drift']:+.2%}, "
              f"{time.process_time() - start_s:.0f} s", flush=True)  # fmt: skip
    rows = wanted.rows
    some = held_out.rows(slice(rows))
    for temperatures in map(int, wanted.temperatures.split(",")):
        how = GanScore(sigma=sigma, ais=AISOptions(temperatures=temperatures), simulated_rows=rows)
        start_s = time.process_time()
        metadata = model.prepare_scores(None, rng, how).metadata
        middle_s = time.process_time()
        found = model.log_prob(some, rng.rows(slice(rows)), how)
        print(f"{temperatures} temperatures: "
              f"gap {metadata['gap_nats']:.2f} +- {metadata['gap_nats_stderr']:.2f} nats "
              f"(lower {metadata['simulated_lower_nats']:.2f}), held out {float(found.nats_B.mean()):.2f}, "
              f"standard error of a row {float(found.stderr_B.mean()):.2f}, "
              f"{(time.process_time() - middle_s) / rows:.1f} s a row "
              f"(gap {(middle_s - start_s) / rows:.1f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
