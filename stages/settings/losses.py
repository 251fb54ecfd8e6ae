"""The training losses that settings name: each method's own settings, and the loss they make.

A method that has settings of its own has a field in `MethodOptions`, named as in `table.LOSSES`. A
node's key holds those of its own method alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline.stage import Settings, resolve
from stages.methods import table

if TYPE_CHECKING:
    from stages.methods.density import TimeDensity
    from stages.methods.losses import Loss


class OwnOptions(Settings):
    """Base of a method's own settings."""

    def of_loss(self) -> dict[str, Any]:
        """Keyword arguments of the loss."""
        return {}

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        """Keyword arguments of the network; teacher_dim: the teacher's width, 0 without one."""
        return {}


class REPAOptions(OwnOptions):
    """REPA: alignment with a teacher."""

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


class REGOptions(REPAOptions):
    """REG: REPA's alignment, and the teacher's class token generated beside the image."""

    class_weight: float = Field(
        0.03, ge=0, le=1000, description="beta, weight of the class token's velocity loss"
    )

    def of_loss(self) -> dict[str, Any]:
        return super().of_loss() | {"class_weight": self.class_weight}

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        return super().of_network(teacher_dim) | {"class_token_dim": teacher_dim}


# Bounded alone, because lists of settings hold them too.
MaskRatio = Annotated[float, Field(ge=0, lt=1)]
MixLayers = Annotated[int, Field(ge=0, le=100)]


class MaskAlignOptions(REGOptions):
    """MaskAlign: REG on a random part of the tokens, mixed before the mask."""

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


class EDMOptions(OwnOptions):
    """EDM: a denoiser trained on its weighted error, at noise levels of a log-normal density."""

    sigma_data: float = Field(
        0.5, gt=0, le=1000, description="standard deviation of the data, in [-1, 1], as assumed"
    )
    p_mean: float = Field(-1.2, ge=-20, le=20, description="mean of ln sigma in training")
    p_std: float = Field(1.2, gt=0, le=20, description="standard deviation of ln sigma")

    def of_loss(self) -> dict[str, Any]:
        return {"sigma_data": self.sigma_data, "p_mean": self.p_mean, "p_std": self.p_std}

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        return {"sigma_data": self.sigma_data}


class MethodOptions(Settings):
    """The settings that methods have of their own; a training reads those of its method alone."""

    repa: REPAOptions = Field(REPAOptions(), description="method=repa")
    reg: REGOptions = Field(REGOptions(), description="method=reg")
    maskalign: MaskAlignOptions = Field(MaskAlignOptions(), description="method=maskalign")
    edm: EDMOptions = Field(EDMOptions(), description="method=edm")

    def own(self, method: str) -> OwnOptions:
        """The settings of one method, empty for one that has none."""
        return getattr(self, method) if method in MethodOptions.model_fields else OwnOptions()


def loss_of(
    method: str, options: OwnOptions, label_dropout: float, time_density: TimeDensity | None
) -> Loss:
    """The method's loss. Raises ValueError for settings that it refuses."""
    more = {} if method in table.EDM_LOSSES else {"time_density": time_density}
    return resolve(table.LOSSES[method])(label_dropout=label_dropout, **more, **options.of_loss())
