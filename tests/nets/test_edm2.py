"""EDM2's U-Net against the outputs of the official code, and what its layers promise."""

import pytest
import torch

from stages.nets.edm2 import EDM2, Layer, joined, mixed, unit
from tests.nets.published import CLOSE, apart, arguments, tensors


def published(which, file="weights"):
    network = EDM2(**arguments("edm2/init_kwargs.json")[which]["init_kwargs"])
    stored = tensors(f"edm2/{file}.safetensors")
    kept = {k: v.float() for k, v in stored.items() if which == "label3" or "emb_label" not in k}
    network.load_state_dict(kept)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("which", ["label0", "label3"])
@pytest.mark.parametrize(("file", "key"), [("weights", "D"), ("weights_float16", "D_float16_cast")])
def test_denoisers_are_those_of_the_official_code(which, file, key):
    network, io = published(which, file), tensors("edm2/io.safetensors")
    labels = io["labels"] if which == "label3" else None
    for x, sigma, expected in zip(io["x"], io["sigma"], io[f"{key}_{which}"], strict=True):
        assert apart(network(x, sigma, labels), expected) < CLOSE
    if which == "label3" and file == "weights":
        for x, sigma, expected in zip(io["x"], io["sigma"], io["D_label3_none"], strict=True):
            assert apart(network(x, sigma), expected) < CLOSE


def test_float16_files_are_near_the_published_form():
    """There emb_gain and out_gain are rounded once more: 1.2e-4."""
    network, io = published("label3", "weights_float16"), tensors("edm2/io.safetensors")
    for x, sigma, expected in zip(io["x"], io["sigma"], io["D_float16_label3"], strict=True):
        assert apart(network(x, sigma, io["labels"]), expected) < 3e-4


def test_log_variance():
    network, io = published("label3"), tensors("edm2/io.safetensors")
    given = network.log_variance(io["sigma"])
    assert apart(given.flatten(), io["logvar"][:, 0].flatten()) < CLOSE


@pytest.mark.parametrize("flavour", ["enc", "dec"])
def test_every_layer_of_the_unet(flavour):
    network, io = published("label3"), tensors("edm2/io.safetensors")
    seen = {}
    layers = getattr(network.unet, flavour)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    network(io["x"][2], io["sigma"][2], io["labels"])
    for name in layers:
        assert apart(seen[name], io[f"block_{flavour}.{name}"]) < CLOSE


def test_magnitudes_are_kept():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, n, 16, 16, generator=generator) for n in (32, 64))
    assert unit(7 * a, [1]).square().mean().item() == pytest.approx(1, abs=1e-3)
    assert mixed(a, b[:, :32], 0.3).square().mean().item() == pytest.approx(1, abs=0.02)
    # Both halves of a concatenation weigh as much as their share, whatever their widths.
    whole = joined(a, b, 0.5)
    shares = [
        part.square().sum().item() / whole.square().sum().item()
        for part in whole.split([32, 64], 1)
    ]
    assert shares == pytest.approx([0.5, 0.5], abs=0.02)
    layer = Layer(32, 32, 3).eval()
    assert layer(a).square().mean().item() == pytest.approx(1, abs=0.15)


def test_training_normalises_the_stored_weights():
    torch.manual_seed(0)
    network = EDM2(8, 1, 3, model_channels=8, channel_mult=(1, 2), num_blocks=1)
    layers = [module for module in network.modules() if isinstance(module, Layer)]
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0]), torch.tensor([0, 2])
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(50)
    before, likewise = network.eval()(*inputs, uncertainty=True)
    found, uncertainty = network.train()(*inputs, uncertainty=True)
    for layer in layers:
        squares = layer.weight.square().flatten(1).mean(1)
        assert squares.tolist() == pytest.approx([1] * len(squares), abs=1e-3)
    torch.testing.assert_close(found, before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(uncertainty, likewise, rtol=1e-3, atol=1e-5)
