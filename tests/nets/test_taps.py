"""Taps: the right layer's output, the right pooling, and no trace left behind."""

import pytest
import torch

from stages.methods.path import VelocityDenoiser
from stages.nets.sit import SiT
from stages.nets.taps import Tap, pool, view_features
from stages.nets.unet import UNet


def small_sit(**options):
    return SiT(8, 1, 2, width=16, depth=2, num_heads=2, num_classes=0, **options)


def test_taps_a_unet_by_name():
    network, y = UNet(width=8), torch.randn(3, 1, 8, 8)
    seen = []
    handle = network.inner.mid.register_forward_hook(lambda *args: seen.append(args[2]))
    with Tap(network, "inner.mid", "spatial") as tap:
        network(y, 0.5)
    torch.testing.assert_close(tap.features, seen[0].mean((2, 3)))
    handle.remove()
    assert not network.inner.mid._forward_hooks, "the tap must leave no hook behind"


def test_taps_a_transformer_by_name():
    network, x, t = small_sit(class_token_dim=5), torch.randn(3, 1, 8, 8), torch.rand(3)
    seen = []
    network.blocks[1].register_forward_hook(lambda *args: seen.append(args[2]))
    token = torch.randn(3, 5)
    for pooling, expected in (
        ("tokens", lambda h: h.mean(1)),
        ("class_token", lambda h: h[:, 0]),
    ):
        with Tap(network, "blocks.1", pooling) as tap:
            network(x, t, class_token=token)
        torch.testing.assert_close(tap.features, expected(seen[-1]))


def test_closes_after_an_error_inside():
    network = UNet(width=8)
    with pytest.raises(ValueError, match="takes"), Tap(network, "inner.mid", "spatial"):
        network(torch.zeros(2, 3, 8, 8), 0.5)
    assert not network.inner.mid._forward_hooks


def test_a_layer_that_does_not_exist_lists_those_that_do():
    with pytest.raises(
        ValueError, match=r"no layer is named 'inner\.middle'; did you mean"
    ) as error:
        Tap(UNet(), "inner.middle", "spatial")
    message = str(error.value)
    names = [name for name, _ in UNet().named_modules() if name]
    assert all(name in message for name in names)
    assert {"inner.mid", "inner.down.1.0"} <= set(names)
    with pytest.raises(ValueError, match=r"this SiT has:.*blocks\.0, .*blocks\.1"):
        Tap(small_sit(), "blocks.2", "tokens")


def test_poolings_refuse_other_shapes():
    with pytest.raises(ValueError, match="choose among auto, spatial, tokens, class_token"):
        Tap(UNet(), "inner.mid", "mean")
    with pytest.raises(ValueError, match=r"takes a layer's output \(B, N, d\), this one gives"):
        pool(torch.zeros(2, 3, 4, 4), "tokens")
    with pytest.raises(ValueError, match="gives tuple"):
        pool((torch.zeros(2, 3, 4, 4),), "spatial")


def test_a_layer_that_did_not_run_says_so():
    network = UNet(width=8)
    with (
        Tap(network, "inner.mid", "spatial") as tap,
        pytest.raises(ValueError, match="has not run"),
    ):
        _ = tap.features


def test_view_features_in_any_batches_and_the_networks_mode():
    network = UNet(width=8).train()
    network.inner.head.eval()
    views = torch.randn(5, 3, 1, 8, 8)
    whole = view_features(network, network, views, 0.3, "inner.mid", "spatial")
    assert whole.shape == (5, 3, 16)
    assert network.training
    assert not network.inner.head.training
    parts = view_features(network, network, views, 0.3, "inner.mid", "spatial", batch_size=4)
    torch.testing.assert_close(parts, whole)
    with Tap(network, "inner.mid", "spatial") as tap:
        network(views[2], 0.3)
    torch.testing.assert_close(whole[2], tap.features.detach())


def test_view_features_of_a_velocity_network_through_its_adapter():
    network = small_sit()
    views = torch.randn(4, 2, 1, 8, 8)
    found = view_features(network, VelocityDenoiser(network), views, 0.25, "blocks.0", "tokens")
    with Tap(network, "blocks.0", "tokens") as tap:
        network(views.flatten(0, 1) / 1.25, torch.full((8,), 0.2))
    torch.testing.assert_close(found.flatten(0, 1), tap.features.detach())
