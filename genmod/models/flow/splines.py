"""Chains of rational-quadratic splines, which a masked net controls.

Letters: B batch, D dimensions, E embedding, K bins of a spline.

References:
    Neural spline flows, Durkan et al. 2019, https://arxiv.org/abs/1906.04032
    Masked autoregressive flow for density estimation, Papamakarios et al. 2017,
    https://arxiv.org/abs/1705.07057
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from zuko.flows import MaskedAutoregressiveTransform
from zuko.lazy import LazyComposedTransform
from zuko.transforms import MonotonicRQSTransform

from genmod.models.flow.config import FlowConfig
from genmod.permutation import shuffle

_LOG_SLOPE = math.log(1e3)
"""Largest absolute logarithm of a spline's slope at its knots."""


class BoxSpline(MonotonicRQSTransform):
    """A rational-quadratic spline from [-1, 1] onto itself, with free slopes at both ends."""

    def __init__(self, widths: Tensor, heights: Tensor, slopes: Tensor) -> None:
        """Unbounded parameters, (..., K), (..., K) and (..., K + 1); zeros give the identity."""
        widths, heights, slopes = (
            t if t.dtype == torch.float64 else t.float() for t in (widths, heights, slopes)
        )
        super().__init__(widths, heights, slopes[..., 1:-1], bound=1.0)
        self.derivatives = torch.exp(slopes / (1 + slopes.abs() / _LOG_SLOPE))

    def bin(self, k: Any) -> tuple[Tensor, ...]:
        """A piece by number; values that rounding moves outside the box use the outermost piece."""
        return super().bin(k.clamp(0, self.bins - 1))


class Splines(nn.Module):
    """f and its inverse, for rows of D numbers in [-1, 1]."""

    def __init__(self, config: FlowConfig, dims: int, context: int) -> None:
        """``context`` is the length of the conditioning vector, 0 for none."""
        super().__init__()
        count = config.bins
        self.chain = LazyComposedTransform(
            *(
                MaskedAutoregressiveTransform(
                    dims,
                    context,
                    passes=2 if config.order == "coupling" else None,
                    order=cast(Any, _order(dims, number)),
                    univariate=BoxSpline,
                    shapes=cast(Any, ((count,), (count,), (count + 1,))),
                    hidden_features=config.widths,
                )
                for number in range(config.transforms)
            )
        )

    def forward(self, y_BD: Tensor, e_BE: Tensor | None) -> tuple[Tensor, Tensor]:
        """f(y), (B, D), and the log density of y, (B,) in nats."""
        z_BD, stretch_B = self.chain(e_BE).call_and_ladj(y_BD)
        return z_BD, stretch_B - y_BD.shape[1] * math.log(2.0)

    def inverse(self, z_BD: Tensor, e_BE: Tensor | None) -> Tensor:
        """The y with f(y) = z, (B, D)."""
        return self.chain(e_BE).inv(z_BD)


def size_of(config: FlowConfig, dims: int, context: int) -> tuple[int, int]:
    """Weights of a chain, and entries of the masks from which its transforms are built."""
    knots, widths = dims * (3 * config.bins + 1), config.widths
    weights = (dims + context) * widths[0] + widths[-1] * knots
    weights += sum(i * o for i, o in itertools.pairwise(widths))
    return config.transforms * weights, config.transforms * knots * (dims + context)


def _order(dims: int, number: int) -> Tensor:
    """Position of each dimension in a transform's order, a function of the transform's number alone."""
    places_D = torch.arange(dims)
    return shuffle(places_D, dims, 0, f"flow/order/{number}") if number else places_D
