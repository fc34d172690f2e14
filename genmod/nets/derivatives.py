"""What layers with derivatives of their own have in common."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

_engine_runs: Any = vars(torch._C)["_will_engine_execute_node"]  # pyright: ignore[reportPrivateUsage]
"""Whether the backward pass under way comes to a node; torch has no public name for it."""

Gradients = tuple[Tensor | None, ...]


def _asked_for(node: Any) -> bool:
    try:
        return bool(_engine_runs(node))
    except (
        RuntimeError
    ) as error:  # of a leaf that autograd.grad was asked for by name, torch does not say
        if "leaf node" not in str(error):
            raise
        return True


def needed_gradients(ctx: Any) -> tuple[bool, ...]:
    """For each input, whether the pass under way asks for its gradient: a penalty asks only for images'.

    Of the inputs only the last may be None instead of a tensor.
    """
    nodes = [node for node, _ in ctx.next_functions]  # of tensors alone
    return tuple(
        needed and (node is None or _asked_for(node))
        for needed, node in zip_longest(ctx.needs_input_grad, nodes)
    )


def apply_function(function: type[Function], *inputs: Tensor | None) -> Tensor:
    """The function's value, which autograd can go back through."""
    return cast(Tensor, function.apply(*inputs))


def eager_on_cpu(x: Tensor) -> bool:
    """Whether own derivatives fit: on a CPU, where they were measured, without autocast or a compiler."""
    return (
        x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
