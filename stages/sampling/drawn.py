"""A trained network as MLflow's model: images of a seed, as the stage `sample` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.shown import Column, Model
from stages.sampling.sample import STAGE, SampleSettings
from stages.shards import blocks

if TYPE_CHECKING:
    import numpy as np
    import pandas
    from torch import Tensor

    from pipeline.graph import Node
    from stages.artifacts.network import TrainedNetwork

COLUMNS = (Column("seed"), Column("count"), Column("labels", many=True, required=False))
PARAMS = ("solver", "nfe", "guidance")  # what may be chosen anew
BY_ROW = ("seed", "num_samples", "step")  # what rows say, or always the last checkpoint


def described(trained: TrainedNetwork, readers: Sequence[Node]) -> Model:
    """What MLflow is to keep of a network.

    readers: the nodes that read it; where there is one that samples without further inputs, the
    model samples as the first of these.
    """
    plain = [
        node.settings
        for node in readers
        if isinstance(node.settings, SampleSettings) and set(node.inputs) == {"model"}
    ]
    settings = (plain[0] if plain else SampleSettings()).model_dump(mode="json", exclude={*BY_ROW})
    return Model(
        answer="stages.sampling.drawn:answer",
        settings=settings,
        columns=COLUMNS,
        shape=trained.description["shape"],
        params={name: settings[name] for name in PARAMS},
    )


def answer(
    trained: TrainedNetwork,
    settings: Mapping[str, Any],
    rows: pandas.DataFrame,
    params: Mapping[str, Any],
) -> np.ndarray:
    """(n, C, H, W) float32, not clipped to [-1, 1]: the samples of all rows, in their order.

    rows: `seed`; `count`, the number of samples; `labels`, their classes, or none for those that
    the stage takes in turn. params: what is chosen anew of `PARAMS`. A network of latents gives
    latents.

    Raises:
        UsageError: a row or a param is not what the network can do.
    """
    import numpy as np

    if not len(rows):
        raise UsageError("no row asks for samples; give one with seed and count")
    drawn = []
    for row in rows.to_dict("records"):
        drawn.append(draw(trained, _settings(settings, row, params), _labels(row.get("labels"))))
    return np.concatenate(drawn)


def _labels(given: Any) -> np.ndarray | None:
    """The classes of a row; None where it has none, which data frames also say as NaN or NA."""
    import numpy as np
    import pandas

    if pandas.api.types.is_scalar(given) and pandas.isna(given):
        return None
    return np.array(given)


def _settings(
    settings: Mapping[str, Any], row: Mapping[str, Any], params: Mapping[str, Any]
) -> SampleSettings:
    import torch
    from pydantic import ValidationError

    from pipeline.config import explained

    chosen = {name: params[name] for name in PARAMS if name in params}
    rowed = {"seed": int(row["seed"]), "num_samples": int(row["count"])}
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        chosen["device"] = "cpu"
    try:
        made = SampleSettings.model_validate({**settings, **chosen, **rowed})
    except ValidationError as error:
        words = explained(SampleSettings, error)
        raise UsageError(words.replace("num_samples=", "count=")) from error
    if lacking := STAGE.needs(made):
        raise UsageError(
            f"solver={made.solver} with grid={made.grid} and correction={made.correction} needs "
            f"the input {lacking[0]}, which this model does not have; choose another solver"
        )
    return made


def draw(
    trained: TrainedNetwork, settings: SampleSettings, labels: np.ndarray | None = None
) -> np.ndarray:
    """(n, C, H, W) float32: the first samples of a seed, computed in whole blocks.

    The network's products have the precision of the settings; it is not compiled, whatever they
    say, since a compilation takes longer than the few images that are asked for.

    labels: (n,) classes; by default those that the settings say.
    """
    import numpy as np
    import torch

    from stages.sampling.problem import Calls, problem
    from stages.sampling.sample import plan_of, sample_block

    if labels is not None:
        settings = settings.revised(classes="balanced")
    plan = plan_of(settings, trained)
    made, _ = problem(trained, settings, settings.step, Calls(settings.precision))
    if labels is not None:
        made.labels = _Given.of(labels, settings, made.num_classes)
    size, parts = settings.block_size, []
    for start, stop in blocks(settings.num_samples, size):
        indices = torch.arange(start, start + size)
        images, _ = sample_block(made, indices, settings, plan)
        parts.append(images[: stop - start].cpu().numpy())
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Given:
    """Labels that were given, in place of those that a problem deals out."""

    labels: Tensor

    @classmethod
    def of(cls, labels: np.ndarray, settings: SampleSettings, num_classes: int) -> _Given:
        import torch

        if len(labels) != settings.num_samples:
            raise UsageError(
                f"labels holds {len(labels)} classes for count={settings.num_samples} samples; "
                "give one for each"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < max(1, num_classes):
            raise UsageError(f"labels must be from 0 to {max(1, num_classes) - 1}")
        return cls(torch.as_tensor(labels, dtype=torch.long, device=settings.device))

    def __call__(self, indices: Tensor) -> Tensor:
        """Of samples beyond the last, which fill up a block, the last one's."""
        return self.labels[indices.to(self.labels.device).clamp(max=len(self.labels) - 1)]
