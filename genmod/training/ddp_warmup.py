"""A warm-up step for DDP, so that a resumed group adds gradients in the same order as an uninterrupted one.

DistributedDataParallel rebuilds its gradient buckets after the first backward pass, in the order in which the
gradients were computed. Three or more ranks add a number in an order that depends on its place in the
buckets, so the first step after each start would round differently from the same step of an uninterrupted
run. A step that changes nothing therefore precedes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel, Phase

MAX_COMMUTATIVE_RANKS = 2
"""Up to this many ranks, the sum of gradients is the same in any order."""


def require_grad_only(model: GenerativeModel, phase: Phase) -> None:
    """Let only one phase's parameters require gradients."""
    own = {id(parameter) for parameter in model.parameters_of(phase).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)


def ddp_warmup(model: GenerativeModel, wrapped: Sequence[nn.Module], batch: Batch) -> None:
    """Run each phase's forward and backward pass once; only DDP's buckets change. Collective.

    Args:
        model: its buffers are restored and its gradients dropped.
        wrapped: for each phase, the wrapped module that returns its loss for (batch, nimg).
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
