"""The ICR's features of networks from elsewhere: layers by name, and classes where they ask."""

import pytest
import torch

from stages.nets.taps import Tap, view_features
from stages.networks import load
from stages.papers.icr import measure
from stages.settings.scans import ViewOptions
from tests.networks.test_recipes import GIVEN, given

# The layer measured by default, and another by its name with its width.
LAYERS = {
    "sit": ("blocks.0", "blocks.1", 48),
    "cosine": ("call.blocks.0", "call.blocks.1.mlp_out", 48),
    "repa": ("blocks.0", "blocks.1.attention_out", 24),
    "dit": ("call.blocks.0", "call.final_head", 16),
    "jit": ("net.blocks.0", "net.blocks.2.attn", 32),
    "ddpm": ("call.model.mid_block", "call.model.conv_out", 3),
    "ddpm-v": ("call.model.mid_block", "call.model.conv_in", 8),
    "diffusers-dit": ("call.model.transformer_blocks.0", "call.model.transformer_blocks.1", 24),
    "edm": ("model.dec.4x4_in0", "model.enc.8x8_block0.conv1", 16),
    "edm2": ("unet.dec.4x4_in0", "unet.enc.8x8_conv", 16),
    "python": (None, "called.network", 3),
}


@pytest.mark.parametrize("which", LAYERS)
def test_layers_by_name(tmp_path, monkeypatch, which):
    words = dict(word.split("=", 1) for word in given(tmp_path, which, monkeypatch))
    path = words.pop("networks.path")
    said = {k.partition(".")[2]: v for k, v in words.items() if k.startswith("networks.")}
    said = {
        "path" if k == "path_type" else k: int(v) if v.isdigit() else v for k, v in said.items()
    }
    network = load(path, said.pop("format", None), **said)
    middle, other, width = LAYERS[which]
    if middle:
        assert measure.middle_layer(network.model.kind, network.module) == middle
    options = ViewOptions(layer=other, num_views=2, batch_size=3)
    subject = measure.subject_of(network.model, network.module, options)
    assert subject.asks_classes == (which in ("ddpm-v", "edm", "edm2"))
    images, labels = torch.randn(4, *network.shape), torch.tensor([0, 1, 2, 0])
    viewer = measure.Viewer(images, options, labels)
    found = measure.features(subject, viewer, 0, 0.5)
    assert found.shape == (4, 2, width)
    views = torch.cat(list(viewer(0, 0.5))).flatten(0, 1)
    told = labels.repeat_interleave(2) if subject.asks_classes else None
    with Tap(network.module, other, "auto") as tap:
        network.denoiser(told)(views, 0.5)
    torch.testing.assert_close(found.flatten(0, 1), tap.features, rtol=1e-4, atol=1e-5)
    assert found.std() > 0


def test_classes_are_those_of_the_images_of_every_batch():
    asked = []

    def denoiser(y, sigma, labels):
        asked.append(labels)
        return layer(y)

    layer = torch.nn.Conv2d(1, 2, 1)
    module = torch.nn.Sequential(layer)
    views, labels = torch.randn(3, 2, 1, 4, 4), torch.tensor([5, 6, 7])
    view_features(module, denoiser, views, 0.1, "0", "spatial", 4, labels)
    assert torch.cat(asked).tolist() == [5, 5, 6, 6, 7, 7]
    assert set(LAYERS) <= set(GIVEN)
