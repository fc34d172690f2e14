"""The residual encoder and decoder: any size, rows alone, every parameter moved."""

from __future__ import annotations

import pytest
import torch

from genmod.nets.blocks import stride_of
from genmod.nets.resnet import FilmBlock, ResNetDecoder, ResNetEncoder

SHAPES = [
    ((28, 28), 2, (8, 12)),
    ((28, 28), 4, (8,)),
    ((13, 7), 1, (4, 6, 8)),
    ((5, 32), 3, (4,)),
]


@pytest.mark.parametrize(("size", "unshuffle", "widths"), SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_height_and_width(size, unshuffle, widths, channels):
    shape = {"unshuffle": unshuffle, "widths": widths, "blocks": 1}
    encoder = ResNetEncoder(channels, size, 5, **shape)
    decoder = ResNetDecoder(5, 2 * channels, size, **shape)
    x_BCHW = torch.zeros(2, channels, *size)
    z_BZ = encoder(x_BCHW)
    assert z_BZ.shape == (2, 5)
    assert decoder(z_BZ).shape == (2, 2 * channels, *size)


def test_stride_counts_the_stem_and_each_halving():
    assert stride_of(1, (8,)) == 1
    assert stride_of(4, (8, 8, 8)) == 16


def test_every_pixel_reaches_the_vector_and_every_latent_every_pixel():
    torch.manual_seed(0)
    shape = {"unshuffle": 2, "widths": (6, 6), "blocks": 1}
    encoder = ResNetEncoder(1, (10, 7), 3, **shape).double()
    decoder = ResNetDecoder(3, 1, (10, 7), **shape).double()
    x_BCHW = torch.randn(1, 1, 10, 7, dtype=torch.float64, requires_grad=True)
    (seen,) = torch.autograd.grad(encoder(x_BCHW).square().sum(), x_BCHW)
    assert (seen != 0).all()
    z_BZ = torch.randn(1, 3, dtype=torch.float64)
    moved = decoder(z_BZ + torch.tensor([[0.5, 0, 0]])) - decoder(z_BZ)
    assert (moved != 0).all()


def test_a_row_depends_on_that_row_alone():
    torch.manual_seed(0)
    encoder = ResNetEncoder(
        1, (9, 9), 4, unshuffle=2, widths=(6, 8), blocks=2, embedding=3
    ).double()
    x_BCHW = torch.randn(5, 1, 9, 9, dtype=torch.float64)
    e_BE = torch.randn(5, 3, dtype=torch.float64)
    whole = encoder(x_BCHW, e_BE)
    for row in range(5):
        part = slice(row, row + 1)
        torch.testing.assert_close(
            encoder(x_BCHW[part], e_BE[part]), whole[part], rtol=0, atol=1e-12
        )


def test_a_block_starts_as_the_identity_and_then_heeds_its_conditioning():
    torch.manual_seed(0)
    block = FilmBlock(4, 3)
    torch.nn.init.zeros_(block.second.bias)
    h_BNHW, e_BE = torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    torch.testing.assert_close(block(h_BNHW, e_BE), h_BNHW, rtol=0, atol=0)
    torch.nn.init.normal_(block.second.weight)
    assert not torch.allclose(block(h_BNHW, e_BE), block(h_BNHW, -e_BE))


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    shape = {"unshuffle": 2, "widths": (4, 6), "blocks": 2}
    encoder = ResNetEncoder(1, (8, 8), 3, embedding=2, **shape)
    decoder = ResNetDecoder(5, 2, (8, 8), **shape)
    e_BE = torch.randn(3, 2)
    z_BZ = encoder(torch.randn(3, 1, 8, 8), e_BE)
    decoder(torch.cat((z_BZ, e_BE), dim=1)).square().sum().backward()
    for net in (encoder, decoder):
        assert all(parameter.grad is not None for parameter in net.parameters())
