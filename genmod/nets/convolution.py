"""A convolution with fast second derivatives on CPUs.

A convolution is linear in its image and in its kernel, so three operations are closed under differentiation:
the output, the gradient by the image, and the gradient by the kernel. Where a second derivative needs the
gradient by the kernel, torch runs a convolution whose kernel is as large as the image. This takes twice as
long as torch's routine for kernel gradients, which this module always uses.

Letters: B batch, C and N channels, H height, W width, K side of the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from genmod.compat import conv2d_gradients
from genmod.nets.derivatives import Gradients, apply_function, eager_on_cpu, needed_gradients

MIN_ROWS = 32
"""Below this batch size the Python calls of each derivative cost more time than is saved."""


class _Output(Function):
    """y(x, w, b)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> Tensor:
        x_BCHW, w_NCKK, b_N = inputs
        assert x_BCHW is not None
        assert w_NCKK is not None
        ctx.save_for_backward(x_BCHW, w_NCKK)
        return F.conv2d(x_BCHW, w_NCKK, b_N, padding=w_NCKK.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (g_BNHW,) = gradients
        x_BCHW, w_NCKK = ctx.saved_tensors
        by_x, by_w, by_b = needed_gradients(ctx)
        if not torch.is_grad_enabled():
            return conv2d_gradients(g_BNHW, x_BCHW, w_NCKK, (by_x, by_w, by_b))
        return (
            apply_function(_ByImage, g_BNHW, x_BCHW.detach(), w_NCKK) if by_x else None,
            apply_function(_ByKernel, g_BNHW, x_BCHW, w_NCKK.detach()) if by_w else None,
            g_BNHW.sum((0, 2, 3)) if by_b else None,
        )


class _ByImage(Function):
    """x'(g, w), the gradient of g . y by x; the given x only has the shape."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor | None:
        g_BNHW, x_BCHW, w_NCKK = inputs
        ctx.save_for_backward(g_BNHW, w_NCKK)
        return conv2d_gradients(g_BNHW, x_BCHW, w_NCKK, (True, False, False))[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (h_BCHW,) = gradients
        g_BNHW, w_NCKK = ctx.saved_tensors
        by_g, _, by_w = needed_gradients(ctx)
        return (
            apply_function(_Output, h_BCHW, w_NCKK, None) if by_g else None,
            None,
            apply_function(_ByKernel, g_BNHW, h_BCHW, w_NCKK.detach()) if by_w else None,
        )


class _ByKernel(Function):
    """w'(g, x), the gradient of g . y by w; the given w only has the shape."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor | None:
        g_BNHW, x_BCHW, w_NCKK = inputs
        ctx.save_for_backward(g_BNHW, x_BCHW)
        return conv2d_gradients(g_BNHW, x_BCHW, w_NCKK, (False, True, False))[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        (v_NCKK,) = gradients
        g_BNHW, x_BCHW = ctx.saved_tensors
        by_g, by_x, _ = needed_gradients(ctx)
        return (
            apply_function(_Output, x_BCHW, v_NCKK, None) if by_g else None,
            apply_function(_ByImage, g_BNHW, x_BCHW.detach(), v_NCKK) if by_x else None,
            None,
        )


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` for odd kernels that keep height and width, fast to differentiate twice on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, H, W)."""
        side = self.kernel_size[0]
        assert (self.stride, self.padding, self.groups) == ((1, 1), (side // 2,) * 2, 1)
        if len(input) >= MIN_ROWS and self.weight.requires_grad and eager_on_cpu(input):
            return apply_function(_Output, input, self.weight, self.bias)
        return super().forward(input)
