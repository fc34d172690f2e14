"""What a model costs, measured by doing a little of it on one core of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel, Phase
from genmod.interface.options import SampleOptions, ScoreOptions
from genmod.rng import rng_for

PROBE_ROWS = 8
"""Images of the one call that is timed."""


def _probe_batch(model: GenerativeModel) -> Batch:
    rng = rng_for(0, "plan", range(PROBE_ROWS))
    channels, height, width = model.spec.shape
    pixels_BCHW = rng.integers(model.spec.levels, channels, height, width)
    pixels_BCHW = pixels_BCHW * (255 // (model.spec.levels - 1))
    labels_B = rng.fold("label").integers(model.spec.classes) if model.spec.classes else None
    return Batch(pixels_BCHW.to(torch.uint8), labels_B, rng.index_B)


def step_s_per_image(model: GenerativeModel) -> float:
    """Seconds of forward and backward passes per image, all phases, measured on one core here."""
    batch, rng = _probe_batch(model), rng_for(0, "plan", range(PROBE_ROWS))

    def turn(phase: Phase) -> None:
        mine = {id(parameter) for parameter in model.parameters_of(phase).values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in mine)
        model.loss(phase.name, batch, rng, 0).total.backward()

    return sum(_timed(partial(turn, phase)) / phase.every for phase in model.phases())


def sample_s_per_image(model: GenerativeModel, options: SampleOptions) -> float:
    """Seconds of sampling per image, measured on one core here."""
    batch, rng = _probe_batch(model), rng_for(0, "plan", range(PROBE_ROWS))
    with torch.no_grad():
        return _timed(lambda: model.sample(batch.labels_B, rng, options))


def score_s_per_image(model: GenerativeModel, options: ScoreOptions) -> float:
    """Seconds of scoring per image, measured on one core here."""
    batch, rng = _probe_batch(model), rng_for(0, "plan", range(PROBE_ROWS))
    little, times = options.probe()
    return times * _timed(lambda: model.log_prob(batch, rng, little))


def _timed(call: Callable[[], object]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call()  # the first call allocates
        start_s = time.perf_counter()
        call()
        return (time.perf_counter() - start_s) / PROBE_ROWS
    finally:
        torch.set_num_threads(threads)
