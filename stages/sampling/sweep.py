"""How samples are made over solvers and numbers of evaluations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.stage import unkeyed
from stages.methods import table
from stages.sampling.sample import SampleOptions, SampleSettings, brings_grid
from stages.settings import densities
from stages.settings import solvers as settings_solvers
from stages.settings.solvers import NFE, runnable

TASK_EVALUATIONS = 250_000  # of the network, by one task: minutes of a GPU for SiT-XL/2


class SampleSweep(SampleOptions):
    """How samples are made, and over which solvers and NFE on the last checkpoint."""

    classes: Literal["balanced", "random"] | None = Field(
        None,
        description="balanced: classes in turn, in the shares that labels says; random: drawn for "
        "each sample, each as often, as in most papers; unset is balanced, under a published "
        "protocol evaluate.classes",
    )
    solvers: tuple[table.choice("solver", table.PLAIN_SOLVERS), ...] = Field(
        ("euler", "heun", "dpmpp2m"), min_length=1, description="solvers compared over nfes"
    )
    nfes: tuple[NFE, ...] = Field(
        (5, 10, 20),
        min_length=1,
        description="network evaluations compared; a solver that takes an odd number only runs at "
        "the odd number just below an even one",
    )
    solver_grids: dict[
        table.choice("solver", table.PLAIN_SOLVERS),
        table.choice("grid", table.GRIDS | table.DENSITY_GRIDS),
    ] = Field(
        {"heun": "edm", "dpm2": "edm", "ipndm": "edm"},
        description="grids of swept solvers that need their own: Heun and its like amplify errors "
        "at the long first step of a grid uniform in t",
    )
    sweep_samples: int = Field(
        1000, ge=1, le=10**7, description="samples of each set compared over solvers and NFE"
    )
    checkpoint_solver: (
        table.choice("solver", table.PLAIN_SOLVERS | table.STOCHASTIC_SOLVERS) | None
    ) = Field(
        None,
        description="solver of the samples that are scored over training steps; sde with "
        "checkpoint_nfe=250 is the papers' own; unset is solver",
    )
    checkpoint_nfe: int | None = Field(
        None, ge=1, le=10_000, description="their network evaluations; unset is nfe"
    )
    shard_size: int = unkeyed(
        5000,
        ge=1,
        description="samples of one task at most, rounded up to whole blocks; fewer of more than "
        "50 evaluations each, 1000 of 250: a task that is lost is made anew",
    )
    num_seeds: int = Field(
        1,
        ge=1,
        le=100,
        description="seeds of the samples of every checkpoint, counted from the run's own; with "
        "several, scores are means and their errors are of the seeds",
    )
    reference_nfe: int = Field(
        100, ge=2, le=10_000, description="evaluations of the samples trajectory_rms refers to"
    )

    @model_validator(mode="after")
    def _nfes_fit(self) -> SampleSweep:
        if self.solver in table.STOCHASTIC_SOLVERS:
            raise ValueError(
                f"solver={self.solver} cannot be every sample node's: recipes compare solvers of "
                f"the ODE; set sample.checkpoint_solver={self.solver} for the samples over "
                "training steps"
            )
        self._check_checkpoints()
        if self.correction != "none" or self.solver in table.FITTED_SOLVERS:
            name = "solver" if self.solver in table.FITTED_SOLVERS else "correction"
            raise ValueError(
                f"{name}={getattr(self, name)} cannot be every sample node's: recipes compare "
                f"corrections beside the plain solvers; leave sample.{name} unset, and choose in "
                f"stein.{'fitted' if name == 'solver' else 'corrections'}"
            )
        if max(self.nfes) >= self.reference_nfe:
            raise ValueError(
                f"nfes reaches {max(self.nfes)}, not below reference_nfe={self.reference_nfe}; "
                "raise sample.reference_nfe, or lower sample.nfes"
            )
        return self

    def _check_checkpoints(self) -> None:
        """Raise ValueError where checkpoints cannot be sampled as asked."""
        if not (changed := self.of_checkpoints()):
            return
        try:
            self.options(**changed)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            words = problem.get("ctx", {}).get("error", problem["msg"])
            raise ValueError(f"samples over training steps: {words}") from error

    def of_checkpoints(self) -> dict[str, object]:
        """Settings of the samples over training steps that are not those of the others."""
        settings: dict[str, object] = {}
        if self.checkpoint_solver is not None:
            settings["solver"] = self.checkpoint_solver
            settings["grid"] = settings_solvers.UNIFORM
            if not brings_grid(self.checkpoint_solver):
                settings["grid"] = self.grid_of(table.counted_as(self.checkpoint_solver))
        if self.checkpoint_nfe is not None:
            settings["nfe"] = self.checkpoint_nfe
        return settings

    def nfes_of(self, solver: str) -> tuple[int, ...]:
        """The NFE this solver is run at, ascending."""
        return runnable(solver, self.nfes)

    @property
    def grids_in_use(self) -> tuple[str, ...]:
        """Every grid that these settings name."""
        return (self.grid, *self.solver_grids.values())

    def grid_of(self, solver: str) -> str:
        """The grid this solver is swept on."""
        return self.solver_grids.get(solver, self.grid)

    def options(self, **changes: object) -> SampleSettings:
        """The settings of one sample node. Few steps make large tasks, since each may start a
        process and compile the network there."""
        own = {"classes": self.classes or "balanced"}
        chosen = self.shared_with(SampleOptions) | own | changes
        most = max(1, TASK_EVALUATIONS // chosen["nfe"])
        chosen["shard_size"] = min(chosen["shard_size"], most)
        kinds = densities.of_grids([chosen["grid"]])
        return SampleSettings(**chosen | {"density": chosen["density"].read_by(kinds)})
