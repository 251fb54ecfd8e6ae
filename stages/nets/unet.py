"""A small convolutional U-Net with EDM preconditioning (Karras et al. 2022, table 1; path.py).

At digits' size (8x8, one channel) the defaults give 385 thousand parameters and a middle layer,
`inner.mid`, of 64 channels. The preconditioned network is a denoiser in EDM coordinates:
D(y, sigma) predicts x0 from y = x0 + sigma eps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.methods.path import EDMDenoiser


class UNet(nn.Module):
    """Denoiser D(y, sigma) = c_skip y + c_out F(c_in y, c_noise) around the conv U-Net `inner` = F.

    image_size: side, or (height, width), in pixels, divisible by 2 ** (len(multipliers) - 1).
    width: channels of the first level; each level has width * multiplier channels and half the side
    of the one before.
    blocks: residual blocks a level, on the way down and again on the way up. num_classes: labels
    run from 0 to num_classes - 1 and num_classes itself is the null class; 0 is an unconditional
    network. sigma_data: standard deviation of the data in [-1, 1].
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 8,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        num_classes: int = 0,
        sigma_data: float = 0.5,
    ):
        super().__init__()
        factor = 2 ** (len(multipliers) - 1)
        height, side = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not multipliers or height % factor or side % factor:
            raise ValueError(
                f"image_size {height}x{side} is not divisible by {factor}, the reduction of "
                f"{len(multipliers)} levels; give fewer multipliers or resize the images"
            )
        for name, count in (("width", width), ("blocks", blocks), ("channels", channels)):
            if count < 1:
                raise ValueError(f"{name} is {count}; it must be at least 1")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data is {sigma_data}; it must be above 0")
        self.image_size, self.channels = (height, side), channels
        self.sigma_data, self.num_classes = sigma_data, num_classes
        self.inner = Backbone(channels, width, tuple(multipliers), blocks, num_classes)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """All weights anew: uniform in +-1 / sqrt(fan-in), each block's last layer and the head 0.

        Drawn from the generator, or the global one. Call it after `to_empty` when the network was
        built on the meta device.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
        blocks = [module for module in self.modules() if isinstance(module, ResidualBlock)]
        for last in (*(block.conv2 for block in blocks), self.inner.head):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        y: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        *,
        drop: Tensor | None = None,
    ) -> Tensor:
        """Clean prediction (B, C, H, W) for y (B, C, H, W) at sigma (B,) or one level for all, > 0.

        labels: (B,) long, or None for the null class. drop: (B,) bool, samples whose label is
        replaced by the null class. Raises ValueError for shapes that do not fit and for labels
        given to an unconditional network.
        """
        size = (self.channels, *self.image_size)
        if y.shape[1:] != size:
            raise ValueError(
                f"y has shape {tuple(y.shape)}; this network takes (B, {', '.join(map(str, size))})"
            )
        if labels is not None and not self.num_classes:
            raise ValueError("labels given to a network without classes; build it with num_classes")
        condition = {"labels": labels, "drop": drop}
        return EDMDenoiser(self.inner, self.sigma_data, condition)(y, sigma)


class Backbone(nn.Module):
    """F(x, c_noise, labels): residual blocks down, `mid`, and up; each block down feeds one up."""

    def __init__(
        self, channels: int, width: int, multipliers: tuple[int, ...], blocks: int, num_classes: int
    ):
        super().__init__()
        condition = 3 * width
        widths = [width * multiplier for multiplier in multipliers]
        self.num_classes = num_classes
        self.noise_embedding = NoiseEmbedding(width, condition)
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes + 1, condition)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current = width
        for level, size in enumerate(widths):
            stage = nn.ModuleList()
            if level:
                stage.append(Downsample(current))
            for _ in range(blocks):
                stage.append(ResidualBlock(current, size, condition))
                current = size
            self.down.append(stage)
        self.mid = ResidualBlock(current, current, condition)
        for level, size in reversed(list(enumerate(widths))):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(ResidualBlock(current + size, size, condition))
                current = size
            if level:
                stage.append(Upsample())
            self.up.append(stage)
        self.norm = _group_norm(current)
        self.head = nn.Conv2d(current, channels, 3, padding=1)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, drop: Tensor | None = None
    ) -> Tensor:
        """Raw prediction, as x (B, C, H, W); c_noise (B,); labels and drop as in `UNet`."""
        condition = self.noise_embedding(c_noise)
        if self.num_classes:
            if labels is None:
                labels = torch.full((len(x),), self.num_classes, device=x.device)
            if drop is not None:
                labels = labels.masked_fill(drop, self.num_classes)
            condition = condition + self.class_embedding(labels)
        condition = F.silu(condition)
        x, skips = self.stem(x), []
        for stage in self.down:
            for layer in stage:
                x = layer(x, condition)
                if isinstance(layer, ResidualBlock):
                    skips.append(x)
        x = self.mid(x, condition)
        for stage in self.up:
            for layer in stage:
                if isinstance(layer, ResidualBlock):
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, condition)
        return self.head(F.silu(self.norm(x)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm and SiLU; the condition scales and shifts the second."""

    def __init__(self, channels_in: int, channels_out: int, condition: int):
        super().__init__()
        self.norm1 = _group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * channels_out)
        self.norm2 = _group_norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1)
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, channels_in, h, w), condition (B, condition) -> (B, channels_out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(F.silu(hidden))


class Downsample(nn.Module):
    """Halves both sides by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, h, w) -> (B, C, h / 2, w / 2); the condition is not used."""
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles both sides by repetition."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, h, w) -> (B, C, 2 h, 2 w); the condition is not used."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class NoiseEmbedding(nn.Module):
    """Sines and cosines of c_noise at fixed frequencies, then a two-layer MLP.

    Frequencies run from 1/8 to 8 cycles per unit of c_noise = ln(sigma) / 4 (ours): over the levels
    of table 1, .002 to 80, c_noise spans 2.6 units.
    """

    def __init__(self, width: int, condition: int):
        super().__init__()
        self.num_frequencies = width
        self.hidden = nn.Linear(2 * width, condition)
        self.output = nn.Linear(condition, condition)

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise (B,) -> (B, condition)."""
        exponents = torch.linspace(-3, 3, self.num_frequencies, device=c_noise.device)
        angles = 2 * math.pi * c_noise[:, None].float() * 2**exponents
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.hidden.weight.dtype)
        return self.output(F.silu(self.hidden(waves)))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)
