"""The U-Net: its size, its preconditioning, sizes and classes."""

import pytest
import torch

from stages.methods import edm
from stages.methods.draws import Draws
from stages.methods.losses import Batch
from stages.nets.unet import UNet


def awake(network, seed=0):
    """Weights without the zeros of initialisation, so that every path carries signal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return network.eval()


def test_size_at_the_digits_setting():
    network = UNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 385_249
    shapes = []
    network.inner.mid.register_forward_hook(lambda *args: shapes.append(args[2].shape))
    network(torch.zeros(3, 1, 8, 8), 0.5)
    assert shapes == [(3, 64, 4, 4)]


def test_starts_as_the_preconditioning_alone():
    """c_skip y: the linear denoiser of white Gaussian data, by table 1."""
    network, y = UNet(sigma_data=0.5), torch.randn(4, 1, 8, 8)
    sigma = torch.tensor([0.01, 0.5, 2.0, 80.0])
    expected = y * (0.25 / (0.25 + sigma**2)).view(-1, 1, 1, 1)
    torch.testing.assert_close(network(y, sigma), expected)


def test_preconditioning_of_table_1():
    network, y = awake(UNet(sigma_data=0.5)), torch.randn(2, 1, 8, 8)
    sigma = torch.tensor([0.3, 0.3])
    total = 0.25 + 0.09
    raw = network.inner(y / total**0.5, (sigma.log() / 4))
    expected = 0.25 / total * y + 0.3 * 0.5 / total**0.5 * raw
    torch.testing.assert_close(network(y, sigma), expected)
    torch.testing.assert_close(network(y, 0.3), expected)


def test_levels_and_images_do_not_mix_within_a_batch():
    network, y = awake(UNet()), torch.randn(3, 1, 8, 8)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    whole = network(y, sigma)
    for i in range(3):
        torch.testing.assert_close(network(y[i : i + 1], sigma[i : i + 1]), whole[i : i + 1])
    assert not torch.allclose(network(y, 0.1)[1], whole[1])


@pytest.mark.parametrize(
    ("image_size", "channels", "multipliers", "blocks"),
    [(16, 3, (1, 2, 2), 2), ((12, 8), 1, (1, 3, 4), 1), (7, 2, (1,), 1), (32, 3, (1, 2), 1)],
)
def test_other_sizes_and_channels(image_size, channels, multipliers, blocks):
    network = awake(UNet(image_size, channels, 8, multipliers, blocks))
    y = torch.randn(2, channels, *network.image_size, requires_grad=True)
    output = network(y, torch.tensor([0.2, 3.0]))
    assert output.shape == y.shape
    output.sum().backward()
    used = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not used, f"parameters without a gradient: {used}"


def test_every_pixel_sees_far_pixels_through_the_middle():
    network = awake(UNet(width=8))
    y = torch.randn(1, 1, 8, 8, requires_grad=True)
    network(y, 0.5)[0, 0, 0, 0].backward()
    assert y.grad[0, 0, 7, 7].abs() > 0


def test_classes_and_the_null_class():
    network = awake(UNet(width=8, num_classes=3))
    y = torch.randn(4, 1, 8, 8)
    labels = torch.tensor([0, 1, 2, 3])
    found = network(y, 0.5, labels)
    without = network(y, 0.5)
    torch.testing.assert_close(found[3], without[3])
    for i in range(3):
        assert not torch.allclose(found[i], without[i])
    drop = torch.tensor([True, False, True, False])
    dropped = network(y, 0.5, labels, drop=drop)
    torch.testing.assert_close(dropped[drop], without[drop])
    torch.testing.assert_close(dropped[~drop], found[~drop])


def test_initial_weights_come_from_the_generator_alone():
    first, second = UNet(), UNet()
    for network in (first, second):
        network.reset_parameters(torch.Generator().manual_seed(5))
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    second.reset_parameters(torch.Generator().manual_seed(6))
    assert not torch.equal(first.inner.stem.weight, second.inner.stem.weight)
    with torch.device("meta"):
        built = UNet()
    built = built.to_empty(device="cpu")
    built.reset_parameters(torch.Generator().manual_seed(5))
    y = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(built(y, 0.5), first(y, 0.5), rtol=0, atol=0)


def test_learns_to_denoise():
    """A few steps on one constant image beat the preconditioning alone by far."""
    generator = torch.Generator().manual_seed(0)
    network = UNet(width=8)
    network.reset_parameters(generator)
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).expand(16, 1, 8, 8)
    loss = edm.Loss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for step in range(40):
        terms = loss(network, Batch(image, None, Draws(0, torch.arange(16), step)))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append(terms.total.item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNet(image_size=9), "image_size 9x9 is not divisible by 2"),
        (lambda: UNet(multipliers=()), "0 levels"),
        (lambda: UNet(width=0), "width is 0"),
        (lambda: UNet(sigma_data=0), "sigma_data is 0"),
        (lambda: UNet()(torch.zeros(2, 1, 9, 9), 1.0), r"takes \(B, 1, 8, 8\)"),
        (lambda: UNet()(torch.zeros(2, 1, 8, 8), 1.0, torch.zeros(2).long()), "without classes"),
        (lambda: UNet()(torch.zeros(2, 1, 8, 8), torch.ones(3)), "batch of 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
