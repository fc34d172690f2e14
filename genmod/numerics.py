"""Numeric classes: processes of one class compute the same bits; others may round differently.

A class is made of the device, its instruction set, the versions of the libraries that compute, and the
precision. On CPUs, PyTorch and oneDNN choose kernels by instruction set, which add in another order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import torch

NumericsMode = Literal["strict", "portable", "any"]
"""``strict``: one class in a dataset; ``portable``: kernels that every x86 CPU has; ``any``: all classes."""

PORTABLE_VARIABLES: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
}
"""Environment of a process that computes portably. Read by PyTorch, oneDNN and MKL when they are loaded."""

_ISA_FLAGS = ("amx_tile", "avx512f", "avx2", "avx", "sse4_1")
"""Flags of Linux's /proc/cpuinfo, best first."""


def numeric_class(device: str) -> str:
    """The class of this process on a device, ``cpu`` or ``cuda``, as one line."""
    version = f"torch {torch.__version__.partition('+')[0]}"
    precision = torch.get_float32_matmul_precision()
    if device != "cpu":
        name = torch.cuda.get_device_name()
        return f"{device} {name}, {version}, cuda {torch.version.cuda}, float32 {precision}"
    if all(os.environ.get(name) == value for name, value in PORTABLE_VARIABLES.items()):
        return f"cpu portable, {version}, float32 {precision}"
    kernels = torch.backends.cpu.get_cpu_capability().lower()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").lower()
    one_dnn = limit or _cpu_isa()
    return f"cpu {kernels}, onednn {one_dnn}, {version}, float32 {precision}"


def _cpu_isa() -> str:
    """The best instruction set of this CPU that changes kernels."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return "unknown"
    return next((flag for flag in _ISA_FLAGS if flag in flags), "other")
