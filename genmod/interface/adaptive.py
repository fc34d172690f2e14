"""What a training loop may change of a model beside its weights. Letters: K quantities."""

from __future__ import annotations

from torch import Tensor, nn


class Adaptive(nn.Module):
    """A module whose buffers follow its own losses. By default nothing adapts."""

    def adapts(self) -> tuple[str, ...]:
        """Terms, ``phase/term``, whose means over all ranks :meth:`adapt` wants after each step.

        Of phases that take part in each step.
        """
        return ()

    def adapt(self, means_K: Tensor, images: int) -> None:
        """Change buffers by a step's terms (K,); ``images`` is its batch."""

    def strengthen(self, factor: float) -> None:
        """After a collapse: weigh by a factor more what holds training back, if there is such a thing."""
