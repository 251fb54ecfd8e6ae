"""SiT, the transformer of the whole SiT family (Ma et al. 2024; the adaLN-Zero blocks are
DiT's, Peebles & Xie 2023).

One class builds plain SiT, and by options REPA's projector, REG's class token and MaskAlign's
mixing blocks. Conventions: t=0 is data, t=1 is noise; the output is the velocity
v = dx/dt = eps - x0.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.methods.patches import patchify, take_kept, unpatchify


class SiTOutput(NamedTuple):
    """What a training step reads, the class token's entries None without one.

    velocity: (B, C, H, W), or the kept patches (B, K, p*p*C) under masking.
    class_velocity: (B, class_token_dim), or None.
    hidden: (B, T, width) after block `alignment_depth`; T counts the class token first, then
        the (kept) patches.
    projection: (B, T, teacher_dim), the projector's output on `hidden`.
    """

    velocity: Tensor
    class_velocity: Tensor | None
    hidden: Tensor
    projection: Tensor


class SiT(nn.Module):
    """Velocity network on images or latents.

    image_size: side, or (height, width), in pixels of x; divisible by patch_size.
    channels: of x. width: divisible by 4 (positions) and by num_heads.
    num_classes: labels are 0..num_classes-1, and num_classes is the null class; 0 is an
        unconditional network.
    class_token_dim: length of the class token carried beside the image (REG), 0 for none.
    mix_layers: blocks over all tokens before any masking (MaskAlign), 0 for none.
    teacher_dim: output of the projector head (REPA), 0 for no projector.
    projector_width: P of its hidden layers. alignment_depth: the projector reads the hidden
        states after this block, counted from 1 and without the mixing blocks.
    qk_norm: queries and keys are normalised, head by head, by a LayerNorm with weights (REPA's
        option --qk-norm).

    The position table is a frozen parameter, so that counts are the published ones. Raises
    ValueError on sizes that do not fit together.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 32,
        channels: int = 4,
        patch_size: int = 2,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_token_dim: int = 0,
        mix_layers: int = 0,
        teacher_dim: int = 0,
        projector_width: int = 2048,
        alignment_depth: int = 4,
        qk_norm: bool = False,
    ):
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        _check_counts(
            {
                "channels": channels,
                "patch_size": patch_size,
                "width": width,
                "depth": depth,
                "num_heads": num_heads,
                "projector_width": projector_width,
            },
            {
                "num_classes": num_classes,
                "class_token_dim": class_token_dim,
                "mix_layers": mix_layers,
                "teacher_dim": teacher_dim,
            },
        )
        _check_sizes(size, patch_size, width, num_heads)
        if teacher_dim and not 1 <= alignment_depth <= depth:
            raise ValueError(
                f"alignment_depth {alignment_depth} is not a block of this network; "
                f"choose 1 to depth = {depth}"
            )
        self.image_size = size
        self.channels = channels
        self.patch_size = patch_size
        self.grid = (size[0] // patch_size, size[1] // patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_classes = num_classes
        self.class_token_dim = class_token_dim
        self.teacher_dim = teacher_dim
        self.alignment_depth = alignment_depth

        patch_dim = patch_size * patch_size * channels
        self.patch_embedding = nn.Linear(patch_dim, width)
        rows = self.num_patches + bool(class_token_dim)
        self.positions = nn.Parameter(torch.empty(rows, width), requires_grad=False)
        self.time_embedding = TimeEmbedding(width)
        self.label_embedding = nn.Embedding(num_classes + 1, width)
        if class_token_dim:
            self.class_embedding = nn.Sequential(
                nn.Linear(class_token_dim, width), nn.LayerNorm(width, eps=1e-6)
            )
            self.class_head = nn.Linear(width, class_token_dim)
        of_block = (width, num_heads, mlp_ratio, qk_norm)
        self.mixing = nn.ModuleList(Block(*of_block) for _ in range(mix_layers))
        self.blocks = nn.ModuleList(Block(*of_block) for _ in range(depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_head = nn.Linear(width, patch_dim)
        self.projector = projector(width, projector_width, teacher_dim) if teacher_dim else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for linears, N(0, 0.02) for the time MLP and the label table, zeros for all
        modulations and output heads, and the frozen positions.

        Call it again after `to_empty` when the network was built on the meta device.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
                module.reset_parameters()
        for weight in (*self.time_embedding.weights(), self.label_embedding.weight):
            nn.init.normal_(weight, std=0.02)
        zeroed = [block.modulation for block in (*self.mixing, *self.blocks)]
        zeroed += [self.final_modulation, self.final_head]
        if self.class_token_dim:
            zeroed.append(self.class_head)
        for linear in zeroed:
            nn.init.zeros_(linear.weight)
        with torch.no_grad():
            self.positions.zero_()  # the class token's row stays zero
            table = sincos_positions(self.grid, self.positions.shape[1])
            self.positions[-self.num_patches :] = table.to(self.positions)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        class_token: Tensor | None = None,
        *,
        drop: Tensor | None = None,
        keep: Tensor | None = None,
        align: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor] | SiTOutput:
        """Velocity at x and t: `network(x, t, labels)`.

        x: (B, C, H, W). t: (B,), in [0, 1]. labels: (B,) long in 0..num_classes, num_classes
            being the null class; None is the null class for all.
        class_token: (B, class_token_dim), the noisy class token at the same t; required if and
            only if the network has one.
        drop: (B,) bool, samples whose label is replaced by the null class (label dropout).
        keep: (B, K) long, the patches that run through the blocks, in raster order; all of
            them if None. The mixing blocks see every patch.
        align: return a SiTOutput with the hidden states and the projection; at inference leave
            it False, and the projector costs nothing.

        Returns velocity (B, C, H, W); with a class token the pair (velocity, class_velocity);
        with align a SiTOutput. Under `keep` velocity is (B, K, p*p*C), laid out as `patchify` does.
        Raises ValueError on inputs that do not fit the network.
        """
        self._check_inputs(x, labels, class_token, align)
        condition = F.silu(self.time_embedding(t) + self._embed_labels(x, labels, drop))
        tokens = self._embed_tokens(x, class_token)
        for block in self.mixing:
            tokens = block(tokens, condition)
        if keep is not None:
            tokens = take_kept(tokens, keep, bool(self.class_token_dim))
        for index, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition)
            if index == self.alignment_depth:
                hidden = tokens
        velocity, class_velocity = self._heads(tokens, condition)
        if keep is None:
            velocity = unpatchify(velocity, self.grid, self.patch_size)
        if align:
            return SiTOutput(velocity, class_velocity, hidden, self.projector(hidden))
        return velocity if class_token is None else (velocity, class_velocity)

    def _embed_labels(self, x: Tensor, labels: Tensor | None, drop: Tensor | None) -> Tensor:
        if labels is None:
            labels = torch.full((len(x),), self.num_classes, device=x.device)
        if drop is not None:
            labels = labels.masked_fill(drop, self.num_classes)
        return self.label_embedding(labels)

    def _embed_tokens(self, x: Tensor, class_token: Tensor | None) -> Tensor:
        patches = (
            self.patch_embedding(patchify(x, self.patch_size)) + self.positions[-self.num_patches :]
        )
        if class_token is None:
            return patches
        return torch.cat([self.class_embedding(class_token)[:, None], patches], dim=1)

    def _heads(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        shift, scale = self.final_modulation(condition)[:, None].chunk(2, dim=-1)
        tokens = modulate(tokens, shift, scale)
        if not self.class_token_dim:
            return self.final_head(tokens), None
        return self.final_head(tokens[:, 1:]), self.class_head(tokens[:, 0])

    def _check_inputs(
        self, x: Tensor, labels: Tensor | None, class_token: Tensor | None, align: bool
    ) -> None:
        if x.shape[1:] != (self.channels, *self.image_size):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this network takes "
                f"(B, {self.channels}, {self.image_size[0]}, {self.image_size[1]})"
            )
        if (class_token is not None) != bool(self.class_token_dim):
            has, remedy = ("no", "leave it out") if class_token is not None else ("a", "pass it")
            raise ValueError(f"this network has {has} class token: {remedy} in class_token=")
        if align and self.projector is None:
            raise ValueError("align=True needs a projector: build the network with teacher_dim")
        # Reading the labels would stall a GPU at every step: there the data are checked once.
        if labels is not None and labels.is_cpu and not torch.compiler.is_compiling():
            check_labels(labels, self.num_classes)


class Block(nn.Module):
    """Attention and tanh-GELU MLP, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, qk_norm: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // num_heads) if qk_norm else nn.Identity()
        self.attention_out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, int(width * mlp_ratio))
        self.mlp_out = nn.Linear(int(width * mlp_ratio), width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, T, width), condition: (B, width), already through its SiLU -> (B, T, width)."""
        modulation = self.modulation(condition)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        x = torch.addcmul(x, gate1, self.attention(modulate(x, shift1, scale1)))
        return torch.addcmul(x, gate2, self.mlp(modulate(x, shift2, scale2)))

    def attention(self, x: Tensor) -> Tensor:
        B, T, width = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.attention_out(out.transpose(1, 2).reshape(B, T, width))

    def mlp(self, x: Tensor) -> Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(x), approximate="tanh"))


