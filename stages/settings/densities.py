"""Densities over time as settings: where a training draws t, and where a solver's levels lie.

A density is `mix` of one kind and 1 - mix of a base, moved by `shift`. The members are those of
`table.TIME_DENSITIES`; only the modules of those that settings name enter a node's key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.stage import Settings, resolve
from stages.methods import table

if TYPE_CHECKING:
    from stages.artifacts.spectrum import PowerSpectrum
    from stages.methods.density import TimeDensity

MIXTURE, SHIFTED = "stages.methods.density:Mixture", "stages.methods.density:Shifted"

# The settings that each kind alone reads, with the argument that each is.
ARGUMENTS = {
    "uniform": {},
    "logit_normal": {"mean": "mean", "std": "std"},
    "minsnr": {"minsnr_gamma": "gamma"},
    "p2": {"p2_gamma": "gamma", "p2_k": "k"},
    "csflow": {"display": None},
}


class Screen(Settings):
    """The screen, and from where it is looked at."""

    pixel_size: float = Field(
        0.000114, gt=0, le=1, description="side of a display pixel, in metres"
    )
    distance: float = Field(0.5, gt=0, le=1000, description="from the eye to the screen, in metres")


class Display(Screen):
    """The screen that images are seen on, which decides what CSFlow weights highly."""

    display_pixels: int = Field(
        256,
        ge=1,
        le=10**6,
        description="display pixels that the longer side of an image fills; small images are "
        "looked at enlarged",
    )


class DensityOptions(Settings):
    """A density over t beside its kind; what the kind does not read is to be left alone."""

    mix: float | None = Field(
        None,
        ge=0,
        le=1,
        description="a, the share of this kind, the rest being the base; unset is 0.4 for csflow, "
        "minsnr and p2, and 1 for logit_normal",
    )
    shift: float = Field(
        1.0, gt=0, le=1000, description="t -> shift t / (1 + (shift - 1) t); above 1 favours noise"
    )
    mean: float = Field(0.0, ge=-20, le=20, description="logit_normal: mean of logit t")
    std: float = Field(1.0, gt=0, le=20, description="logit_normal: standard deviation of logit t")
    minsnr_gamma: float = Field(
        5.0, gt=0, le=1e6, description="minsnr: the signal-to-noise ratio above which weights stop"
    )
    p2_gamma: float = Field(1.0, ge=0, le=100, description="p2: exponent of k + SNR")
    p2_k: float = Field(1.0, gt=0, le=1e6, description="p2: k of k + SNR")
    display: Display = Field(Display(), description="csflow: the screen")

    def share(self, kind: str) -> float:
        """The mix a of this kind."""
        if self.mix is not None:
            return self.mix
        return 1.0 if kind in ("uniform", "logit_normal") else 0.4

    def label(self, kind: str, base: str = "uniform") -> str:
        """What tables and figures call it, such as "csflow a=0.4"."""
        if kind == "uniform":
            name = kind
        else:
            name = f"{kind} a={self.share(kind):g}"
            name += f" over {base}" if base != "uniform" and self.share(kind) < 1 else ""
        return name if self.shift == 1 else f"{name} shift={self.shift:g}"

    def read_by(self, kinds: set[str]) -> DensityOptions:
        """The same, the settings that none of `kinds` reads left at their defaults."""
        read = self._read(kinds)
        return DensityOptions(
            **{name: getattr(self, name) for name in DensityOptions.model_fields if name in read}
        )

    @staticmethod
    def _read(kinds: set[str]) -> set[str]:
        read = {name for kind in kinds for name in ARGUMENTS[kind]}
        read |= {"shift"} if kinds else set()
        return read | ({"mix"} if kinds - {"uniform"} else set())

    def refuse_unread(self, kinds: set[str], because: str) -> None:
        """Raise ValueError for a setting that was changed though none of `kinds` reads it."""
        read = self._read(kinds)
        for name, info in DensityOptions.model_fields.items():
            value = getattr(self, name)
            if name not in read and value != info.default:
                readers = [kind for kind, own in ARGUMENTS.items() if name in own]
                remedy = f"only {readers[0]} reads it" if readers else "nothing reads it"
                shown = "" if isinstance(value, Display) else f"={value}"
                raise ValueError(
                    f"{name}{shown} and {because} contradict each other: {remedy}; leave {name} "
                    f"unset{f', or choose {readers[0]}' if readers else ''}"
                )


class DensitySettings(DensityOptions):
    """A density over t with its kind and base."""

    kind: table.choice("time density", table.TIME_DENSITIES) = Field(
        "uniform", description="the density of t"
    )
    base: Literal["uniform", "logit_normal"] = Field(
        "uniform", description="what the kind is mixed with"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> DensitySettings:
        kinds = {self.kind} | ({self.base} if self.share(self.kind) < 1 else set())
        self.refuse_unread(kinds, f"kind={self.kind}")
        if self.base != "uniform" and self.base not in kinds - {self.kind}:
            raise ValueError(
                f"base={self.base} and kind={self.kind} contradict each other: a base is what is "
                "mixed in where mix is below 1; leave base unset, or choose another kind or mix"
            )
        return self

    @property
    def name(self) -> str:
        """What tables and figures call it."""
        return self.label(self.kind, self.base)


def sources(options: DensityOptions, kind: str, base: str = "uniform") -> list[str]:
    """The places of the members in use, for a stage's `sources`."""
    if kind == "uniform" and options.shift == 1:
        return []
    return [table.TIME_DENSITIES[kind], table.TIME_DENSITIES[base], MIXTURE]


