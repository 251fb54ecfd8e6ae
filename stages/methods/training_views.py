"""Views of images that a teacher is trained on: augmented, noisy, of other grey levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.methods.draws import Draws
from stages.methods.losses import check_fraction, check_weight
from stages.methods.views import NUM_MOVES, PADDINGS, STRENGTHS, Strength, augment

NUM_VIEWS = 2


@dataclass(frozen=True)
class Views:
    """Views of a batch of images, by seed, step and sample alone.

    strength: of the views' rotation, shift, scale and contrast. padding: what these bring into
    view, see `views.augment`. noise: standard deviation of the Gaussian noise added to a view.
    jitter: of a view's grey levels, from 0 to 1: contrast is multiplied by exp(0.7 jitter N(0, 1))
    around the image's mean, brightness moved by 0.5 jitter N(0, 1), and with probability jitter / 2
    the levels change sign (ours, for SimCLR's colour distortion, which its paper finds necessary
    where colours tell images apart).
    """

    strength: Strength = STRENGTHS["strong"]
    padding: str = "black"
    noise: float = 0.1
    jitter: float = 0.0

    def __post_init__(self):
        check_weight("noise", self.noise)
        check_fraction("jitter", self.jitter)
        if self.padding not in PADDINGS:
            raise ValueError(f"padding is {self.padding!r}; choose among {', '.join(PADDINGS)}")

    def __call__(self, images: Tensor, draws: Draws, number: int) -> Tensor:
        """View 0 or 1 of images (B, C, H, W) at the draws' step."""
        first = draws.step * NUM_VIEWS + number
        # Draws.time() is a uniform number; each move takes a step of its own.
        moves = [draws.at(first * NUM_MOVES + move).time() for move in range(NUM_MOVES)]
        moved = torch.stack(moves, dim=1) * 2 - 1
        augmented = augment(images, moved, self.strength, self.padding)
        if self.jitter:
            augmented = self._jittered(augmented, draws.at(first))
        return augmented + self.noise * draws.at(first).noise(images.shape[1:])

    def _jittered(self, images: Tensor, draws: Draws) -> Tensor:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        contrast, brightness = draws.class_noise(2).view(-1, 2, 1, 1, 1).unbind(1)
        factor = (0.7 * self.jitter * contrast).exp()
        flipped = draws.drop(self.jitter / 2).view(-1, 1, 1, 1)
        factor = torch.where(flipped, -factor, factor)
        return mean + factor * (images - mean) + 0.5 * self.jitter * brightness
