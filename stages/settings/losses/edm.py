"""The loss `edm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.stage import resolve
from stages.settings.losses import LossOptions

if TYPE_CHECKING:
    from stages.methods.density import TimeDensity
    from stages.methods.losses import Loss
    from stages.training.train import TrainOptions


class EDMOptions(LossOptions):
    """EDM: a denoiser trained on its weighted error, at noise levels of a log-normal density."""

    mathematics = "stages.methods.edm:Loss"
    terms = ("denoising",)
    trains_denoiser = True

    sigma_data: float = Field(
        0.5, gt=0, le=1000, description="standard deviation of the data, in [-1, 1], as assumed"
    )
    p_mean: float = Field(-1.2, ge=-20, le=20, description="mean of ln sigma in training")
    p_std: float = Field(1.2, gt=0, le=20, description="standard deviation of ln sigma")

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        return {"sigma_data": self.sigma_data}

    def check(self, training: TrainOptions) -> None:
        method, density = training.method, training.density
        if density != type(density)():
            raise ValueError(
                f"density.kind={density.kind} and method={method} contradict each other: "
                f"its noise levels are drawn by {method}.p_mean and {method}.p_std; "
                "leave density unset"
            )

    def loss(self, label_dropout: float, time_density: TimeDensity | None) -> Loss:
        return resolve(self.mathematics)(label_dropout=label_dropout, **self.of_loss())
