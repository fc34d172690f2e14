"""What training may change in a model besides its weights. Letters: K terms."""

from __future__ import annotations

from torch import Tensor, nn


class Adaptive(nn.Module):
    """A module whose buffers adapt to its own loss terms. By default nothing adapts."""

    def adapts(self) -> tuple[str, ...]:
        """Names of the terms, ``phase/term``, whose means :meth:`adapt` receives after each step.

        Only terms of phases that take part in every step.
        """
        return ()

    def adapt(self, means_K: Tensor, images: int) -> None:
        """Update buffers after a step.

        Args:
            means_K: the terms that :meth:`adapts` names, averaged over all ranks.
            images: batch size of the step over all ranks.
        """

    def strengthen(self, factor: float) -> None:
        """After a mode collapse: multiply the weight of the regularisation, if the model has any."""
