"""How a trained network is solved: solver, NFE, grid and guidance as settings, and the model in EDM
coordinates, for every stage that runs a solver.

The network is called on blocks of `block_size` samples, aligned at its multiples and always whole,
so that bytes depend neither on workers and shards nor on how many samples are held at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.artifact import open_artifact
from pipeline.stage import Settings, resolve
from stages import densities
from stages.methods import drawn_at, table
from stages.model import as_denoiser

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.methods.path import Denoiser
    from stages.model import TrainedModel, TrainedNetwork
    from stages.powerspectrum import PowerSpectrum

ANY_SOLVER = table.SOLVERS | table.FITTED_SOLVERS
UNIFORM = "uniform_t"
# Where a flow model starts; path.T_START, whose module imports torch.
T_START = 0.999


class SolverOptions(Settings):
    """The solver, where its levels lie, and guidance."""

    solver: table.choice("solver", ANY_SOLVER) = Field("dpmpp2m", description="the ODE solver")
    nfe: int = Field(20, ge=1, le=10_000, description="network evaluations a sample")
    grid: table.choice("grid", table.GRIDS | table.DENSITY_GRIDS) = Field(
        UNIFORM,
        description="where the solver's levels lie; a time density's lie at its equal quantiles",
    )
    density: densities.DensityOptions = Field(
        densities.DensityOptions(), description="grids of a time density, over a uniform base"
    )
    s_max: float = Field(
        80.0, gt=0, le=1e4, description="grids edm, log_snr: the first level, s = t / (1 - t)"
    )
    s_min: float = Field(0.02, gt=0, description="grids edm, log_snr: the last level above 0")
    guidance: float = Field(
        1.0, ge=0, le=100, description="classifier-free guidance scale; 1 is none"
    )
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="times t, 0 (data) to 1 (noise), between which guidance acts"
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
        if self.solver in table.ODD_SOLVERS and self.nfe % 2 == 0:
            raise ValueError(
                f"solver={self.solver} takes an odd number of evaluations, nfe={self.nfe} is "
                f"even; set nfe to {self.nfe - 1} or {self.nfe + 1}"
            )
        self.density.refuse_unread(densities.of_grids(self.grids_in_use), f"grid={self.grid}")
        if self.grid in table.DENSITY_GRIDS:
            self._check_start()
        if self.s_min >= self.s_max:
            raise ValueError(
                f"s_min={self.s_min} is not below s_max={self.s_max}; lower s_min or raise s_max"
            )
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance_interval={self.guidance_interval} must be (low, high) with "
                "0 <= low <= high <= 1"
            )
        return self

    def _check_start(self) -> None:
        """Raise ValueError where the settings alone put several times of a density's grid before
        the start of a flow model."""
        num_levels = (self.nfe + 1) // 2 if self.solver in table.ODD_SOLVERS else self.nfe
        above = densities.least_share_above(self.density, self.grid, T_START)
        if above * num_levels > 1 + 1e-9:
            raise ValueError(
                f"grid={self.grid} with density.shift={self.density.shift:g} and nfe={self.nfe} "
                f"puts {1 + int(above * num_levels)} of its times at or above t={T_START}, where a "
                "flow model starts; lower nfe, or density.shift"
            )

    @property
    def grids_in_use(self) -> tuple[str, ...]:
        """Every grid that these settings name."""
        return (self.grid,)

    @property
    def grid_name(self) -> str:
        """What tables and figures call the grid."""
        is_density = self.grid in table.DENSITY_GRIDS
        return self.density.label(self.grid) if is_density else self.grid


def sources(settings: SolverOptions) -> list[str]:
    """The places of the solver and the grid, for a stage's `sources`."""
    if settings.grid in table.DENSITY_GRIDS:
        grid = densities.sources(settings.density, settings.grid)
    else:
        grid = [table.GRIDS[settings.grid]]
    return [*grid, ANY_SOLVER[settings.solver]]


def needs(settings: SolverOptions) -> list[str]:
    """The optional inputs that the grid cannot do without."""
    return ["spectrum"] if densities.needs_spectrum(settings.grid) else []


def levels_of(settings: SolverOptions, spectrum: PowerSpectrum | None = None) -> Tensor:
    """The noise levels (n + 1,) float64, descending to 0, that take `nfe` evaluations.

    Raises ValueError for a grid that needs the data's spectrum and has none.
    """
    from stages.methods.grids import from_times
    from stages.methods.solvers import levels_for_evaluations

    counted_as = table.COUNTED_AS.get(settings.solver, settings.solver)
    num_levels = levels_for_evaluations(counted_as, settings.nfe)
    if settings.grid in table.DENSITY_GRIDS:
        density = densities.time_density(settings.density, settings.grid, spectrum=spectrum)
        return from_times(density.grid(num_levels))
    bounds = {"s_max": settings.s_max, "s_min": settings.s_min}
    bounded = settings.grid in table.BOUNDED_GRIDS
    return resolve(table.GRIDS[settings.grid])(num_levels, **(bounds if bounded else {}))


