"""The exponential moving average (EMA) of the weights, a model like any other. Half-lives are in images."""

from __future__ import annotations

from copy import deepcopy

from torch.optim.swa_utils import get_ema_multi_avg_fn

from genmod.interface.model import GenerativeModel
from genmod.training.plan import TrainConfig


def averaged(model: GenerativeModel) -> GenerativeModel:
    """A copy of a model for its EMA weights, in eval mode; no parameter requires gradients."""
    return deepcopy(model).requires_grad_(False).eval()


def decay_at(config: TrainConfig, nimg: int) -> float:
    """The weight of the old average in the step that ends at ``nimg``, in [0, 1).

    ``0.5 ** (batch / half-life)``. The half-life is at most ``ema_rampup`` of the images seen, so that the
    average soon forgets the random initial weights.
    """
    halflife_nimg = float(config.ema_halflife_nimg)
    if config.ema_rampup is not None:
        halflife_nimg = min(halflife_nimg, nimg * config.ema_rampup)
    return 0.5 ** (config.batch / halflife_nimg) if halflife_nimg > 0 else 0.0


class Average:
    """Updates EMA weights; collects the tensors once, since that is slower than updating small ones."""

    def __init__(self, ema: GenerativeModel, model: GenerativeModel) -> None:
        self._old = [parameter.detach() for parameter in ema.parameters()]
        self._new = [parameter.detach() for parameter in model.parameters()]
        self._buffers = list(zip(ema.buffers(), model.buffers(), strict=True))

    def update(self, decay: float) -> None:
        """Move the EMA weights towards the model's; copy the buffers."""
        get_ema_multi_avg_fn(decay)(self._old, self._new, 0)
        for old_buffer, new_buffer in self._buffers:
            old_buffer.copy_(new_buffer)
