"""The VAE's step, samples and scores through the model interface against bare calls of the same nets.

The peers do only what is indispensable: the nets' own passes with torch's own noise. Ours adds
addressed noise, the likelihood, draws of pixels and the bound.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.vae import Model, VAESample, VAEScore
from genmod.rng import rng_for

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
BATCH, K, ROUNDS, REPEATS = 64, 16, 7, (8, 40)
QUICK = {"BATCH": 4, "K": 2, "ROUNDS": 1, "REPEATS": (1, 1)}


def _model() -> Model:
    net = {"latents": 16, "unshuffle": 4, "widths": [32]}
    stats = DataStats(mean=(0.0,), std=(0.5,))
    model = ModelConfig(family="vae", net=net, spec=SPEC, stats=stats).build(0)
    assert isinstance(model, Model)
    return model


def _batch() -> Batch:
    made = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, *SPEC.shape), generator=made).to(torch.uint8)
    return Batch(pixels, torch.arange(BATCH) % SPEC.classes, torch.arange(BATCH))


def _encoded(model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Posterior mean and log std, written bare, and the embeddings."""
    e_BE = model.classes(batch.labels_B)
    mean_BZ, log_std_BZ = model.encoder(batch.x_BCHW(), e_BE).chunk(2, dim=1)
    return mean_BZ, log_std_BZ, e_BE


def _bare_step(model: Model, batch: Batch) -> None:
    """Both nets forward and backward with a Gaussian likelihood of fixed width."""
    model.zero_grad()
    mean_BZ, log_std_BZ, e_BE = _encoded(model, batch)
    z_BZ = mean_BZ + log_std_BZ.exp() * torch.randn_like(mean_BZ)
    raw_BPHW = model.decoder(torch.cat((z_BZ, e_BE), dim=1))
    misfit = (raw_BPHW - batch.x_BCHW()).square().sum()
    kl = 0.5 * (mean_BZ.square() + (2 * log_std_BZ).exp() - 2 * log_std_BZ - 1).sum()
    ((misfit + kl) / BATCH).backward()


@torch.no_grad()
def _bare_sample(model: Model, batch: Batch) -> None:
    z_BZ = torch.randn(BATCH, model.config.latents)
    model.decoder(torch.cat((z_BZ, model.classes(batch.labels_B)), dim=1))


@torch.no_grad()
def _bare_score(model: Model, batch: Batch) -> None:
    mean_BZ, log_std_BZ, e_BE = _encoded(model, batch)
    for _ in range(K):
        z_BZ = mean_BZ + log_std_BZ.exp() * torch.randn_like(mean_BZ)
        model.decoder(torch.cat((z_BZ, e_BE), dim=1))


def _cpu_s(call: Callable[[], None], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        call()
    return time.process_time() - start


def _paired(
    name: str, ours: Callable[[], None], peer: Callable[[], None], times: int, peer_name: str
) -> dict:
    """Rounds in turn, in one process: the ratio is the median over rounds, so drift cancels."""
    _cpu_s(ours, 2), _cpu_s(peer, 2)
    rounds = [(_cpu_s(ours, times), _cpu_s(peer, times)) for _ in range(ROUNDS)]
    images = BATCH * times
    return {
        "name": name,
        "unit": "images per CPU second",
        "ours": images / statistics.median(mine for mine, _ in rounds),
        "peer": images / statistics.median(theirs for _, theirs in rounds),
        "peer_name": peer_name,
        "ratio": statistics.median(theirs / mine for mine, theirs in rounds),
    }


def bench() -> list[dict]:
    """Training step (without the optimiser), draws and expected images, and scores with k = 16."""
    torch.set_num_threads(1)
    model, batch = _model(), _batch()

    def step() -> None:
        model.zero_grad()
        model.loss("elbo", batch, rng_for(0, "bench", batch.index_B), 0).total.backward()

    def sample(output: str) -> Callable[[], None]:
        how = VAESample.model_validate({"output": output})
        rng = rng_for(0, "bench/sample", batch.index_B)
        return lambda: (model.sample(batch.labels_B, rng, how), None)[1]

    def score() -> None:
        model.log_prob(batch, rng_for(0, "bench/score", batch.index_B), VAEScore(k=K))

    (few, many), same = REPEATS, "plain torch, same nets"
    decoder = "bare decoder"
    bare = lambda: _bare_sample(model, batch)
    return [
        _paired("vae/step", step, lambda: _bare_step(model, batch), few, f"{same}, squared error"),
        _paired("vae/sample-draw", sample("draw"), bare, many, decoder),
        _paired("vae/sample-mean", sample("mean"), bare, many, decoder),
        _paired(
            f"vae/score-k{K}",
            score,
            lambda: _bare_score(model, batch),
            few,
            f"bare encoder, {K} bare decoder calls",
        ),
    ]


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=2))
