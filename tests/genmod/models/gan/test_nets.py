"""G and D of the GAN: shapes, rows that do not see one another, gradients that reach every weight."""

from __future__ import annotations

import pytest
import torch

from genmod.models.gan.nets import Discriminator, FixupBlock, Generator, bend

SHAPES = [((1, 8, 8), 0), ((1, 28, 20), 10), ((3, 12, 16), 3)]


def nets(shape: tuple[int, int, int], classes: int) -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    sizes = {"widths": (6, 8), "blocks": 2, "patch": 2}
    generator = Generator(shape, classes, z_dim=5, **sizes)
    return generator.double(), Discriminator(shape, classes, features=7, **sizes).double()


def inputs(shape: tuple[int, int, int], classes: int, rows: int):
    made = torch.Generator().manual_seed(1)
    z = torch.randn(rows, 5, dtype=torch.float64, generator=made)
    x = torch.randn(rows, *shape, dtype=torch.float64, generator=made)
    labels = torch.arange(rows) % classes if classes else None
    return z, x, labels


@pytest.mark.parametrize(("shape", "classes"), SHAPES)
def test_shapes(shape, classes):
    generator, discriminator = nets(shape, classes)
    z, x, labels = inputs(shape, classes, 4)
    made = generator(z, labels)
    assert made.shape == (4, *shape)
    assert made.isfinite().all()
    assert discriminator(x, labels).shape == (4,)


@pytest.mark.parametrize(("shape", "classes"), SHAPES)
def test_rows_do_not_see_one_another(shape, classes):
    generator, discriminator = nets(shape, classes)
    z, x, labels = inputs(shape, classes, 5)
    for net, argument in ((generator, z), (discriminator, x)):
        whole = net(argument, labels)
        for row in range(5):
            at = slice(row, row + 1)
            alone = net(argument[at], None if labels is None else labels[at])
            torch.testing.assert_close(alone, whole[at], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("net", [0, 1])
def test_label_and_latent_matter(net):
    shape, classes = (1, 8, 8), 4
    made = nets(shape, classes)[net]
    argument = inputs(shape, classes, 1)[net]
    by_label = torch.cat([made(argument, torch.tensor([label])) for label in range(classes)])
    assert len({row.sum().item() for row in by_label}) == classes
    assert not torch.equal(made(argument, torch.tensor([0])), made(-argument, torch.tensor([0])))


@pytest.mark.parametrize(("shape", "classes"), SHAPES)
def test_gradient_reaches_every_weight(shape, classes):
    generator, discriminator = nets(shape, classes)
    z, _, labels = inputs(shape, classes, 4)
    discriminator(generator(z, labels), labels).sum().backward()
    for net in (generator, discriminator):
        for name, weight in net.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.abs().max() > 0, name


def test_signals_keep_their_size_in_a_deep_net():
    # Without normalisation only the initialisation keeps them so.
    torch.manual_seed(0)
    blocks = torch.nn.Sequential(*(FixupBlock(16, 20) for _ in range(20)))
    x = torch.randn(8, 16, 8, 8)
    with torch.no_grad():
        y = blocks(x)
    assert 0.9 < y.std() / x.std() < 1.2
    assert not torch.equal(x, y)


def test_output_bends_but_never_goes_flat():
    u = torch.tensor([-3.0, -0.95, -0.2, 0.0, 0.5, 0.95, 1.95], requires_grad=True)
    y = bend(u)
    expected = torch.tensor([-1.155, -0.95, -0.2, 0.0, 0.5, 0.95, 1.05])
    torch.testing.assert_close(y.detach(), expected)
    (slope,) = torch.autograd.grad(y.sum(), u)
    assert slope.min() > 0.09


def test_labels_go_with_classes():
    generator, discriminator = nets((1, 8, 8), 0)
    z, x, _ = inputs((1, 8, 8), 0, 2)
    with pytest.raises(AssertionError):
        generator(z, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(AssertionError):
        discriminator(x, torch.zeros(2, dtype=torch.int64))
