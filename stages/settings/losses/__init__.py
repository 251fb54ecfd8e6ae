"""The training losses that settings name, one file a loss: all that is known of one before torch
is imported.

A file holds one `LossOptions`, which `table.LOSSES` names. Its mathematics may stand in it too,
with torch imported inside functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.stage import Settings, resolve
from stages.settings.densities import DensitySettings

if TYPE_CHECKING:
    from stages.methods.density import TimeDensity
    from stages.methods.losses import Loss
    from stages.training.train import TrainOptions


class LossOptions(Settings):
    """Base of a loss's own settings, with what it needs and what it reports.

    mathematics: `module:attribute` of what makes the loss. terms: names of its terms, the one to
    watch first. uses_teacher: whether it aligns with one. uses_class_token: whether its network
    carries one beside the image. trains_denoiser: whether its network is a denoiser in EDM
    coordinates; if not, it gives velocities.
    """

    mathematics: ClassVar[str]
    terms: ClassVar[tuple[str, ...]] = ("velocity",)
    uses_teacher: ClassVar[bool] = False
    uses_class_token: ClassVar[bool] = False
    trains_denoiser: ClassVar[bool] = False

    def of_loss(self) -> dict[str, Any]:
        """Keyword arguments of the loss: all settings, where nothing else is said."""
        return dict(self)

    def of_network(self, teacher_dim: int) -> dict[str, Any]:
        """Keyword arguments of the network; teacher_dim: the teacher's width, 0 without one."""
        return {}

    def on(self, kind: str) -> LossOptions:
        """The settings on a network of this kind, what is unset being as its own training has
        it."""
        return self

    @classmethod
    def own_density(cls) -> DensitySettings:
        """Where t is drawn if settings do not say: as the loss's own paper."""
        return DensitySettings()

    def check(self, training: TrainOptions) -> None:
        """Raise ValueError for a training by this loss that does not fit it."""

    def loss(self, label_dropout: float, time_density: TimeDensity | None) -> Loss:
        """The loss. Raises ValueError for settings that it refuses."""
        make = resolve(self.mathematics)
        return make(label_dropout=label_dropout, time_density=time_density, **self.of_loss())
