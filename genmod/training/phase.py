"""One phase of a step: its loss as a module that DDP can wrap, and its gradients. Letters: B batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel, Phase
from genmod.rng import Rng
from genmod.training.layout import compute_gradients
from genmod.training.optim import PhaseOptimiser
from genmod.training.plan import TrainConfig
from genmod.training.precision import autocast
from genmod.world import Heartbeat


class PhaseModule(nn.Module):
    """A phase's loss as a forward pass, the form that DistributedDataParallel wraps."""

    def __init__(self, model: GenerativeModel, phase: Phase, seed: int, precision: str) -> None:
        super().__init__()
        self.model = model
        self.phase = phase
        self.seed = seed
        self.precision = precision

    def forward(self, batch: Batch, nimg: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, and ``loss`` and the phase's terms, detached."""
        rng = Rng(self.seed, f"train/{self.phase.name}", batch.index_B)
        with autocast(self.precision, batch.index_B.device):
            losses = self.model.loss(self.phase.name, batch, rng, nimg)
        return losses.total, {"loss": losses.total.detach(), **losses.terms}


def accumulate_gradients(
    optimiser: PhaseOptimiser,
    module: nn.Module,
    batch: Batch,
    *,
    nimg: int,
    config: TrainConfig,
    heartbeat: Heartbeat,
) -> dict[str, Tensor]:
    """Compute the gradients of one phase, in ``config.accumulate`` parts of the batch.

    Args:
        optimiser: of the phase; its parameters receive the gradients.
        module: the phase's :class:`PhaseModule`, possibly wrapped by DDP.
        batch: this rank's rows of one global batch.
        nimg: images seen before the step.
        config: the ``train`` section.
        heartbeat: marked before each pass.

    Returns:
        The phase's loss and terms, averaged over the parts.
    """
    parts = config.accumulate
    rows = len(batch) // parts
    optimiser.zero_grad()
    sums: dict[str, Tensor] = {}
    for part in range(parts):
        microbatch = batch.rows(slice(part * rows, (part + 1) * rows))
        with _gradient_sync(module, last=part == parts - 1):
            heartbeat.mark(f"{optimiser.phase.name} forward")
            loss, terms = module(microbatch, nimg)
            heartbeat.mark(f"{optimiser.phase.name} backward")
            compute_gradients(loss if parts == 1 else loss / parts, config)
        for name, value in terms.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums if parts == 1 else {name: value / parts for name, value in sums.items()}


def _gradient_sync(module: nn.Module, last: bool) -> AbstractContextManager[object]:
    """DDP exchanges gradients in the last part of a batch only."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()
