"""The U-Net: shapes, independence of rows, what a new net gives, sizes."""

import pytest
import torch
from torch import nn

from genmod.models.diffusion.preconditioning import Denoiser
from genmod.nets.blocks import Down, GroupNormBlock, SelfAttention, Up, group_norm, stride_of
from genmod.nets.unet import UNet


def unet(channels=1, classes=3, unshuffle=2, widths=(8, 16), attention=(1,), blocks=2):
    return UNet(
        channels,
        unshuffle=unshuffle,
        widths=widths,
        blocks=blocks,
        attention=attention,
        head=4,
        embedding=12,
        classes=classes,
    )


def perturbed(net):
    """Zero-initialised layers hide everything behind them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize(
    ("channels", "size", "unshuffle", "widths"),
    [(1, (28, 28), 2, (8, 16)), (3, (16, 24), 1, (8, 8, 16)), (1, (8, 8), 4, (12,))],
)
def test_any_size_that_divides(channels, size, unshuffle, widths):
    net = perturbed(unet(channels, 0, unshuffle, widths, attention=(len(widths) - 1,)))
    assert all(side % stride_of(unshuffle, widths) == 0 for side in size)
    x = torch.randn(2, channels, *size)
    out = net(x, torch.zeros(2), None)
    assert out.shape == x.shape
    assert out.std() > 0


def test_a_new_net_gives_zeros():
    assert not unet()(torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])).any()


def test_a_new_block_is_its_skip():
    h, e = torch.randn(2, 8, 4, 4), torch.randn(2, 12)
    assert torch.equal(GroupNormBlock(8, 8, 12)(h, e), h)
    assert torch.equal(SelfAttention(8, 4)(h), h)


def test_noise_and_class_matter():
    net = perturbed(unet()).double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    low, high = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    first, second = torch.tensor([0]), torch.tensor([1])
    assert not torch.allclose(net(x, low, first), net(x, high, first))
    assert not torch.allclose(net(x, low, first), net(x, low, second))


def test_rows_do_not_depend_on_each_other():
    net = perturbed(unet()).double()
    x = torch.randn(5, 1, 12, 12, dtype=torch.float64)
    noise, classes = torch.randn(5, dtype=torch.float64), torch.arange(5) % 3
    whole = net(x, noise, classes)
    singly = [net(x[i : i + 1], noise[i : i + 1], classes[i : i + 1]) for i in range(5)]
    assert torch.allclose(whole, torch.cat(singly), rtol=0, atol=1e-10)


def test_every_parameter_has_a_gradient():
    net = perturbed(unet(attention=(0, 1)))
    x = torch.randn(3, 1, 8, 8)
    net(x, torch.randn(3), torch.arange(3)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_attention_does_not_care_where_things_are():
    """Permuting the places permutes the result: the same weights act between all of them."""
    attention = perturbed(SelfAttention(8, 4)).double()
    h = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    order = torch.randperm(15)

    def permute(x):
        return x.flatten(2)[:, :, order].unflatten(2, (3, 5))

    assert torch.allclose(attention(permute(h)), permute(attention(h)))


def test_attention_by_hand():
    """One head, against softmax(q k^T / sqrt(d)) v written out."""
    attention = perturbed(SelfAttention(4, 4)).double()
    h = torch.randn(1, 4, 2, 2, dtype=torch.float64)
    q, k, v = attention.qkv(attention.norm(h)[0].flatten(1).T).chunk(3, dim=1)
    mixed = torch.softmax(q @ k.T / 2, dim=1) @ v
    expected = h + attention.project(mixed).T.view(1, 4, 2, 2)
    assert torch.allclose(attention(h), expected)


def test_down_and_up_change_the_resolution():
    h = torch.randn(2, 6, 4, 8)
    assert Down(6, 10)(h).shape == (2, 10, 2, 4)
    assert Up(6, 10)(h).shape == (2, 10, 8, 16)


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 2), (24, 6), (64, 16), (256, 32), (6, 1), (3, 1)]
)
def test_groups_divide_the_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_the_size_for_cifar_10():
    """About the 56 million parameters of EDM's net: 3 levels of 256, 4 blocks each."""
    with torch.device("meta"):
        net = UNet(
            3,
            unshuffle=1,
            widths=(256, 256, 256),
            blocks=4,
            attention=(1,),
            head=64,
            embedding=512,
            classes=11,
        )
    assert 40e6 < sum(p.numel() for p in net.parameters()) < 70e6


def test_preconditioning_by_hand():
    """Table 1, Karras et al. 2022, around a network that returns its input."""

    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 1, 1)

        def forward(self, x_BCHW, noise_B, class_B):
            self.noise_B = noise_B
            return x_BCHW

    echo = Echo()
    denoise = Denoiser(echo, [0.4], 0.5)
    x = torch.full((1, 1, 2, 2), 2.0)
    # sigma = 1.2: sigma^2 + sigma_data^2 = 1.69 = 1.3^2
    out = denoise(x, torch.tensor([1.2]), None)
    c_skip, c_out, c_in = 0.25 / 1.69, 1.2 * 0.5 / 1.3, 1 / 1.3
    assert torch.allclose(out, 0.4 + (c_skip + c_out * c_in) * (x - 0.4))
    assert echo.noise_B.item() == pytest.approx(0.0455804, abs=1e-6)  # ln(1.2) / 4
    assert denoise.loss_weight(torch.tensor([1.2])).item() == pytest.approx(1.69 / 0.36)
