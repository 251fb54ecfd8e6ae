"""Networks compiled by blocks: once whatever the depth, and exactly what they were."""

import pytest
import torch

from stages.methods.path import DirectDenoiser
from stages.nets.blocks import recompute
from stages.nets.compiled import compile_network, repeated
from stages.nets.edm.preconditioning import dhariwal, song
from stages.nets.edm2 import EDM2
from stages.nets.jit import JiTDenoiser
from stages.nets.sit import SiT
from stages.nets.unet import UNet

JIT = {"input_size": 8, "patch_size": 2, "hidden_size": 16, "num_heads": 2, "num_classes": 4}


def sit(depth, **more):
    """Of 16 tokens and two mixing blocks, nothing left at zero."""
    torch.manual_seed(0)
    network = SiT(8, 1, 2, width=16, depth=depth, num_heads=2, num_classes=4, mix_layers=2, **more)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


class Counting:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh():
    yield
    torch.compiler.reset()


def inputs(count=2):
    generator = torch.Generator().manual_seed(1)
    x, t = (torch.rand(count, *shape, generator=generator) for shape in ((1, 8, 8), ()))
    return x, t, torch.arange(count) % 4


def used(network):
    """A training step over all tokens and one over some, and an evaluation: what each gave."""
    keep = torch.arange(12).expand(2, 12)
    given = []
    for more in ({}, {"keep": keep}):
        network.zero_grad()
        out = network.train()(*inputs(), **more)
        out.square().sum().backward()
        given += [out.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]
    with torch.no_grad():
        return [*given, network.eval()(*inputs())]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("depth", [2, 5])
def test_blocks_are_compiled_once_for_each_number_of_tokens_and_are_what_they_were(depth, again):
    network, backend = sit(depth), Counting()
    expected, names = used(network), list(network.state_dict())
    if again:
        recompute(network)
    assert len(compile_network(network, backend)) == depth + 2
    found = used(network)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # 16 tokens and 12 with gradients, 16 without.
    assert backend.graphs == 3
    used(network)
    assert backend.graphs == 3
    assert list(network.state_dict()) == names


def test_networks_of_one_form_share_what_was_compiled():
    backend = Counting()
    for network in (sit(2), sit(3)):
        compile_network(network, backend)
        with torch.no_grad():
            network.eval()(*inputs())
    assert backend.graphs == 1


@pytest.mark.parametrize("make", [song, dhariwal, EDM2])
def test_a_whole_network_is_compiled_once_for_all_levels(make):
    sizes = {"label_dim": 4, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
    torch.manual_seed(0)
    network = (make(8, 1, **sizes) if make is EDM2 else make(1, img_resolution=8, **sizes)).eval()
    y, backend = torch.randn(2, 1, 8, 8, dtype=torch.float64), Counting()
    labels = torch.tensor([1, 3])
    with torch.no_grad():
        expected = [network(y, level, labels) for level in (0.5, 2.0, 7.0)]
        assert compile_network(network, backend) == [network]
        denoiser = DirectDenoiser(network, {"labels": labels})
        found = [denoiser(y, level) for level in (0.5, 2.0, 7.0)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert backend.graphs == 1


def test_lists_of_equals_are_found_in_what_holds_them():
    assert len(repeated(JiTDenoiser(depth=4, in_context_start=1, **JIT))) == 4
    unet = UNet(8, 1, 8, (1, 2), 2)
    assert repeated(unet) == []
    assert compile_network(unet, Counting()) == [unet.inner]


def test_few_weights_in_blocks_leave_a_network_whole():
    assert repeated(sit(1, teacher_dim=8, alignment_depth=1, projector_width=4096)) == []


@pytest.mark.parametrize("name", ["unet", "jit"])
def test_denoisers_compute_the_same(name):
    torch.manual_seed(0)
    if name == "unet":
        network = UNet(8, 3, 8, (1, 2), 1, num_classes=4)
    else:
        network = JiTDenoiser(depth=2, in_context_start=1, **JIT)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        y, sigma, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 2.0]), torch.tensor([1, 3])
        expected, backend = network.eval()(y, sigma, labels), Counting()
        compile_network(network, backend)
        assert torch.equal(network(y, sigma, labels), expected)
    # JiT's second block sees the class's tokens, too.
    assert backend.graphs == {"unet": 1, "jit": 2}[name]
