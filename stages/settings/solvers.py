"""How a trained network is solved: solver, NFE, grid and guidance as settings, and the model in EDM
coordinates, for every stage that runs a solver.

The network is called on blocks of `block_size` samples, aligned at its multiples and always whole,
so that bytes depend neither on workers and shards nor on how many samples are held at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from pipeline.stage import Settings, resolve
from stages.methods import table
from stages.settings import densities

if TYPE_CHECKING:
    from torch import Tensor

    from stages.artifacts.spectrum import PowerSpectrum
    from stages.methods.solvers.stochastic import Churn

UNIFORM = "uniform_t"
OWN = "own levels"  # what tables call the grid of a solver that was fitted with its levels

# Where a flow model starts, and what stands for 1; of path.py, which imports torch.
T_START, AT_NOISE = 0.999, 1 - 2.0**-26


class ChurnOptions(Settings):
    """EDM's stochastic churn (Karras et al. 2022, Algorithm 2)."""

    amount: float = Field(40.0, ge=0, le=1e4, description="S_churn, shared by all steps")
    lowest: float = Field(0.05, ge=0, description="S_min: noise is added from this level up")
    highest: float = Field(50.0, gt=0, description="S_max: and up to this one")
    noise: float = Field(1.003, gt=0, le=2, description="S_noise: the noise's standard deviation")

    def parameters(self) -> Churn:
        from stages.methods.solvers.stochastic import Churn

        return Churn(**self.model_dump())


