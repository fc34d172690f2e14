"""Posterior collapse: measured on known posteriors, provoked for real, and reported."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image

from genmod.config import as_json
from genmod.data.format.image_grid import GAP
from genmod.distributions.gaussian import Gaussian
from genmod.interface.batch import Batch
from genmod.interface.latents import Latents, latent_usage
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.metric_log import read_metrics
from genmod.training.monitors.latents import LatentMonitor, LatentMonitorConfig
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess

SPEC = ImageSpec(channels=1, height=6, width=6, levels=2)
BATCH = 16


def test_usage_of_posteriors_that_are_known():
    """Unit 0 tells which of 4 groups a row is in, unit 1 has a constant mean, unit 2 is the prior."""
    rows = 400
    mean_BZ, log_std_BZ = torch.zeros(rows, 3), torch.zeros(rows, 3)
    mean_BZ[:, 0] = torch.arange(rows) % 4 * 2.0 - 3
    mean_BZ[:, 1] = 1.0
    log_std_BZ[:, 0] = math.log(0.01)
    q = Gaussian(mean_BZ, log_std_BZ)
    rng = rng_for(1, "usage", range(rows))
    measured = latent_usage(Latents(q, q.draw(rng), (3,)))
    assert measured["active_units"] == 1
    assert measured["kl_nats_of_unit/000"] == pytest.approx(
        0.5 * (1e-4 + 5 - 1) - math.log(0.01), rel=1e-5
    )
    assert measured["kl_nats_of_unit/001"] == pytest.approx(0.5)
    assert measured["kl_nats_of_unit/002"] == 0.0
    assert measured["kl_nats"] == pytest.approx(
        sum(measured[f"kl_nats_of_unit/00{z}"] for z in range(3))
    )
    assert measured["mutual_information_nats"] == pytest.approx(math.log(4), abs=1e-6)
    assert measured["mutual_information_limit_nats"] == pytest.approx(math.log(rows))
    grouped = latent_usage(Latents(q, q.draw(rng), (1, 2)))
    assert grouped["kl_nats_of_group/01"] == pytest.approx(0.5)


def patterns(index) -> Batch:
    """Four equally likely images."""
    index_B = torch.as_tensor(list(index))
    pixels_BCHW = torch.zeros(len(index_B), 1, 6, 6, dtype=torch.uint8)
    for pixels_CHW, number in zip(pixels_BCHW, (index_B % 4).tolist(), strict=True):
        pixels_CHW[0, 3 * (number // 2) :][:3, 3 * (number % 2) :][:, :3] = 255
    return Batch(pixels_BCHW, None, index_B)


@pytest.mark.parametrize("collapses", [True, False])
def test_a_real_collapse_is_reported_and_a_healthy_run_is_not(tmp_path, caplog, collapses):
    """A KL term that weighs far too much from the first image on, or one that grows to its due weight."""
    net = family("vae").Config.tiny().model_copy(
        update={"beta": 100.0} if collapses else {"kl_warmup_nimg": 1000}
    )  # fmt: skip
    stats = DataStats(mean=(0.0,), std=(1.0,))
    model = ModelConfig(family="vae", net=as_json(net), spec=SPEC, stats=stats).build(3)
    config = TrainConfig(
        nimg=1600, batch=BATCH, log_every_nimg=800, validate_every_nimg=None, ema_halflife_nimg=50,
        optim=OptimConfig(lr=5e-3, warmup_nimg=0, decay="none"),
    )  # fmt: skip
    monitor = LatentMonitor(
        LatentMonitorConfig(every_nimg=400, start_nimg=800), patterns(range(64)), 5
    )

    def batches(start: int):
        for first in itertools.count(start, BATCH):
            yield patterns(range(first, first + BATCH))

    with caplog.at_level(logging.WARNING):
        state = train(
            model, batches, SingleProcess(), Plan(config, 5, str(tmp_path), latents=monitor)
        )
    final = read_metrics(str(tmp_path))[-1].metrics
    assert final["latents/collapsed"] == float(collapses)
    assert state.monitor_state.posterior_collapsed == collapses
    assert ("posterior collapse" in caplog.text) == collapses
    events = [event for event in state.monitor_state.events if "posterior collapse" in event]
    assert len(events) == collapses  # once, not at every check
    if collapses:
        assert final["latents/active_units"] == 0
        assert final["latents/mutual_information_nats"] < 0.05
    else:
        assert final["latents/active_units"] >= 1
        assert final["latents/mutual_information_nats"] == pytest.approx(math.log(4), abs=0.2)
        shown = Image.open(tmp_path / "latents/reconstructions.png")
        shown, tall = np.asarray(shown, dtype=float), 6 * 9
        above, below = shown[:tall], shown[tall + GAP :]
        assert abs(above - below).mean() < 40  # of 255; an image that says nothing is 96 off
        moved = np.asarray(Image.open(tmp_path / "latents/traversals.png"), dtype=float)[:tall]
        assert (
            abs(moved[:, :tall] - moved[:, -tall:]).max() > 128
        )  # the unit of largest KL does something
