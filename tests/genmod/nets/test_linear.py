"""The linear layer that oneDNN computes: torch's values and derivatives, of any order."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from genmod.nets.linear import LEAST_PRODUCTS, Linear, product

ROWS, INPUTS, OUTPUTS = 64, 192, 96


@pytest.mark.parametrize("bias", [True, False])
def test_derivatives_are_those_of_differences(bias):
    torch.manual_seed(0)
    made = [torch.randn(*size, dtype=torch.float64) for size in ((5, 4), (3, 4), (3,))]
    inputs = [value.requires_grad_() for value in made[: 2 + bias]]
    assert gradcheck(product, inputs)
    assert gradgradcheck(product, inputs)


@pytest.mark.parametrize("leading", [(ROWS,), (4, ROWS // 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_penalty_has_torchs_gradients(leading, bias):
    torch.manual_seed(0)
    layers = [Linear(INPUTS, OUTPUTS, bias=bias), nn.Linear(INPUTS, OUTPUTS, bias=bias)]
    layers[1].load_state_dict(layers[0].state_dict())
    data = torch.randn(*leading, INPUTS)
    assert ROWS * INPUTS * OUTPUTS >= LEAST_PRODUCTS
    assert "ProductBackward" in _nodes(layers[0](data))
    assert "ProductBackward" not in _nodes(layers[1](data))
    found = []
    for layer in layers:
        x = data.clone().requires_grad_()
        logits = nn.functional.softplus(layer(x))
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        (logits.mean() + slope.square().sum()).backward()
        found.append([logits, x.grad, *(weight.grad for weight in layer.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-4 * theirs.detach().abs().max().item()
        )


def test_nothing_is_computed_that_nobody_asked_for():
    torch.manual_seed(0)
    layer, x = Linear(INPUTS, OUTPUTS), torch.randn(ROWS, INPUTS)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((OUTPUTS,), float(ROWS)))


@pytest.mark.parametrize("change", ["small", "float64", "bf16"])
def test_torchs_own_layer_serves_where_ours_does_not(change):
    layer, x = Linear(INPUTS, OUTPUTS), torch.randn(2 if change == "small" else ROWS, INPUTS)
    if change == "float64":
        layer, x = layer.double(), x.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "bf16"):
        y = layer(x)
        torch.testing.assert_close(
            y, nn.functional.linear(x, layer.weight, layer.bias), rtol=0, atol=0
        )
    assert "ProductBackward" not in _nodes(y)


def _nodes(y: torch.Tensor) -> set[str]:
    """Names of the nodes that autograd would go back through."""
    seen, ahead = set(), [y.grad_fn]
    while ahead:
        node = ahead.pop()
        seen.add(type(node).__name__)
        ahead += [after for after, _ in node.next_functions if after is not None]
    return seen
