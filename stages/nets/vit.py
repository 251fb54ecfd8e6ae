"""The embedded teacher: a small vision transformer of timm's with SimCLR's projection head."""

from __future__ import annotations

from torch import Tensor, nn

from stages.methods.torchvision_shim import prepare_torchvision


class ContrastiveViT(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> SimCLR embeddings (B, width), by the class token.

    image_size: (height, width) in pixels, divisible by patch_size. width: divisible by num_heads.
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
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder.forward_features(images)[:, 0])

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 1 + N, width) after the final norm: the class token, then patches in raster order."""
        return self.encoder.forward_features(images)
