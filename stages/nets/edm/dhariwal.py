"""DhariwalUNet: the ADM network as EDM trains it (Dhariwal and Nichol 2021; Karras et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.nets.edm.layers import Block, Conv, PositionFeatures, group_norm, labels_or_zeros
from stages.nets.edm.levels import built, passed

HEAD = 64  # channels of an attention head


class DhariwalUNet(nn.Module):
    """F(x, c_noise, labels), to be preconditioned.

    Arguments bear the names under which published files keep them. A level of fewer than 64
    channels has no attention even where its side is in `attn_resolutions`, as in the original.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
    ):
        super().__init__()
        if img_resolution % 2 ** (len(channel_mult) - 1):
            raise ValueError(
                f"a side of {img_resolution} is not divisible by {2 ** (len(channel_mult) - 1)}"
            )
        self.label_dim = label_dim
        embedding = model_channels * channel_mult_emb
        self._options = {"embedding": embedding, "dropout": dropout}
        self.map_noise = PositionFeatures(model_channels)
        self.map_augment = (
            nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        )
        self.map_layer0 = nn.Linear(model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(label_dim, embedding, bias=False) if label_dim else None
        sizes = [img_resolution >> level for level in range(len(channel_mult))]
        widths = [model_channels * multiplier for multiplier in channel_mult]
        first = Conv(in_channels, widths[0], 3)
        attends = set(attn_resolutions).__contains__
        self.enc, self.dec = built(first, self._block, sizes, widths, num_blocks, attends)
        self.out_norm = group_norm(widths[0], 1e-5)
        self.out_conv = Conv(widths[0], out_channels, 3)
        self.reset_parameters()

    def _block(
        self,
        channels: int,
        width: int,
        flavour: str,
        attends: bool = False,
        resample: str | None = None,
    ) -> Block:
        heads = width // HEAD if attends else 0
        return Block(channels, width, heads=heads, resample=resample, **self._options)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """All weights anew: uniform in +-1 / sqrt(fan-in), what ends a residual branch and the
        augmentation's map 0, the labels' normal."""
        for name, module in self.named_modules():
            if isinstance(module, nn.GroupNorm):
                module.reset_parameters()
            elif getattr(module, "weight", None) is not None:
                bound = module.weight[0].numel() ** -0.5
                if name == "map_label":
                    nn.init.normal_(module.weight, generator=generator)
                    continue
                if name.rpartition(".")[2] in {"conv1", "proj", "out_conv", "map_augment"}:
                    bound = 0.0
                for parameter in (module.weight, module.bias):
                    if parameter is not None:
                        nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """As `SongUNet.forward`; a row of zeros is exactly the network without labels."""
        embedding = self.map_noise(c_noise)
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels.to(embedding))
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None:
            rows = labels_or_zeros(labels, self.label_dim, embedding)
            embedding = embedding + self.map_label(rows)
        embedding = F.silu(embedding).to(x.dtype)
        x = passed(self.enc, self.dec, x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))
