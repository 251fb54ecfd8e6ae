"""The loss `repa`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.settings.losses import LossOptions

if TYPE_CHECKING:
    from stages.training.train import TrainOptions


class REPAOptions(LossOptions):
    """REPA: alignment with a teacher."""

    mathematics = "stages.methods.repa:Loss"
    terms = ("velocity", "alignment")
    uses_teacher = True

    alignment_weight: float = Field(
        0.5, ge=0, le=1000, description="lambda, weight of the alignment loss"
    )
    alignment_depth: int = Field(
        2, ge=1, le=200, description="the block after which tokens are aligned, counted from 1"
    )
    projector_width: int = Field(
        128, ge=1, le=65536, description="P, hidden width of the projector (2048 in the papers)"
    )

    def of_loss(self) -> dict[str, Any]:
        return {"alignment_weight": self.alignment_weight}

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        return {
            "teacher_dim": teacher_dim,
            "projector_width": self.projector_width,
            "alignment_depth": self.alignment_depth,
        }

    def check(self, training: TrainOptions) -> None:
        depth = training.network.depth
        if self.alignment_depth > depth:
            raise ValueError(
                f"{training.method}.alignment_depth={self.alignment_depth} is beyond "
                f"network.depth={depth}; lower it to {depth} or less"
            )
