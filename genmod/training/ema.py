"""The moving average of the weights, a model like any other. Half-lives are in images."""

from __future__ import annotations

from copy import deepcopy

from torch.optim.swa_utils import get_ema_multi_avg_fn

from genmod.interface.model import GenerativeModel
from genmod.training.plan import TrainConfig


def averaged(model: GenerativeModel) -> GenerativeModel:
    """A copy of a model that will hold the average; nothing in it asks for gradients."""
    return deepcopy(model).requires_grad_(False).eval()


def decay_at(config: TrainConfig, nimg: int) -> float:
    """Share of the old average that a step ending at ``nimg`` keeps.

    ``0.5 ** (batch / half-life)``, where the half-life is limited to a share of the images seen, so that
    the first random weights are soon forgotten.
    """
    halflife_nimg = float(config.ema_halflife_nimg)
    if config.ema_rampup is not None:
        halflife_nimg = min(halflife_nimg, nimg * config.ema_rampup)
    return 0.5 ** (config.batch / halflife_nimg) if halflife_nimg > 0 else 0.0


class Average:
    """Moves an average's weights; it looks for them once, for that takes longer than to move small ones."""

    def __init__(self, ema: GenerativeModel, model: GenerativeModel) -> None:
        self._old = [parameter.detach() for parameter in ema.parameters()]
        self._new = [parameter.detach() for parameter in model.parameters()]
        self._buffers = list(zip(ema.buffers(), model.buffers(), strict=True))

    def update(self, decay: float) -> None:
        """Move the average towards the model's weights; buffers are copied."""
        get_ema_multi_avg_fn(decay)(self._old, self._new, 0)
        for old_buffer, new_buffer in self._buffers:
            old_buffer.copy_(new_buffer)
