"""How batches and nets lie in memory and are run: devices, channels last, compiled. Values stay the same.

Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmod.errors import ConfigError
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.training.plan import TrainConfig


def place_model(model: GenerativeModel, device: torch.device, config: TrainConfig) -> None:
    """A model, where and how it is trained."""
    model.to(device).train()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def prepare_batch(batch: Batch, device: torch.device, config: TrainConfig) -> Batch:
    """A batch, likewise."""
    if device.type == "cuda":
        batch = batch.pinned()
    batch = batch.to(device)
    if config.channels_last:
        pixels_BCHW = batch.pixels_BCHW.contiguous(memory_format=torch.channels_last)
        batch = Batch(pixels_BCHW, batch.labels_B, batch.index_B)
    return batch


def compile_nets(model: GenerativeModel) -> None:
    """Compile the nets in place; what is around them (random numbers, terms) stays as it is."""
    for phase in model.phases():
        for name in phase.modules:
            model.get_submodule(name).compile()


def compute_gradients(loss: Tensor, config: TrainConfig) -> None:
    """Fill in gradients. ConfigError for what compiled nets cannot do."""
    try:
        loss.backward()
    except RuntimeError as error:
        if config.compile and "double backward" in str(error):
            raise ConfigError(
                "train.compile: this model's loss needs derivatives of gradients, which torch.compile "
                "cannot make; set train.compile=false for it"
            ) from error
        raise
