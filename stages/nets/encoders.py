"""Encoders of images to features: the small convolutional network for scores without downloads."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["EmbeddedCNN", "EmbeddedFeatures"]


class EmbeddedFeatures(NamedTuple):
    """pooled: (B, 64) before the last activation; spatial: (B, 64, h, w), the same before pooling;
    logits: (B, num_classes)."""

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class EmbeddedCNN(nn.Module):
    """Three 3x3 convolutions (32, 64, 64), batch norm and SiLU, and a linear classifier.

    images: (B, C, H, W) in [-1, 1], at least 4x4. The first stage keeps the resolution and each
    later one halves it. Features are read before the last SiLU, where they are closer to the
    Gaussians that a Fréchet distance compares; their mean over space is ``pooled``. The classifier
    reads the mean of the activated map.
    """

    def __init__(self, in_channels: int, num_classes: int, widths: tuple[int, ...] = (32, 64, 64)):
        super().__init__()
        self.in_channels, self.num_classes, self.widths = in_channels, num_classes, tuple(widths)
        channels = (in_channels, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1, bias=False)
            for i, (a, b) in enumerate(zip(channels, widths, strict=False))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> EmbeddedFeatures:
        x = images
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if i == 0 else nn.functional.silu(x)))
        logits = self.classifier(nn.functional.silu(x).mean((2, 3)))
        return EmbeddedFeatures(x.mean((2, 3)), x, logits)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew from the generator: normal with variance 2 / fan-in."""
        for conv in self.convs:
            fan_in = conv.in_channels * 9
            conv.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
        for norm in self.norms:
            norm.reset_running_stats()
            norm.weight.fill_(1)
            norm.bias.zero_()
        self.classifier.weight.normal_(
            0, 1 / math.sqrt(self.classifier.in_features), generator=generator
        )
        self.classifier.bias.zero_()
