"""A training step of the VAE against pythae's, same layers, paired in one process with a control.

    PYTHONPATH=. $GENMOD_BENCH_PEERS -m tests.benchmarks._vae_step

Both: 784-512-256-16 and back with ReLU, binary images, 128 of them. The peer's step is its model's loss,
backward and Adam, as its trainer has them. Ours, with the settings of the quality benchmark, is the whole
loop's: pixels from bytes, addressed noise, loss, backward, clipping, AdamW, moving average and the ledger of
losses. CPU seconds on one core, rounds in turn. The environment is that of the quality benchmark
(tests/benchmarks/_quality.py).
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator

import torch

from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks._turns import compared, in_turns

BATCH, STEPS, ROUNDS = 128, 100, 12
BINARY = ImageSpec(channels=1, height=28, width=28, levels=2)
NET = {"latents": 16, "hidden": [512, 256], "activation": "relu"}


def _on_BCHW() -> torch.Tensor:
    return torch.rand(BATCH, *BINARY.shape, generator=torch.Generator().manual_seed(0)) < 0.3


def _ours() -> Callable[[], None]:
    stats = DataStats(mean=(-0.4,), std=(0.9,))
    model = ModelConfig(family="vae", net=NET, spec=BINARY, stats=stats).build(0)
    pixels_BCHW, nimg = _on_BCHW().to(torch.uint8) * 255, STEPS * BATCH

    def batches(start: int) -> Iterator[Batch]:
        for first in itertools.count(start, BATCH):
            yield Batch(pixels_BCHW, None, torch.arange(first, first + BATCH))

    optim = OptimConfig(lr=4e-3, weight_decay=0.01, clip_norm=300)
    config = TrainConfig(nimg=nimg, batch=BATCH, log_every_nimg=nimg, optim=optim)
    return lambda: (train(model, batches, SingleProcess(), Plan(config, 0)), None)[1]  # type: ignore[arg-type]


def _peer() -> Callable[[], None]:
    sys.argv[1:] = [".", "0", "0", str(NET["latents"]), "1e-3"]
    from pythae.models import VAE, VAEConfig  # type: ignore[import-not-found]

    from tests.benchmarks import _quality_peers as peers

    config = VAEConfig(input_dim=BINARY.shape, latent_dim=16, reconstruction_loss="bce")
    model = VAE(config, encoder=peers.Encoder(), decoder=peers.Decoder()).train()
    x_BCHW = _on_BCHW().float()

    def steps() -> None:
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(STEPS):
            adam.zero_grad()
            model({"data": x_BCHW}).loss.backward()
            adam.step()

    return steps


QUICK = {"BATCH": 8, "STEPS": 1, "ROUNDS": 1}


def quick() -> None:
    """Our side alone: the peer is in an environment of its own."""
    in_turns([_ours()], ROUNDS)


def main() -> None:
    """Images a CPU second of both, the ratio and the control's, each with the quartiles of its rounds."""
    torch.set_num_threads(1)
    timings = in_turns([_ours(), _peer(), _peer()], ROUNDS)
    row = {"name": "vae/step against pythae", "unit": "images per CPU second"}
    control = compared(timings, 1, 2, STEPS * BATCH)
    print(json.dumps(row | compared(timings, 0, 1, STEPS * BATCH) | {"control": control}))


if __name__ == "__main__":
    main()