class TimeEmbedding(nn.Module):
    """256 sinusoidal features of t (periods up to 10,000, t unscaled), then a SiLU MLP."""

    def __init__(self, width: int, num_features: int = 256):
        super().__init__()
        self.num_features = num_features
        self.linear1 = nn.Linear(num_features, width)
        self.linear2 = nn.Linear(width, width)

    def weights(self) -> tuple[Tensor, Tensor]:
        return self.linear1.weight, self.linear2.weight

    def forward(self, t: Tensor) -> Tensor:
        """t: (B,) -> (B, width)."""
        half = self.num_features // 2
        index = torch.arange(half, device=t.device, dtype=torch.float32)
        angles = t.float()[:, None] * torch.exp(-math.log(10_000) / half * index)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        # Follow the weights' precision, unless autocast chooses it at the product itself.
        return self.linear2(F.silu(self.linear1(features.to(self.linear1.weight.dtype))))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: LayerNorm without its own weights (eps 1e-6), then (1 + scale) x + shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def projector(width: int, hidden: int, teacher_dim: int) -> nn.Sequential:
    """REPA's projector: width -> P -> P -> teacher_dim with SiLU (Yu et al. 2025)."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, teacher_dim),
    )


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Frozen 2D sine-cosine positions (rows * columns, width), raster order, float32.

    Half of the features encodes the column, half the row, each as sines then cosines with
    periods up to 10,000 (the table of MAE and DiT). width must be divisible by 4.
    """
    frequencies = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64),
        torch.arange(grid[1], dtype=torch.float64),
        indexing="ij",
    )
    angles = [position.reshape(-1, 1) * frequencies for position in (column, row)]
    return torch.cat([f for a in angles for f in (a.sin(), a.cos())], dim=1).float()


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise ValueError unless all labels are 0..num_classes (num_classes is the null class).

    Call it once on a data set's labels before training on a GPU, where a step does not look.
    """
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) > num_classes):
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; with num_classes = "
            f"{num_classes} they must be 0 to {num_classes}, {num_classes} being the null class"
        )


def _check_counts(positive: Mapping[str, int], optional: Mapping[str, int]) -> None:
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    for name, value in optional.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; it must be 0 (none) or more")


def _check_sizes(size: tuple[int, int], patch_size: int, width: int, num_heads: int) -> None:
    if min(size) < 1 or size[0] % patch_size or size[1] % patch_size:
        raise ValueError(
            f"image_size {size[0]}x{size[1]} is not divisible by patch_size {patch_size}; "
            "choose a patch_size that divides both sides"
        )
    if width % num_heads or width % 4:
        raise ValueError(
            f"width {width} must be divisible by num_heads {num_heads} and by 4 (positions)"
        )
