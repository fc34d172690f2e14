"""The only place that uses private names of torch. Each says why; a test fails when one is gone.

Public names come first: a name is here only where torch has no public one that is as fast. pyproject.toml
limits torch to the versions that this module was tested with.
Letters: B batch, C and N channels, H height, W width, K side of a kernel; in products M rows, N outputs,
K inputs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "HAS_ONEDNN_LINEAR",
    "ONEDNN_LINEAR",
    "TorchDispatchMode",
    "backward_reaches",
    "conv2d_gradients",
    "onednn_linear",
]
# TorchDispatchMode sees every operator of a computation. The public FlopCounterMode is built on it, but its
# part that follows modules fails where a gradient penalty differentiates by images.

_will_execute: Any = vars(torch._C).get("_will_engine_execute_node")  # pyright: ignore[reportPrivateUsage]
_mkldnn_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and _mkldnn_linear is not None
"""Whether :func:`onednn_linear` works with this build of torch."""


ONEDNN_LINEAR = "mkldnn::_linear_pointwise"
"""Name of :func:`onednn_linear`'s operator, as a dispatch mode sees it."""


def backward_reaches(node: Any) -> bool:
    """Whether the backward pass that is running computes the gradient that belongs to a graph node.

    A gradient penalty differentiates by images alone. A custom ``autograd.Function`` that cannot see this
    computes gradients of its weights that nothing uses; torch's own functions ask the engine, by a private
    call. Without that call the answer is always yes.

    Args:
        node: an entry of ``ctx.next_functions``.
    """
    if _will_execute is None:  # correct without it, only slower
        return True
    try:
        return bool(_will_execute(node))
    except RuntimeError as error:
        # The engine does not answer for a leaf that torch.autograd.grad received as an input.
        if "leaf node" not in str(error):
            raise
        return True


def onednn_linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """``x weight' + bias`` by oneDNN, (M, N), without a derivative. Inputs may have any strides.

    torch gives float32 matrix products on CPUs to MKL, which leaves half of the vector width of AMD's
    processors unused; oneDNN takes half the time (tests/benchmarks/quality-vae.md). torch has it as a
    private operator only, which its compiler uses.
    """
    return cast(Tensor, _mkldnn_linear(x_MK, weight_NK, bias_N, "none", [], ""))


def conv2d_gradients(
    g_BNHW: Tensor, x_BCHW: Tensor, w_NCKK: Tensor, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of a convolution by image, kernel and bias; None where not needed.

    ``torch.nn.grad.conv2d_weight`` is public, but computes one gradient at a time and is slower: the operator
    computes all of them in one call, as torch's own backward pass does.

    Args:
        g_BNHW: gradient of the output; stride 1, and padding that keeps height and width.
        x_BCHW: the image.
        w_NCKK: the kernel, with odd K.
        needed: for image, kernel and bias.
    """
    padding = [w_NCKK.shape[-1] // 2] * 2
    gradients: Any = torch.ops.aten.convolution_backward(
        g_BNHW, x_BCHW, w_NCKK, [len(w_NCKK)], [1, 1], padding, [1, 1], False, [0, 0], 1, needed
    )
    return tuple(gradients)
