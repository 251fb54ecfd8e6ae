"""A model's own fine trajectories from a batch of noise, on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.artifacts.described import DescribedArtifact

if TYPE_CHECKING:
    import numpy as np

    from stages.methods.solvers.whole import Teacher
    from stages.settings.solvers import SolverOptions

FILE = "states.npy"
# What must be the same in whatever is fitted to them.
GUIDED = ("guidance", "guidance_interval", "guidance_channels", "guidance_token", "labels")


class Trajectories(DescribedArtifact):
    """`states.npy`, (levels, n, ...) float32: x_t = y / (1 + s) at every level. Facts: levels,
    num_states, model (SHA-256 of the weights), training_step, method, seed, guidance, ..."""

    facts = "trajectories.json"

    def load(self, device: str = "cpu") -> Teacher:
        """The states in EDM coordinates, float64."""
        import numpy as np
        import torch

        from stages.methods.solvers.whole import Teacher

        levels = torch.tensor(self.description["levels"], dtype=torch.float64)
        stored = torch.from_numpy(np.load(self.path / FILE))
        scales = (1 + levels).tolist()
        states = (x.to(device).double() * scale for x, scale in zip(stored, scales, strict=True))
        return Teacher(levels, tuple(states))

    @staticmethod
    def stored(teacher: Teacher) -> np.ndarray:
        """What the file holds of a trajectory."""
        import torch

        scales = (1 + teacher.levels).tolist()
        rows = [y / scale for y, scale in zip(teacher.states, scales, strict=True)]
        return torch.stack(rows).float().cpu().numpy()

    def check(self, settings: SolverOptions, model: str) -> None:
        """Raise ValueError unless they are of this model, by the SHA-256 of its weights, and as
        guided as settings say."""
        facts = self.description
        if facts["model"] != model:
            raise ValueError(
                f"the trajectories are of another model (weights {facts['model'][:12]}, not "
                f"{model[:12]}); make them again for this one"
            )
        ours = settings.model_dump(mode="json", include=set(GUIDED))
        for name in GUIDED:
            if facts[name] != ours[name]:
                raise ValueError(
                    f"the trajectories were made with {name} {facts[name]}, not {ours[name]}; make "
                    "them again for this one"
                )
