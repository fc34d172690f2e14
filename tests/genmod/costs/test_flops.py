"""Counted operations against hand counts, and against the published size of a net."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from genmod.config import as_json
from genmod.costs.flops import flops_of, parameters_of, training_cost
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import META, ModelConfig, families, family
from genmod.manifest import ImageSpec
from genmod.nets.linear import MIN_PRODUCTS, Linear
from genmod.rng import Rng
from genmod.samplers.ddpm import ddpm_schedule


def config(name, **net):
    return ModelConfig(
        family=name,
        net=as_json(family(name).Config.tiny()) | net,
        spec=ImageSpec(channels=1, height=8, width=8, classes=3),
        stats=DataStats(mean=(0.0,), std=(0.5,)),
    )


def test_a_convolution_by_hand():
    layer = nn.Conv2d(3, 5, 3, padding=1, device=META)
    x = torch.zeros(2, 3, 8, 8, device=META)
    assert flops_of(lambda: layer(x)) == 2 * 2 * 5 * 8 * 8 * 3 * 3 * 3
    assert parameters_of(layer) == 5 * 3 * 9 + 5


def test_a_linear_layer_by_hand_wherever_it_is_computed():
    for device in (META, torch.device("cpu")):
        layer, x = Linear(256, 512, device=device), torch.zeros(64, 256, device=device)
        assert MIN_PRODUCTS <= 64 * 256 * 512
        assert flops_of(lambda layer=layer, x=x: layer(x)) == 2 * 64 * 256 * 512
        assert (
            flops_of(lambda layer=layer, x=x: layer(x).sum().backward()) == 2 * 2 * 64 * 256 * 512
        )


@pytest.mark.parametrize("name", families())
def test_every_family_is_counted(name):
    work = training_cost(config(name))
    assert work.parameters == parameters_of(config(name).build())
    assert work.step_flops > 1.5 * work.forward_flops > 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_noise_schedules_are_counted_and_stay_usable(schedule):
    """Their levels are cached, so they must not be computed on the meta device."""
    ddpm_schedule.cache_clear()
    noise = {"schedule": schedule}
    net = {"prediction": "eps", "noise": noise, "sigma_min": 0.02, "sigma_max": 80.0}
    assert training_cost(config("diffusion", **net)).forward_flops > 0
    assert ddpm_schedule(schedule).sigma_T.device.type == "cpu"


@pytest.mark.parametrize("name", families())
def test_a_loss_has_as_many_operations_as_torchs_counter_finds(name):
    model = config(name).shapes()
    device = next(model.parameters()).device
    index_B = torch.zeros(1, dtype=torch.int64, device=device)
    pixels_BCHW = torch.zeros(1, *model.spec.shape, dtype=torch.uint8, device=device)
    batch = Batch(pixels_BCHW, index_B, index_B)
    for phase in model.phases():
        loss = partial(model.loss, phase.name, batch, Rng(0, "flops", index_B), 0)
        try:
            with FlopCounterMode(display=False) as counter:
                loss()
        except RuntimeError:
            continue  # a derivative of a gradient, which torch's counter does not follow
        assert flops_of(loss) == counter.get_total_flops() > 0


def test_big_nets_need_no_memory():
    big = config("diffusion", widths=[4096], attention=[], blocks=4).shapes()
    assert all(parameter.device == META for parameter in big.parameters())
    assert parameters_of(big) > 1e9


def test_blocks_add_what_they_cost():
    """Four levels' worth of equal convolutions: twice the blocks is nearly twice the work."""
    narrow, deep = (
        training_cost(config("diffusion", blocks=blocks, attention=[], widths=[32]))
        for blocks in (4, 8)
    )
    assert 1.8 < deep.forward_flops / narrow.forward_flops < 2.0
    assert 1.8 < deep.parameters / narrow.parameters < 2.0


def test_ddpm_has_its_published_size():
    """35.7 million parameters (Ho et al. 2020, App. B) and 6.1 billion multiplications with additions."""
    diffusers = pytest.importorskip("diffusers")
    with META:
        net = diffusers.UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_padding=0,
            attention_head_dim=None,
        )
    x, t = torch.zeros(1, 3, 32, 32, device=META), torch.zeros(1, device=META)
    assert parameters_of(net) / 1e6 == pytest.approx(35.7, abs=0.1)
    assert flops_of(lambda: net(x, t)) / 2e9 == pytest.approx(6.1, abs=0.15)
