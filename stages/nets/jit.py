"""JiT: a plain transformer on pixels that predicts the clean image (Li and He 2025, "Back to
Basics: Let Denoising Generative Models Denoise").

Its own time runs from 0, noise, to 1, data. Modules carry the names of the published state dicts
without their prefix `net.`, which load as they are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.methods.patches import unpatchify
from stages.methods.path import per_sample
from stages.nets.adapters import with_dropped
from stages.nets.sit import sincos_positions

FREQUENCIES = 128
EPS = 1e-6


class RMSNorm(nn.Module):
    """w x / sqrt(mean x^2 + 1e-6) over the last axis, in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = x.float()
        inner = inner * torch.rsqrt(inner.square().mean(-1, keepdim=True) + EPS)
        return (self.weight * inner).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Cosines, then sines, of t at 128 frequencies, and a two-layer MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, width)."""
        steps = torch.arange(FREQUENCIES, dtype=torch.float32, device=t.device)
        angles = torch.outer(t.float(), torch.exp(-math.log(10000) * steps / FREQUENCIES))
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class LabelEmbedding(nn.Module):
    """A row a class; the last is the null class's."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class PatchEmbedding(nn.Module):
    """Patches through a bottleneck of `bottleneck` channels, with nothing between the two maps."""

    def __init__(self, patch: int, channels: int, bottleneck: int, width: int):
        super().__init__()
        self.proj1 = nn.Conv2d(channels, bottleneck, patch, patch, bias=False)
        self.proj2 = nn.Conv2d(bottleneck, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, N, width), patches row by row."""
        return self.proj2(self.proj1(x)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention; q and k are normalised, then rotated by their token's place."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """x (B, N, width), angles (N, width / heads / 2)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotated(self.q_norm(q), angles), rotated(self.k_norm(k), angles)
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        joined = self.proj(seen.transpose(1, 2).flatten(2))
        return F.dropout(joined, self.dropout, self.training)


class SwiGLU(nn.Module):
    """w3(silu(u) g) of the halves u, g of w12(x); hidden width int(2/3 of the usual)."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        hidden, self.dropout = int(hidden * 2 / 3), dropout
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.dropout(F.silu(gate) * value, self.dropout, self.training))


class Block(nn.Module):
    """Attention and SwiGLU, each scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float):
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, int(width * mlp_ratio), dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, angles: Tensor) -> Tensor:
        """x (B, N, width), condition (B, width)."""
        parts = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, angles)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    """Scaled, shifted and mapped to the numbers of a patch: row, column, channel."""

    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = nn.Linear(width, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class JiT(nn.Module):
    """x0 = net(z, t, labels). Arguments bear the names under which published files keep them.

    in_context_len: tokens of the class that are put in front of block `in_context_start` and stay
    until the end. Raises ValueError for sides, widths and heads that do not divide.
    """

    def __init__(
        self,
        input_size: int = 256,
        patch_size: int = 16,
        in_channels: int = 3,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        bottleneck_dim: int = 128,
        in_context_len: int = 32,
        in_context_start: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"a side of {input_size} is not divisible by patch {patch_size}")
        if hidden_size % num_heads or hidden_size // num_heads % 4:
            raise ValueError(
                f"hidden_size {hidden_size} over {num_heads} heads must be a multiple of 4"
            )
        if in_context_len and not 0 <= in_context_start < depth:
            raise ValueError(
                f"in_context_start {in_context_start} is no block of the {depth}; the class's "
                "tokens would never enter"
            )
        self.patch, self.channels, self.num_classes = patch_size, in_channels, num_classes
        self.side, self.num_context, self.start = (
            input_size // patch_size,
            in_context_len,
            in_context_start,
        )
        self.t_embedder = TimeEmbedding(hidden_size)
        self.y_embedder = LabelEmbedding(num_classes, hidden_size)
        self.x_embedder = PatchEmbedding(patch_size, in_channels, bottleneck_dim, hidden_size)
        table = sincos_positions((self.side, self.side), hidden_size)
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        self.in_context_posemb = None
        if in_context_len:
            self.in_context_posemb = nn.Parameter(torch.zeros(1, in_context_len, hidden_size))
        angles = rotary_angles(self.side, hidden_size // num_heads)
        self.register_buffer("angles", angles, persistent=False)
        middle = range(depth // 4, 3 * (depth // 4))  # the only blocks with dropout
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio, dropout if i in middle else 0.0)
            for i in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, in_channels)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """All weights anew: maps Xavier uniform, embeddings N(0, .02^2), modulations and head 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                matrix = module.weight.data.flatten(1)
                nn.init.xavier_uniform_(matrix, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        small = [self.t_embedder.mlp[0].weight, self.t_embedder.mlp[2].weight]
        small += [self.y_embedder.embedding_table.weight]
        small += [] if self.in_context_posemb is None else [self.in_context_posemb]
        for parameter in small:
            nn.init.normal_(parameter, std=0.02, generator=generator)
        modulated = [*self.blocks, self.final_layer]
        for layer in (*(m.adaLN_modulation[1] for m in modulated), self.final_layer.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Clean images (B, C, H, W) of z (B, C, H, W) at t (B,); labels (B,), None for the null
        class `num_classes`."""
        if labels is None:
            labels = torch.full((len(z),), self.num_classes, device=z.device)
        of_label = self.y_embedder(labels)
        condition = self.t_embedder(t) + of_label
        x, angles = self.x_embedder(z) + self.pos_embed, self.angles
        for index, block in enumerate(self.blocks):
            if self.num_context and index == self.start:
                x = torch.cat([of_label[:, None] + self.in_context_posemb, x], dim=1)
                angles = F.pad(angles, (0, 0, self.num_context, 0))  # these are not rotated
            x = block(x, condition, angles)
        tokens = self.final_layer(x[:, self.num_context :], condition)
        return unpatchify(tokens, (self.side, self.side), self.patch)


class JiTDenoiser(nn.Module):
    """JiT as a denoiser D(y, sigma, labels) in EDM coordinates: z = t y with t = n / (n + sigma).

    noise_scale: n, of the noise at t = 0; 1 at 256 pixels, 2 at 512. Other arguments as `JiT`.
    """

    def __init__(self, noise_scale: float = 1.0, **arguments: int | float):
        super().__init__()
        self.net, self.noise_scale = JiT(**arguments), noise_scale
        self.num_classes, self.channels = self.net.num_classes, self.net.channels
        self.image_size = (self.net.side * self.net.patch,) * 2

    def forward(
        self,
        y: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        drop: Tensor | None = None,
    ) -> Tensor:
        """E[x0 | y], (B, C, H, W), at sigma >= 0, a scalar or (B,). drop (B,) bool: labels to leave
        out."""
        labels = with_dropped(labels, drop, self.num_classes)
        t = self.noise_scale / (self.noise_scale + per_sample(sigma, y))
        dtype = self.net.pos_embed.dtype
        times = t.flatten().expand(len(y)).to(dtype)
        return self.net((t * y).to(dtype), times, labels).to(y.dtype)


def rotary_angles(side: int, width: int) -> Tensor:
    """(side^2, width / 2): of a token at (row, column) those of its row, then of its column."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    steps = torch.outer(torch.arange(side, dtype=torch.float32), frequencies)
    rows, columns = steps.repeat_interleave(side, 0), steps.repeat(side, 1)
    return torch.cat([rows, columns], dim=1)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x (..., N, d) with its neighbours (2j, 2j + 1) turned by angles[:, j]."""
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1).flatten(-2)
