"""Our loop's step against a bare torch loop of the same nets and loss, for every model of the quickstart.

The bare loop does only what is indispensable: for each phase zero, loss, backward, AdamW as torch gives it.
Ours adds clipping, the moving average, the record of losses and the fused optimiser. It is compared with the
bare loop against itself (what of the difference is noise), and the loss with torch's own random numbers
(what addressed ones cost). CPU seconds, rounds in turn in one process, medians of each round's ratio.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from genmod.interface.batch import Batch
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.rng import Rng, rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig
from genmod.world import SingleProcess
from pipelines.recipe.recipe import load_recipe
from tests.benchmarks._turns import compared, cpu_s, in_turns

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
BATCH, STEPS, ROUNDS = 32, 20, 12
SHARE_STEPS = 3
QUICK = {"BATCH": 8, "STEPS": 1, "ROUNDS": 1, "SHARE_STEPS": 1}
"""Enough for a share within a step; the loops' own start is spread over more of them."""


class _TorchNoise(Rng):
    """The same shapes from torch's generator."""

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(len(self), *shape, dtype=dtype)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(len(self), *shape, dtype=dtype)


def image_stream(start: int, batch: int | None = None) -> Iterator[Batch]:
    """The same random images again and again, in batches of a size."""
    batch = batch or BATCH
    made = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, *SPEC.shape), generator=made).to(torch.uint8)
    labels = torch.arange(batch) % SPEC.classes
    for nimg in itertools.count(start, batch):
        yield Batch(pixels, labels, torch.arange(nimg, nimg + batch))


def _ours(model: GenerativeModel) -> Callable[[], None]:
    nimg = STEPS * BATCH
    config = TrainConfig(nimg=nimg, batch=BATCH, log_every_nimg=nimg)
    return lambda: (train(model, image_stream, SingleProcess(), Plan(config, 0)), None)[1]


def _bare(
    model: GenerativeModel,
    noise: type[Rng] = Rng,
    size: int | None = None,
    count: int | None = None,
) -> Callable[[], None]:
    owned = [(phase.name, list(model.parameters_of(phase).values())) for phase in model.phases()]

    def steps() -> None:
        adamw = {name: torch.optim.AdamW(values, lr=1e-3) for name, values in owned}
        for batch in itertools.islice(image_stream(0, size), count or STEPS):
            for name, values in owned:
                for parameter in model.parameters():
                    parameter.requires_grad_(False)
                for parameter in values:
                    parameter.requires_grad_(True)
                adamw[name].zero_grad()
                rng = noise(0, f"train/{name}", batch.index_B)
                model.loss(name, batch, rng, 0).total.backward()
                adamw[name].step()

    return steps


def quickstart_model(name: str, *, small: bool = True) -> GenerativeModel:
    """One of the quickstart's models with new weights: with its small net, or with the family's default."""
    entry = load_recipe("quickstart").entry(name)
    stats = DataStats(mean=(-0.7,), std=(0.6,))
    net = entry.net if small else {}
    return ModelConfig(family=entry.family, net=net, spec=SPEC, stats=stats).build(0)


def _family(name: str) -> list[dict]:
    model = quickstart_model(name)
    calls = [
        _ours(copy.deepcopy(model)),
        _bare(copy.deepcopy(model)),
        _bare(copy.deepcopy(model)),
        _bare(copy.deepcopy(model), _TorchNoise),
    ]
    timings = in_turns(calls, ROUNDS)

    def row(what: str, mine: int, theirs: int, peer_name: str) -> dict:
        row = {
            "name": f"train/{name}/{what}",
            "unit": "images per CPU second",
            "peer_name": peer_name,
        }
        return row | compared(timings, mine, theirs, STEPS * BATCH)

    default = quickstart_model(name, small=False)
    train = load_recipe("quickstart").train_config(name)
    rank_batch = train.batch // train.workers
    nets = [("default net", default, BATCH), ("quickstart's small net", model, rank_batch)]
    shares = [
        {
            "name": f"train/{name}/noise-share, {net}, {batch} images a rank",
            "unit": "share of a step",
            "ours": (
                share := _noise_share(_bare(copy.deepcopy(of), size=batch, count=SHARE_STEPS))
            ),
            "peer": 0.02,
            "peer_name": "goal: at most",
            "ratio": share / 0.02,
        }
        for net, of, batch in nets
    ]
    return [
        *shares,
        row("step", 0, 1, "bare torch loop, same nets and loss"),
        row("control", 1, 2, "the bare loop itself: what differs is noise"),
        row("addressed-noise", 1, 3, "the bare loop with torch's own random numbers"),
    ]


def _noise_share(steps: Callable[[], None]) -> float:
    """Share of the CPU time of bare steps that is spent in addressed random numbers."""
    spent_s = 0.0
    methods = {name: getattr(Rng, name) for name in ("uniform", "normal", "rademacher", "integers")}

    def timed(method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal spent_s
            start_s = time.process_time()
            result = method(*args, **kwargs)
            spent_s += time.process_time() - start_s
            return result

        return call

    steps()
    try:
        for name, method in methods.items():
            setattr(Rng, name, timed(method))
        taken_s = cpu_s(steps)
        return spent_s / taken_s
    finally:
        for name, method in methods.items():
            setattr(Rng, name, method)


def _generator() -> dict:
    """Normal numbers alone, a batch of images of them."""
    rng = rng_for(0, "bench", range(BATCH))

    def addressed() -> None:
        for step in range(20):
            rng.at(step).normal(*SPEC.shape)

    def torchs() -> None:
        for _ in range(20):
            torch.randn(BATCH, *SPEC.shape)

    timings = in_turns([addressed, torchs], ROUNDS)
    row = {
        "name": "rng/normal",
        "unit": "million numbers per CPU second",
        "peer_name": "torch.randn",
    }
    return row | compared(timings, 0, 1, 20 * BATCH * SPEC.dims / 1e6)


def bench() -> list[dict]:
    """Every model of the quickstart, and the generator alone."""
    torch.set_num_threads(1)
    rows = [row for name in load_recipe("quickstart").model for row in _family(name)]
    return [*rows, _generator()]


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=2))
