"""The diffusers side of the diffusion quality benchmark: knows nothing of genmod.

    _quality_diffusion_peer.py FOLDER JOB.json    trains as the job says, writes the job's ``out`` (npz)

UNet2DModel with DDPMScheduler's objective, AdamW and EMAModel as in diffusers' own example of unconditional
training; images may be folded into channels by pixel_unshuffle. DDIM and DPM-Solver++ are diffusers' too.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F

BATCH, PROBE_STEPS, CHUNK = 64, 30, 100


def unet(job: dict[str, Any]) -> UNet2DModel:
    side, widths, attends = job["unshuffle"], job["widths"], job["attention"]
    down = ["DownBlock2D"] * len(widths)
    up = ["UpBlock2D"] * len(widths)
    if attends:  # at the coarsest level
        down[-1], up[0] = "AttnDownBlock2D", "AttnUpBlock2D"
    net = UNet2DModel(
        sample_size=28 // side,
        in_channels=side**2,
        out_channels=side**2,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        add_attention=attends,
        attention_head_dim=32,
        norm_num_groups=8,
    )
    return net.to(memory_format=torch.channels_last)  # a little quicker here


class Training:
    """A net, its optimiser and its averages; a step at a time."""

    def __init__(self, job: dict[str, Any], train_NCHW: Tensor) -> None:
        self.job, self.train_NCHW = job, train_NCHW
        self.net = unet(job)
        self.noise = DDPMScheduler(beta_schedule=job["schedule"], prediction_type=job["prediction"])
        self.adam = torch.optim.AdamW(
            self.net.parameters(), lr=job["lr"], betas=(0.95, 0.999), weight_decay=1e-6
        )
        self.averages: dict[float, EMAModel] = {}

    def average(self, steps: int) -> None:
        """Averages whose half-lives are shares of so many steps."""
        for share in self.job["ema"]:
            decay = 0.5 ** (1 / max(1.0, share * steps))
            self.averages[share] = EMAModel(
                self.net.parameters(), decay=decay, use_ema_warmup=True, power=3 / 4, foreach=True
            )

    def step(self, progress: float) -> None:
        """One batch; the rate warms up and falls to 0 along half a cosine."""
        rows = torch.randint(0, len(self.train_NCHW), (BATCH,))
        x = self.train_NCHW[rows].float().div(127.5).sub(1)
        x = F.pixel_unshuffle(x, self.job["unshuffle"])
        times = torch.randint(0, self.noise.config.num_train_timesteps, (BATCH,))
        noise = torch.randn_like(x)
        target = noise
        if self.job["prediction"] == "v_prediction":
            target = self.noise.get_velocity(x, noise, times)
        seen = self.noise.add_noise(x, noise, times).contiguous(memory_format=torch.channels_last)
        F.mse_loss(self.net(seen, times).sample, target).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        rate = min(1.0, progress / 0.025) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group in self.adam.param_groups:
            group["lr"] = self.job["lr"] * rate
        self.adam.step()
        self.adam.zero_grad()
        for average in self.averages.values():
            average.step(self.net.parameters())


@torch.no_grad()
def draw(net: UNet2DModel, job: dict[str, Any], sampler: str, steps: int) -> Tensor:
    """Images as uint8, in chunks; every sampler starts from the same noise."""
    config = DDPMScheduler(beta_schedule=job["schedule"], prediction_type=job["prediction"]).config
    torch.manual_seed(job["seed"] + 1_000)
    side, made = job["unshuffle"], []
    for _ in range(0, job["draws"], CHUNK):
        kind = DDIMScheduler if sampler == "ddim" else DPMSolverMultistepScheduler
        # As the config has it, "leading", the first call would be at t = 940 of 999, on pure noise.
        solver = kind.from_config(config, timestep_spacing="trailing")
        solver.set_timesteps(steps)
        x = torch.randn(CHUNK, side**2, 28 // side, 28 // side)
        for t in solver.timesteps:
            seen = solver.scale_model_input(x, t).contiguous(memory_format=torch.channels_last)
            x = solver.step(net(seen, t).sample, t, x).prev_sample
        made.append(F.pixel_shuffle(x, side))
    return torch.cat(made).add(1).mul(128).floor().clamp(0, 255).to(torch.uint8)


def main() -> None:
    folder, job = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(1)
    train_NCHW = torch.from_numpy(np.load(folder / "train.npy"))
    probe = Training(job, train_NCHW)
    for _ in range(PROBE_STEPS):
        probe.step(0.5)
    start_s = time.process_time()
    for _ in range(PROBE_STEPS):
        probe.step(0.5)
    step_s = (time.process_time() - start_s) / PROBE_STEPS
    torch.manual_seed(job["seed"])
    training = Training(job, train_NCHW)
    training.average(int(job["cpu_s"] / step_s))
    kept: dict[str, list[Tensor]] = {}
    marks = sorted(job["marks"])
    steps, start_s, spent_s = 0, time.process_time(), 0.0
    while spent_s < job["cpu_s"]:
        training.step(spent_s / job["cpu_s"])
        steps += 1
        spent_s = time.process_time() - start_s
        while marks and spent_s >= marks[0] * job["cpu_s"]:
            mark = marks.pop(0)
            for share, average in training.averages.items():
                kept[f"{mark:g}/{share:g}"] = copy.deepcopy(average.shadow_params)
    found: dict[str, Any] = {"nimg": steps * BATCH, "cpu_s": spent_s}
    for key, shadow in kept.items():
        for parameter, value in zip(training.net.parameters(), shadow, strict=True):
            parameter.data.copy_(value)
        for sampler, calls in job["samplers"] if key.startswith("1/") else job["samplers"][:1]:
            pixels = draw(training.net.eval(), job, sampler, calls)
            found[f"{key}/{sampler}/{calls}"] = pixels.numpy()
    np.savez(job["out"], **found)


if __name__ == "__main__":
    main()
