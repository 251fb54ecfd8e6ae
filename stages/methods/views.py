"""Views of an image for the ICR: a random augmentation, then diffusion noise at a level sigma.

What the augmentation is decides what the ratio calls noise, so it is a setting with named
strengths. Its random numbers depend on (seed, image index, view index) alone: every checkpoint,
noise level, batch and worker sees the same views of the same images, and the noise of a view is one
standard normal image scaled by sigma. Images: (n, C, H, W) in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.methods.draws import Draws

NUM_MOVES = 5  # rotation, shift right, shift down, scale, contrast
PADDINGS = ("black", "border", "reflection")


@dataclass(frozen=True)
class Strength:
    """Largest moves of an augmentation; each move is drawn uniformly from [-largest, largest].

    rotation  degrees
    shift     fraction of the image's side, each way separately (.125 is 1 pixel of 8)
    scale     relative size: .2 draws from 80 % to 120 %
    contrast  relative to the image's own mean; the result is clipped to [-1, 1]
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    contrast: float = 0.0

    def __post_init__(self):
        for name, largest in (("rotation", 180), ("shift", 1), ("scale", 0.9), ("contrast", 1)):
            value = getattr(self, name)
            if not 0 <= value <= largest:
                raise ValueError(f"{name} of a view is {value}; it must be from 0 to {largest}")


STRENGTHS: Mapping[str, Strength] = MappingProxyType(
    {
        "none": Strength(),
        "weak": Strength(rotation=5, shift=1 / 32, scale=0.05, contrast=0.05),
        "medium": Strength(rotation=10, shift=1 / 16, scale=0.1, contrast=0.1),
        "strong": Strength(rotation=20, shift=1 / 8, scale=0.2, contrast=0.2),
        "extreme": Strength(rotation=40, shift=1 / 4, scale=0.4, contrast=0.4),
    }
)


def strength(name: str) -> Strength:
    """The named strength; ValueError lists the names for another one."""
    try:
        return STRENGTHS[name]
    except KeyError:
        names = ", ".join(STRENGTHS)
        raise ValueError(f"no view strength is named {name!r}; choose among {names}") from None


def augment(images: Tensor, moves: Tensor, strength: Strength, padding: str = "black") -> Tensor:
    """Rotate, shift, scale and change the contrast of images (B, C, H, W); same shape, in [-1, 1].

    moves (B, 5) in [-1, 1]: rotation, shift right, shift down, scale, contrast, each a fraction of
    the strength's largest. Bilinear; what comes into view from outside is -1 for padding "black",
    and the edge or the mirror image for "border" and "reflection". Strength "none" returns the
    images unchanged, bit for bit.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}; choose among {', '.join(PADDINGS)}")
    if moves.shape != (len(images), NUM_MOVES):
        raise ValueError(
            f"moves have shape {tuple(moves.shape)}; {len(images)} images need "
            f"({len(images)}, {NUM_MOVES})"
        )
    moves = moves.to(images)
    if strength.rotation or strength.shift or strength.scale:
        images = _warp(images, moves[:, :4], strength, padding)
    if strength.contrast:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        factor = 1 + strength.contrast * moves[:, 4].view(-1, 1, 1, 1)
        images = (mean + factor * (images - mean)).clamp(-1, 1)
    return images


def _warp(images: Tensor, moves: Tensor, strength: Strength, padding: str) -> Tensor:
    """Rotation and scale about the centre, then the shift, by one bilinear resampling."""
    height, width = images.shape[-2:]
    angle = moves[:, 0] * math.radians(strength.rotation)
    size = 1 + strength.scale * moves[:, 3]
    # grid_sample asks where each output pixel comes from: undo the shift, the turn, the scaling.
    # In its coordinates both sides are 2 long, so a turn of an oblong image needs the aspect.
    cos, sin = angle.cos() / size, angle.sin() / size
    aspect = height / width
    inverse = torch.stack(
        [
            torch.stack([cos, sin * aspect], dim=-1),
            torch.stack([-sin / aspect, cos], dim=-1),
        ],
        dim=-2,
    )
    shift = 2 * strength.shift * moves[:, 1:3]
    offset = -(inverse @ shift[:, :, None])
    grid = F.affine_grid(
        torch.cat([inverse, offset], dim=-1), list(images.shape), align_corners=False
    )
    mode = "zeros" if padding == "black" else padding
    warped = F.grid_sample(
        images + 1, grid, mode="bilinear", padding_mode=mode, align_corners=False
    )
    return (warped - 1).clamp(-1, 1)


def draw(
    seed: int, indices: Tensor | Sequence[int], num_views: int, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Random numbers of num_views views of each image: moves (n, V, 5), noise (n, V, *shape).

    Moves are uniform in (-1, 1], noise is standard normal, both float32 on the indices' device.
    They depend on (seed, image index, view index) alone, so more views or other images leave those
    drawn before as they are.
    """
    draws = Draws(seed, torch.as_tensor(indices, dtype=torch.long))
    moves, noise = [], []
    for view in range(num_views):
        # Draws.time() is a uniform number; each move takes its own step.
        each = [draws.at(view * NUM_MOVES + move).time() for move in range(NUM_MOVES)]
        moves.append(torch.stack(each, dim=1) * 2 - 1)
        noise.append(draws.at(view).noise(tuple(shape)))
    return torch.stack(moves, dim=1), torch.stack(noise, dim=1)


@dataclass(frozen=True)
class Views:
    """V views of each image: calling it gives the noisy views, (n, V, C, H, W).

    strength: a name of STRENGTHS or a Strength. num_views: V >= 2. padding: see `augment`.
    """

    strength: str | Strength = "strong"
    num_views: int = 6
    seed: int = 0
    padding: str = "black"

    def __post_init__(self):
        if isinstance(self.strength, str):
            strength(self.strength)
        if self.num_views < 2:
            raise ValueError(f"num_views is {self.num_views}; ICR needs at least two views")
        if self.padding not in PADDINGS:
            raise ValueError(f"padding is {self.padding!r}; choose among {', '.join(PADDINGS)}")

    def __call__(self, images: Tensor, indices: Tensor | Sequence[int], sigma: float) -> Tensor:
        """Views y = augmented + sigma * noise of images (n, C, H, W), (n, V, C, H, W).

        indices (n,): each image's number in its data set, which fixes its views. sigma: EDM noise
        level, in the units of images in [-1, 1]; at 0 the views are the augmentations alone.
        """
        if images.ndim != 4 or len(images) != len(indices):
            raise ValueError(
                f"images have shape {tuple(images.shape)} for {len(indices)} indices; give "
                "(n, C, H, W) and one index each"
            )
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma is {sigma}; a noise level is at least 0 and finite")
        chosen = self.strength if isinstance(self.strength, Strength) else strength(self.strength)
        indices = torch.as_tensor(indices, dtype=torch.long, device=images.device)
        moves, noise = draw(self.seed, indices, self.num_views, images.shape[1:])
        repeated = images.repeat_interleave(self.num_views, dim=0)
        augmented = augment(repeated, moves.flatten(0, 1), chosen, self.padding)
        return augmented.view(noise.shape) + sigma * noise.to(images)
