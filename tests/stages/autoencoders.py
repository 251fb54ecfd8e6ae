"""Small random autoencoders as diffusers saves them."""

import torch

from stages.methods.torchvision_shim import prepare_torchvision


def save_autoencoder(folder, seed=0, levels=2, **config):
    """An AutoencoderKL of 3-channel images, sides divided by 2 ** (levels - 1); gives the folder.

    Its posterior is made narrow, as that of a trained one is.
    """
    prepare_torchvision()
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        **{"latent_channels": 4, "scaling_factor": 0.5, "shift_factor": 0.1} | config,
    )
    with torch.no_grad():
        channels = network.config.latent_channels
        network.quant_conv.bias[channels:] -= 4
        network.quant_conv.weight[:channels] *= 4
    network.save_pretrained(folder)
    return folder
