"""The peer of the GAN's quality benchmark: a plain DCGAN in plain torch, which knows nothing of genmod.

    _quality_gan_peer.py FOLDER SEED CPU_S POINTS [SETTINGS]    writes FOLDER/gan-peer-SEED.npz

Nets and settings of Radford et al. 2016 (Unsupervised representation learning with deep convolutional
GANs, sec. 3) at 32x32: images get a black rim of two pixels, samples lose theirs. Widths 64, 128, 256 and 64
latents (0.92 and 0.66 million parameters), batch 64, Adam 2e-4 with beta1 0.5, binary cross-entropy, G
non-saturating, no labels. SETTINGS, a JSON object, changes what ``DEFAULTS`` names. Samples are drawn at as
many even points of the way as POINTS says, of the weights as they are and of each moving average, whose batch
statistics are measured again; neither the draws nor the averages are counted as training.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENTS, DRAWS, PAD = 64, 2_000, 2
DEFAULTS = {"batch": 64, "lr": 2e-4, "floor": 1.0, "halflives_nimg": [4480]}
"""``floor``: share of the learning rate that is left at the end, after half a cosine of CPU time."""


def _layers(*layers: nn.Module) -> nn.Sequential:
    net = nn.Sequential(*layers)
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return net


def generator() -> nn.Sequential:
    up = nn.ConvTranspose2d
    return _layers(
        up(LATENTS, 256, 4, 1, 0, bias=False), nn.BatchNorm2d(256), nn.ReLU(True),
        up(256, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(True),
        up(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
        up(64, 1, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip


def discriminator() -> nn.Sequential:
    return _layers(
        nn.Conv2d(1, 64, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True),
        nn.Conv2d(64, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2, True),
        nn.Conv2d(128, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.LeakyReLU(0.2, True),
        nn.Conv2d(256, 1, 4, 1, 0, bias=False), nn.Flatten(0),
    )  # fmt: skip


@torch.no_grad()
def _draws(net: nn.Sequential, measured_anew: bool) -> np.ndarray:
    """uint8 samples; the weights and statistics of ``net`` stay as they are."""
    net = copy.deepcopy(net)
    if measured_anew:
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None  # the plain mean over what follows
        net.train()
        for _ in range(20):
            net(torch.randn(100, LATENTS, 1, 1))
    net.eval()
    found = torch.cat([net(torch.randn(100, LATENTS, 1, 1)) for _ in range(DRAWS // 100)])
    found = found[..., PAD:-PAD, PAD:-PAD]
    return ((found + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def main() -> None:
    folder, seed, cpu_s, points = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        float(sys.argv[3]),
        int(sys.argv[4]),
    )
    settings = DEFAULTS | (json.loads(sys.argv[5]) if len(sys.argv) > 5 else {})
    assert settings.keys() == DEFAULTS.keys(), settings
    batch, lr, floor = settings["batch"], settings["lr"], settings["floor"]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    pixels = torch.from_numpy(np.load(folder / "data.npz")["train"])
    g, d = generator(), discriminator()
    averages = {f"ema-{nimg}": (copy.deepcopy(g), nimg) for nimg in settings["halflives_nimg"]}
    adams = [torch.optim.Adam(net.parameters(), lr=lr, betas=(0.5, 0.999)) for net in (g, d)]
    bce, ones, zeros = F.binary_cross_entropy_with_logits, torch.ones(batch), torch.zeros(batch)
    out: dict[str, object] = {}
    trained_s, step = 0.0, 0
    for point in range(1, points + 1):
        while trained_s < cpu_s * point / points:
            start_s = time.process_time()
            for adam in adams:
                cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, trained_s / cpu_s))
                adam.param_groups[0]["lr"] = lr * (floor + (1 - floor) * cosine)
            real: Tensor = pixels[torch.randint(0, len(pixels), (batch,))].float() / 127.5 - 1
            real = F.pad(real, (PAD, PAD, PAD, PAD), value=-1.0)
            fake = g(torch.randn(batch, LATENTS, 1, 1))
            adams[1].zero_grad()
            (bce(d(real), ones) + bce(d(fake.detach()), zeros)).backward()
            adams[1].step()
            adams[0].zero_grad()
            bce(d(fake), ones).backward()
            adams[0].step()
            trained_s += time.process_time() - start_s
            step += 1
            for average, halflife_nimg in averages.values():
                keep = min(0.5 ** (batch / halflife_nimg), step / (step + 10))
                with torch.no_grad():
                    for old, new in zip(average.parameters(), g.parameters(), strict=True):
                        old.lerp_(new, 1 - keep)
        out |= {f"raw@{point}": _draws(g, False)}
        out |= {f"{name}@{point}": _draws(average, True) for name, (average, _) in averages.items()}
        out |= {f"nimg@{point}": step * batch, f"cpu_s@{point}": trained_s}
    np.savez(folder / f"gan-peer-{seed}.npz", **out)


if __name__ == "__main__":
    main()
