"""The stage `risk`: held-out mean squared error of one denoiser over noise levels, and its insides.

A fitted wavelet score gives it exactly, every other denoiser on noise that all of them share: it
depends on the seed and the image alone. **Units**: sigma in standard deviations of the training
pixels, squared errors in their variance, for every data set and every denoiser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import StageError, raised_as
from pipeline.stage import Context, Input, Result, Settings, Stage
from stages.artifacts.data import Data
from stages.artifacts.fitted_score import FittedScore
from stages.artifacts.network import TrainedNetwork, as_denoiser
from stages.artifacts.risks import FACTS, TENSORS, Response, Risks
from stages.methods import drawn_at, table
from stages.settings.sigmas import ABSCISSA, check_sigmas, sigma_1000

if TYPE_CHECKING:
    from torch import Tensor

    from stages.artifacts.data import DataSet
    from stages.methods.path import Denoiser
    from stages.methods.wavelet import WaveletStatistics
    from stages.methods.wavelet.basis import WaveletBasis
    from stages.methods.wavelet.riskmaps import MeasuredRisk

METRIC = "denoising_mse"
FILTER_IMAGES = 64  # noisy images that a filter is averaged over
BASELINES = ("identity", "mean", "wiener", "empirical-bayes", "bayes-shrink")
EXACT = frozenset({"identity", "mean", "wiener"})  # these know their risk in closed form
NO_FILTER = frozenset({"identity", "mean", "bayes-shrink"})  # constant, or no derivative
KINDS = ("score", "network", *BASELINES)


class RiskOptions(Settings):
    """Noise levels, images, and the wavelet bands that errors are told apart by."""

    sigmas: tuple[float, ...] = Field(
        (0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
        min_length=1,
        description="noise levels, in standard deviations of the training pixels",
    )
    num_images: int | None = Field(
        None, ge=2, description="held-out images, the first ones; unset takes all"
    )
    num_draws: int = Field(
        1, ge=1, le=10_000, description="noises an image, where the risk is not known exactly"
    )
    map_wavelet: table.choice("orthonormal wavelet", table.ORTHONORMAL_WAVELETS) = Field(
        "db2", description="of the bands that errors are told apart by; orthonormal"
    )
    map_levels: int = Field(2, ge=0, le=12, description="levels of those bands")
    batch_size: int = Field(256, ge=1, le=65536, description="images denoised together")

    @model_validator(mode="after")
    def _sigmas_fit(self) -> RiskOptions:
        check_sigmas(self.sigmas)
        return self


class RiskSettings(RiskOptions):
    """The stage's settings."""

    denoiser: Literal[KINDS] = Field(
        "score", description="which denoiser: a fitted score, a trained network, or a baseline"
    )
    labelled: bool = Field(
        False, description="network: tell it the image's class, which no other denoiser knows"
    )
    step: int | None = Field(None, ge=1, description="network: checkpoint; unset is the last")
    seed: int = Field(0, ge=0, description="of the noise")

    @model_validator(mode="after")
    def _network_only(self) -> RiskSettings:
        for name in ("labelled", "step"):
            if getattr(self, name) and self.denoiser != "network":
                raise ValueError(
                    f"{name}={getattr(self, name)} and denoiser={self.denoiser} contradict each "
                    f"other: only networks have it; leave {name} unset"
                )
        return self


# --- denoisers ----------------------------------------------------------------------------------


def denoiser_of(settings: RiskSettings, inputs: Mapping[str, Any], data: DataSet) -> Any:
    """denoiser(y, s) in the units of the images, [-1, 1].

    score: a fitted score. network: a trained network through its adapter, without labels. Others:
    see stages.methods.wavelet.baselines; they are fitted to the training images.
    """
    from stages.methods.wavelet import baselines

    match settings.denoiser:
        case "score":
            return inputs["score"].denoiser()
        case "network":
            return network_denoiser(inputs["model"], settings.step)
        case "identity":
            return baselines.Identity()
        case "mean":
            return baselines.PixelMean(data.mu[None])
        case "wiener":
            return baselines.FullWiener.fit(data.train)
        case "empirical-bayes":
            return baselines.EmpiricalBayes(data.train[:].double())
        case "bayes-shrink":
            return baselines.BayesShrink(settings.map_wavelet)


def network_denoiser(model: TrainedNetwork, step: int | None) -> Denoiser:
    """The network's denoiser without labels; its own numbers are float32.

    Raises ValueError for a network that carries a class token: beside an image alone it has no
    denoiser.
    """
    loaded = model.load()
    if loaded.config.get("class_token_dim"):
        raise ValueError(
            f"a network of method {loaded.method} denoises image and class token together, and "
            "held-out images come without one; measure the risk of another network"
        )
    return as_denoiser(loaded, loaded.network(step))


