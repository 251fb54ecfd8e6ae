"""Which wavelet coefficients a coefficient's score may look at: the families.

A family divides the coefficients into groups of up to m variables that share one set of
features; the first `num_targets` variables of a group are those whose score it predicts, and
each coefficient is a target exactly once.

- `independent`: the coefficient alone.
- `band-tied`: H, V and D at one level and place, each from all three; approximation alone.
- `local`: the 3x3 square in its own band, wrapped; a band side of 2 or 1 has repeated places,
  which are dropped ("local-coupled" in the paper).
- `additive`: the variables of `local`, no cross terms between them (**ours**).
- `parent`: `local`, the two other orientations at the place, and the parent: the coefficient
  of the same orientation one level coarser, or, at the coarsest level, the approximation
  (Shapiro 1993, the zerotree) (**ours**). The approximation band keeps its square alone.
- `full`: all coefficients of the channel; degree 1 only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.methods.wavelet.basis import Band, WaveletBasis

FAMILIES = ("independent", "band-tied", "local", "additive", "parent", "full")
MISSING = -1


def groups(basis: WaveletBasis, family: str, couple_channels: bool = False) -> tuple[Tensor, int]:
    """Groups (g, m) of flat coefficient indices, `MISSING` where there is none, and the number
    of targets.

    couple_channels adds the same place in the other channels to every coefficient (to every
    member of a band-tied triple; to `full`, all coefficients of all channels).
    """
    size = basis.size_per_channel
    if family == "full":
        index = torch.arange(basis.num_coefficients).reshape(basis.channels, size)
        index = index.reshape(1, -1) if couple_channels else index
        return index, index.shape[1]
    if family == "band-tied":
        one, targets = _tied(basis), 3
    else:
        one, targets = _squares(basis, family), 1
    channels = [_shift(one, c * size) for c in range(basis.channels)]
    if not couple_channels:
        return torch.cat(channels), targets
    if family == "band-tied":
        return torch.cat(channels, dim=1), targets * basis.channels
    coupled = []
    for c in range(basis.channels):
        others = [_shift(one[:, :1], q * size) for q in range(basis.channels) if q != c]
        coupled.append(torch.cat([channels[c], *others], dim=1))
    return torch.cat(coupled), 1


def max_variables(basis: WaveletBasis, family: str, couple_channels: bool = False) -> int:
    """Number of variables m of a group, without building the groups."""
    if family == "full":
        return basis.num_coefficients if couple_channels else basis.size_per_channel
    square = max(min(3, band.height) * min(3, band.width) for band in basis.bands)
    if family == "band-tied":
        return 3 * basis.channels if couple_channels else 3
    alone = {"independent": 1, "parent": square + 3}.get(family, square)
    return alone + (basis.channels - 1 if couple_channels else 0)


def _tied(basis: WaveletBasis) -> Tensor:
    approximation, *details = basis.bands
    index = _index(approximation).flatten()
    rows = [torch.stack([index, *2 * [torch.full_like(index, MISSING)]], dim=1)]
    for level in range(basis.levels):
        triple = details[3 * level : 3 * level + 3]
        rows.append(torch.stack([_index(band).flatten() for band in triple], dim=1))
    return torch.cat(rows)


def _squares(basis: WaveletBasis, family: str) -> Tensor:
    """(coefficients of a channel, m): the coefficient itself first."""
    width = max_variables(basis, family)
    rows = []
    for band in basis.bands:
        columns = [_index(band)] if family == "independent" else _square(band)
        if family == "parent":
            short = width - 3 - len(columns)
            columns += [torch.full_like(columns[0], MISSING)] * short + _relatives(basis, band)
        columns += [torch.full_like(columns[0], MISSING)] * (width - len(columns))
        rows.append(torch.stack([column.flatten() for column in columns], dim=1))
    return torch.cat(rows)


def _square(band: Band) -> list[Tensor]:
    """The 3x3 square around every place, wrapped, each place once, the centre first."""
    offsets = [(0, 0), *((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))]
    unique = dict.fromkeys((dy % band.height, dx % band.width) for dy, dx in offsets)
    index = _index(band)
    return [torch.roll(index, (-dy, -dx), dims=(0, 1)) for dy, dx in unique]


def _relatives(basis: WaveletBasis, band: Band) -> list[Tensor]:
    """The other two orientations at the place, then the parent, for a detail band."""
    if band.orientation == "A":
        return []
    named = {other.name: other for other in basis.bands}
    others = [_index(named[f"{o}{band.level}"]) for o in "HVD" if o != band.orientation]
    if band.level == basis.levels:
        return [*others, _index(basis.bands[0])]
    parent = _index(named[f"{band.orientation}{band.level + 1}"])
    return [*others, parent.repeat_interleave(2, 0).repeat_interleave(2, 1)]


def _index(band: Band) -> Tensor:
    return band.offset + torch.arange(band.height * band.width).reshape(band.height, band.width)


def _shift(index: Tensor, offset: int) -> Tensor:
    return torch.where(index == MISSING, index, index + offset)
