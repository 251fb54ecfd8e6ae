"""What the wavelet score's recipe and its part of the recipe full can be told."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from pipeline.errors import UsageError
from pipeline.stage import Settings
from stages.data.options import PrepareSettings
from stages.methods import table
from stages.papers.wavelet import fit
from stages.papers.wavelet.fit import FitOptions, FitSettings
from stages.papers.wavelet.risk import RiskOptions

MODEL = re.compile(rf"({'|'.join(table.FAMILIES)})-d([1-9])(-folds)?")

# Without cross terms degree 1 is that of local.
_DEGREES = {"additive": (2, 3), "full": (1,), "principal": (), "residual": ()}

EVERY_MODEL = (
    *(f"{family}-d{n}" for family in table.FAMILIES for n in _DEGREES.get(family, (1, 2, 3))),
    "local-d2-folds",
    "principal-d3-folds",
)

PHOTOGRAPHS = "photographs"

# Solvers that a score is sampled with when they are fitted to it.
OWN_LEVELS = {name: entry for name, entry in table.SOLVERS.items() if entry.own_levels}


class WaveletOptions(Settings):
    """Which wavelet scores are fitted, and how they are scored and sampled."""

    in_full: bool = Field(True, description="recipe full: fit `models` and compare their risks")
    models: tuple[str, ...] = Field(
        (
            "independent-d1",
            "independent-d3",
            "band-tied-d2",
            "local-d1",
            "local-d2",
            "additive-d3",
            "full-d1",
            "principal-d3-folds",
        ),
        description="recipe full: scores as FAMILY-dDEGREE, and -folds behind it to choose the "
        "ridge by folds",
    )
    all_models: tuple[str, ...] = Field(
        EVERY_MODEL, min_length=1, description="recipe wavelet: scores"
    )
    drawn: tuple[str, ...] = Field(
        ("independent-d1", "local-d2", "full-d1", "principal-d3-folds"),
        description="recipe wavelet: scores that are sampled, with all of sample.solvers",
    )
    drawn_fitted: tuple[table.choice("solver", OWN_LEVELS), ...] = Field(
        (),
        description="recipe wavelet: and with these, fitted to each score, whose own fine "
        "trajectories must stay finite",
    )
    num_samples: int = Field(100, ge=1, le=10**6, description="recipe wavelet: samples of each")
    with_photographs: bool = Field(
        True, description="recipe wavelet: fit and score on `photographs` too"
    )
    photographs: PrepareSettings = Field(
        PrepareSettings(dataset=PHOTOGRAPHS, grey=True, limit=3000),
        description="recipe wavelet: the second data set",
    )
    fit: FitOptions = Field(FitOptions(), description="basis, ridge and memory of all fits")
    risk: RiskOptions = Field(RiskOptions(), description="noise levels and bands")

    @model_validator(mode="after")
    def _models_fit(self) -> WaveletOptions:
        for name in ("models", "all_models", "drawn"):
            for model in getattr(self, name):
                if not MODEL.fullmatch(model):
                    raise ValueError(
                        f"{name} has '{model}'; write FAMILY-dDEGREE, such as local-d2, with "
                        f"FAMILY one of {', '.join(table.FAMILIES)}"
                    )
                family, degree, _ = MODEL.fullmatch(model).groups()
                try:
                    fit.check_family(False, family, int(degree))
                except ValueError as error:
                    raise ValueError(f"{name} has '{model}': {error}") from error
        return self

    def check(self, *names: str) -> None:
        """Raise UsageError for a score of the lists named, those that a recipe fits, which
        contradicts `fit`."""
        for name in names:
            for model in getattr(self, name):
                if self.fit.allow_biorthogonal and not model.startswith("full-"):
                    raise UsageError(
                        f"wavelet.{name} has '{model}', which contradicts wavelet.fit."
                        "allow_biorthogonal=true: without an orthonormal basis the noise is "
                        f"correlated between coefficients; set wavelet.{name}=[full-d1], or choose "
                        "an orthonormal wavelet and leave allow_biorthogonal unset"
                    )

    def fit_settings(self, model: str) -> FitSettings:
        """The settings of one score. Raises ValueError for what contradicts itself."""
        family, degree, folds = MODEL.fullmatch(model).groups()
        options = self.fit.shared_with(FitOptions)
        options |= {"ridge": None} if folds else {}
        chosen = {"family": family, "degree": int(degree)}
        fit.check_family(self.fit.allow_biorthogonal, **chosen)
        return FitSettings(**options | chosen)
