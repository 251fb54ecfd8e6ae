"""The names that settings may choose, each with the place of what it names (`module:attribute`).

Strings, resolved when a stage runs: only what a node's settings name enters its artifact's key.
Adding a member is one line here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

DATASETS = {
    "digits": "stages.data.readers.digits:read",
    "photographs": "stages.data.readers.photographs:read",
    "glyphs": "stages.data.readers.glyphs:read",
    "mnist": "stages.data.readers.mnist:read",
    "cifar10": "stages.data.readers.cifar:read",
    "cifar100": "stages.data.readers.cifar:read100",
    "folder": "stages.data.readers.folder:read",
    "imagenet": "stages.data.readers.imagenet:read",
    "zip": "stages.data.readers.archive:read",
    "npz": "stages.data.readers.npz:read",
    "parquet": "stages.data.readers.huggingface:read_parquet",
    "saved": "stages.data.readers.huggingface:read_saved",
    "webdataset": "stages.data.readers.webdataset:read",
    "lsun": "stages.data.readers.lsun:read",
    "latents": "stages.data.readers.latents:read",
}

# Those that samples made elsewhere may come as: each lists all images of a place.
SAMPLES = {
    "folder": "stages.data.readers.files:pool",
    "zip": "stages.data.readers.archive:pool",
    "npz": "stages.data.readers.npz:pool",
    "parquet": "stages.data.readers.huggingface:pool",
    "webdataset": "stages.data.readers.webdataset:pool",
    "lsun": "stages.data.readers.lsun:pool",
}

EXTRACTORS = {
    "embedded": "stages.encoders.embedded:embedded",
    "inception": "stages.encoders.pretrained:load",
    "dinov2-small": "stages.encoders.pretrained:load",
    "dinov2-base": "stages.encoders.pretrained:load",
    "dinov2-large": "stages.encoders.pretrained:load",
}

# Each makes the network that a training aligns with, from its stage's context and the data.
TEACHERS = {
    "embedded": "stages.training.own_teacher:teacher",
    "dinov2-small": "stages.training.dinov2:teacher",
    "dinov2-base": "stages.training.dinov2:teacher",
    "dinov2-large": "stages.training.dinov2:teacher",
}

# Each loads that network from the folder and the facts of a teacher's artifact, onto a device.
FROZEN_TEACHERS = {
    "embedded": "stages.training.own_teacher:frozen",
    "dinov2-small": "stages.training.dinov2:frozen",
    "dinov2-base": "stages.training.dinov2:frozen",
    "dinov2-large": "stages.training.dinov2:frozen",
}

NETWORKS = {"sit": "stages.nets.sit:SiT", "unet": "stages.nets.unet:UNet"}

# Networks with EDM's preconditioning around an inner network.
EDM_NETWORKS = frozenset({"unet"})

# Networks of checkpoints from elsewhere, called as denoiser(y, sigma, labels).
PUBLISHED = {
    "song": "stages.nets.edm.preconditioning:song",
    "dhariwal": "stages.nets.edm.preconditioning:dhariwal",
    "edm2": "stages.nets.edm2:EDM2",
    "jit": "stages.nets.jit:JiTDenoiser",
    "dit": "stages.nets.published:dit",
    "interpolant": "stages.nets.published:interpolant",
    "diffusers": "stages.nets.published:diffusers",
    "python": "stages.networks.python_functions:Called",
}

# Those whose null class is no label behind the last; their configuration may say which it is.
NO_NULL_LABEL = frozenset({"diffusers", "python"})

# Those of them that are trained, by EDM's loss or JiT's.
TRAINED_PUBLISHED = {kind: PUBLISHED[kind] for kind in ("song", "dhariwal", "edm2", "jit")}

# Networks that settings train.
TRAINED = NETWORKS | TRAINED_PUBLISHED

# Networks that are denoisers in EDM coordinates; all others give velocities.
DENOISERS = EDM_NETWORKS | PUBLISHED.keys()

# All that is known of a loss stands in its file; a new one is that file and a line here.
LOSSES = {
    "sit": "stages.settings.losses.sit:SiTOptions",
    "repa": "stages.settings.losses.repa:REPAOptions",
    "reg": "stages.settings.losses.reg:REGOptions",
    "maskalign": "stages.settings.losses.maskalign:MaskAlignOptions",
    "edm": "stages.settings.losses.edm:EDMOptions",
    "jit": "stages.settings.losses.jit:JiTOptions",
}

GRIDS = {
    "uniform_t": "stages.methods.grids:uniform_t",
    "edm": "stages.methods.grids:edm",
    "log_snr": "stages.methods.grids:log_snr",
}

# Grids that run between two levels of the user's choice; the others start at t_start.
BOUNDED_GRIDS = frozenset({"edm", "log_snr"})

# Densities over t: each makes one from its own arguments.
TIME_DENSITIES = {
    "uniform": "stages.methods.density:Uniform",
    "logit_normal": "stages.methods.density:LogitNormal",
    "minsnr": "stages.methods.density:min_snr",
    "p2": "stages.methods.density:p2",
    "csflow": "stages.methods.csflow:from_spectrum",
}

# Densities that are grids too, their points at equal quantiles; uniform_t is uniform's.
DENSITY_GRIDS = {name: place for name, place in TIME_DENSITIES.items() if name != "uniform"}


@dataclass(frozen=True)
class Solver:
    """What settings know of a solver. The object that `trajectory` takes stands at its place; of a
    fitted one, what makes it from levels and weights; of a stochastic one, the function that
    samples."""

    place: str
    per_step: int = 1  # evaluations, 1 or 2; the last step takes one, so that with 2 NFE is odd
    multistep: bool = False  # linear, so that the look-ahead corrector can go around it
    around: str | None = None  # the multistep solver that is this one with that corrector
    counted_as: str | None = None  # the plain solver whose evaluations and grid it takes
    stochastic: bool = False  # draws noise, on levels as `counted_as` or on a grid of its own
    own_levels: bool = False  # was fitted with levels of its own, which come with its weights


SOLVERS = {
    "euler": Solver("stages.methods.solvers.multistep:EULER", multistep=True),
    "heun": Solver("stages.methods.solvers.multistep:HEUN", per_step=2),
    "dpmpp2m": Solver("stages.methods.solvers.multistep:DPMPP2M", multistep=True),
    "dpmpp3m": Solver("stages.methods.solvers.multistep:DPMPP3M", multistep=True),
    "unipc": Solver("stages.methods.solvers.multistep:UNIPC", around="dpmpp2m"),
    "deis": Solver("stages.methods.solvers.extrapolated:DEIS"),
    "ipndm": Solver("stages.methods.solvers.extrapolated:IPNDM"),
    "dpm2": Solver("stages.methods.solvers.midpoint:DPM2", per_step=2),
    "fitted": Solver("stages.methods.solvers.fitted:FittedMultistep", counted_as="euler"),
    "fitted-heun": Solver("stages.methods.solvers.fitted:FittedHeun", counted_as="heun"),
    "whole": Solver(
        "stages.methods.solvers.whole:WholeMultistep", counted_as="euler", own_levels=True
    ),
    "sde": Solver("stages.methods.solvers.sde:sample", stochastic=True),
    "ancestral": Solver(
        "stages.methods.solvers.stochastic:ancestral", counted_as="euler", stochastic=True
    ),
    "churn": Solver(
        "stages.methods.solvers.stochastic:churned",
        per_step=2,
        counted_as="heun",
        stochastic=True,
    ),
}

# Solvers whose weights were fitted to one model on one grid: they come as an artifact.
FITTED_SOLVERS = {n: s for n, s in SOLVERS.items() if s.counted_as and not s.stochastic}
STOCHASTIC_SOLVERS = {n: s for n, s in SOLVERS.items() if s.stochastic}
# Stochastic ones on the levels of a grid that settings choose.
NOISY_SOLVERS = {n: s for n, s in STOCHASTIC_SOLVERS.items() if s.counted_as}
PLAIN_SOLVERS = {n: s for n, s in SOLVERS.items() if not s.counted_as and not s.stochastic}


def counted_as(solver: str) -> str:
    """The solver whose evaluations and grid a solver takes; its own unless it is fitted or
    adds noise."""
    return SOLVERS[solver].counted_as or solver


@dataclass(frozen=True)
class Correction:
    """What settings know of a correction. Its place makes solver and correction from what a stage
    gives, see sampling/corrections.py."""

    place: str
    inputs: tuple[str, ...] = ()  # optional inputs of the stage that it cannot do without
    reads: tuple[str, ...] = ()  # settings that are its own
    over_batch: bool = False  # draws probes and averages over the batch, which is then one block
    looks_ahead: bool = False  # makes another solver, around a multistep one


CORRECTIONS = {
    "none": Correction("stages.sampling.corrections:none"),
    "calibrated": Correction("stages.papers.stein.corrections:calibrated", inputs=("schedule",)),
    "online": Correction(
        "stages.papers.stein.corrections:online", inputs=("data",), over_batch=True
    ),
    "literal": Correction(
        "stages.papers.stein.corrections:literal", reads=("gamma_min",), over_batch=True
    ),
    "lookahead": Correction("stages.sampling.corrections:lookahead", looks_ahead=True),
}

# The discrete wavelets of PyWavelets; bior1.1 and rbio1.1 are haar.
ORTHONORMAL_WAVELETS = dict.fromkeys(
    (
        "haar",
        "bior1.1",
        "rbio1.1",
        *(f"db{n}" for n in range(1, 39)),
        *(f"sym{n}" for n in range(2, 21)),
        *(f"coif{n}" for n in range(1, 18)),
    ),
    "stages.methods.wavelet.basis:WaveletBasis",
)
_BIORTHOGONAL = (13, 15, 22, 24, 26, 28, 31, 33, 35, 37, 39, 44, 55, 68)
WAVELETS = ORTHONORMAL_WAVELETS | dict.fromkeys(
    ("dmey", *(f"{kind}{n / 10}" for kind in ("bior", "rbio") for n in _BIORTHOGONAL)),
    "stages.methods.wavelet.basis:WaveletBasis",
)

# What watches a training that settings ask to watch; no other training depends on its code.
WATCH = "stages.papers.icr.live:Watch"

# What refuses, before a network is trained or sampled, a scan of it that cannot be made. No result
# depends on its code.
SCAN_CHECK = "stages.papers.icr.measure:check"

# Which wavelet coefficients a coefficient's score looks at.
FAMILIES = dict.fromkeys(
    ("independent", "band-tied", "local", "additive", "parent", "full"),
    "stages.methods.wavelet:WaveletStatistics",
) | {
    "principal": "stages.methods.wavelet.principal:PrincipalStatistics",
    "residual": "stages.methods.wavelet.residual:ResidualStatistics",
}


def choice(kind: str, table: Mapping[str, object]) -> type[str]:
    """A settings type: one of a table's names, the nearest suggested for any other."""

    def check(name: str) -> str:
        if name in table:
            return name
        close = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"unknown {kind} '{name}'{hint} (known: {', '.join(table)})")

    return Annotated[str, AfterValidator(check), Field(json_schema_extra={"enum": sorted(table)})]
