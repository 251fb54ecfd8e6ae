"""The loss `jit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.settings.densities import DensitySettings
from stages.settings.losses import LossOptions

if TYPE_CHECKING:
    from stages.training.train import TrainOptions

# Of logit t, t being 1 at noise: the paper's own, whose time runs the other way, has mean -0.8.
OWN_DENSITY = {"kind": "logit_normal", "mean": 0.8, "std": 0.8}


class JiTOptions(LossOptions):
    """JiT: a network that predicts the clean image, trained on the error of its velocity; t is
    logit-normal (0.8, 0.8) where train.density is left unset."""

    mathematics = "stages.methods.jit:Loss"
    terms = ("velocity",)
    trains_denoiser = True

    noise_scale: float = Field(
        1.0, gt=0, le=100, description="standard deviation of the noise; 2 at 512 pixels"
    )
    t_eps: float = Field(0.05, gt=0, le=1, description="least 1 - t that velocities are divided by")

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        return {"noise_scale": self.noise_scale}

    @classmethod
    def own_density(cls) -> DensitySettings:
        return DensitySettings(**OWN_DENSITY)

    def check(self, training: TrainOptions) -> None:
        kind = training.network.kind
        if kind != "jit":
            raise ValueError(
                f"method=jit and network.kind={kind} contradict each other: its loss is of JiT's "
                "network; set network.kind=jit, or method=edm"
            )
