"""The loss `reg`."""

from typing import Any

from pydantic import Field

from stages.settings.losses.repa import REPAOptions


class REGOptions(REPAOptions):
    """REG: REPA's alignment, and the teacher's class token generated beside the image."""

    mathematics = "stages.methods.reg:Loss"
    terms = ("velocity", "alignment", "class")
    uses_class_token = True

    class_weight: float = Field(
        0.03, ge=0, le=1000, description="beta, weight of the class token's velocity loss"
    )

    def of_loss(self) -> dict[str, Any]:
        return super().of_loss() | {"class_weight": self.class_weight}

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        return super().of_network(teacher_dim) | {"class_token_dim": teacher_dim}
