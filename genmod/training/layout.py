"""Device, memory format and compilation of models and batches. None of it changes the results.

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
    """Move a model to the device, in the memory format and mode for training."""
    model.to(device).train()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def prepare_batch(batch: Batch, device: torch.device, config: TrainConfig) -> Batch:
    """Move a batch to the device, in the memory format for training."""
    if device.type == "cuda":
        batch = batch.pinned()
    batch = batch.to(device)
    if config.channels_last:
        pixels_BCHW = batch.pixels_BCHW.contiguous(memory_format=torch.channels_last)
        batch = Batch(pixels_BCHW, batch.labels_B, batch.index_B)
    return batch


def compile_nets(model: GenerativeModel) -> None:
    """Compile the nets in place with torch.compile; the rest of the loss runs eagerly."""
    for phase in model.phases():
        for name in phase.modules:
            model.get_submodule(name).compile()


def compute_gradients(loss: Tensor, config: TrainConfig) -> None:
    """Run the backward pass. ConfigError where compiled nets lack double backward."""
    try:
        loss.backward()
    except RuntimeError as error:
        if config.compile and "double backward" in str(error):
            raise ConfigError(
                "train.compile: this model's loss needs double backward, which torch.compile does not "
                "support; set train.compile=false for this model"
            ) from error
        raise
