"""What a calibration or a fit found, on disk: it belongs to one model, one solver and one grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.stage import resolve
from stages.artifacts.described import DescribedArtifact
from stages.methods import table

if TYPE_CHECKING:
    from torch import Tensor

    from stages.methods.protocol import Influence
    from stages.settings.solvers import SolverOptions

# What must be the same where it is used; labels may have other shares, since the network is told.
GUIDED = ("guidance", "guidance_interval", "guidance_channels", "guidance_token")


class Schedule(DescribedArtifact):
    """gamma of every step for a solver, or the weights of a fitted solver; with the levels, the
    solver, the guidance and the checkpoint they were made for. Facts: kind, solver, nfe, grid,
    levels, values, model, target, source, ...; of a solver with levels of its own what its network
    is told at each, and beside gammas its weights. Of gammas from clean images `gains`, by target
    what they gain step by step, and `contributions.npy`, (targets, columns, n) float32: what each
    group of images contributes to the columns named in `contributions`, summed over steps."""

    facts = "schedule.json"
    contributed = "contributions.npy"

    def load(self) -> Tensor:
        """float64: gammas (num_steps,), or weights (num_steps, outputs), newest output first."""
        import torch

        return torch.tensor(self.description["values"], dtype=torch.float64)

    @property
    def levels(self) -> Tensor:
        """The grid (num_steps + 1,) float64."""
        import torch

        return torch.tensor(self.description["levels"], dtype=torch.float64)

    def solver(self) -> Any:
        """The fitted solver that this was found for, to be run by `trajectory`."""
        import torch

        facts = self.description
        weights = torch.tensor(facts.get("weights", facts["values"]), dtype=torch.float64)
        told = facts.get("told")
        more = {} if told is None else {"told": torch.tensor(told, dtype=torch.float64)}
        return resolve(table.SOLVERS[facts["solver"]].place)(self.levels, weights, **more)

    @property
    def fitted(self) -> dict[str, Any]:
        """Of weights the facts by which gammas around them are a solver too."""
        return {"weights": self.description["values"], "told": self.description["told"]}

    @property
    def name(self) -> str:
        """What tables and figures call a correction by it."""
        facts = self.description
        if facts["target"] == "trajectory":
            return "calibrated on trajectories"
        return "calibrated" if facts["source"] == "data" else "calibrated on own samples"

    def contributions(self) -> dict[str, dict[str, Influence]]:
        """By target and column, of the schedules that hold gains."""
        import numpy as np

        from stages.methods.protocol import Influence

        psi, of = np.load(self.path / self.contributed), self.description["contributions"]
        strata = np.zeros(psi.shape[-1], np.int64)
        model = self.description["model"]
        return {
            target: {
                column: Influence(psi[i, j], strata, of["images"], model)
                for j, column in enumerate(of["columns"])
            }
            for i, target in enumerate(of["targets"])
        }

    def check(self, settings: SolverOptions, levels: Tensor, model: str) -> None:
        """Raise ValueError unless it was made for these settings, levels and checkpoint.

        model: SHA-256 of the checkpoint's weights.
        """
        import torch

        facts = self.description
        again = "calibrate again for this one"
        if facts["solver"] != settings.solver:
            raise ValueError(
                f"the schedule was made for solver '{facts['solver']}', not for "
                f"'{settings.solver}'; {again}"
            )
        same_grid = (
            facts["nfe"] == settings.nfe
            and len(levels) == len(self.levels)
            and torch.equal(levels.cpu(), self.levels)
        )
        if not same_grid:
            raise ValueError(
                f"the schedule was made for another grid ({facts['grid']}, {facts['nfe']} "
                f"evaluations), not for this one ({settings.grid_name}, {settings.nfe} "
                f"evaluations); {again}"
            )
        if facts["model"] != model:
            raise ValueError(
                f"the schedule was made for another model (weights {facts['model'][:12]}, not "
                f"{model[:12]}); {again}"
            )
        ours = settings.model_dump(mode="json", include={*GUIDED})
        for name in GUIDED:
            if facts[name] != ours[name]:
                raise ValueError(
                    f"the schedule was made with {name} {facts[name]}, not {ours[name]}; {again}"
                )
