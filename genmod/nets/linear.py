"""A linear layer whose products oneDNN computes on CPUs.

torch gives matrix products to MKL. On processors that are not Intel's that leaves the wider vectors unused:
on an EPYC with AVX-512 oneDNN, which torch has for convolutions, takes half the time
(tests/benchmarks/quality-vae.md). The product of two matrices is closed under differentiation, so one
function serves for every derivative.

Letters: M rows, N outputs, K inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from genmod.nets.derivatives import Gradients, apply_function, eager_on_cpu, needed_gradients

MIN_PRODUCTS = 2**22
"""With fewer multiplications, calling Python for each derivative costs more than is gained."""

DTYPES = (torch.float32,)
"""What oneDNN's product is called for."""

NAME = "mkldnn::_linear_pointwise"
"""Of oneDNN's product among torch's operators."""

_MKLDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _times(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """A b' + bias, for matrices that lie in memory in any way."""
    if a_MK.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, bias_N, "none", [], "")
    return nn.functional.linear(a_MK, b_NK, bias_N)


class _MatrixProduct(Function):
    """a b' + bias."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> Tensor:
        """(M, K), (N, K) and (N,) or None to (M, N)."""
        a_MK, b_NK, bias_N = inputs
        assert a_MK is not None
        assert b_NK is not None
        ctx.save_for_backward(a_MK, b_NK)
        return _times(a_MK, b_NK, bias_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Of a, b and the bias, each where wanted."""
        (g_MN,) = gradients
        a_MK, b_NK = ctx.saved_tensors
        by_a, by_b, by_bias = needed_gradients(ctx)
        return (
            matrix_product(g_MN, b_NK.T) if by_a else None,
            matrix_product(g_MN.T, a_MK.T) if by_b else None,
            g_MN.sum(0) if by_bias else None,
        )


def matrix_product(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """A b' + bias, which can be differentiated any number of times."""
    if torch.is_grad_enabled():
        return apply_function(_MatrixProduct, a_MK, b_NK, bias_N)
    return _times(a_MK, b_NK, bias_N)


def _quick(x: Tensor, weight_NK: Tensor) -> bool:
    """Whether oneDNN takes the product, and less time. What does not fit gets torch's own error."""
    rows = x.shape[:-1].numel()
    return (
        _MKLDNN
        and torch.backends.mkldnn.enabled
        and x.dim() > 1
        and rows > 1
        and rows * weight_NK.numel() >= MIN_PRODUCTS
        and x.shape[-1] == weight_NK.shape[1]
        and x.dtype == weight_NK.dtype
        and x.dtype in DTYPES
        and weight_NK.device == x.device
        and eager_on_cpu(x)
    )


class Linear(nn.Linear):
    """torch's; large products on CPUs by oneDNN.

    Those have derivatives of any order by autograd, but not by torch.func, and no forward-mode ones.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        if not _quick(input, self.weight):
            return super().forward(input)
        return matrix_product(input.flatten(0, -2), self.weight, self.bias).unflatten(
            0, input.shape[:-1]
        )
