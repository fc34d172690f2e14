"""A linear layer whose matrix products run on oneDNN on CPUs.

torch uses MKL for matrix products. On processors that are not Intel's, MKL leaves the wide vector units
unused: on an EPYC with AVX-512, oneDNN takes half the time (tests/benchmarks/quality-vae.md). The derivative
of a matrix product consists of matrix products, so one function serves for derivatives of every order.

Letters: M rows, N outputs, K inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from genmod.compat import HAS_ONEDNN_LINEAR, onednn_linear
from genmod.nets.derivatives import Gradients, apply_function, eager_on_cpu, needed_gradients

MIN_PRODUCTS = 2**22
"""With fewer multiplications the Python calls of each derivative cost more time than is saved."""

DTYPES = (torch.float32,)
"""Dtypes of the layers that use :func:`matrix_product`."""


def multiply(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """``a b' + bias`` without a derivative. Inputs may have any strides."""
    if a_MK.dtype == torch.float32:
        return onednn_linear(a_MK, b_NK, bias_N)
    return nn.functional.linear(a_MK, b_NK, bias_N)


class _MatrixProduct(Function):
    """``a b' + bias``."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> Tensor:
        a_MK, b_NK, bias_N = inputs
        assert a_MK is not None
        assert b_NK is not None
        ctx.save_for_backward(a_MK, b_NK)
        return multiply(a_MK, b_NK, bias_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (g_MN,) = gradients
        a_MK, b_NK = ctx.saved_tensors
        by_a, by_b, by_bias = needed_gradients(ctx)
        return (
            matrix_product(g_MN, b_NK.T) if by_a else None,
            matrix_product(g_MN.T, a_MK.T) if by_b else None,
            g_MN.sum(0) if by_bias else None,
        )


def matrix_product(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """``a b' + bias``, (M, N), differentiable any number of times."""
    if torch.is_grad_enabled():
        return apply_function(_MatrixProduct, a_MK, b_NK, bias_N)
    return multiply(a_MK, b_NK, bias_N)


def _is_faster(x: Tensor, weight_NK: Tensor) -> bool:
    """Whether oneDNN can compute the product and is faster. Shapes that do not fit get torch's error."""
    rows = x.shape[:-1].numel()
    return (
        HAS_ONEDNN_LINEAR
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
    """``nn.Linear`` whose large products on CPUs run on oneDNN.

    Those are differentiable any number of times by autograd, but not by ``torch.func`` or in forward mode.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: (..., K) to (..., N)."""
        if not _is_faster(input, self.weight):
            return super().forward(input)
        product_MN = matrix_product(input.flatten(0, -2), self.weight, self.bias)
        return product_MN.unflatten(0, input.shape[:-1])
