"""The embedded teacher: a small vision transformer of timm's, with a head for its training."""

from __future__ import annotations

import math

from torch import Tensor, nn

from stages.methods.torchvision_shim import prepare_torchvision


class EmbeddedViT(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> what it is trained on (B, outputs), by the class token.

    image_size: (height, width) in pixels, divisible by patch_size. width: divisible by num_heads.
    outputs: SimCLR's embeddings, as wide as the tokens, where None; else logits of so many classes.
    stem: 3x3 convolutions of half the width before the patches (Xiao et al. 2021), 0 for none.
    `tokens` gives the features that a student aligns with; the head serves training only.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        channels: int,
        patch_size: int = 2,
        width: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        outputs: int | None = None,
        stem: int = 0,
    ):
        super().__init__()
        prepare_torchvision()
        from timm.models.vision_transformer import VisionTransformer

        height, side = image_size
        if height % patch_size or side % patch_size:
            raise ValueError(
                f"image_size {height}x{side} is not divisible by the teacher's patch_size "
                f"{patch_size}; choose one that divides both sides"
            )
        self.encoder = VisionTransformer(
            img_size=(height, side),
            patch_size=patch_size,
            in_chans=channels,
            embed_dim=width,
            depth=depth,
            num_heads=num_heads,
            num_classes=0,
        )
        if stem:
            self.encoder.patch_embed = ConvolutionalPatches(channels, patch_size, width, stem)
        outputs = width if outputs is None else outputs
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder.forward_features(images)[:, 0])

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 1 + N, width) after the final norm: the class token, then patches in raster order."""
        return self.encoder.forward_features(images)


class ConvolutionalPatches(nn.Module):
    """Images (B, C, H, W) -> tokens (B, N, width) in raster order: 3x3 convolutions, then patches
    (Xiao et al. 2021), which learns from few steps what patches alone learn from many. Groups are
    normalised (ours, for batches: no state, and a sample is what it is alone), whatever the
    contrast of an image."""

    def __init__(self, channels: int, patch_size: int, width: int, depth: int):
        super().__init__()
        half = max(1, width // 2)
        layers: list[nn.Module] = []
        for number in range(depth):
            before = half if number else channels
            layers += [
                nn.Conv2d(before, half, 3, padding=1, bias=False),
                nn.GroupNorm(math.gcd(4, half), half),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(half, width, patch_size, patch_size))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)
