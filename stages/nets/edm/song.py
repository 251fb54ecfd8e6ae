"""SongUNet: the DDPM++ and NCSN++ networks as EDM trains them (Karras et al. 2022, table 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.nets.edm.layers import (
    Block,
    Conv,
    FourierFeatures,
    PositionFeatures,
    group_norm,
    labels_or_zeros,
)

EPS = 1e-6


class SongUNet(nn.Module):
    """F(x, c_noise, labels), to be preconditioned.

    Arguments bear the names under which published files keep them. embedding_type: "positional"
    (DDPM++) or "fourier" (NCSN++). encoder_type: "standard", "residual" (NCSN++) or "skip".
    decoder_type: "standard" or "skip".
    Raises ValueError for other types, and for a side that the levels do not divide.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
    ):
        super().__init__()
        _check(embedding_type, encoder_type, decoder_type, img_resolution, len(channel_mult))
        self.label_dim = label_dim
        self.encoder_type, self.decoder_type = encoder_type, decoder_type
        self.attn_resolutions, self.num_blocks = tuple(attn_resolutions), num_blocks
        embedding, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        self._options = {
            **{"embedding": embedding, "taps": resample_filter, "adaptive": False, "eps": EPS},
            **{"balance": math.sqrt(0.5), "project": True, "dropout": dropout},
        }
        self.map_noise = (
            PositionFeatures(noise, endpoint=True)
            if embedding_type == "positional"
            else FourierFeatures(noise)
        )
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        sizes = [img_resolution >> level for level in range(len(channel_mult))]
        widths = [model_channels * multiplier for multiplier in channel_mult]
        kept = self._build_encoder(in_channels, model_channels, sizes, widths, resample_filter)
        self._build_decoder(out_channels, sizes, widths, kept, resample_filter)
        self.reset_parameters()

    def _build_encoder(
        self,
        channels: int,
        first: int,
        sizes: Sequence[int],
        widths: Sequence[int],
        taps: Sequence[int],
    ) -> list[int]:
        """The modules of `enc`; returns the channels of every output that the decoder takes."""
        self.enc = nn.ModuleDict()
        current, aux, kept = first, channels, [first]
        self.enc[f"{sizes[0]}x{sizes[0]}_conv"] = Conv(channels, first, 3)
        for level, (side, width) in enumerate(zip(sizes, widths, strict=True)):
            name = f"{side}x{side}"
            if level:
                self.enc[f"{name}_down"] = self._block(current, current, resample="down")
                if self.encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = Conv(aux, aux, 0, "down", taps)
                    self.enc[f"{name}_aux_skip"] = Conv(aux, current, 1)
                if self.encoder_type == "residual":
                    fused = Conv(aux, current, 3, "down", taps, fused=True)
                    self.enc[f"{name}_aux_residual"], aux = fused, current
                kept.append(current)
            for index in range(self.num_blocks):
                heads = int(side in self.attn_resolutions)
                self.enc[f"{name}_block{index}"] = self._block(current, width, heads)
                current = width
                kept.append(current)
        return kept

    def _build_decoder(
        self,
        channels: int,
        sizes: Sequence[int],
        widths: Sequence[int],
        kept: list[int],
        taps: Sequence[int],
    ) -> None:
        self.dec = nn.ModuleDict()
        current, last = widths[-1], len(sizes) - 1
        for level in range(last, -1, -1):
            side = sizes[level]
            name = f"{side}x{side}"
            if level == last:
                self.dec[f"{name}_in0"] = self._block(current, current, 1)
                self.dec[f"{name}_in1"] = self._block(current, current)
            else:
                self.dec[f"{name}_up"] = self._block(current, current, resample="up")
            for index in range(self.num_blocks + 1):
                heads = int(index == self.num_blocks and side in self.attn_resolutions)
                block = self._block(current + kept.pop(), widths[level], heads)
                self.dec[f"{name}_block{index}"], current = block, widths[level]
            if self.decoder_type == "skip" or level == 0:
                if self.decoder_type == "skip" and level < last:
                    self.dec[f"{name}_aux_up"] = Conv(channels, channels, 0, "up", taps)
                self.dec[f"{name}_aux_norm"] = group_norm(current, EPS)
                self.dec[f"{name}_aux_conv"] = Conv(current, channels, 3)

    def _block(self, channels: int, width: int, heads: int = 0, resample: str | None = None):
        return Block(channels, width, heads=heads, resample=resample, **self._options)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """All weights anew: Xavier uniform, what ends a residual branch near 0, biases 0."""
        for name, module in self.named_modules():
            if isinstance(module, nn.GroupNorm):
                module.reset_parameters()
            elif getattr(module, "weight", None) is not None:
                fans = module.weight.shape[0] + module.weight.shape[1]
                spread = math.sqrt(6 / (fans * module.weight[0, 0].numel()))
                last = name.rpartition(".")[2]
                scale = {"conv1": 1e-5, "proj": 1e-5, "qkv": math.sqrt(0.2)}.get(last, 1.0)
                scale = 1e-5 if last.endswith("aux_conv") else scale
                bound = scale * spread
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x (B, in_channels, H, W), c_noise (B,) -> (B, out_channels, H, W).

        labels: indices (B,), rows (B, label_dim), or None for rows of zeros. augment_labels: (B,
        augment_dim) of augmented images in training; None is of images as they are.
        """
        embedding = self._embedding(c_noise, labels, augment_labels).to(x.dtype)
        return self._decoded(*self._encoded(x, embedding), embedding)

    def _embedding(self, c_noise: Tensor, labels: Any, augment_labels: Tensor | None) -> Tensor:
        cosines, sines = self.map_noise(c_noise).chunk(2, dim=1)
        embedding = torch.cat([sines, cosines], dim=1)
        if self.map_label is not None:
            rows = labels_or_zeros(labels, self.label_dim, embedding)
            embedding = embedding + self.map_label(rows * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels.to(embedding))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def _encoded(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        kept, aux = [], x
        for name, layer in self.enc.items():
            if "aux_down" in name:
                aux = layer(aux)
            elif "aux_skip" in name:
                x = kept[-1] = x + layer(aux)
            elif "aux_residual" in name:
                x = kept[-1] = aux = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                kept.append(x)
        return x, kept

    def _decoded(self, x: Tensor, kept: list[Tensor], embedding: Tensor) -> Tensor:
        aux = normed = None
        for name, layer in self.dec.items():
            if "aux_up" in name:
                aux = layer(aux)
            elif "aux_norm" in name:
                normed = F.silu(layer(x))
            elif "aux_conv" in name:
                image = layer(normed)
                aux = image if aux is None else aux + image
            else:
                if "_block" in name:
                    x = torch.cat([x, kept.pop()], dim=1)
                x = layer(x, embedding)
        return aux


def _check(embedding: str, encoder: str, decoder: str, side: int, levels: int) -> None:
    known = {
        "embedding_type": (embedding, ("positional", "fourier")),
        "encoder_type": (encoder, ("standard", "skip", "residual")),
        "decoder_type": (decoder, ("standard", "skip")),
    }
    for name, (value, choices) in known.items():
        if value not in choices:
            raise ValueError(f"{name} is '{value}'; it must be one of {', '.join(choices)}")
    if side % 2 ** (levels - 1):
        raise ValueError(f"a side of {side} is not divisible by {2 ** (levels - 1)}")
