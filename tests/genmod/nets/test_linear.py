"""The linear layer that oneDNN computes: torch's values and derivatives, of any order."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from genmod.nets import linear
from genmod.nets.linear import MIN_PRODUCTS, Linear, matrix_product

ROWS, INPUTS, OUTPUTS = 128, 192, 192


@pytest.mark.parametrize("bias", [True, False])
def test_derivatives_are_those_of_differences(bias):
    torch.manual_seed(0)
    made = [torch.randn(*size, dtype=torch.float64) for size in ((5, 4), (3, 4), (3,))]
    inputs = [value.requires_grad_() for value in made[: 2 + bias]]
    assert gradcheck(matrix_product, inputs)
    assert gradgradcheck(matrix_product, inputs)


@pytest.mark.parametrize("leading", [(ROWS,), (4, ROWS // 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_penalty_has_torchs_gradients(leading, bias):
    torch.manual_seed(0)
    layers = [Linear(INPUTS, OUTPUTS, bias=bias), nn.Linear(INPUTS, OUTPUTS, bias=bias)]
    layers[1].load_state_dict(layers[0].state_dict())
    data = torch.randn(*leading, INPUTS)
    assert ROWS * INPUTS * OUTPUTS >= MIN_PRODUCTS
    assert "_MatrixProductBackward" in _nodes(layers[0](data))
    assert "_MatrixProductBackward" not in _nodes(layers[1](data))
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


def test_nothing_is_computed_that_nobody_asked_for(monkeypatch):
    torch.manual_seed(0)
    layer, x, made = Linear(INPUTS, OUTPUTS), torch.randn(ROWS, INPUTS).requires_grad_(), []
    times = linear.multiply
    monkeypatch.setattr(linear, "multiply", lambda *inputs: (made.append(1), times(*inputs))[1])
    hidden = x * 1  # no leaf: of leaves asked for by name torch does not tell
    (slope,) = torch.autograd.grad(layer(hidden).sum(), hidden, retain_graph=True)
    assert len(made) == 2  # the output and the gradient by the input, none by the weight
    torch.testing.assert_close(slope, layer.weight.sum(0).expand(ROWS, -1), rtol=1e-4, atol=1e-4)
    layer.weight.requires_grad_(False)
    layer(x.detach()).sum().backward()
    assert len(made) == 3
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((OUTPUTS,), float(ROWS)))


@pytest.mark.parametrize("change", ["small", "one row", "vector", "float64", "bf16", "off"])
def test_torchs_own_layer_serves_where_ours_does_not(change):
    size = {"small": (2, INPUTS), "one row": (1, INPUTS), "vector": (INPUTS,)}
    layer, x = Linear(INPUTS, OUTPUTS), torch.randn(size.get(change, (ROWS, INPUTS)))
    if change in ("one row", "vector"):
        layer = Linear(INPUTS, MIN_PRODUCTS // INPUTS + 1)
    if change == "float64":
        layer, x = layer.double(), x.double()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=change == "bf16"),
        torch.backends.mkldnn.flags(enabled=False) if change == "off" else nullcontext(),
    ):
        y = layer(x)
        torch.testing.assert_close(
            y, nn.functional.linear(x, layer.weight, layer.bias), rtol=0, atol=0
        )
    assert "_MatrixProductBackward" not in _nodes(y)


def test_what_does_not_fit_is_told_in_torchs_words():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(INPUTS, OUTPUTS)(torch.randn(ROWS, INPUTS - 1))


def _nodes(y: torch.Tensor) -> set[str]:
    """Names of the nodes that autograd would go back through."""
    seen, ahead = set(), [y.grad_fn]
    while ahead:
        node = ahead.pop()
        seen.add(type(node).__name__)
        ahead += [after for after, _ in node.next_functions if after is not None]
    return seen
