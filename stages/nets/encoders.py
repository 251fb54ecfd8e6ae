"""Encoders of images to features: the small convolutional network for scores without downloads."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EmbeddedCNN", "EmbeddedFeatures"]

HIDDEN = 64
GRID = 2  # the last map is averaged to 2x2 places before the hidden layer
STRIDES = (1, 2, 2)


class EmbeddedFeatures(NamedTuple):
    """What one pass gives.

    features: (B, 64), the hidden layer before its activation; spatial: (B, 64, ceil(H/2),
    ceil(W/2)), the second convolution before its activation; logits: (B, num_classes).
    """

    features: Tensor
    spatial: Tensor
    logits: Tensor


class EmbeddedCNN(nn.Module):
    """Three 3x3 convolutions (32, 64, 64) with batch norm and SiLU, 64 hidden units, a classifier.

    images: (B, C, H, W) in [-1, 1], of any size from 4x4. The first convolution keeps the
    resolution, the others halve it. Features are read before their SiLU: a rectified feature piles
    up at zero, and the Fréchet distance compares Gaussians.
    """

    def __init__(self, in_channels: int, num_classes: int, widths: tuple[int, ...] = (32, 64, 64)):
        super().__init__()
        if in_channels < 1 or num_classes < 2 or len(widths) != len(STRIDES):
            raise ValueError(
                f"in_channels={in_channels}, num_classes={num_classes}, widths={widths}: give at "
                f"least 1 channel, 2 classes and {len(STRIDES)} widths"
            )
        self.in_channels, self.num_classes, self.widths = in_channels, num_classes, tuple(widths)
        channels = zip((in_channels, *widths[:-1]), widths, STRIDES, strict=True)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=stride, padding=1, bias=False) for a, b, stride in channels
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.hidden = nn.Linear(widths[-1] * GRID**2, HIDDEN)
        self.classifier = nn.Linear(HIDDEN, num_classes)

    def forward(self, images: Tensor) -> EmbeddedFeatures:
        maps = [images]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            inputs = maps[-1] if len(maps) == 1 else F.silu(maps[-1])
            maps.append(norm(conv(inputs)))
        features = self.hidden(F.adaptive_avg_pool2d(F.silu(maps[-1]), GRID).flatten(1))
        return EmbeddedFeatures(features, maps[2], self.classifier(F.silu(features)))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew from the generator: uniform within 1 / sqrt(fan-in)."""
        for layer in (*self.convs, self.hidden, self.classifier):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        for norm in self.norms:
            norm.reset_running_stats()
            norm.weight.fill_(1)
            norm.bias.zero_()
