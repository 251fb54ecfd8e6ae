"""SimCLR (Chen et al. 2020, arXiv 2002.05709): features learned from images without labels.

Two views of every image of a batch are to be nearest to each other among all views of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.methods.draws import Draws
from stages.methods.losses import Batch, LossTerms, check_fraction, check_weight
from stages.methods.views import NUM_MOVES, STRENGTHS, Strength, augment

NUM_VIEWS = 2


@dataclass(frozen=True)
class Loss:
    """NT-Xent: the cross-entropy of finding an image's other view among those of the batch.

    temperature: of the cosines, above 0. strength: of the views' rotation, shift, scale and
    contrast. padding: what it brings into view, see `views.augment`. noise: standard deviation of
    the Gaussian noise added to a view (ours). jitter: of a view's grey levels, from 0 to 1:
    contrast is multiplied by exp(0.7 jitter N(0, 1)) around the image's mean, brightness moved by
    0.5 jitter N(0, 1), and with probability jitter / 2 the levels change sign (ours, for the
    paper's colour distortion, which it finds necessary where colours tell images apart).
    """

    temperature: float = 0.2
    strength: Strength = STRENGTHS["strong"]
    noise: float = 0.1
    padding: str = "black"
    jitter: float = 0.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        check_weight("noise", self.noise)
        check_fraction("jitter", self.jitter)

    def __call__(self, network: nn.Module, batch: Batch) -> LossTerms:
        """network: images (B, C, H, W) -> embeddings (B, d). Needs two images or more."""
        pairs = [self.view(batch.images, batch.draws, number) for number in range(NUM_VIEWS)]
        loss = nt_xent(network(torch.cat(pairs)), self.temperature)
        return LossTerms(loss, {"contrastive": loss})

    def view(self, images: Tensor, draws: Draws, number: int) -> Tensor:
        """View 0 or 1 of images (B, C, H, W) at the draws' step: augmented, with noise."""
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


def nt_xent(embeddings: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of the paper, mean over all 2n views. embeddings: (2n, d), view 0 of every image, then
    view 1 of every image, n >= 2. A scalar."""
    count = len(embeddings)
    if count < 4 or count % 2:
        raise ValueError(f"{count} embeddings; give both views of at least two images")
    points = F.normalize(embeddings.float(), dim=1)
    cosines = points @ points.T / temperature
    itself = torch.eye(count, dtype=torch.bool, device=points.device)
    other = torch.arange(count, device=points.device).roll(count // 2)
    return F.cross_entropy(cosines.masked_fill(itself, -torch.inf), other)
