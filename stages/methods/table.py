"""The names that settings may choose, each with the place of what it names (`module:attribute`).

Strings, resolved when a stage runs: only what a node's settings name enters its artifact's key.
Adding a member is one line here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

DATASETS = {
    "digits": "stages.data.readers.digits:read",
    "photographs": "stages.data.readers.photographs:read",
    "mnist": "stages.data.readers.mnist:read",
    "cifar10": "stages.data.readers.cifar:read",
    "folder": "stages.data.readers.folder:read",
    "npz": "stages.data.readers.npz:read",
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
    "embedded": "stages.training.contrastive:teacher",
    "dinov2-small": "stages.training.dinov2:teacher",
    "dinov2-base": "stages.training.dinov2:teacher",
    "dinov2-large": "stages.training.dinov2:teacher",
}

NETWORKS = {"sit": "stages.nets.sit:SiT", "unet": "stages.nets.unet:UNet"}

# Networks that are denoisers in EDM coordinates; all others give velocities.
EDM_NETWORKS = frozenset({"unet"})

# All that is known of a loss stands in its file; a new one is that file and a line here.
LOSSES = {
    "sit": "stages.settings.losses.sit:SiTOptions",
    "repa": "stages.settings.losses.repa:REPAOptions",
    "reg": "stages.settings.losses.reg:REGOptions",
    "maskalign": "stages.settings.losses.maskalign:MaskAlignOptions",
    "edm": "stages.settings.losses.edm:EDMOptions",
}

GRIDS = {
    "uniform_t": "stages.methods.grids:uniform_t",
    "edm": "stages.methods.grids:edm",
    "log_snr": "stages.methods.grids:log_snr",
}

# Grids that run between two levels of the user's choice; the others start at t=0.999.
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

SOLVERS = dict.fromkeys(
    ("euler", "heun", "dpmpp2m", "dpmpp3m", "unipc"), "stages.methods.solvers:named"
)

# Solvers whose weights were fitted to one model on one grid: they come as an artifact.
FITTED_SOLVERS = {
    "fitted": "stages.methods.solvers.fitted:FittedMultistep",
    "fitted-heun": "stages.methods.solvers.fitted:FittedHeun",
}

# The solvers whose evaluations a grid's fitted solver takes.
COUNTED_AS = {"fitted": "euler", "fitted-heun": "heun"}

# The papers' stochastic sampler: one evaluation a step, on a grid of its own.
SDE = {"sde": "stages.methods.solvers.sde:sample"}

# Solvers that take two evaluations a step and one on the last: their NFE is odd.
ODD_SOLVERS = frozenset({"heun", "fitted-heun"})

# Linear multistep solvers, which the look-ahead corrector can go around; unipc is 2M with it.
MULTISTEP_SOLVERS = frozenset({"euler", "dpmpp2m", "dpmpp3m"})

CORRECTIONS = {
    "none": "stages.methods.solvers.trajectories:Vanilla",
    "calibrated": "stages.methods.stein:calibrated",
    "online": "stages.methods.stein:online",
    "literal": "stages.methods.stein:literal",
    "lookahead": "stages.methods.solvers.multistep:LookAhead",
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
)


def choice(kind: str, table: Mapping[str, str]) -> type[str]:
    """A settings type: one of a table's names, the nearest suggested for any other."""

    def check(name: str) -> str:
        if name in table:
            return name
        close = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"unknown {kind} '{name}'{hint} (known: {', '.join(table)})")

    return Annotated[str, AfterValidator(check), Field(json_schema_extra={"enum": sorted(table)})]
