"""What two options of the VAE are worth on Fashion-MNIST: a trained sigma, and groups of latents.

    .venv/bin/python -m tests.benchmarks._vae_options sigma [--seeds 0 1 2] [--minutes 0.75]
    .venv/bin/python -m tests.benchmarks._vae_options groups [--seeds 0 1 2] [--minutes 0.75]

``make bench`` leaves it out, for it takes sides x seeds x minutes and more. Protocol: one thread; the CPU
time is training's alone, and a short probe says how many images fit in it; 60,000 training images, none of
their labels used; the averaged weights are judged. Results: vae-options.md.

``sigma``: a Gaussian whose sigma is trained (``gaussian_sigma``) against the same net with sigma 1, which is
squared error; values are in [-1, 1] (on [0, 1] it would blur more), steps cost the same, so both see the same
images. Judged are means of p(x | z): of 2,000 z from the prior, and of the posterior's means of 2,000 test
images. Against all 10,000 test images (for reconstructions their own 2,000):

* ``laplacian``: variance of an image's Laplacian, mean over images, as a share of the real images';
* ``high``: power at frequencies above 1/4 per pixel (half of Nyquist's), as a share of the real images';
* ``detail``: of reconstructions, how much of the original's Laplacian they explain,
  1 - |Lr - Lx|^2 / |Lx|^2. Noise would add to the first two, but takes from this one;
* ``fd``: Frechet distance in the features of a classifier fitted to the training images, without 2,000 of
  them that make the floor.

``groups``: binary pixels, drawn again in each batch with the probability that a value says; 500 test images
made binary once, the bound of log p by IWAE-100, for each set of options in GROUPS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.latents import latent_usage
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.vae import Model, VAESample, VAEScore
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks import _equal_time as shared
from tests.benchmarks._equal_time import GREY, Judge

BINARY = ImageSpec(channels=1, height=28, width=28, levels=2)
NET: dict[str, Any] = {"latents": 24, "unshuffle": 4, "widths": [64], "blocks": 1}
BATCH, LR, PROBE_NIMG, PROBES = 128, 3e-3, 2_560, 6
DRAWS, SCORED, PARTICLES = 2_000, 500, 100
GROUPS: dict[str, dict[str, Any]] = {
    "1 group": {},
    "2 groups": {"groups": 2, "ladder_width": 64},
    "4 groups": {"groups": 4, "ladder_width": 64},
}
QUICK = shared.QUICK | {
    "BATCH": 16, "PROBE_NIMG": 32, "PROBES": 2, "DRAWS": 100, "SCORED": 20, "PARTICLES": 2,
}  # fmt: skip
QUICK_ARGS = ["groups", "--seeds", "0", "--minutes", "0.01"]
LAPLACE_1133 = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]


def laplacian(x_BCHW: Tensor) -> Tensor:
    return F.conv2d(x_BCHW, LAPLACE_1133)


def roughness(x_BCHW: Tensor) -> float:
    """Variance of an image's Laplacian, mean over images."""
    return float(laplacian(x_BCHW).flatten(1).var(1).mean())


def high_power(x_BCHW: Tensor) -> float:
    """Power above a quarter period a pixel, mean over frequencies and images."""
    height, width = x_BCHW.shape[2:]
    row_H1, column_1W = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None]
    high_HW = (row_H1.square() + column_1W.square()).sqrt() > 0.25
    return float((torch.fft.fft2(x_BCHW, norm="ortho").abs().square() * high_HW).mean())


def binary(pixels_BCHW: Tensor, seed: int, index_B: Tensor) -> Tensor:
    """0 or 255, the latter with the probability that the value says."""
    u_BCHW = rng_for(seed, "bench/pixel", index_B).uniform(*pixels_BCHW.shape[1:])
    return ((u_BCHW * 255 < pixels_BCHW).to(torch.uint8)) * 255


