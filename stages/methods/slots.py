"""The slots that stages fill by name from table.py: what each member must offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.datasets.images import Source
    from stages.methods.losses import Batch, LossTerms


class Dataset(Protocol):
    """Reads a data set from its true file format (`DATASETS`)."""

    def __call__(self, settings: Any) -> Source:
        """settings: `stages.prepare.PrepareSettings`. Raises ValueError for bad files."""


class Loss(Protocol):
    """A training loss of the SiT family (`LOSSES`): its mean over a batch, and its terms."""

    uses_teacher: ClassVar[bool]
    uses_class_token: ClassVar[bool]

    def __call__(self, network: nn.Module, batch: Batch) -> LossTerms:
        """Raises ValueError when the batch does not fit the network."""


class TimeDensity(Protocol):
    """A density over t in [0, 1], t=0 data, for training and for grids.

    `TIME_DENSITIES` names what makes one; `density.TimeDensity` is the base class of members.
    """

    def pdf(self, t: Tensor) -> Tensor:
        """Density at t, any shape; float64."""

    def inverse_cdf(self, u: Tensor) -> Tensor:
        """Quantiles u in [0, 1] -> t, any shape; float64."""

    def grid(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) times from exactly 1 down to exactly 0, at equal quantiles."""


class Grid(Protocol):
    """Noise levels of a sampler (`GRIDS`)."""

    def __call__(self, num_levels: int) -> Tensor:
        """(num_levels + 1,) float64, descending to 0."""
