"""EDM2's magnitude-preserving U-Net with its preconditioning (Karras et al. 2024, "Analyzing and
Improving the Training Dynamics of Diffusion Models", config G).

Every layer keeps the expected magnitude of what goes through it: weights are normalised in every
use, sums and concatenations rescaled. Modules carry the names of the published state dicts, which
load as they are. ICR taps work by those names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.methods.path import per_sample
from stages.nets.adapters import with_dropped
from stages.nets.edm.layers import labels_or_zeros
from stages.nets.edm.levels import built, passed

SMALL = 1e-4  # added to a magnitude before it divides


def unit(x: Tensor, axes: Sequence[int]) -> Tensor:
    """x over its root mean square along `axes`, plus 1e-4; the magnitude in float32."""
    axes = list(axes)
    count = math.prod([x.shape[axis] for axis in axes])
    norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=torch.float32)
    return x / (SMALL + norm / math.sqrt(count)).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of a standard normal."""
    return F.silu(x) / 0.596


def mixed(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 - t) a + t b, rescaled to the magnitude of either."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def joined(a: Tensor, b: Tensor, t: float) -> Tensor:
    """a and b beside each other along the channels, b's share of the magnitude being t."""
    sizes = a.shape[1], b.shape[1]
    total = math.sqrt(sum(sizes) / ((1 - t) ** 2 + t**2))
    weights = total * (1 - t) / math.sqrt(sizes[0]), total * t / math.sqrt(sizes[1])
    return torch.cat([weights[0] * a, weights[1] * b], dim=1)


