"""The double backward of the penalties under DistributedDataParallel: two ranks equal one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from genmod.interface.batch import Batch
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.gan.config import GanConfig
from genmod.rng import rng_for
from genmod.world import Group, SingleProcess, World

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
GLOBAL_BATCH = 8
STEPS = 3


class PhaseLoss(nn.Module):
    """A phase's loss as a forward pass, which is what the wrapper sees."""

    def __init__(self, model: GenerativeModel, phase: str) -> None:
        super().__init__()
        self.model, self.phase = model, phase

    def forward(self, pixels: Tensor, labels: Tensor, index: Tensor, nimg: int) -> Tensor:
        rng = rng_for(0, "train", index)
        return self.model.loss(self.phase, Batch(pixels, labels, index), rng, nimg).total


def only(model: GenerativeModel, phase: str) -> None:
    for other in model.phases():
        for weight in model.parameters_of(other).values():
            weight.requires_grad_(other.name == phase)


def train(world: World) -> dict[str, Tensor]:
    """A few steps of both phases; the weights after it."""
    torch.set_num_threads(1)
    net = GanConfig.tiny().model_dump(mode="json")
    stats = DataStats(mean=(0.0,), std=(0.5,))
    model = ModelConfig(family="gan", net=net, spec=SPEC, stats=stats).build(0).double()
    wrapped, optimisers = {}, {}
    for phase in model.phases():
        only(model, phase.name)
        wrapped[phase.name] = world.wrap(PhaseLoss(model, phase.name))
        own = list(model.parameters_of(phase).values())
        optimisers[phase.name] = torch.optim.SGD(own, lr=0.05)
    pixels = torch.randint(
        0, 256, (STEPS * GLOBAL_BATCH, *SPEC.shape), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)
    for step in range(STEPS):
        nimg = step * GLOBAL_BATCH
        index = torch.arange(nimg + world.rank, nimg + GLOBAL_BATCH, world.size)
        for phase in model.phases():
            only(model, phase.name)
            optimisers[phase.name].zero_grad()
            wrapped[phase.name](pixels[index], index % SPEC.classes, index, nimg).backward()
            optimisers[phase.name].step()
    return {name: weight.detach() for name, weight in model.named_parameters()}


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        weights = train(Group(torch.device("cpu")))
    finally:
        dist.destroy_process_group()
    flat = torch.cat([weight.flatten() for weight in weights.values()])
    flat.numpy().tofile(f"{folder}/rank-{rank}.f64")


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=600) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    weights = train(SingleProcess())
    alone = torch.cat([weight.flatten() for weight in weights.values()])
    start = ModelConfig(
        family="gan",
        net=GanConfig.tiny().model_dump(mode="json"),
        spec=SPEC,
        stats=DataStats(mean=(0.0,), std=(0.5,)),
    ).build(0)
    moved = torch.cat([weight.detach().flatten() for weight in start.parameters()])
    assert (alone - moved).abs().max() > 1e-3  # steps large enough to tell
    for rank in range(2):
        bytes_ = bytearray((tmp_path / f"rank-{rank}.f64").read_bytes())
        together = torch.frombuffer(bytes_, dtype=torch.float64)
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-10)


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), sys.argv[2])
    os._exit(0)  # threads of gloo may abort the exit of the interpreter
