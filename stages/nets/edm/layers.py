"""What both U-Nets of EDM are made of: resampling convolutions, residual blocks, features of noise.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix F,
after Song et al. 2021 (DDPM++, NCSN++) and Dhariwal and Nichol 2021 (ADM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Groups of four channels or more, 32 at most."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=eps)


class Conv(nn.Module):
    """A convolution, after a resampling by 2 with a separable filter; either may be left out.

    kernel: 0 only resamples and has no weights. resample: None, "up" or "down". taps: of the
    filter. fused: the filter of "down" comes after the convolution, both padded once, and the bias
    last.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        resample: str | None = None,
        taps: Sequence[float] = (1, 1),
        fused: bool = False,
    ):
        super().__init__()
        self.resample, self.fused, self.kernel = resample, fused, kernel
        self.weight = self.bias = None
        if kernel:
            self.weight = nn.Parameter(torch.empty(channels_out, channels_in, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(channels_out))
        taps = torch.as_tensor(taps, dtype=torch.float32)
        spread = torch.outer(taps, taps) / taps.sum() ** 2
        self.register_buffer("resample_filter", spread[None, None] if resample else None)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels_in, h, w) -> (B, channels_out, h', w')."""
        if self.fused:
            outer = (self.resample_filter.shape[-1] - 1) // 2
            x = F.conv2d(x, self.weight.to(x), padding=self.kernel // 2 + outer)
            return self._filtered(x, padding=0) + self.bias.to(x)[:, None, None]
        if self.resample is not None:
            x = self._filtered(x, (self.resample_filter.shape[-1] - 1) // 2)
        if self.weight is None:
            return x
        return F.conv2d(x, self.weight.to(x), self.bias.to(x), padding=self.kernel // 2)

    def _filtered(self, x: Tensor, padding: int) -> Tensor:
        channels = x.shape[1]
        weight = self.resample_filter.to(x).expand(channels, 1, -1, -1)
        how = {"stride": 2, "padding": padding, "groups": channels}
        if self.resample == "down":
            return F.conv2d(x, weight, **how)
        return F.conv_transpose2d(x, 4 * weight, **how)


class Block(nn.Module):
    """Two 3x3 convolutions with group norm, the embedding of noise and class between them, a
    shortcut, and attention where `heads` is above 0.

    adaptive: the embedding scales and shifts (ADM); else it is added (DDPM++, NCSN++). balance:
    what sums with the shortcut are multiplied by. resample: None, "up" or "down". project: a
    shortcut that resamples has a 1x1 convolution even where the channels stay.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        heads: int = 0,
        resample: str | None = None,
        *,
        taps: Sequence[float] = (1, 1),
        adaptive: bool = True,
        balance: float = 1.0,
        eps: float = 1e-5,
        project: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.heads, self.adaptive, self.balance, self.dropout = heads, adaptive, balance, dropout
        self.norm0 = group_norm(channels_in, eps)
        self.conv0 = Conv(channels_in, channels_out, 3, resample, taps)
        self.affine = nn.Linear(embedding, channels_out * (2 if adaptive else 1))
        self.norm1 = group_norm(channels_out, eps)
        self.conv1 = Conv(channels_out, channels_out, 3)
        self.skip = None
        if channels_out != channels_in or resample:
            kernel = 1 if project or channels_out != channels_in else 0
            self.skip = Conv(channels_in, channels_out, kernel, resample, taps)
        if heads:
            self.norm2 = group_norm(channels_out, eps)
            self.qkv = Conv(channels_out, 3 * channels_out, 1)
            self.proj = Conv(channels_out, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, channels_in, h, w), embedding (B, E) -> (B, channels_out, h', w')."""
        hidden = self.conv0(F.silu(self.norm0(x)))
        condition = self.affine(embedding)[:, :, None, None]
        if self.adaptive:
            scale, shift = condition.chunk(2, dim=1)
            hidden = F.silu(self.norm1(hidden) * (1 + scale) + shift)
        else:
            hidden = F.silu(self.norm1(hidden + condition))
        hidden = self.conv1(F.dropout(hidden, self.dropout, self.training))
        x = self.balance * (hidden + (x if self.skip is None else self.skip(x)))
        return self._attended(x) if self.heads else x

    def _attended(self, x: Tensor) -> Tensor:
        """The rows of qkv run over heads, channels of a head, and q, k, v innermost."""
        parts = self.qkv(self.norm2(x)).unflatten(1, (self.heads, -1, 3)).flatten(4)
        q, k, v = (part.transpose(2, 3) for part in parts.unbind(3))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return self.balance * (self.proj(seen.reshape(x.shape)) + x)


class PositionFeatures(nn.Module):
    """Cosines and sines of c_noise at frequencies 1 down to 1e-4; the last is exactly that where
    `endpoint`."""

    def __init__(self, channels: int, endpoint: bool = False):
        super().__init__()
        self.half, self.endpoint = channels // 2, endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise (B,) -> (B, channels), cosines first."""
        steps = torch.arange(self.half, dtype=torch.float32, device=c_noise.device)
        angles = torch.outer(c_noise, (1 / 10000) ** (steps / (self.half - self.endpoint)))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierFeatures(nn.Module):
    """Cosines and sines of c_noise at fixed random frequencies, N(0, scale^2), kept with the
    weights."""

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("freqs", scale * torch.randn(channels // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise (B,) -> (B, channels), cosines first."""
        angles = torch.outer(c_noise, 2 * math.pi * self.freqs.to(c_noise))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def labels_or_zeros(labels: Tensor | None, num_classes: int, like: Tensor) -> Tensor:
    """(B, num_classes) of one-hot rows as they are, of indices (B,), and zeros where None is
    given: the input of a network that was trained with labels left out.

    Raises ValueError for another shape.
    """
    if labels is None:
        return like.new_zeros(len(like), num_classes)
    if labels.ndim == 1 and not labels.is_floating_point():
        # The index behind the last class is the null class, whose row is 0.
        return F.one_hot(labels, num_classes + 1)[:, :num_classes].to(like)
    if labels.shape != (len(like), num_classes):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; give indices (B,) or rows "
            f"({len(like)}, {num_classes})"
        )
    return labels.to(like)
