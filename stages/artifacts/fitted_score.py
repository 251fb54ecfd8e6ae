"""A fitted score on disk: statistics of clean images that are a denoiser at every noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.artifacts.described import DescribedArtifact

if TYPE_CHECKING:
    from torch import Tensor

    from stages.methods.wavelet import WaveletScore, WaveletStatistics

STATISTICS = "statistics.safetensors"


class FittedScore(DescribedArtifact):
    """The statistics of a wavelet score, and the ridge at each level it was chosen for. Facts:
    method, family, degree, components, wavelet, shape, standard deviation, ridges, ..."""

    facts = "score.json"

    def load(self) -> WaveletStatistics:
        """The statistics; images and sigma are in the units of the data set, [-1, 1]."""
        from safetensors.torch import load_file

        from stages.methods.wavelet import WaveletStatistics

        return WaveletStatistics.from_state(load_file(self.path / STATISTICS))

    def denoiser(self) -> LevelDenoiser:
        """denoiser(y, s) with the ridge of the nearest level (in log s) that has one."""
        return LevelDenoiser.of(self.load(), dict(self.description["ridges"]))


@dataclass(frozen=True, eq=False)
class LevelDenoiser:
    """denoiser(y, s) for the solvers, of statistics whose ridge depends on the level.

    ridges: level above 0 to ridge, in the units of the images. denoisers: by ridge.
    """

    statistics: WaveletStatistics
    ridges: Mapping[float, float]
    denoisers: Mapping[float, Any]

    @classmethod
    def of(cls, statistics: WaveletStatistics, ridges: Mapping[float, float]) -> LevelDenoiser:
        return cls(
            statistics, ridges, {ridge: statistics.denoiser(ridge) for ridge in ridges.values()}
        )

    def ridge(self, sigma: float) -> float:
        """That of the level nearest in log sigma; ValueError unless sigma is above 0 and finite."""
        from stages.methods.wavelet.system import checked_level

        sigma = checked_level(sigma)
        return self.ridges[min(self.ridges, key=lambda level: abs(math.log(level / sigma)))]

    def at(self, sigma: float) -> WaveletScore:
        """The fitted score at one level, kept once it is made."""
        return self.denoisers[self.ridge(sigma)].at(sigma)

    def __call__(self, y: Tensor, s: float | Tensor) -> Tensor:
        """y: (B, C, H, W); s: a number, or one level a sample. ValueError for another count."""
        import torch

        from stages.methods.wavelet.system import checked_levels

        levels = checked_levels(s, len(y))
        if len(set(levels)) == 1:
            return self.at(levels[0]).denoise(y)
        return torch.cat([self.at(level).denoise(y[i : i + 1]) for i, level in enumerate(levels)])
