"""Features learned from labels: the class of a view of every image of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn import functional as F

from stages.methods.losses import Batch, LossTerms
from stages.methods.training_views import Views


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of the labels, mean over one view of every image."""

    views: Views = field(default_factory=Views)

    def __call__(self, network: nn.Module, batch: Batch) -> LossTerms:
        """network: images (B, C, H, W) -> logits (B, classes). The batch needs labels."""
        logits = network(self.views(batch.images, batch.draws, 0))
        loss = F.cross_entropy(logits.float(), batch.labels)
        return LossTerms(loss, {"class": loss})