def of_grids(grids: Iterable[str]) -> set[str]:
    """The kinds of density that grids are made of, their base included; none for other grids."""
    kinds = {grid for grid in grids if grid in table.DENSITY_GRIDS}
    return kinds | {"uniform"} if kinds else set()


def needs_spectrum(kind: str) -> bool:
    """Whether a kind reads the data's spectrum."""
    return kind == "csflow"


def least_share_above(options: DensityOptions, kind: str, t: float, base: str = "uniform") -> float:
    """The least probability of times above t, in (0, 1), that the settings alone tell.

    Exact for uniform and logit_normal; of other kinds that of the base, the kind itself adding 0
    or more.
    """
    before = t / (options.shift + (1 - options.shift) * t)

    def above(kind: str) -> float:
        if kind == "uniform":
            return 1 - before
        if kind != "logit_normal":
            return 0.0
        # Of the mirrored normal, so that a small tail keeps its digits.
        return NormalDist(-options.mean, options.std).cdf(math.log((1 - before) / before))

    share = options.share(kind)
    return share * above(kind) + (1 - share) * above(base)


def time_density(
    options: DensityOptions, kind: str, base: str = "uniform", spectrum: PowerSpectrum | None = None
) -> TimeDensity | None:
    """The density over t that settings name; None for plain uniform.

    Raises ValueError for csflow without a spectrum, and as the densities themselves do.
    """
    if kind == "uniform" and options.shift == 1:
        return None
    density = _member(options, kind, spectrum)
    share = options.share(kind)
    if share < 1:
        density = resolve(MIXTURE)(density, _member(options, base, spectrum), share)
    return density if options.shift == 1 else resolve(SHIFTED)(density, options.shift)


def _member(options: DensityOptions, kind: str, spectrum: PowerSpectrum | None) -> Any:
    make = resolve(table.TIME_DENSITIES[kind])
    if not needs_spectrum(kind):
        return make(**{arg: getattr(options, name) for name, arg in ARGUMENTS[kind].items()})
    if spectrum is None:
        raise ValueError(
            f"the density {kind} is made from the data's power spectrum; connect the input "
            "'spectrum' to a spectrum node, or choose another density"
        )
    return make(
        spectrum.frequency,
        spectrum.power,
        image_pixels=spectrum.image_pixels,
        **options.display.model_dump(),
    )
