"""What a denoiser does to held-out images, on disk: risks over noise levels, maps and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.artifact import Artifact

if TYPE_CHECKING:
    from torch import Tensor

FACTS, TENSORS = "risk.json", "maps.safetensors"


@dataclass(frozen=True, eq=False)
class Response:
    """A coefficient's score against its noisy value, the rest at their means; in units of std.

    w, score, linear: (n,); linear is the diagonal Wiener score.
    """

    w: Tensor
    score: Tensor
    linear: Tensor


@dataclass(frozen=True, eq=False)
class Risk:
    """What one denoiser does to held-out images; sigma in units of std, risks of its square.

    name: local-d2, wiener, sit, ... family, degree: of a wavelet score; folds: whether its ridge
    was chosen on folds. exact: whether mse is a closed form. mse, standard_error, train_mse: by
    sigma, the last two None where there is none. bands: of each band, `A2`, `H2` .. `D1`, by
    sigma. maps: (S, C, H, W), the risk of each wavelet coefficient, arranged as the usual pyramid.
    per_image: (S, B), the error of each held-out image on the noise that all denoisers share, also
    of those whose mse is exact: differences taken image by image have an error. filters:
    (S, C, H, W), the centre pixel's filter; None where there is no derivative. responses: by band,
    by sigma.
    """

    name: str
    kind: str
    dataset: str
    exact: bool
    std: float
    sigmas: tuple[float, ...]
    mse: tuple[float, ...]
    standard_error: tuple[float | None, ...]
    train_mse: tuple[float | None, ...]
    bands: Mapping[str, tuple[float, ...]]
    maps: Tensor
    per_image: Tensor
    filters: Tensor | None
    responses: Mapping[str, Sequence[Response]] = field(default_factory=dict)
    family: str | None = None
    degree: int | None = None
    folds: bool = False

    def scales(self) -> dict[str, tuple[float, ...]]:
        """Risk of each scale, `A2`, `2`, `1`: the mean of its orientations, by sigma."""
        by_scale: dict[str, list[tuple[float, ...]]] = {}
        for band, values in self.bands.items():
            by_scale.setdefault(band if band[0] == "A" else band[1:], []).append(values)
        return {
            scale: tuple(sum(column) / len(column) for column in zip(*rows, strict=True))
            for scale, rows in by_scale.items()
        }


class Risks(Artifact):
    """One denoiser's risks, their maps, its filters and response curves."""

    def load(self) -> Risk:
        from safetensors.torch import load_file

        facts = json.loads((self.path / FACTS).read_text(encoding="utf-8"))
        tensors = load_file(self.path / TENSORS)
        names = sorted({key.split("/")[1] for key in tensors if key.startswith("response/")})
        parts = ("w", "score", "linear")
        responses = {
            band: [
                Response(*(tensors[f"response/{band}/{part}"][i] for part in parts))
                for i in range(len(facts["sigmas"]))
            ]
            for band in facts["bands"]
            if band in names
        }
        plain = ("name", "kind", "dataset", "exact", "std", "family", "degree", "folds")
        by_sigma = ("sigmas", "mse", "standard_error", "train_mse")
        return Risk(
            **{name: facts[name] for name in plain},
            **{name: tuple(facts[name]) for name in by_sigma},
            bands={band: tuple(values) for band, values in facts["bands"].items()},
            maps=tensors["maps"],
            per_image=tensors["per_image"],
            filters=tensors.get("filters"),
            responses=responses,
        )
