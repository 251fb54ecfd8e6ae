"""The stage `fit`: a wavelet score in closed form from two passes over the training images.

Both passes are maps over shards whose results are added up in a fixed order, so that the bytes do
not depend on workers. No gradient step is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.artifacts.data import Data
from stages.artifacts.fitted_score import STATISTICS, FittedScore
from stages.methods import table
from stages.settings.sigmas import ABSCISSA, check_sigmas, sigma_1000
from stages.shards import blocks

if TYPE_CHECKING:
    from stages.methods.wavelet import WaveletStatistics
    from stages.methods.wavelet.model import WaveletModel
    from stages.methods.wavelet.moments import CoefficientMoments

GIB = 2**30

PRINCIPAL = "principal"


class FitOptions(Settings):
    """The basis of a wavelet score, its ridge, and what it may use."""

    wavelet: table.choice("wavelet", table.WAVELETS) = Field("db2", description="PyWavelets' name")
    levels: int = Field(2, ge=0, le=12, description="of the wavelet transform; 0 is pixels")
    couple_channels: bool = Field(
        False, description="look at the same place in the other colours too"
    )
    allow_biorthogonal: bool = Field(
        False,
        description="accept a wavelet that is not orthonormal; family full only, as others need "
        "noise that is independent between coefficients",
    )
    ridge: float | None = Field(
        1e-2,
        ge=0,
        description="on the coefficients of normalised features, centred on the diagonal Wiener "
        "score; unset is chosen by folds at each of ridge_sigmas",
    )
    ridges: tuple[float, ...] = Field(
        (1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0),
        min_length=1,
        description="ridge unset: candidates",
    )
    ridge_sigmas: tuple[float, ...] = Field(
        (0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
        min_length=1,
        description="ridge unset: noise levels it is chosen at, in standard deviations of the "
        "training pixels; others take the nearest one's",
    )
    num_folds: int = Field(5, ge=2, le=100, description="ridge unset: folds")
    components: int | None = Field(
        None,
        ge=1,
        le=100,
        description="family principal: leading principal coordinates; unset is 10, or, where ridge "
        "is unset, chosen by folds among components_tried, and the degree up to the family's",
    )
    components_tried: tuple[int, ...] = Field(
        (5, 10, 15), min_length=1, description="components and ridge unset: candidates"
    )
    num_images: int | None = Field(
        None, ge=2, description="training images used, the first ones; unset takes all"
    )
    max_gib: float = Field(
        2.0, gt=0, description="memory of the fit, predicted before it; what needs more is refused"
    )
    shard_size: int = Field(
        4096, ge=1, description="images of one task; sums of other shards differ by rounding"
    )

    @model_validator(mode="after")
    def _values_fit(self) -> FitOptions:
        if any(not math.isfinite(ridge) or ridge < 0 for ridge in self.ridges):
            raise ValueError(f"ridges has {min(self.ridges)}; a ridge is 0 or above and finite")
        check_sigmas(self.ridge_sigmas, "ridge_sigmas")
        if not all(1 <= k <= 100 for k in self.components_tried):
            raise ValueError(
                f"components_tried={self.components_tried} must hold numbers from 1 to 100"
            )
        if self.wavelet not in table.ORTHONORMAL_WAVELETS and not self.allow_biorthogonal:
            raise ValueError(
                f"wavelet={self.wavelet} is not orthonormal; choose one that is, such as db2 or "
                "sym4, or set allow_biorthogonal=true, which family full takes"
            )
        return self


class FitSettings(FitOptions):
    """The stage's settings."""

    family: table.choice("family", table.FAMILIES) = Field(
        "local", description="which coefficients a coefficient's score looks at"
    )
    degree: int = Field(2, ge=1, le=9, description="total degree of the polynomials")

    @model_validator(mode="after")
    def _family_fits(self) -> FitSettings:
        check_family(self.allow_biorthogonal, self.family, self.degree)
        return self

    @property
    def name(self) -> str:
        """What tables and figures call the score."""
        return f"{self.family}-d{self.degree}" + ("-folds" if self.ridge is None else "")

    def model(self) -> WaveletModel:
        """The score's own settings. Raises ValueError for what cannot be."""
        from stages.methods.wavelet.model import WaveletModel

        if self.family == PRINCIPAL:
            return WaveletModel(self.family, self.degree, components=self.most_components)
        return WaveletModel(
            self.family,
            self.degree,
            self.wavelet,
            self.levels,
            self.couple_channels,
            self.allow_biorthogonal,
        )

    def check_memory(self, shape: tuple[int, int, int], shards: int = 1) -> int:
        """How many shards' statistics may be in flight at once, for images (C, H, W).

        A shard in flight counts twice, where it is made and where it arrives. Raises ValueError,
        naming what would fit instead, when not even one at a time fits.
        """
        model, most, kept = self.model(), int(self.max_gib * GIB), self._kept(shards)
        model.check_memory(shape, most, kept, "wavelet.fit.max_gib")
        free = most - model.predict_bytes(shape, kept)
        return 1 + free // (2 * self.folds * model.statistics_bytes(shape))

    @property
    def sizes_are_chosen(self) -> bool:
        """Whether folds choose the components, and the degree up to the given one."""
        return self.family == PRINCIPAL and self.ridge is None and self.components is None

    @property
    def most_components(self) -> int:
        """Principal coordinates that statistics are collected of."""
        return max(self.components_tried) if self.sizes_are_chosen else self.components or 10

    @property
    def folds(self) -> int:
        """Parts whose statistics are kept apart: 1 where the ridge is given."""
        return self.num_folds if self.ridge is None else 1

    def _kept(self, shards: int) -> int:
        """Statistics in memory with one shard at a time: the folds and those that arrive, or
        what choosing the ridge takes, the folds, their total and the total without one."""
        arriving = 2 * self.folds + 1 if shards > 1 else 1
        return max(arriving, self.folds + 2 if self.folds > 1 else 1)

    def check_early(self, channels: int, size: int) -> None:
        """Raise ValueError for square images that the levels or the memory cannot take.

        Imports no mathematics unless a bound on the memory comes near what is allowed.
        """
        if self.family == PRINCIPAL:
            pixels, most = channels * size**2, self.most_components
            if most > pixels:
                raise ValueError(
                    f"{most} principal components are more than the {pixels} pixels of the images; "
                    "lower components, or components_tried"
                )
            features = math.comb(most + self.degree, self.degree)
            bound = 8 * (self._kept(1) + 3) * (features + pixels) ** 2 + 96 * features**2 + GIB // 2
            if bound > self.max_gib * GIB:
                self.check_memory((channels, size, size))
            return
        check_levels(self.levels, size)
        if self.family == "residual":
            pixels, features = channels * size**2, 1 + (8 + channels) * self.degree
            one = 8 * pixels * (features**2 + (features + 2) * pixels)
            if self._kept(1) * one + GIB // 2 > self.max_gib * GIB:
                self.check_memory((channels, size, size))
            return
        variables = {"independent": 1, "band-tied": 3, "parent": 12, "full": size**2}
        count = variables.get(self.family, 9) + channels - 1
        groups = channels * size**2
        if self.couple_channels and self.family in ("band-tied", "full"):
            count *= channels
        if self.family == "full":
            groups = channels
        one = 8 * math.comb(count + self.degree, self.degree) ** 2
        bound = self._kept(1) * groups * one + 10 * one + GIB // 2
        if bound > self.max_gib * GIB:
            self.check_memory((channels, size, size))