@dataclass
class Problem:
    """A model as solvers see it: states, and denoisers of blocks of samples.

    A state is an image, or an image with the class token that the network carries beside it, packed
    into one vector. `network_seconds` adds up what calls of the network took.
    """

    network: Callable[..., Any]
    model: TrainedModel
    settings: SolverOptions
    network_seconds: float = field(default=0.0, init=False)

    @cached_property
    def packing(self) -> Any:
        """How image and class token make one state; None without a token."""
        from stages.methods.path import Packing

        return Packing(tuple(self.model.shape)) if self.token_width else None

    @property
    def token_width(self) -> int:
        """Length of the class token beside the image, 0 for none."""
        return self.model.config.get("class_token_dim", 0)

    @property
    def coordinates(self) -> int | None:
        """The leading coordinates that are the image's; None for all."""
        return self.packing.image_coordinates if self.packing else None

    def noise(self, seed: int, indices: Tensor, step: int = drawn_at.INITIAL_NOISE) -> Tensor:
        """z ~ N(0, I) (B, ...) float64 of the samples `indices` (B,), for sampling by default."""
        from stages.methods.draws import Draws

        draws = Draws(seed, indices.to(self.settings.device), step)
        z = draws.noise(tuple(self.model.shape)).double()
        if self.packing is None:
            return z
        return self.packing.pack(z, draws.class_noise(self.token_width).double())

    @property
    def num_classes(self) -> int:
        """The classes that the network knows, 0 for none."""
        return self.model.config.get("num_classes", self.model.num_classes)

    def labels(self, indices: Tensor) -> Tensor:
        """Classes in turn, (B,) long; networks that know none do without."""
        return (indices % max(1, self.model.num_classes)).to(self.settings.device)

    def state_of(self, image: Tensor) -> Tensor:
        """An image (C, H, W) as a state, the class token being zero."""
        if self.packing is None:
            return image
        return self.packing.pack(image[None], image.new_zeros(1, self.token_width))[0]

    def images(self, state: Tensor) -> Tensor:
        """(B, C, H, W) of states."""
        return state if self.packing is None else self.packing.unpack(state)[0]

    def denoiser(self, labels: Tensor) -> Denoiser:
        """denoiser(y, s) of the samples with these labels (B,); one network call a block of them.

        The state is float64, the network float32. Guidance calls the network twice. Raises
        ValueError for guidance of a network without classes.
        """
        from stages.methods.path import Guidance

        if self.settings.guidance != 1 and not self.num_classes:
            raise ValueError(
                f"guidance={self.settings.guidance:g}: the network was trained without classes, "
                "which guidance needs; set guidance=1"
            )

        def of(part: Tensor) -> Denoiser:
            conditional = as_denoiser(self.model, self.network, part, self.packing, self._timed)
            if self.settings.guidance == 1:
                return conditional
            unconditional = as_denoiser(self.model, self.network, None, self.packing, self._timed)
            scale, interval = self.settings.guidance, self.settings.guidance_interval
            return Guidance(conditional, unconditional, scale, interval)

        parts = [of(part) for part in labels.split(self.settings.block_size)]
        return parts[0] if len(parts) == 1 else InBlocks(parts, self.settings.block_size)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._wait()
            begun = time.perf_counter()
            output = call(*args, **kwargs)
            self._wait()
            self.network_seconds += time.perf_counter() - begun
            return output

        return timed

    def _wait(self) -> None:
        if self.settings.device == "cuda":
            import torch

            torch.cuda.synchronize()


@dataclass(frozen=True)
class InBlocks:
    """A denoiser of many samples that calls one denoiser for each block of them."""

    parts: list[Denoiser]
    block_size: int

    def __call__(self, y: Tensor, s: float) -> Tensor:
        import torch

        blocks = zip(self.parts, y.split(self.block_size), strict=True)
        return torch.cat([part(block, s) for part, block in blocks])


def problem(
    trained: TrainedNetwork, settings: SolverOptions, step: int | None
) -> tuple[Problem, int]:
    """The model at a checkpoint (None: the last), and that step.

    A network stays loaded in a worker process for the next shard or node that asks for it.
    """
    model = trained.load()
    step = model.steps[-1] if step is None else step
    return Problem(warm_network(trained.path, step, settings.device), model, settings), step


@lru_cache(maxsize=2)
def warm_network(folder: Path, step: int, device: str) -> nn.Module:
    """A frozen network, kept in this process."""
    return open_artifact(folder).load().network(step, device)


def stream(seed: int, purpose: str, index: int, device: str = "cpu") -> Any:
    """A generator of its own for each purpose and block, apart from the sampling noise."""
    import numpy as np
    import torch

    words = np.random.SeedSequence([seed, index, *purpose.encode()]).generate_state(2)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]))


def model_identity(model: TrainedNetwork, step: int) -> str:
    """SHA-256 of a checkpoint's weights: what a stored schedule belongs to."""
    from stages.model import checkpoint_name

    found = model.manifest.files.get(checkpoint_name(step))
    if found is None:
        kept = ", ".join(map(str, model.description["steps"]))
        raise ValueError(f"no checkpoint of step {step} was kept (there are {kept})")
    return found["sha256"]


def blocks(count: int, block_size: int) -> Iterator[tuple[int, int]]:
    """`(first, last)` of blocks of samples; the last one may be shorter."""
    return ((i, min(i + block_size, count)) for i in range(0, count, block_size))


def shards(num_samples: int, block_size: int, shard_size: int) -> list[tuple[int, int]]:
    """`(first, last)` of shards of whole blocks; the last one may be shorter."""
    return list(blocks(num_samples, math.ceil(shard_size / block_size) * block_size))
