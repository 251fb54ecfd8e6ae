"""A power spectrum on disk: what the weights of CSFlow are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.artifact import Artifact

FILE = "spectrum.json"


@dataclass(frozen=True)
class PowerSpectrum:
    """The radially averaged power spectrum of a data set, in grey.

    frequency: F bin centres in cycles per pixel. power: F values; white noise has 1.
    height, width: of the images, in pixels. latent: whether they are latents.
    """

    frequency: tuple[float, ...]
    power: tuple[float, ...]
    height: int
    width: int
    latent: bool
    num_images: int

    @property
    def image_pixels(self) -> int:
        """The longer side of the images, in pixels."""
        return max(self.height, self.width)


class Spectrum(Artifact):
    """The spectrum, and the exact sums it comes from, which can be added to those of others."""

    def load(self) -> PowerSpectrum:
        facts = json.loads((self.path / FILE).read_text(encoding="utf-8"))
        return PowerSpectrum(
            frequency=tuple(facts["frequency"]),
            power=tuple(facts["power"]),
            **{name: facts["sums"][name] for name in ("height", "width", "latent", "num_images")},
        )