def name_of(settings: RiskSettings, inputs: Mapping[str, Any]) -> str:
    """What tables and figures call the denoiser."""
    if settings.denoiser == "score":
        return inputs["score"].description["name"]
    if settings.denoiser == "network":
        return inputs["model"].description["method"] + (" labelled" if settings.labelled else "")
    return settings.denoiser


def score_facts(score: FittedScore | None) -> dict[str, Any]:
    """What a wavelet score is, beside its name; of other denoisers nothing."""
    if score is None:
        return {"family": None, "degree": None, "folds": False}
    facts = {name: score.description[name] for name in ("family", "degree")}
    return facts | {"folds": score.settings["ridge"] is None}


# --- measuring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """What is found at one noise level, in the units of the images; see `Risk`."""

    mse: float
    standard_error: float | None
    train_mse: float | None
    coefficients: Tensor
    per_image: Tensor
    filter: Tensor | None
    responses: Mapping[str, Response]


@dataclass
class ScoredDenoiser:
    """A denoiser and the images it is scored on. held_out: (B, C, H, W). basis: of the maps."""

    settings: RiskSettings
    denoiser: Any
    held_out: Tensor
    labels: Tensor
    basis: WaveletBasis

    @cached_property
    def noise(self) -> Tensor:
        """(draws, B, C, H, W): of seed, image and draw alone."""
        import torch

        from stages.methods.draws import Draws

        draws = Draws(self.settings.seed, torch.arange(len(self.held_out)))
        shape = tuple(self.held_out.shape[1:])
        count = self.settings.num_draws
        return torch.stack([draws.at(drawn_at.EVALUATION + k).noise(shape) for k in range(count)])

    @cached_property
    def statistics(self) -> WaveletStatistics:
        """Of the held-out images, about the score's own reference."""
        return self.denoiser.statistics.of(self.held_out)

    def level(self, sigma: float) -> Level:
        """Everything at sigma, in the units of the images."""
        from stages.methods.wavelet.riskmaps import mean_filter

        kind = self.settings.denoiser
        at_sigma = self._fitted(sigma) if kind == "score" else self._measured(sigma)
        if kind in NO_FILTER:
            return at_sigma
        _, _, height, width = self.held_out.shape
        centre = (self.held_out.shape[1] // 2, height // 2, width // 2)
        which = slice(0, FILTER_IMAGES)
        denoiser = self._denoiser_for(which)
        noisy = self.held_out[which], self.noise[0, which], sigma
        return replace(at_sigma, filter=mean_filter(denoiser, *noisy, centre))

    def _fitted(self, sigma: float) -> Level:
        from stages.methods.wavelet.response import band_centres, response_curves

        score = self.denoiser.at(sigma)
        risks = score.coefficient_risk(self.statistics)
        basis, responses = self.statistics.bands, {}
        if basis is not None:
            centres = band_centres(score, channel=self.held_out.shape[1] // 2)
            curves = response_curves(score, list(centres.values()))
            parts = zip(curves.w, curves.score, curves.linear, strict=True)
            responses = {b: Response(*part) for b, part in zip(centres, parts, strict=True)}
        # Coefficients of other bands, or of one that is not orthonormal, are no parts of these.
        # The exact risk is that of the polynomials without the reach that samples are drawn with.
        everywhere = replace(score, reach=math.inf)
        sampled = self._sampled(sigma, lambda which: lambda y, s: everywhere.denoise(y))
        maps = risks if basis == self.basis else sampled.coefficients
        exact = float(risks.mean())
        return Level(exact, None, score.risk(), maps, sampled.per_image, None, responses)

    def _measured(self, sigma: float) -> Level:
        sampled = self._sampled(sigma)
        if self.settings.denoiser in EXACT:
            mse, error = self.denoiser.risk(self.held_out, sigma), None
        else:
            mse, error = sampled.mean, sampled.standard_error
        return Level(mse, error, None, sampled.coefficients, sampled.per_image, None, {})

    def _sampled(
        self, sigma: float, denoiser_for: Callable[[slice], Denoiser] | None = None
    ) -> MeasuredRisk:
        from stages.methods.wavelet.riskmaps import measured_risk

        batch_size = self.settings.batch_size
        common = (self.held_out, self.noise, sigma, self.basis, batch_size)
        return measured_risk(denoiser_for or self._denoiser_for, *common)

    def _denoiser_for(self, which: slice) -> Denoiser:
        if not self.settings.labelled:
            return self.denoiser
        return replace(self.denoiser, condition={"labels": self.labels[which]})


def run(context: Context) -> Result:
    """Measure every level; write numbers, maps, filters and curves."""
    import torch
    from safetensors.torch import save_file

    from stages.methods.wavelet.basis import WaveletBasis

    settings: RiskSettings = context.settings
    data: DataSet = context.inputs["data"].load()
    count = len(settings.sigmas)
    with raised_as(StageError, ValueError, ImportError):
        basis = WaveletBasis(settings.map_wavelet, settings.map_levels, *data.shape)
        if not data.std > 0:
            raise ValueError("the training images do not vary; a risk needs images that do")
        denoiser = denoiser_of(settings, context.inputs, data)
        chosen = data.test.first(settings.num_images or len(data.test))
        scored = ScoredDenoiser(settings, denoiser, chosen[:], chosen.labels, basis)
        levels = []
        for i, sigma in enumerate(settings.sigmas):
            context.progress(i, count, "levels")
            levels.append(scored.level(sigma * data.std))
    context.progress(count, count, "levels")
    name = name_of(settings, context.inputs)
    tensors = _tensors(levels, basis, data.std)
    save_file(tensors, context.path / TENSORS)
    variance = data.std**2

    def per(values: Iterable[float | None]) -> list[float | None]:
        return [None if value is None else value / variance for value in values]

    flat = torch.stack([level.coefficients for level in levels]) / variance
    flat = flat.reshape(count, basis.channels, -1)
    facts = {
        "name": name,
        "kind": settings.denoiser,
        **score_facts(context.inputs["score"] if settings.denoiser == "score" else None),
        "dataset": data.name,
        "exact": levels[0].standard_error is None,
        "std": data.std,
        "sigmas": list(settings.sigmas),
        "mse": per(level.mse for level in levels),
        "standard_error": per(level.standard_error for level in levels),
        "train_mse": per(level.train_mse for level in levels),
        "bands": {b.name: flat[..., b.slice].mean((1, 2)).tolist() for b in basis.bands},
    }
    (context.path / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    context.log(
        f"{name}: "
        + ", ".join(f"{s:g} {r:.6f}" for s, r in zip(settings.sigmas, facts["mse"], strict=True))
    )
    return Result(metrics=_metrics(facts), curves=_curves(facts), abscissa=ABSCISSA)


def _tensors(levels: Sequence[Level], basis: WaveletBasis, std: float) -> dict[str, Tensor]:
    import torch

    maps = [basis.mosaic(level.coefficients) / std**2 for level in levels]
    per_image = torch.stack([level.per_image for level in levels]) / std**2
    tensors = {"maps": torch.stack(maps), "per_image": per_image}
    if levels[0].filter is not None:
        tensors["filters"] = torch.stack([level.filter for level in levels])
    for band in levels[0].responses:
        # A score has the unit of one over a coefficient.
        for part, unit in (("w", 1 / std), ("score", std), ("linear", std)):
            values = [getattr(level.responses[band], part) * unit for level in levels]
            tensors[f"response/{band}/{part}"] = torch.stack(values)
    return tensors


def _metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for sigma, value, error in zip(
        facts["sigmas"], facts["mse"], facts["standard_error"], strict=True
    ):
        name = f"{METRIC}_sigma_{sigma:g}"
        metrics[name] = value
        if error is not None:
            metrics[f"{name}_standard_error"] = error
    return metrics


def _curves(facts: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    """Rows over 1000 sigma: the risk, that on training images, and that of every band."""
    series = {METRIC: facts["mse"], f"{METRIC}_train": facts["train_mse"]}
    series |= {f"{METRIC}/{band}": values for band, values in facts["bands"].items()}
    return [
        (name, sigma_1000(sigma), value)
        for name, values in series.items()
        for sigma, value in zip(facts["sigmas"], values, strict=True)
        if value is not None
    ]


STAGE = Stage(
    name="risk",
    settings=RiskSettings,
    output=Risks,
    run="stages.papers.wavelet.risk:run",
    inputs={
        "data": Input(Data),
        "score": Input(FittedScore, optional=True),
        "model": Input(TrainedNetwork, optional=True),
    },
    needs=lambda settings: {"score": ["score"], "network": ["model"]}.get(settings.denoiser, []),
    metrics=lambda node: tuple(f"denoising_mse_sigma_{s:g}" for s in node.settings.sigmas),
    estimate="stages.papers.wavelet.expected:risk",
)