def check_family(allow_biorthogonal: bool, family: str, degree: int) -> None:
    """Raise ValueError for a family that contradicts the degree or the basis."""
    if family == "full" and degree != 1:
        raise ValueError(
            f"family=full and degree={degree} contradict each other: all coefficients together "
            "are for degree 1 only; set degree=1"
        )
    if allow_biorthogonal and family != "full":
        raise ValueError(
            f"allow_biorthogonal=true and family={family} contradict each other: without an "
            "orthonormal basis the noise is correlated between coefficients; set family=full and "
            "degree=1"
        )


def check_levels(levels: int, size: int, name: str = "levels") -> None:
    """Raise ValueError unless images of side `size` can be halved that often."""
    if size % 2**levels:
        possible = (size & -size).bit_length() - 1
        raise ValueError(
            f"{name}={levels} does not fit images of {size} pixels, which 2**{name}={2**levels} "
            f"does not divide; set {name} to at most {possible}, or data.size to "
            f"{(size // 2**levels + 1) * 2**levels}"
        )


# --- map ----------------------------------------------------------------------------------------

Shard = tuple[int, int]  # the first and last of its images


def first_shard(shard: Shard, data: Data, settings: FitSettings) -> CoefficientMoments:
    """Mean and spread of every coefficient over a shard."""
    from stages.methods.wavelet import first_pass
    from stages.methods.wavelet.model import SHARD_IMAGES

    images, model, total = data.load().train, settings.model(), None
    # Cut as first_pass cuts, so that the sum is that of the whole shard to the last bit.
    for first, last in blocks(shard[1] - shard[0], SHARD_IMAGES):
        part = first_pass(images[shard[0] + first : shard[0] + last], model)
        total = part if total is None else total + part
    return total


def second_shard(
    shard: Shard, data: Data, settings: FitSettings, reference: CoefficientMoments
) -> list[WaveletStatistics | None]:
    """Statistics of a shard about the first pass's result, fold by fold; None for an empty fold.

    Image i is in fold i mod num_folds, however the images are cut into shards.
    """
    from stages.methods.wavelet import second_pass

    images, folds, model = data.load().train, settings.folds, settings.model()
    statistics = []
    for fold in range(folds):
        part = images[shard[0] + (fold - shard[0]) % folds : shard[1] : folds]
        statistics.append(second_pass(part, model, reference) if len(part) else None)
    return statistics


