"""How contractive the steps of a solver are."""

from __future__ import annotations

from dataclasses import dataclass

from stages.artifacts.described import DescribedArtifact

FILE = "steps.parquet"


@dataclass(frozen=True)
class StepRow:
    """One step. t: its time, 1 noise to 0 data. mean, maximum: over states, of the largest
    singular value of the step's Jacobian; both are lower bounds."""

    step: int
    level: float
    next_level: float
    t: float
    mean: float
    maximum: float


class Lipschitz(DescribedArtifact):
    """The largest singular value of every step's Jacobian, mean and maximum over states. Facts:
    method, training_step, solver, nfe, grid, seed, and the measurement's."""

    facts = "lipschitz.json"

    def load(self) -> list[StepRow]:
        """The steps, noise first."""
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(self.path / FILE).to_pylist()
        return [StepRow(**row) for row in rows]
