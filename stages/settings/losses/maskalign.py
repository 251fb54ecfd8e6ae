"""The loss `maskalign`."""

from typing import Annotated, Any

from pydantic import Field

from stages.settings.losses.reg import REGOptions

# Bounded alone, because lists of settings hold them too.
MaskRatio = Annotated[float, Field(ge=0, lt=1)]
MixLayers = Annotated[int, Field(ge=0, le=100)]


class MaskAlignOptions(REGOptions):
    """MaskAlign: REG on a random part of the tokens, mixed before the mask."""

    mathematics = "stages.methods.maskalign:Loss"

    mask_ratio: MaskRatio = Field(
        0.25, description="share of the patches left out of every step, in [0, 1)"
    )
    mix_layers: MixLayers = Field(
        2, description="blocks over all tokens before the mask; 0 for none"
    )

    def of_loss(self) -> dict[str, Any]:
        return super().of_loss() | {"mask_ratio": self.mask_ratio}

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        return super().of_network(teacher_dim) | {"mix_layers": self.mix_layers}
