"""Blocks computed again in the backward pass give the same gradients from less memory."""

import copy

import pytest
import torch

from stages.nets.blocks import blocks, placed, recompute
from stages.nets.compiled import compile_network
from stages.nets.edm.preconditioning import dhariwal, song
from stages.nets.edm2 import EDM2
from stages.nets.jit import JiTDenoiser
from stages.nets.sit import SiT
from stages.nets.unet import UNet
from tests.pretend_gpu import DEVICE, running

U_NET = {"label_dim": 4, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
JIT = {"input_size": 8, "patch_size": 2, "in_channels": 1, "hidden_size": 16, "num_heads": 2}

NETWORKS = {  # with the number of their blocks
    "sit": (lambda: SiT(8, 1, 2, 16, 3, 2, num_classes=4, mix_layers=2), 5),
    "jit": (lambda: JiTDenoiser(**JIT, depth=5, num_classes=4, bottleneck_dim=8), 5),
    "unet": (lambda: UNet(8, 1, 8, num_classes=4), 5),
    "edm2": (lambda: EDM2(8, 1, **U_NET), 11),
    "dhariwal": (lambda: dhariwal(1, img_resolution=8, **U_NET, dropout=0.2), 11),
}
MAKERS = {name: make for name, (make, _) in NETWORKS.items()}
MAKERS["song"] = lambda: song(1, img_resolution=8, **U_NET, attn_resolutions=(4,), dropout=0.0)
every_network = pytest.mark.parametrize(("make", "count"), NETWORKS.values(), ids=NETWORKS)


def made(make):
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.train()


def inputs():
    generator = torch.Generator().manual_seed(1)
    x, level = (torch.rand(3, *shape, generator=generator) for shape in ((1, 8, 8), ()))
    return x, level, torch.arange(3) % 4


def passed(network):
    """The gradients of a pass, then the weights, and the bytes that it kept for them."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(saved):
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), saved)
        return saved

    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        output = network(*inputs())
    output.square().mean().backward()
    values = [p.grad for p in network.parameters() if p.grad is not None]
    return [*values, *network.state_dict().values()], sum(size for size, _ in kept.values())


@every_network
def test_gradients_are_the_same_from_less_memory(make, count):
    network = made(make)
    again = copy.deepcopy(network)
    assert len(blocks(network)) == count
    recompute(again)
    assert list(again.state_dict()) == list(network.state_dict())
    (found, less), (expected, more) = passed(again), passed(network)
    assert len(found) > len(network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert less < 0.6 * more


def test_a_copy_computes_its_own_blocks_again():
    network = made(MAKERS["sit"])
    recompute(network)
    again = copy.deepcopy(network)
    expected = network(*inputs())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(again(*inputs()), expected)
    assert not torch.equal(network(*inputs()), expected)


@pytest.mark.parametrize("kind", ["unet", "edm2", "song"])
def test_channels_lie_last_on_a_gpu_and_change_no_result(kind):
    def result(device):
        network, layouts = made(MAKERS[kind]).eval(), []
        network = placed(network, device)
        for block in blocks(network):
            if getattr(block, "heads", 0) or isinstance(block, torch.nn.GroupNorm):
                continue  # attention has its own layout
            block.register_forward_hook(
                lambda *of: layouts.append(of[2].is_contiguous(memory_format=torch.channels_last))
            )
        x, level, labels = inputs()
        output = network(x.to(device), level.to(device), labels.to(device))
        output.square().mean().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        return [value.cpu() for value in (output.detach(), *gradients)], layouts

    expected, _ = result("cpu")
    with running():
        found, layouts = result(DEVICE)
    assert all(layouts)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_it_goes_with_compiled_blocks():
    network = made(NETWORKS["sit"][0])
    again = copy.deepcopy(network)
    recompute(again)
    compile_network(again, "aot_eager")
    (found, less), (expected, more) = passed(again), passed(network)
    torch.compiler.reset()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert less < 0.6 * more
