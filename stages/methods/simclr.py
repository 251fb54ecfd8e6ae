"""SimCLR (Chen et al. 2020, arXiv 2002.05709): features learned from images without labels.

Two views of every image of a batch are to be nearest to each other among all views of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.methods.losses import Batch, LossTerms
from stages.methods.training_views import NUM_VIEWS, Views


@dataclass(frozen=True)
class Loss:
    """NT-Xent: the cross-entropy of finding an image's other view among those of the batch.

    temperature: of the cosines, above 0.
    """

    temperature: float = 0.2
    views: Views = field(default_factory=Views)

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    def __call__(self, network: nn.Module, batch: Batch) -> LossTerms:
        """network: images (B, C, H, W) -> embeddings (B, d). Needs two images or more."""
        pairs = [self.views(batch.images, batch.draws, number) for number in range(NUM_VIEWS)]
        loss = nt_xent(network(torch.cat(pairs)), self.temperature)
        return LossTerms(loss, {"contrastive": loss})


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
