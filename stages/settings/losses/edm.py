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


WITH_UNCERTAINTY = "edm2"


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
    uncertainty: bool | None = Field(
        None,
        description="edm2: learn the error's logarithm at each noise level beside, and weigh by "
        "it; unset is so for edm2, as in its own training, and impossible for others",
    )

    def on(self, kind: str) -> EDMOptions:
        unset = self.uncertainty is None and kind == WITH_UNCERTAINTY
        return self.revised(uncertainty=True) if unset else self

    def of_loss(self) -> dict[str, Any]:
        return super().of_loss() | {"uncertainty": bool(self.uncertainty)}

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        own = {"train_uncertainty": False} if self.uncertainty is False else {}
        return {"sigma_data": self.sigma_data} | own

    def check(self, training: TrainOptions) -> None:
        method, density, kind = training.method, training.density, training.network.kind
        if self.uncertainty is not None and kind != WITH_UNCERTAINTY:
            raise ValueError(
                f"{method}.uncertainty={str(self.uncertainty).lower()} and network.kind={kind} "
                f"contradict each other: only {WITH_UNCERTAINTY} learns one; leave it unset"
            )
        if density is not None:
            raise ValueError(
                f"density.kind={density.kind} and method={method} contradict each other: "
                f"its noise levels are drawn by {method}.p_mean and {method}.p_std; "
                "leave density unset"
            )

    def loss(self, label_dropout: float, time_density: TimeDensity | None) -> Loss:
        return resolve(self.mathematics)(label_dropout=label_dropout, **self.of_loss())
