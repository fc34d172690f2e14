"""Helpers of layers that define their own derivatives as ``torch.autograd.Function``."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from genmod.compat import backward_reaches

Gradients = tuple[Tensor | None, ...]
"""What a backward pass returns: one gradient for each input, None where it is not needed."""


def needed_gradients(ctx: Any) -> tuple[bool, ...]:
    """For each input, whether the current backward pass needs its gradient.

    A gradient penalty needs only the gradient by the image. Only the last input may be None.

    Args:
        ctx: the function's context in ``backward``.
    """
    nodes = [node for node, _ in ctx.next_functions]  # inputs that are None have no node
    return tuple(
        needed and (node is None or backward_reaches(node))
        for needed, node in zip_longest(ctx.needs_input_grad, nodes)
    )


def apply_function(function: type[Function], *inputs: Tensor | None) -> Tensor:
    """Call a custom function of one output: ``function.apply``, with its type."""
    return cast(Tensor, function.apply(*inputs))


def eager_on_cpu(x: Tensor) -> bool:
    """Whether custom derivatives pay off: on a CPU, without autocast and without a compiler."""
    return (
        x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
