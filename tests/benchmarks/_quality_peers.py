"""The peers' side of the quality benchmark: runs under their own python, knows nothing of genmod.

    _quality_peers.py FOLDER SEED CPU_S LATENTS RATE    trains pythae's VAE so long, writes
    FOLDER/peer-SEED-half.npz and -end.npz

The nets are 784-512-256-LATENTS and back; training images are made binary again in each batch, with the
probability that a pixel's value says. Loss, reparameterisation and models are pythae's own.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn

BATCH, DRAWS, IWAE = 128, 2_000, 500
LATENTS, RATE = int(sys.argv[4]), float(sys.argv[5])


class Encoder(BaseEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
        self.head = nn.Linear(256, 2 * LATENTS)

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_variance = self.head(self.body(x.flatten(1))).chunk(2, 1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(LATENTS, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU()
        )
        self.head = nn.Linear(512, 784)

    def forward(self, z: Tensor) -> ModelOutput:
        pixels = torch.sigmoid(self.head(self.body(z)))
        return ModelOutput(reconstruction=pixels.reshape(-1, 1, 28, 28))


def main() -> None:
    folder, seed, cpu_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = np.load(folder / "data.npz")
    train = torch.from_numpy(data["train"]).float().div(255)
    test = torch.from_numpy(data["test_binary"]).float()
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENTS, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder()).train()
    adam = torch.optim.Adam(model.parameters(), lr=RATE)
    nimg, trained_s = 0, 0.0
    for mark, until_s in (("half", cpu_s / 2), ("end", cpu_s)):
        start_s, before_s = time.process_time(), trained_s
        model.train()
        while trained_s < until_s:
            rows = torch.randint(0, len(train), (BATCH,))
            adam.zero_grad()
            model({"data": torch.bernoulli(train[rows])}).loss.backward()
            adam.step()
            nimg += BATCH
            trained_s = before_s + time.process_time() - start_s
        model.eval()
        with torch.no_grad():
            draws = model.decoder(torch.randn(DRAWS, LATENTS))["reconstruction"]
            nats = torch.stack([_iwae(model, row) for row in test])
        pixels = draws.mul(256).floor().clamp(max=255).to(torch.uint8).numpy()
        path = folder / f"peer-{seed}-{mark}.npz"
        np.savez(path, draws=pixels, nats=nats.numpy(), nimg=nimg, cpu_s=trained_s)


def _iwae(model: VAE, x: Tensor) -> Tensor:
    """log (1/k) sum p(x, z) / q(z | x) of one image, in nats."""
    found = model.encoder(x[None])
    mean, log_variance = found.embedding, found.log_covariance
    noise = torch.randn(IWAE, LATENTS)
    z = mean + noise * (log_variance / 2).exp()
    p = model.decoder(z)["reconstruction"].double().clamp(1e-7, 1 - 1e-7)
    pixels = (x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3))
    prior_less_posterior = (noise.square() - z.square() + log_variance).double().sum(1) / 2
    return torch.logsumexp(pixels + prior_less_posterior, 0) - math.log(IWAE)


if __name__ == "__main__":
    main()