class Layer(nn.Module):
    """A linear map or a convolution without bias whose weights are normalised in every use."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int | None = None):
        super().__init__()
        size = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, *size))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """x (B, channels_in) or (B, channels_in, h, w)."""
        axes, weight = range(1, self.weight.ndim), self.weight.float()
        weight = unit(weight, axes) * (gain / math.sqrt(weight[0].numel()))
        weight = weight.to(x.dtype)
        if weight.ndim == 2:
            return x @ weight.t()
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


@torch.no_grad()
def normalise(module: nn.Module) -> None:
    """Replace the stored weights of all its layers by their normalised values, as training does
    once for every pass."""
    for layer in module.modules():
        if isinstance(layer, Layer):
            axes = range(1, layer.weight.ndim)
            layer.weight.copy_(unit(layer.weight.float(), axes))


class Fourier(nn.Module):
    """sqrt(2) cos(c f + p) at fixed random frequencies and phases, kept with the weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise (B,) -> (B, channels) float32."""
        angles = torch.outer(c_noise.float(), self.freqs.float()) + self.phases.float()
        return math.sqrt(2) * angles.cos()


def resampled(x: Tensor, resample: str | None, spread: Tensor) -> Tensor:
    """x at half or double its sides, by the filter `spread` (k, k); as it is for None."""
    if resample is None:
        return x
    channels = x.shape[1]
    weight = spread.to(x.dtype).expand(channels, 1, -1, -1)
    how = {"stride": 2, "padding": (len(spread) - 1) // 2, "groups": channels}
    if resample == "down":
        return F.conv2d(x, weight, **how)
    return F.conv_transpose2d(x, 4 * weight, **how)


class Block(nn.Module):
    """Two 3x3 convolutions around a gain from the embedding, mixed with what came in, and
    attention where `heads` is above 0. flavour: "enc" or "dec". resample: None, "up" or "down"."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        flavour: str,
        heads: int = 0,
        resample: str | None = None,
        *,
        taps: Sequence[float] = (1, 1),
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ):
        super().__init__()
        self.flavour, self.heads, self.resample = flavour, heads, resample
        self.dropout, self.clip = dropout, clip_act
        self.res_balance, self.attn_balance = res_balance, attn_balance
        self.emb_gain = nn.Parameter(torch.zeros(()))
        taps = torch.as_tensor(taps, dtype=torch.float32)
        spread = torch.outer(taps, taps) / taps.sum() ** 2
        self.register_buffer("spread", spread if resample else None, persistent=False)
        first = channels_out if flavour == "enc" else channels_in
        self.conv_res0 = Layer(first, channels_out, 3)
        self.emb_linear = Layer(embedding, channels_out)
        self.conv_res1 = Layer(channels_out, channels_out, 3)
        self.conv_skip = (
            Layer(channels_in, channels_out, 1) if channels_in != channels_out else None
        )
        self.attn_qkv = Layer(channels_out, 3 * channels_out, 1) if heads else None
        self.attn_proj = Layer(channels_out, channels_out, 1) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, channels_in, h, w), embedding (B, E) -> (B, channels_out, h', w')."""
        x = resampled(x, self.resample, self.spread)
        if self.flavour == "enc":
            x = unit(self._skipped(x), [1])
        hidden = self.conv_res0(silu(x))
        gain = self.emb_linear(embedding, self.emb_gain) + 1
        hidden = silu(hidden * gain[:, :, None, None].to(hidden.dtype))
        hidden = self.conv_res1(F.dropout(hidden, self.dropout, self.training))
        if self.flavour == "dec":
            x = self._skipped(x)
        x = mixed(x, hidden, self.res_balance)
        if self.heads:
            x = mixed(x, self._attention(x), self.attn_balance)
        return x if self.clip is None else x.clip(-self.clip, self.clip)

    def _skipped(self, x: Tensor) -> Tensor:
        return x if self.conv_skip is None else self.conv_skip(x)

    def _attention(self, x: Tensor) -> Tensor:
        """The rows of qkv run over heads, channels of a head, and q, k, v innermost."""
        parts = self.attn_qkv(x).unflatten(1, (self.heads, -1, 3)).flatten(4)
        q, k, v = (part.transpose(2, 3) for part in unit(parts, [2]).unbind(3))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return self.attn_proj(seen.reshape(x.shape))


class UNet(nn.Module):
    """F(x, c_noise, labels). Arguments bear the names under which published files keep them.

    channels_per_head: a level of fewer channels has no attention even where its side is in
    `attn_resolutions`, as in the original. block_kwargs: balances, dropout and clip of every block.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        channels_per_head: int = 64,
        resample_filter: Sequence[float] = (1, 1),
        **block_kwargs: float | None,
    ):
        super().__init__()
        if img_resolution % 2 ** (len(channel_mult) - 1):
            raise ValueError(
                f"a side of {img_resolution} is not divisible by {2 ** (len(channel_mult) - 1)}"
            )
        self.label_dim = label_dim
        self.label_balance, self.concat_balance = label_balance, concat_balance
        widths = [model_channels * multiplier for multiplier in channel_mult]
        noise = model_channels * channel_mult_noise if channel_mult_noise else widths[0]
        embedding = model_channels * channel_mult_emb if channel_mult_emb else max(widths)
        sizes = [img_resolution >> level for level in range(len(widths))]
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.emb_fourier = Fourier(noise)
        self.emb_noise = Layer(noise, embedding)
        self.emb_label = Layer(label_dim, embedding) if label_dim else None

        def block(current: int, width: int, flavour: str, attends=False, resample=None) -> Block:
            heads = width // channels_per_head if attends else 0
            options = {"taps": resample_filter, **block_kwargs}
            return Block(current, width, embedding, flavour, heads, resample, **options)

        # A channel of ones stands in for the biases.
        first = Layer(img_channels + 1, widths[0], 3)
        attends = set(attn_resolutions).__contains__
        self.enc, self.dec = built(first, block, sizes, widths, num_blocks, attends)
        self.out_conv = Layer(widths[0], img_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), c_noise (B,) -> (B, C, H, W). labels: indices (B,), rows (B, label_dim),
        or None for rows of zeros, which are not the unconditional network."""
        if self.training:
            normalise(self)
        embedding = self.emb_noise(self.emb_fourier(c_noise).to(x.dtype))
        if self.emb_label is not None:
            rows = labels_or_zeros(labels, self.label_dim, embedding)
            of_label = self.emb_label(rows * math.sqrt(self.label_dim))
            embedding = mixed(embedding, of_label, self.label_balance)
        embedding = silu(embedding)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

        def join(a: Tensor, b: Tensor) -> Tensor:
            return joined(a, b, self.concat_balance)

        x = passed(self.enc, self.dec, x, embedding, join)
        return self.out_conv(x, self.out_gain)


class EDM2(nn.Module):
    """D(y, sigma, labels) around `unet`, in EDM coordinates, and the uncertainty that training
    weighs its loss by.

    Weights of float16, as published, compute in float32. train_uncertainty: false leaves the
    uncertainty out of training. unet_kwargs: as `UNet`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        train_uncertainty: bool = True,
        **unet_kwargs,
    ):
        super().__init__()
        self.sigma_data, self.num_classes = sigma_data, label_dim
        self.channels, self.image_size = img_channels, (img_resolution, img_resolution)
        self.unet = UNet(img_resolution, img_channels, label_dim, **unet_kwargs)
        self.logvar_fourier = Fourier(logvar_channels)
        self.logvar_linear = Layer(logvar_channels, 1).requires_grad_(train_uncertainty)

    def forward(
        self,
        y: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        drop: Tensor | None = None,
        uncertainty: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """E[x0 | y], (B, C, H, W), at sigma, a scalar or (B,), above 0. drop (B,) bool: labels to
        leave out. uncertainty: with `log_variance` at sigma (B,) beside."""
        sigma, labels = per_sample(sigma, y), with_dropped(labels, drop, self.num_classes)
        total = sigma**2 + self.sigma_data**2
        times = (sigma.log() / 4).flatten().expand(len(y)).float()
        raw = self.unet((y / total.sqrt()).float(), times, labels)
        c_skip, c_out = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
        denoised = c_skip * y + c_out * raw.to(y.dtype)
        return (denoised, self.log_variance(sigma.flatten())) if uncertainty else denoised

    def log_variance(self, sigma: Tensor) -> Tensor:
        """(B, 1, 1, 1) of sigma (B,), float32: the loss is weighted by exp(-this), plus this."""
        if self.training:
            normalise(self.logvar_linear)
        return self.logvar_linear(self.logvar_fourier(sigma.log() / 4))[:, :, None, None]
