"""The convolution that is quick to differentiate twice: torch's values and derivatives, of any order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from genmod.nets.convolution import MIN_ROWS, Conv2d


def made(seed: int = 0) -> tuple[Conv2d, Tensor]:
    torch.manual_seed(seed)
    return Conv2d(2, 3, 3, padding=1).double(), torch.randn(MIN_ROWS, 2, 3, 2).double()


def test_derivatives_are_those_of_differences():
    layer, x = made()

    def apply_function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,))

    inputs = (x.requires_grad_(), layer.weight, layer.bias)
    assert "_OutputBackward" in type(apply_function(*inputs).grad_fn).__name__
    assert gradcheck(apply_function, inputs, fast_mode=True)
    assert gradgradcheck(apply_function, inputs, fast_mode=True)


@pytest.mark.parametrize("rows", [MIN_ROWS - 1, MIN_ROWS])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_penalty_has_torchs_gradients(rows, layout):
    layer, x = made()
    plain = nn.Conv2d(2, 3, 3, padding=1).double()
    plain.load_state_dict(layer.state_dict())
    found = []
    for first in (layer, plain):
        net = nn.Sequential(first, nn.LeakyReLU(0.2), nn.Conv2d(3, 1, 1, bias=False).double())
        nn.init.constant_(net[2].weight, 0.5)
        image = x[:rows].to(memory_format=layout).requires_grad_()
        logits = F.softplus(net(image)).sum((1, 2, 3))
        (slope,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
        (logits.mean() + slope.square().sum()).backward()
        found.append([logits, image.grad, *(weight.grad for weight in net.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
