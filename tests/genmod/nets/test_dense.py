"""Plain layers as encoder and decoder: shapes, and that nothing is left out."""

from __future__ import annotations

import torch

from genmod.nets.dense import DenseDecoder, DenseEncoder


def test_every_pixel_reaches_the_vector_and_every_latent_every_pixel():
    torch.manual_seed(0)
    encoder = DenseEncoder(3, (5, 7), 4, hidden=(9, 6), embedding=2).double()
    decoder = DenseDecoder(4, 6, (5, 7), hidden=(9, 6)).double()
    x_BCHW = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    e_BE = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    z_BZ = encoder(x_BCHW, e_BE)
    assert z_BZ.shape == (2, 4)
    by_x, by_e = torch.autograd.grad(z_BZ.square().sum(), (x_BCHW, e_BE))
    assert (by_x != 0).all()
    assert (by_e != 0).all()
    made = decoder(z_BZ)
    assert made.shape == (2, 6, 5, 7)
    assert (decoder(z_BZ + torch.tensor([[0.5, 0, 0, 0]])) != made).all()


def test_the_decoder_goes_through_the_lengths_the_other_way():
    decoder = DenseDecoder(4, 1, (5, 7), hidden=(9, 6))
    assert [tuple(p.shape) for p in decoder.parameters() if p.dim() == 2] == [
        (6, 4),
        (9, 6),
        (35, 9),
    ]


def test_tanh_stands_after_each_layer_between():
    encoder = DenseEncoder(1, (2, 2), 3, hidden=(5, 4), activation="tanh")
    first, last = encoder.layers[0], encoder.layers[2]
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(last, torch.nn.Linear)
    assert not first.bias.any()
    x_BCHW = torch.randn(3, 1, 2, 2)
    expected = encoder.head(torch.tanh(last(torch.tanh(first(x_BCHW.flatten(1))))))
    torch.testing.assert_close(encoder(x_BCHW), expected)