def _batches(images_NCHW: Tensor, spec: ImageSpec, seed: int, start: int) -> Iterator[Batch]:
    for batch in shared.batches(images_NCHW, seed, BATCH, start):
        pixels_BCHW = batch.pixels_BCHW
        if spec.levels == 2:
            pixels_BCHW = binary(pixels_BCHW, seed, batch.index_B)
        yield Batch(pixels_BCHW, None, batch.index_B)


def unchanged(model: Model) -> None:
    """Nothing is done to it."""


def hold_sigma_at_one(model: Model) -> None:
    """Sigma is no weight any more, but a constant."""
    noise = model.noise
    del noise.log_sigma
    noise.register_buffer("log_sigma", torch.tensor(0.0))


def trained(
    images_NCHW: Tensor,
    spec: ImageSpec,
    how: dict[str, Any],
    seed: int,
    nimg: int,
    change: Callable[[Model], None] = unchanged,
) -> tuple[Model, float]:
    """The averaged model after so many images, and training's CPU seconds.

    ``how`` holds options of the net.
    """
    config = TrainConfig(
        nimg=nimg,
        batch=BATCH,
        log_every_nimg=nimg,
        ema_halflife_nimg=max(1, nimg // 50),
        ema_rampup=0.1,
        optim=OptimConfig(lr=LR, weight_decay=0.01, clip_norm=300, warmup_nimg=nimg // 40),
    )
    some = units.to_network(images_NCHW[:5_000])
    stats = DataStats(mean=(float(some.mean()),), std=(float(some.std()),))
    model = ModelConfig(family="vae", net=NET | how, spec=spec, stats=stats).build(seed)
    assert isinstance(model, Model)
    change(model)

    def batches(start: int) -> Iterator[Batch]:
        return _batches(images_NCHW, spec, seed, start)

    start_s = time.process_time()
    state = train(model, batches, SingleProcess(), Plan(config, seed))  # type: ignore[arg-type]
    assert isinstance(state.ema, Model)
    return state.ema.eval(), time.process_time() - start_s


def fitting(probes: list[Callable[[int], float]], cpu_s: float) -> list[int]:
    """How many images of each side fit in so many CPU seconds; the sides are probed in turn."""
    rounds = [[probe(PROBE_NIMG) for probe in probes] for _ in range(PROBES)][1:]
    first_s = statistics.median(times[0] for times in rounds)
    ratios = [
        statistics.median(times[i] / times[0] for times in rounds) for i in range(len(probes))
    ]
    return [int(cpu_s * PROBE_NIMG / (first_s * ratio)) // BATCH * BATCH for ratio in ratios]


@torch.no_grad()
def blur(model: Model, test_NCHW: Tensor, judge: Judge, seed: int) -> dict[str, float]:
    """How a model's images differ from real ones."""
    real_NCHW = units.to_network(test_NCHW)
    some = Batch(test_NCHW[:DRAWS], None, torch.arange(DRAWS))
    x_BCHW = some.x_BCHW()
    rng = rng_for(seed, "bench/draw", range(DRAWS))
    drawn_BCHW = model.sample(None, rng, VAESample(output="mean"))
    latents = model.latents(some, rng)
    rec_BCHW = model.decode_latents(latents.posterior.mean_BZ, None)
    missed = (laplacian(rec_BCHW) - laplacian(x_BCHW)).square().sum()
    used = latent_usage(latents)
    return {
        "sigma": float(model.noise().exp()),
        "draws laplacian": roughness(drawn_BCHW) / roughness(real_NCHW),
        "draws high": high_power(drawn_BCHW) / high_power(real_NCHW),
        "draws fd": judge.distance(units.to_pixels(drawn_BCHW)),
        "rec laplacian": roughness(rec_BCHW) / roughness(x_BCHW),
        "rec high": high_power(rec_BCHW) / high_power(x_BCHW),
        "rec detail": 1 - float(missed / laplacian(x_BCHW).square().sum()),
        "rec fd": judge.distance(units.to_pixels(rec_BCHW)),
        "rec mse": float((rec_BCHW - x_BCHW).square().mean()),
        "kl_nats": used["kl_nats"],
        "active_units": used["active_units"],
    }


def sigma(seeds: list[int], cpu_s: float) -> list[dict[str, Any]]:
    images_NCHW, test_NCHW = shared.images("train"), shared.images("t10k")
    judge = Judge(images_NCHW[:-DRAWS], test_NCHW)
    floor = judge.distance(images_NCHW[-DRAWS:])
    print(f"features {judge.extractor.label}, floor {floor:.3f}", flush=True)
    how = {"likelihood": "gaussian_sigma"}
    sides = {"trained sigma": unchanged, "sigma 1": hold_sigma_at_one}
    nimg = fitting([lambda n: trained(images_NCHW, GREY, how, 0, n)[1]], cpu_s)[0]
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        for side, change in sides.items():
            model, taken_s = trained(images_NCHW, GREY, how, seed, nimg, change)
            row = {"side": side, "seed": seed, "cpu_s": taken_s, "nimg": nimg}
            rows.append(row | blur(model, test_NCHW, judge, seed))
            print(json.dumps(rounded(rows[-1])), flush=True)
    return rows


def groups(seeds: list[int], cpu_s: float, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    images_NCHW, index_B = shared.images("train"), torch.arange(SCORED)
    test_BCHW = binary(shared.images("t10k")[:SCORED], 0, index_B)
    probes = [
        lambda n, how=how: trained(images_NCHW, BINARY, how, 0, n)[1] for how in wanted.values()
    ]
    fits = dict(zip(wanted, fitting(probes, cpu_s), strict=True))
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        for side, how in wanted.items():
            model, taken_s = trained(images_NCHW, BINARY, how, seed, fits[side])
            row = {"side": side, "seed": seed, "cpu_s": taken_s, "nimg": fits[side]}
            rows.append(row | density(model, test_BCHW, seed))
            print(json.dumps(rounded(rows[-1])), flush=True)
    return rows


@torch.no_grad()
def density(model: Model, test_BCHW: Tensor, seed: int) -> dict[str, float]:
    """Bounds of log p in nats, and what the latents are used for."""
    batch = Batch(test_BCHW, None, torch.arange(len(test_BCHW)))
    rng, how = rng_for(seed, "bench/score", batch.index_B), VAEScore(k=PARTICLES, chunk=10_000)
    used = latent_usage(model.latents(batch, rng))
    return {
        "nats": -float(model.log_prob(batch, rng, how).nats_B.mean()),
        "elbo_nats": -float(model.loss("elbo", batch, rng, 1 << 40).terms["elbo_nats"]),
        **{name: value for name, value in used.items() if name in ("kl_nats", "active_units")},
    }


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


def differences(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Of each side from the first, by seed: mean and the limits at 95 % (Student)."""
    sides = list(dict.fromkeys(row["side"] for row in rows))
    of = {side: [row for row in rows if row["side"] == side] for side in sides}
    found: dict[str, list[float]] = {}
    for side in sides[1:]:
        for name in [key for key, value in rows[0].items() if isinstance(value, float)]:
            gaps = [b[name] - a[name] for a, b in zip(of[sides[0]], of[side], strict=True)]
            found[f"{side}: {name}"] = shared.interval(gaps)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """One line of JSON a run, then the differences from the first side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("sigma", "groups"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=0.75)
    parser.add_argument("--sides", type=json.loads, default=GROUPS, help="of groups, as JSON")
    wanted = parser.parse_args(argv)
    torch.set_num_threads(1)
    cpu_s = 60 * wanted.minutes
    sigmas = wanted.what == "sigma"
    rows = sigma(wanted.seeds, cpu_s) if sigmas else groups(wanted.seeds, cpu_s, wanted.sides)
    print(json.dumps(differences(rows)))


if __name__ == "__main__":
    main()