# --- reduce -------------------------------------------------------------------------------------


def run(context: Context) -> Result:
    """Two passes, the ridge, and the statistics on disk."""
    from safetensors.torch import save_file

    settings: FitSettings = context.settings
    data: Data = context.inputs["data"]
    with raised_as(StageError):
        folds = sized(collect(context, data), settings, data.description["std"])
        ridges, curves = choose(folds, settings, data.description["std"])
    statistics = folds[0]
    for fold in folds[1:]:
        statistics = statistics + fold
    save_file(statistics.state(), context.path / STATISTICS)
    facts = {
        "method": f"wavelet-{settings.name}",
        "name": settings.name,
        "family": settings.family,
        "degree": statistics.model.degree,
        "components": statistics.model.components if settings.family == PRINCIPAL else None,
        "wavelet": settings.wavelet,
        "levels": settings.levels,
        "couple_channels": settings.couple_channels,
        "dataset": data.description["name"],
        "shape": list(statistics.shape),
        "std": data.description["std"],
        "num_images": statistics.count,
        "ridges": ridges,
    }
    FittedScore.describe(context.path, facts)
    size = statistics.moments.numel() * statistics.moments.element_size()
    *groups, features, _ = statistics.moments.shape
    parts = f"{groups[0]} groups of" if groups else f"{statistics.model.describe()},"
    context.log(
        f"{settings.name} of {statistics.count} images: {parts} "
        f"{features} features, {size / 2**20:.1f} MiB, ridge "
        + ", ".join(f"{ridge:g}" for _, ridge in ridges)
    )
    metrics = {"num_images": statistics.count, "features": features}
    return Result(metrics=metrics, curves=curves, abscissa=ABSCISSA if curves else None)


def collect(context: Context, data: Data) -> list[WaveletStatistics]:
    """Statistics of every fold (one fold when the ridge is given), about one reference."""
    settings: FitSettings = context.settings
    facts = data.description
    count = min(facts["num_train"], settings.num_images or facts["num_train"])
    if settings.folds > count:
        raise ValueError(
            f"num_folds={settings.folds} is above the {count} training images; lower num_folds"
        )
    items = list(blocks(count, settings.shard_size))
    shape = tuple(facts["shape"])
    at_once = settings.check_memory(shape, len(items))  # refuses sizes that cannot be, too
    settings.model().layout(shape)  # refuses wavelets; its own size is what the memory is for
    context.progress(0, 2 * count, "images")
    reference = None
    for moments in context.map(first_shard, items, data, settings):
        reference = moments if reference is None else reference + moments
    reference.check_varies()
    folds: list[Any] = [None] * settings.folds
    for start in range(0, len(items), at_once):
        context.progress(count + items[start][0], 2 * count, "images")
        part = items[start : start + at_once]
        for sums in context.map(second_shard, part, data, settings, reference):
            folds = [_sum(total, one) for total, one in zip(folds, sums, strict=True)]
    context.progress(2 * count, 2 * count, "images")
    return folds


def _sum(total: Any, one: Any) -> Any:
    if one is None or total is None:
        return one if total is None else total
    return total + one


def sized(folds: list[Any], settings: FitSettings, std: float) -> list[Any]:
    """The folds' statistics, of the components and degree of least risk where folds choose them."""
    if not settings.sizes_are_chosen:
        return folds
    from stages.methods.wavelet.ridge import choose_principal

    sigmas, degrees = [s * std for s in settings.ridge_sigmas], range(1, settings.degree + 1)
    tried = settings.components_tried
    best = choose_principal(folds, sigmas, settings.ridges, tried, degrees)
    return [fold.restricted(best.components, best.degree) for fold in folds]


def choose(
    folds: Sequence[WaveletStatistics], settings: FitSettings, std: float
) -> tuple[list[tuple[float, float]], list[tuple[str, int, float]]]:
    """`(level in the units of the images, ridge)` pairs, and curves of ridge and folds' risk.

    The risk is in units of the training pixels' variance.
    """
    if settings.ridge is not None:
        return [(std, settings.ridge)], []
    from stages.methods.wavelet.ridge import choose_ridge

    ridges, curves = [], []
    for sigma in settings.ridge_sigmas:
        choice = choose_ridge(folds, sigma * std, settings.ridges)
        ridges.append((sigma * std, choice.ridge))
        step = sigma_1000(sigma)
        curves.append(("ridge", step, choice.ridge))
        curves.append(("denoising_mse_folds", step, min(choice.risks) / std**2))
    return ridges, sorted(curves)


STAGE = Stage(
    name="fit",
    settings=FitSettings,
    output=FittedScore,
    run="stages.papers.wavelet.fit:run",
    inputs={"data": Input(Data)},
    sources=lambda settings: [table.FAMILIES[settings.family]],
    metrics=lambda node: ("num_images", "features"),
    estimate="stages.papers.wavelet.expected:fit",
)
