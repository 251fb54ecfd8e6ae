"""Parameters are exact, operations are those that torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stages.methods import costs
from stages.methods.torchvision_shim import prepare_torchvision
from stages.nets.encoders import EmbeddedCNN
from stages.nets.sit import SiT
from stages.nets.unet import UNet
from stages.nets.vit import EmbeddedViT
from stages.settings.networks import num_parameters

XL = {"image_size": [32, 32], "channels": 4, "width": 1152, "patch_size": 2, "depth": 28}
XL |= {"num_heads": 16, "num_classes": 1000}
SMALL = {"image_size": [8, 8], "channels": 3, "width": 32, "patch_size": 2, "depth": 3}
SMALL |= {"num_heads": 2, "num_classes": 5}
TAUGHT = {"teacher_dim": 24, "projector_width": 48, "alignment_depth": 2}


@pytest.mark.parametrize(
    "config",
    [
        XL,
        SMALL,
        SMALL | TAUGHT,
        SMALL | TAUGHT | {"class_token_dim": 24},
        SMALL | TAUGHT | {"class_token_dim": 24, "mix_layers": 2},
    ],
)
def test_parameters_of_a_network_are_exact(config):
    assert costs.sit(config)[0] == num_parameters("sit", config)


def counted(call):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def test_operations_of_a_network_are_those_that_torch_counts():
    with torch.device("meta"):
        network = SiT(**XL)
        images, t, labels = torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1).long()
        found = counted(lambda: network(images, t, labels))
    assert costs.sit(XL)[1] == pytest.approx(found, rel=0.01)
    assert costs.sit(XL)[1] == pytest.approx(2 * 118.6e9, rel=0.01)  # Peebles & Xie 2023, table 1


@pytest.mark.parametrize(
    ("widths", "layers", "size"), [((128, 256, 512, 512), 2, 256), ((8, 16), 1, 16), ((8,), 3, 8)]
)
def test_operations_of_an_autoencoder_are_those_that_torch_counts(widths, layers, size):
    prepare_torchvision()
    from diffusers import AutoencoderKL

    levels = len(widths)
    with torch.device("meta"):
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=widths,
            layers_per_block=layers,
            norm_num_groups=4,
        )
        images = torch.zeros(1, 3, size, size)
        latents = torch.zeros(1, 4, size >> levels - 1, size >> levels - 1)
        found = counted(lambda: network.encode(images)), counted(lambda: network.decode(latents))
    ours = costs.autoencoder(widths, layers, 3, 4, size)
    assert ours == pytest.approx(found, rel=0.01)


def test_operations_of_dinov2_are_those_that_torch_counts():
    prepare_torchvision()
    import timm

    with torch.device("meta"):
        network = timm.create_model("vit_base_patch14_dinov2", num_classes=0, img_size=224)
        found = counted(lambda: network.forward_features(torch.zeros(1, 3, 224, 224)))
    assert costs.dinov2("dinov2-base") == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("stem", [0, 1, 3])
def test_operations_of_the_embedded_teacher_are_those_that_torch_counts(stem):
    with torch.device("meta"):
        network = EmbeddedViT((32, 32), 3, 4, 48, 2, 4, stem=stem)
        found = counted(lambda: network(torch.zeros(1, 3, 32, 32)))
    ours = costs.convolutional_vit(48, 2, 32, 3, 4, stem)
    assert ours == pytest.approx(found, rel=0.02)  # the projection of its output is left out


@pytest.mark.parametrize("side", [8, 9, 32])
def test_operations_of_the_embedded_extractor_are_those_that_torch_counts(side):
    with torch.device("meta"):
        network = EmbeddedCNN(3, 10).eval()
        found = counted(lambda: network(torch.zeros(1, 3, side, side)))
    assert costs.classifier(3, side) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize(
    "config",
    [
        {"image_size": [8, 8], "channels": 1, "width": 32, "multipliers": [1, 2], "blocks": 1},
        {"image_size": [32, 32], "channels": 3, "width": 16, "multipliers": [1, 2, 2], "blocks": 2},
    ],
)
def test_operations_of_the_unet_are_those_that_torch_counts(config):
    with torch.device("meta"):
        network = UNet(**config, num_classes=10)
        images = torch.zeros(1, config["channels"], *config["image_size"])
        found = counted(lambda: network(images, torch.ones(1), torch.zeros(1).long()))
    assert costs.unet(config) == pytest.approx(found, rel=0.02)
