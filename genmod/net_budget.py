"""Counts parameters and layers while a net is constructed, and stops at the budget.

On the meta device tensors have shapes but no memory, so a net of any size is counted before it is allocated.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from genmod.budget import BUDGET, ReadBudget


@contextmanager
def net_budget(where: str, remedy: str, budget: ReadBudget = BUDGET) -> Generator[None]:
    """Count the nets that this thread constructs inside the block.

    Args:
        where: what is constructed, for the error.
        remedy: what the user can do, the end of the error.
        budget: limits of parameters and layers.

    Raises:
        DataError: the net is larger than the budget; raised where it exceeds it, not at the end.
    """
    thread, counts = threading.get_ident(), {"net_parameters": 0, "net_modules": 0}

    def add(name: str, count: int) -> None:
        if threading.get_ident() == thread:
            counts[name] += count
            budget.check(where, remedy, **{name: counts[name]})

    def on_tensor(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        add("net_parameters", 0 if tensor is None else tensor.numel())

    def on_layer(module: nn.Module, name: str, layer: nn.Module | None) -> None:
        add("net_modules", 1)

    hooks = (
        register_module_parameter_registration_hook(on_tensor),
        register_module_buffer_registration_hook(on_tensor),
        register_module_module_registration_hook(on_layer),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