class SolverOptions(Settings):
    """The solver, where its levels lie, and guidance."""

    solver: table.choice("solver", table.PLAIN_SOLVERS | table.FITTED_SOLVERS) = Field(
        "dpmpp2m", description="the ODE solver"
    )
    nfe: int = Field(20, ge=1, le=10_000, description="network evaluations a sample")
    grid: table.choice("grid", table.GRIDS | table.DENSITY_GRIDS) = Field(
        UNIFORM,
        description="where the solver's levels lie; a time density's lie at its equal quantiles",
    )
    density: densities.DensityOptions = Field(
        densities.DensityOptions(), description="grids of a time density, over a uniform base"
    )
    t_start: float = Field(
        T_START,
        gt=0,
        le=1,
        description="other grids, and solver sde: the time, 1 being noise, at which the network is "
        "asked first; 1 as in the papers' codes",
    )
    s_max: float = Field(
        80.0, gt=0, le=1e4, description="grids edm, log_snr: the first level, s = t / (1 - t)"
    )
    s_min: float = Field(0.02, ge=1e-5, description="grids edm, log_snr: the last level above 0")
    guidance: float = Field(
        1.0, ge=0, le=100, description="classifier-free guidance scale; 1 is none"
    )
    guidance_interval: tuple[float, float] | None = Field(
        None,
        description="times t, 0 (data) to 1 (noise), between which guidance acts; unset is as in "
        "the network's own code: up to 0.7 for REPA's, 0.85 for REG's and 0.9 for JiT's files, "
        "everywhere for others (JiT's leaves out the ends)",
    )
    guidance_channels: int | None = Field(
        None,
        ge=1,
        description="only the first so many channels of an image are guided; unset is as in the "
        "network's own code: 3 of SiT's and DiT's four, all of others",
    )
    guidance_token: float | None = Field(
        None,
        ge=0,
        le=100,
        description="guidance scale of the class token beside the image (REG's cls_cfg_scale, of "
        "which 0 leaves it unguided); unset is that of the image",
    )
    labels: Literal["reference", "equal"] = Field(
        "reference",
        description="shares in which samples take labels: those of the training images that they "
        "are scored against, or equal ones; any first samples have them, to within one",
    )
    block_size: int = Field(
        250,
        ge=1,
        le=65536,
        description="samples of one network call, and of the batch that online and literal "
        "corrections average over; with other blocks samples differ by rounding",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the network runs")

    @model_validator(mode="after")
    def _solver_fits(self) -> SolverOptions:
        if self.nfe != runnable_nfe(self.solver, self.nfe):
            raise ValueError(
                f"solver={self.solver} takes an odd number of evaluations, nfe={self.nfe} is "
                f"even; set nfe to {self.nfe - 1} or {self.nfe + 1}"
            )
        if self._divides_by_ratios():
            raise ValueError(
                f"t_start={self.t_start:g} and solver={self.solver} on grid={self.grid} contradict "
                "each other: its steps divide by the ratio of neighbouring levels, which vanishes "
                f"there; set t_start to at most {T_START}, or its grid to edm"
            )
        if table.SOLVERS[self.solver].own_levels and self.grid != UNIFORM:
            raise ValueError(
                f"grid={self.grid} and solver={self.solver} contradict each other: its levels are "
                "fitted with its weights; leave grid unset"
            )
        self.density.refuse_unread(densities.of_grids(self.grids_in_use), f"grid={self.grid}")
        if self.grid in table.DENSITY_GRIDS:
            self._check_start()
        if self.s_min >= self.s_max:
            raise ValueError(
                f"s_min={self.s_min} is not below s_max={self.s_max}; lower s_min or raise s_max"
            )
        low, high = self.guidance_interval or (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance_interval={self.guidance_interval} must be (low, high) with "
                "0 <= low <= high <= 1"
            )
        return self

    def _divides_by_ratios(self) -> bool:
        """Whether the first step's second evaluation would decide everything."""
        starts = self.t_start > T_START and self.grid not in table.BOUNDED_GRIDS
        return starts and _per_step(self.solver) == 2

    def _check_start(self) -> None:
        """Raise ValueError where the settings alone put several times of a density's grid before
        the start of a flow model."""
        num_levels = 1 + (self.nfe - 1) // _per_step(self.solver)
        start = min(self.t_start, AT_NOISE)
        above = densities.least_share_above(self.density, self.grid, start)
        if above * num_levels > 1 + 1e-9:
            raise ValueError(
                f"grid={self.grid} with density.shift={self.density.shift:g} and nfe={self.nfe} "
                f"puts {1 + int(above * num_levels)} of its times at or above "
                f"t={self.t_start:g}, where a flow model starts; lower nfe, or density.shift"
            )

    @property
    def grids_in_use(self) -> tuple[str, ...]:
        """Every grid that these settings name."""
        return (self.grid,)

    @property
    def grid_name(self) -> str:
        """What tables and figures call the grid."""
        if table.SOLVERS[self.solver].own_levels:
            return OWN
        is_density = self.grid in table.DENSITY_GRIDS
        return self.density.label(self.grid) if is_density else self.grid


def sources(settings: SolverOptions) -> list[str]:
    """The places of the solver and the grid, for a stage's `sources`; a stochastic solver has its
    grid with it, and one with levels of its own needs none."""
    solver = table.SOLVERS[settings.solver]
    if solver.own_levels or (solver.stochastic and not solver.counted_as):
        return [solver.place]
    if settings.grid in table.DENSITY_GRIDS:
        grid = densities.sources(settings.density, settings.grid)
    else:
        grid = [table.GRIDS[settings.grid]]
    return [*grid, solver.place]


def needs(settings: SolverOptions) -> list[str]:
    """The optional inputs that the grid cannot do without."""
    return ["spectrum"] if densities.needs_spectrum(settings.grid) else []


def levels_of(settings: SolverOptions, spectrum: PowerSpectrum | None = None) -> Tensor:
    """The noise levels (n + 1,) float64, descending to 0, that take `nfe` evaluations.

    Raises ValueError for a grid that needs the data's spectrum and has none.
    """
    from stages.methods.grids import from_times
    from stages.methods.solvers import levels_for_evaluations

    num_levels = levels_for_evaluations(table.counted_as(settings.solver), settings.nfe)
    if settings.grid in table.DENSITY_GRIDS:
        density = densities.time_density(settings.density, settings.grid, spectrum=spectrum)
        return from_times(density.grid(num_levels), settings.t_start)
    bounds = {"t_start": settings.t_start}
    if settings.grid in table.BOUNDED_GRIDS:
        bounds = {"s_max": settings.s_max, "s_min": settings.s_min}
    return resolve(table.GRIDS[settings.grid])(num_levels, **bounds)


def _per_step(solver: str) -> int:
    return table.SOLVERS[table.counted_as(solver)].per_step


def runnable_nfe(solver: str, nfe: int) -> int:
    """The NFE that a solver is run at where `nfe` is asked for: the odd number just below an even
    one where it takes an odd number only."""
    return nfe - (nfe - 1) % _per_step(solver)


def runnable(solver: str, nfes: Sequence[int]) -> tuple[int, ...]:
    """The NFE that a solver is run at where `nfes` are asked for, ascending."""
    return tuple(sorted({runnable_nfe(solver, nfe) for nfe in nfes}))


# Network evaluations, as in lists of settings; the bounds are those of a sample node's nfe.
NFE = Annotated[int, Field(ge=1, le=10_000)]
