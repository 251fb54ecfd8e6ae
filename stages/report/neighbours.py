"""Nearest training images in the report: is what was sampled new, or a copy?"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.scoring.evaluate import features_node

if TYPE_CHECKING:
    import numpy as np

    from stages.artifacts.data import Data
    from stages.artifacts.features import FeatureSet
    from stages.artifacts.samples import Samples
    from stages.artifacts.scores import Row
    from stages.pages.page import Picture, Section

MOST_SETS = 6
THRESHOLD = "memorization_threshold"
FIRST, NEAREST = 8, 4  # samples shown of a set: the first ones, and those nearest to a copy


def sections(inputs: Mapping[str, Any], scores: Mapping[str, Sequence[Row]]) -> list[Section]:
    """One section, or none where the run has no neighbours and left none out.

    inputs: the report's. scores: its curves, by node.
    """
    from stages.pages.page import Section

    data, samples = inputs.get("data"), inputs.get("samples", {})
    pictures = []
    for name, threshold in _shown(inputs, scores).items():
        features = inputs.get("features", {}).get(features_node(name))
        if data is None or name not in samples or features is None:
            continue
        if features.load(1).neighbours is not None:
            pictures.append(_picture(name, samples[name], features, data, threshold))
    # One line, whatever the number of sets.
    left_out = [f.description.get("left_out") for f in inputs.get("features", {}).values()]
    notes = [f"<p>{html.escape(said)}.</p>" for said in left_out if said][:1]
    if not pictures:
        return [Section("Nearest training images", "".join(notes))] if notes else []
    text = (
        "<p>Top row: samples; below each its three nearest training images, nearest first, by "
        f"Euclidean distance of pixels. Left the first {FIRST} samples, not selected; right the "
        f"{NEAREST} whose nearest training image is nearest in proportion to the second nearest: "
        "the most suspect of being copies.</p>"
    ) + "".join(notes)
    return [Section("Nearest training images", text, pictures=pictures)]


def _shown(inputs: Mapping[str, Any], scores: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """The last set of every curve over training steps (of every curve, if there is none), with the
    threshold of its memorisation ratio."""
    settings = {name: artifact.settings for name, artifact in inputs.get("scores", {}).items()}
    # Published protocols look for no copies.
    scores = {name: rows for name, rows in scores.items() if THRESHOLD in settings[name]}
    over_steps = [name for name in scores if settings[name]["abscissa"] == "training_step"]
    names = (over_steps or list(scores))[:MOST_SETS]
    return {scores[name][-1].node: settings[name][THRESHOLD] for name in names}


def _picture(
    name: str, samples: Samples, features: FeatureSet, data: Data, threshold: float
) -> Picture:
    import torch

    from stages.pages.page import Picture

    arrays = features.load()
    ratios = arrays.neighbour_distances[:, 0] / arrays.neighbour_distances[:, 1].clamp_min(1e-12)
    suspects = ratios.topk(min(NEAREST, len(ratios)), largest=False).indices
    chosen = torch.cat([torch.arange(min(FIRST, len(ratios))), suspects])
    train = data.load().train
    images = [torch.cat([samples.images(slice(int(i), int(i) + 1)) for i in chosen])]
    images += [train[column] for column in arrays.neighbours[chosen].T]
    lowest = ", ".join(f"{ratio:.2f}" for ratio in ratios[suspects].tolist())
    caption = (
        f"{name}: {100 * (ratios < threshold).double().mean().item():.3g} % of "
        f"{len(ratios)} samples have a ratio below {threshold:.3g} (memorised); the right "
        f"{len(suspects)} have {lowest}"
    )
    return Picture(caption, _png(torch.cat(images).numpy(), len(chosen)))


def _png(images: np.ndarray, columns: int) -> bytes:
    from stages.artifacts.samples import write_grid

    with tempfile.TemporaryDirectory() as folder:
        write_grid(Path(folder) / "grid.png", images, columns)
        return (Path(folder) / "grid.png").read_bytes()
