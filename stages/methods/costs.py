"""What networks cost, by arithmetic alone: parameters, and operations of one image.

Operations are twice the multiply-adds of products and convolutions; what is linear in the number of
values (norms, activations) is left out. Nothing is imported, so that a plan costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# DINOv2 at 224 pixels: width and depth; patches of 14 pixels and a class token.
DINOV2 = {"dinov2-small": (384, 12), "dinov2-base": (768, 12), "dinov2-large": (1024, 24)}
DINOV2_TOKENS = 257

CLASSIFIER_WIDTH = 64  # features of the embedded extractor
INCEPTION_FLOPS = 11.4e9  # at 299 pixels (Szegedy et al. 2016: 5.7e9 multiply-adds)


def blocks(depth: int, width: int, tokens: int) -> float:
    """Operations of transformer blocks whose inner layer is four times as wide."""
    return depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


def sit(config: Mapping[str, Any]) -> tuple[int, float]:
    """Trained parameters and operations of `stages.nets.sit.SiT` by its keyword arguments.

    Masking, which leaves patches out, is not counted.
    """
    width, patch = config["width"], config["patch_size"] ** 2 * config["channels"]
    token, teacher = config.get("class_token_dim", 0), config.get("teacher_dim", 0)
    depth = config["depth"] + config.get("mix_layers", 0)
    height, wide = (side // config["patch_size"] for side in config["image_size"])
    patches = height * wide
    linear = [(patch, width, patches), (256, width, 1), (width, width, 1)]
    linear += [(width, 2 * width, 1), (width, patch, patches)]
    linear += [(width, 6 * width, 1)] * depth
    parameters = depth * (12 * width**2 + 9 * width) + (config["num_classes"] + 1) * width
    if token:
        linear += [(token, width, 1), (width, token, 1)]
        parameters += 2 * width
    if teacher:
        inner = config["projector_width"]
        linear += [(width, inner, patches), (inner, inner, patches), (inner, teacher, patches)]
    parameters += sum(given * made + made for given, made, _ in linear)
    products = sum(2.0 * given * made * times for given, made, times in linear)
    return parameters, blocks(depth, width, patches + bool(token)) + products


def vit(width: int, depth: int, patches: int, patch_values: int) -> float:
    """Operations of a vision transformer with a class token."""
    return blocks(depth, width, patches + 1) + 2.0 * patches * patch_values * width


def dinov2(kind: str) -> float:
    """Operations of DINOv2, of one image at 224 pixels."""
    width, depth = DINOV2[kind]
    return vit(width, depth, DINOV2_TOKENS - 1, 3 * 14 * 14)


def convolutional_vit(
    width: int, depth: int, side: int, channels: int, patch: int, stem: int
) -> float:
    """Operations of `stages.nets.vit.EmbeddedViT` on images of `side` pixels a side."""
    patches, half = (side // patch) ** 2, max(1, width // 2)
    if not stem:
        return vit(width, depth, patches, channels * patch**2)
    convolved = _conv(channels, half, side) + (stem - 1) * _conv(half, half, side)
    return vit(width, depth, patches, half * patch**2) + convolved


def classifier(channels: int, side: int) -> float:
    """Operations of `stages.nets.encoders.EmbeddedCNN`, but for the classes."""
    half = -(-side // 2)
    convolved = _conv(channels, 32, side) + _conv(32, 64, half) + _conv(64, 64, -(-half // 2))
    return convolved + 2.0 * 256 * CLASSIFIER_WIDTH


def unet(config: Mapping[str, Any]) -> float:
    """Operations of `stages.nets.unet.UNet` by its keyword arguments.

    What is made of the noise level and the class once an image is left out.
    """
    channels, width = config["channels"], config["width"]
    height, wide = config["image_size"]
    widths = [width * multiplier for multiplier in config["multipliers"]]
    pixels = [(height >> level) * (wide >> level) for level in range(len(widths))]
    found, current = 36.0 * channels * width * pixels[0], width  # the first layer and the last
    for level, size in enumerate(widths):
        found += 18.0 * current**2 * pixels[level] if level else 0.0
        found += _level(current, size, config["blocks"], pixels[level])
        current = size
    found += _residual(current, current, pixels[-1])
    for level, size in reversed([*enumerate(widths)]):
        for _ in range(config["blocks"]):
            found += _residual(current + size, size, pixels[level])
            current = size
    return found


def autoencoder(
    widths: Sequence[int], layers: int, channels: int, latent_channels: int, size: int
) -> tuple[float, float]:
    """Operations of encoding and of decoding an image of `size` pixels a side by diffusers'
    AutoencoderKL, whose levels have these widths and so many residual layers each."""
    sides = [size >> level for level in range(len(widths))]
    inner, smallest = widths[-1], sides[-1] ** 2
    middle = 2 * _residual(inner, inner, smallest)
    middle += 8.0 * smallest * inner**2 + 4.0 * smallest**2 * inner
    latent = 2 * latent_channels
    encoded = decoded = middle
    encoded += _conv(channels, widths[0], sides[0]) + _conv(inner, latent, sides[-1])
    encoded += 2.0 * latent**2 * smallest
    decoded += _conv(latent_channels, inner, sides[-1]) + _conv(widths[0], channels, sides[0])
    decoded += 2.0 * latent_channels**2 * smallest
    before = widths[0]
    for level, width in enumerate(widths):
        encoded += _level(before, width, layers, sides[level] ** 2)
        if level + 1 < len(widths):
            encoded += _conv(width, width, sides[level + 1])
        before = width
    before = inner
    for level, width in reversed([*enumerate(widths)]):
        decoded += _level(before, width, layers + 1, sides[level] ** 2)
        if level:
            decoded += _conv(width, width, sides[level - 1])
        before = width
    return encoded, decoded


def _level(given: int, made: int, layers: int, pixels: int) -> float:
    return _residual(given, made, pixels) + (layers - 1) * _residual(made, made, pixels)


def _residual(given: int, made: int, pixels: int) -> float:
    shortcut = 2.0 * given * made * pixels if given != made else 0.0
    return 18.0 * (given * made + made**2) * pixels + shortcut


def _conv(given: int, made: int, side: int) -> float:
    """Of a 3 x 3 convolution that gives side x side pixels."""
    return 18.0 * given * made * side**2
