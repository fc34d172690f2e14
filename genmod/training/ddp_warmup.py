"""What makes a resumed group add its gradients in the very order of a group that was never disturbed.

DistributedDataParallel lays gradients out anew after its first backward pass, in the order in which they
came. Three or more ranks add a number in an order that depends on its place in that layout, so the first step
after each start would round differently from the same step of a straight run. So a step that moves nothing
comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel, Phase

MAX_COMMUTATIVE_RANKS = 2
"""Ranks whose sum is the same in any order."""


def require_grad_only(model: GenerativeModel, phase: Phase) -> None:
    """Let only a phase's parameters ask for gradients."""
    mine = {id(parameter) for parameter in model.parameters_of(phase).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in mine)


def ddp_warmup(model: GenerativeModel, wrapped: Sequence[nn.Module], batch: Batch) -> None:
    """Every phase's forward and backward pass, with no trace but the layout. All ranks come here.

    Args:
        model: as it is to be afterwards.
        wrapped: for each phase, gives its loss for (batch, nimg).
        batch: any rows, on the model's device.
    """
    kept = [buffer.clone() for buffer in model.buffers()]
    for phase, module in zip(model.phases(), wrapped, strict=True):
        require_grad_only(model, phase)
        loss, _ = module(batch, 0)
        loss.backward()
        model.zero_grad(set_to_none=True)
    for buffer, old in zip(model.buffers(), kept, strict=True):
        buffer.copy_(old)
