"""What a run made, as the report's sections and claims read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stages.pages.curves import group
from stages.pages.findings import NOISES, SEEDS, TRAININGS

if TYPE_CHECKING:
    from pipeline.artifact import Artifact
    from stages.artifacts.scores import Row

Curves = Mapping[str, "Sequence[Row]"]


class Made:
    """The artifacts of a run and the curves of its scores.

    Args:
        inputs: the report's, by slot.
        apart: how the names of evaluations begin that only one paper's section shows.
    """

    def __init__(self, inputs: Mapping[str, Any], apart: Sequence[str] = ()) -> None:
        self.inputs, self._apart = inputs, tuple(apart)

    def of(self, stage: str) -> dict[str, Artifact]:
        """The artifacts of one of the papers' stages, by node."""
        papers = self.inputs.get("papers", {})
        return {name: one for name, one in papers.items() if one.manifest.stage == stage}

    @cached_property
    def scores(self) -> dict[str, Sequence[Row]]:
        """The curve of every evaluation, by node."""
        return {name: one.load() for name, one in self.inputs.get("scores", {}).items()}

    @cached_property
    def over_nfe(self) -> dict[str, Sequence[Row]]:
        """The curves over evaluations that all sections may show."""
        return {
            name: rows
            for name, rows in self.scores.items()
            if self._is_over_nfe(name) and not name.startswith(self._apart)
        }

    @cached_property
    def over_steps(self) -> dict[str, Sequence[Row]]:
        """The curves over anything else, every seed by itself."""
        return {
            name: self.inputs["scores"][name].load(every_seed=True)
            for name in self.scores
            if not self._is_over_nfe(name) and not name.startswith(self._apart)
        }

    def beginning(self, beginning: str) -> dict[str, Sequence[Row]]:
        """The curves of the evaluations whose names begin so."""
        return {name: rows for name, rows in self.scores.items() if name.startswith(beginning)}

    def _is_over_nfe(self, name: str) -> bool:
        return self.inputs["scores"][name].settings["abscissa"] == "nfe"

    @property
    def trainings(self) -> Mapping[str, Any]:
        """The trained networks, by node."""
        return self.inputs.get("training", {})

    def repeated(self, scores: Curves) -> str:
        """What the seeds of curves repeat: the training, or only the noise."""
        return repeated(scores, self.trainings)


def repeated(scores: Curves, trainings: Iterable[str]) -> str:
    """What the seeds of scores repeat, the training or only the noise, by the trainings that there
    are: samples of `train/NAME` and `train/NAME-seed1` are `sample/NAME-...`."""
    trained = Counter(group(name) for name in trainings)
    seeds: dict[str, set[int]] = {}
    for rows in scores.values():
        for row in rows:
            sampled = row.node.partition("/")[2]
            of = [name for name in trained if sampled.startswith(f"{name}-")]
            if row.seed is not None:
                seeds.setdefault(max(of, key=len, default=""), set()).add(row.seed)
    several = {name: len(some) for name, some in seeds.items() if len(some) > 1}
    if not several or "" in several:
        return SEEDS
    return TRAININGS if all(trained[name] >= n for name, n in several.items()) else NOISES
